"""Drawing: the exact distribution, the exact set of tokens kept, and one compiled form for all settings."""

import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from gptbench.config import SamplingConfig
from gptbench.kernels.sample_reference import sample
from gptbench.sampling import Sampler
from tests.models import CPU
from tests.pairwise import for_each

BELOW_ONE = 1 - 2**-24
"""The largest float32 that a uniform number from [0, 1) can be."""

SETTINGS = {
    "plain": {},
    "temperature=0.5": {"temperature": 0.5},
    "temperature=3": {"temperature": 3.0},
    "top_k=1": {"top_k": 1},
    "top_k=5": {"top_k": 5},
    "top_k=all": {"top_k": 37},
    "top_p=0.9": {"top_p": 0.9},
    "top_p=0.3": {"top_p": 0.3},
    "top_p=1e-6": {"top_p": 1e-6},
    "top_p=0.999": {"top_p": 0.999},
    "top_p=1": {"top_p": 1.0},
    "top_k=7,top_p=0.8": {"top_k": 7, "top_p": 0.8},
    "all-three": {"temperature": 0.7, "top_k": 20, "top_p": 0.95},
    "hot-and-cut": {"temperature": 10.0, "top_k": 30, "top_p": 0.5},
}
TIED = {
    "top_k=1": {"top_k": 1},
    "top_k=9": {"top_k": 9},
    "all-three": {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
}
"""For logits of which several equal the last one that top_k keeps."""

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**chosen: Any) -> SamplingConfig:
    return SamplingConfig(_target_="gptbench.sampling.Sampler", name="test", **chosen)


def settings(vocab: int, **chosen: float) -> tuple[Tensor, Tensor, Tensor]:
    return Sampler(config(**chosen), vocab, CPU).settings


def normal_logits(*shape: int, spread: float = 2.0, seed: int = 9) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def analytic(
    logits: list[float], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> dict[int, float]:
    """Tokens that are kept, in order of their ids, and their probabilities; plain Python, float64."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = [token for token in order if top_k is None or logits[token] >= logits[order[top_k - 1]]]
    odds = [math.exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    probability = [o / sum(odds) for o in odds]
    if top_p is not None and top_p < 1:
        # As many as it takes to reach p: all whose predecessors have not reached it.
        before = [0.0, *accumulate(probability)][:-1]
        probability = [p for p, reached in zip(probability, before, strict=True) if reached < top_p]
    total = sum(probability)
    return {token: p / total for token, p in sorted(zip(order, probability, strict=False))}


def draw(logits: Tensor, uniform: list[float] | Tensor, **chosen: float) -> Tensor:
    """A token from logits [V] for each uniform number."""
    uniform = torch.as_tensor(uniform, dtype=torch.float32).view(-1, 1)
    return sample(logits.expand(len(uniform), -1), uniform, *settings(logits.shape[-1], **chosen))


@pytest.mark.parametrize(
    ("chosen", "tied"),
    [*((chosen, False) for chosen in SETTINGS.values()), *((chosen, True) for chosen in TIED.values())],
    ids=[*SETTINGS, *(f"{name}-tied" for name in TIED)],
)
def test_distribution_is_the_exact_one(chosen: dict[str, float], tied: bool) -> None:
    """Chi-square over 40,000 draws with a fixed seed; what is expected fewer than 5 times counts as one bin."""
    logits, count = normal_logits(37), 40_000
    if tied:
        logits = (logits / 2).round()
        assert (logits >= logits.sort(descending=True).values[chosen["top_k"] - 1]).sum() > chosen["top_k"]
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(21))
    drawn = draw(logits, uniform, **chosen).bincount(minlength=37).tolist()
    expected = {token: p * count for token, p in analytic(logits.tolist(), **chosen).items()}
    assert sum(drawn[token] for token in expected) == count, "a token outside the kept set was drawn"
    rare = [token for token, times in expected.items() if times < 5]
    common = [token for token in expected if token not in rare]
    observed_bins = [drawn[token] for token in common]
    expected_bins = [expected[token] for token in common]
    if rare:
        observed_bins.append(sum(drawn[token] for token in rare))
        expected_bins.append(sum(expected[token] for token in rare))
    if len(expected_bins) > 1:
        assert chisquare(observed_bins, expected_bins).pvalue > 1e-3
    else:
        assert observed_bins == [count]


@for_each("vocab", [1, 2, 37, 1009])
@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
def test_kept_tokens_are_exactly_the_expected_ones(chosen: dict[str, float], vocab: int) -> None:
    """A uniform number from the middle of each kept token's share draws that token; no number draws another."""
    if "top_k" in chosen:  # the configuration refuses one over the vocabulary
        chosen = chosen | {"top_k": min(chosen["top_k"], vocab)}
    logits = normal_logits(vocab)
    kept = analytic(logits.tolist(), **chosen)
    ends = list(accumulate(kept.values()))
    # What is rarer than 1e-5 lies within rounding of its neighbours.
    middles = {token: end - p / 2 for (token, p), end in zip(kept.items(), ends, strict=True) if p > 1e-5}
    assert draw(logits, list(middles.values()), **chosen).tolist() == list(middles)
    grid = draw(logits, torch.linspace(0, BELOW_ONE, 999), **chosen)
    assert set(grid.tolist()) <= set(kept)


@for_each("chosen", SETTINGS.values())
def test_ends_of_the_uniform_range_draw_the_first_and_the_last_kept_token(chosen: dict[str, float]) -> None:
    logits = normal_logits(37, spread=1.0)
    kept = list(analytic(logits.tolist(), **chosen))
    assert draw(logits, [0.0, BELOW_ONE, 1.0], **chosen).tolist() == [kept[0], kept[-1], kept[-1]]


def test_top_k_keeps_all_that_equal_the_last_kept() -> None:
    logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    ends = [1 / 6, 3 / 6, 5 / 6]
    for top_k in (1, 2, 3):
        assert draw(logits, ends, top_k=top_k).tolist() == [1, 3, 4]
    assert set(draw(logits, torch.linspace(0, BELOW_ONE, 1001), top_k=4).tolist()) == set(range(6))
    assert draw(torch.zeros(101), [0.0, 0.5, BELOW_ONE], top_k=3).tolist() == [0, 50, 100]


def test_top_k_and_top_p_keep_as_many_as_the_transformers_library() -> None:
    """Which of equal ones top_p keeps is open in the library; how many, and with what probability, is not."""
    transformers = pytest.importorskip("transformers")
    random = torch.Generator().manual_seed(7)
    tied = 0
    for top_k in (1, 2, 5, 9):
        for top_p in (0.3, 0.62, 0.97, 1.0):
            logits = torch.randint(-4, 5, (1, 23), generator=random).float()
            expected = transformers.TopKLogitsWarper(top_k)(None, logits)
            tied += int((expected > -torch.inf).sum()) > top_k
            if top_p < 1:
                expected = transformers.TopPLogitsWarper(top_p)(None, expected)
            of_library = expected[expected > -torch.inf].sort().values
            kept = analytic(logits[0].tolist(), top_k=top_k, top_p=top_p)
            assert sorted(logits[0, list(kept)].tolist()) == of_library.tolist(), (top_k, top_p, logits)
            tokens = draw(logits[0], torch.linspace(0, BELOW_ONE, 2001), top_k=top_k, top_p=top_p)
            assert set(tokens.tolist()) == set(kept), (top_k, top_p, logits)
    assert tied >= 8


@for_each("top_p, kept", [(1e-30, 1), (0.499, 1), (0.501, 2), (0.749, 2), (0.751, 3), (0.876, 4), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: int) -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    tokens = draw(logits, torch.linspace(0, BELOW_ONE, 1001), top_p=top_p)
    assert set(tokens.tolist()) == set([1, 3, 0, 2][:kept])
    assert tokens.tolist() == sorted(tokens.tolist())


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ({"top_k": 1}, [2, 3, 5, 9]),
        ({"top_k": 4}, [2, 3, 5, 9]),
        ({"top_p": 0.24}, [2]),
        ({"top_p": 0.26}, [2, 3]),
        ({"top_p": 0.74}, [2, 3, 5]),
        ({"top_k": 3, "top_p": 0.6}, [2, 3, 5]),
        ({"top_k": 1, "top_p": 0.26}, [2, 3]),
    ],
    ids=str,
)
def test_of_equal_tokens_top_p_keeps_those_with_the_lower_ids(chosen: dict[str, float], kept: list[int]) -> None:
    """Four of probability 1/4 in all but rounding, and nothing to speak of beside them."""
    logits = torch.full((12,), -200.0)
    logits[[9, 5, 2, 3]] = 7.0
    tokens = draw(logits, torch.linspace(0, BELOW_ONE, 101), **chosen)
    assert sorted(set(tokens.tolist())) == kept


@for_each("chosen", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.1}])
def test_tokens_without_a_chance_are_never_drawn(chosen: dict[str, float]) -> None:
    """Impossible ones, and what overflows under the largest there is; at both ends, where rounding would look."""
    low = torch.tensor([-torch.inf, -3.4e38, 3.4e38, -torch.inf, 3.4e38, -1e38, -torch.inf])
    uniform = torch.tensor([0.0, 0.49, 0.51, BELOW_ONE, 1.0])
    assert draw(low, uniform, **chosen).tolist() == [2, 2, 4, 4, 4]
    assert draw(torch.tensor([-torch.inf, 1.0, -torch.inf]), uniform, **chosen).tolist() == [1] * 5


def test_top_p_counts_from_what_top_k_left() -> None:
    """Of 0.4, 0.3, 0.2, 0.1 top_k=2 leaves 4/7 and 3/7: p=0.5 then keeps one; of all four it would keep two."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    uniform = torch.linspace(0, BELOW_ONE, 101)
    assert set(draw(logits, uniform, top_k=2, top_p=0.5).tolist()) == {0}
    assert set(draw(logits, uniform, top_p=0.5).tolist()) == {0, 1}
    assert set(draw(logits, uniform, top_k=2, top_p=0.6).tolist()) == {0, 1}


@for_each("spread", [0.0, 1e-3, 0.5, 3.0])
@pytest.mark.parametrize("top_p", [None, 1.0], ids="top_p={}".format)
def test_without_top_p_all_of_a_large_vocabulary_is_kept(top_p: float | None, spread: float) -> None:
    """Whatever way 32,000 summands round: where the sum reaches 1 early, no token after that lies under p=1."""
    vocab = 32_000
    logits = normal_logits(vocab, spread=spread)
    end = logits.double().softmax(-1).cumsum(-1)
    # 1 is no number from [0, 1), but it draws the last token that is kept.
    uniform = torch.cat((torch.rand(60, generator=torch.Generator().manual_seed(2)), torch.tensor([0.0, 1.0])))
    drawn = draw(logits, uniform, top_p=top_p)
    assert drawn[-2:].tolist() == [0, vocab - 1]
    start = torch.cat((torch.zeros(1, dtype=torch.float64), end))[drawn]
    assert (start <= uniform.double() + 1e-5).all()
    assert (uniform.double() - 1e-5 <= end[drawn]).all()


def test_a_long_tail_of_rare_tokens_can_be_drawn() -> None:
    """31,997 tokens of 2^-26 each, 4.8e-4 together: added one by one to 1 in float32, they would all be lost."""
    logits = torch.full((32_000,), math.log(2**-26))
    logits[:3] = torch.tensor([0.5, 0.25, 0.25]).log()
    tail = (torch.arange(200) + 0.5) / 200
    drawn = draw(logits, (1 + tail * 31_997 * 2**-26) / (1 + 31_997 * 2**-26))
    expected = 3 + tail * 31_997
    assert (drawn - expected).abs().max() < 20  # 2^-24 is four tokens


@for_each("chosen", [{}, {"top_k": 3}, {"top_p": 0.1}, {"top_k": 2, "top_p": 0.9}])
def test_greedy_takes_the_first_of_the_largest(chosen: dict[str, float]) -> None:
    logits = normal_logits(64, 41)
    logits[5] = 0.0  # all equal
    logits[6, [7, 30, 40]] = 50.0
    logits[7, [40, 3]] = 50.0
    uniform = torch.rand(64, 1, generator=torch.Generator().manual_seed(3))
    uniform[:2] = torch.tensor([[0.0], [BELOW_ONE]])
    tokens = sample(logits, uniform, *settings(41, temperature=0.0, **chosen))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert tokens[5:8].tolist() == [0, 7, 3]


def test_rows_of_a_batch_are_drawn_independently() -> None:
    logits = normal_logits(6, 53)
    uniform = torch.rand(6, 1, generator=torch.Generator().manual_seed(5))
    chosen = {"temperature": 0.9, "top_k": 40, "top_p": 0.97}
    together = sample(logits, uniform, *settings(53, **chosen)).tolist()
    assert together == [draw(row, u, **chosen).item() for row, u in zip(logits, uniform, strict=True)]


@for_each("temperature", [1e-3, 1e-30, 1e-37])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = normal_logits(4, 33)
    uniform = torch.tensor([[0.0], [0.3], [0.9], [BELOW_ONE]])
    assert torch.equal(sample(logits, uniform, *settings(33, temperature=temperature)), logits.argmax(-1))


@for_each("temperature", [1e-38, 1e-44])
def test_the_lowest_temperatures_are_greedy_too(temperature: float) -> None:
    logits = normal_logits(4, 33)
    uniform = torch.tensor([[0.0], [0.3], [0.9], [BELOW_ONE]])
    assert torch.equal(sample(logits, uniform, *settings(33, temperature=temperature)), logits.argmax(-1))


def test_a_very_high_temperature_is_uniform() -> None:
    drawn = draw(normal_logits(8), (torch.arange(8) + 0.5) / 8, temperature=1e30)
    assert sorted(drawn.tolist()) == list(range(8))


def test_setting_changes_the_same_tensors_in_place() -> None:
    sampler = Sampler(config(temperature=0.8, top_k=5, top_p=0.9), 100, CPU)
    before = sampler.settings
    addresses = [tensor.data_ptr() for tensor in before]
    assert [t.item() for t in before] == pytest.approx([0.8, 5, 0.9])
    sampler.set(config(temperature=0.0))
    assert all(now is then for now, then in zip(sampler.settings, before, strict=True))
    assert [tensor.data_ptr() for tensor in sampler.settings] == addresses
    assert [t.item() for t in before] == [0, 100, 1]  # null is the whole vocabulary, and p=1
    assert [(t.dtype, t.shape) for t in before] == [(torch.float32, ()), (torch.int64, ()), (torch.float32, ())]


def test_stop_tokens_are_set_in_place() -> None:
    sampler = Sampler(config(stop_tokens=[5, 0, 99]), 100, CPU)
    stops, address = sampler.stops, sampler.stops.data_ptr()
    assert stops.tolist() == [5, 0, 99] + [-1] * 13
    sampler.set(config(stop_tokens=[7]))
    assert stops.tolist() == [7] + [-1] * 15
    sampler.set(config())
    assert stops.tolist() == [-1] * 16
    sampler.set(config(stop_tokens=list(range(16))))
    assert stops.tolist() == list(range(16))
    assert sampler.stops is stops
    assert stops.data_ptr() == address
    assert stops.dtype == torch.int64


def test_one_compiled_form_serves_all_settings() -> None:
    """fullgraph refuses whatever the host would have to wait for."""
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(sample, backend=counter, fullgraph=True, dynamic=False)
    logits, uniform = normal_logits(3, 37), torch.tensor([[0.1], [0.5], [0.9]])
    sampler = Sampler(config(), 37, CPU)
    for chosen in [*SETTINGS.values(), {"temperature": 0.0}]:
        sampler.set(config(**chosen))
        expected = sample(logits, uniform, *sampler.settings)
        assert torch.equal(compiled(logits, uniform, *sampler.settings), expected), chosen
    # Another sampler, too: its tensors are inputs, not constants.
    compiled(logits, uniform, *settings(37, temperature=0.3, top_k=2))
    assert counter.frame_count == 1


def test_nothing_is_read_back_to_the_host() -> None:
    """Tensors on `meta` hold nothing that could be read."""
    meta = torch.device("meta")
    sampler = Sampler(config(top_k=3, top_p=0.5), 37, meta)
    tokens = sample(torch.empty(3, 37, device=meta), torch.empty(3, 1, device=meta), *sampler.settings)
    assert tokens.shape == (3,)
    assert tokens.dtype == torch.int64
