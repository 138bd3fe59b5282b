"""The kernel that draws a token, against its reference and against plain Python. Without a GPU, interpreted."""

import random
from dataclasses import astuple, dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from gptbench.kernels import sample as module
from gptbench.kernels.launch import supports_pdl
from gptbench.kernels.maxima import CHUNK, Maxima, MaximaScratch
from gptbench.kernels.sample import SampleToken
from gptbench.kernels.sample_reference import sample_reference
from tests.pairwise import for_each
from tests.test_kernel_interpreter import prepare_language_once
from tests.test_sampling import BELOW_ONE, analytic

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POISON = -(2**40) - 12345
ROUNDING = 1e-5
"""How near to the end of a token's share a uniform number may draw its neighbour."""

SETTINGS = {
    "greedy": {"temperature": 0.0},
    "greedy,top_k=3": {"temperature": 0.0, "top_k": 3},
    "plain": {},
    "temperature=0.3": {"temperature": 0.3},
    "top_k=1": {"top_k": 1},
    "top_k=20": {"temperature": 0.8, "top_k": 20},
    "top_k=200": {"temperature": 0.8, "top_k": 200},
    "top_k=V-1": {"top_k": -1},
    "top_p=0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_p=0.2": {"top_p": 0.2},
    "top_p=1e-6": {"top_p": 1e-6},
    "top_p=0.9999": {"top_p": 0.9999},
    "all-three": {"temperature": 0.7, "top_k": 50, "top_p": 0.8},
    "hot-and-cut": {"temperature": 10.0, "top_k": 100, "top_p": 0.5},
}

FEW = ["greedy", "plain", "top_k=20", "top_p=0.95", "all-three"]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),  # numpy's, of infinities
]


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_language_once(monkeypatch)


@dataclass
class Step:
    """What a step writes, in the middle of a run; S is 9."""

    stopped: Tensor
    token: Tensor
    tokens: Tensor
    position: Tensor

    @classmethod
    def poisoned(cls, batch: int, position: int = 3) -> "Step":
        return cls(
            torch.full((batch, 1), -1, device=DEVICE),
            torch.full((batch, 1), POISON, device=DEVICE),
            torch.full((batch, 10), POISON, device=DEVICE),
            torch.full((batch, 1), position, device=DEVICE),
        )


def normal_logits(batch: int, vocab: int, spread: float = 2.0, seed: int = 9) -> Tensor:
    return spread * torch.randn(batch, vocab, generator=torch.Generator().manual_seed(seed))


def random_uniform(batch: int, seed: int = 4) -> Tensor:
    return torch.rand(batch, 1, generator=torch.Generator().manual_seed(seed))


def at_its_place(uniform: Tensor, step: Step) -> Tensor:
    """The numbers [B, 1] at the positions of the tokens to come, among others that must not be read: [B, S + 1]."""
    numbers = torch.full(step.tokens.shape, torch.nan, device=DEVICE)
    return numbers.scatter_(1, step.position + 1, uniform.to(DEVICE))


def between_poison(logits: Tensor) -> Tensor:
    """The same on the device, in the middle of memory that must not be read: NaN has the largest key of all."""
    room = torch.full((logits.numel() + 2 * 4096,), torch.nan, device=DEVICE)
    inner = room[4096 : 4096 + logits.numel()].view(logits.shape)
    return inner.copy_(logits)


def poisoned_scratch(batch: int, vocab: int, chunk: int = CHUNK) -> MaximaScratch:
    scratch = MaximaScratch.empty(batch, vocab, DEVICE, chunk)
    scratch.maxima.fill_(torch.nan)
    scratch.chunks.fill_(2**31 - 1)
    return scratch


def settings(
    vocab: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> list[Tensor]:
    if top_k is None or top_k < 0:
        top_k = vocab + (top_k or 0)
    return [
        torch.tensor(temperature, dtype=torch.float32, device=DEVICE),
        torch.tensor(min(top_k, vocab), device=DEVICE),
        torch.tensor(1.0 if top_p is None else top_p, dtype=torch.float32, device=DEVICE),
    ]


def stop_ids(*tokens: int) -> Tensor:
    return torch.tensor([*tokens, *[-1] * (16 - len(tokens))], device=DEVICE)


def launch(
    logits: Tensor,
    numbers: Tensor,
    chosen: list[Tensor],
    stops: Tensor,
    step: Step,
    scratch: MaximaScratch,
    pdl: bool = False,
) -> None:
    Maxima(logits, scratch).launch(pdl)
    SampleToken(logits, numbers, *chosen, stops, **vars(step), scratch=scratch).launch(pdl)


def kernel_tokens(logits: Tensor, uniform: Tensor, chunk: int = CHUNK, **chosen: float) -> list[int]:
    """What the kernel draws, and that it writes nothing else."""
    batch, vocab = logits.shape
    step, scratch = Step.poisoned(batch), poisoned_scratch(batch, vocab, chunk)
    placed = between_poison(logits)
    launch(placed, at_its_place(uniform, step), settings(vocab, **chosen), stop_ids(), step, scratch)
    tokens = step.token.flatten().tolist()
    assert step.tokens.tolist() == [[POISON] * 4 + [token] + [POISON] * 5 for token in tokens]
    assert step.position.tolist() == [[4]] * batch
    assert step.stopped.flatten().tolist() == [-1] * batch
    return tokens


def twin_tokens(logits: Tensor, uniform: Tensor, **chosen: float) -> list[int]:
    batch, vocab = logits.shape
    step = Step.poisoned(batch)
    numbers = at_its_place(uniform, step)
    sample_reference(logits.to(DEVICE), numbers, *settings(vocab, **chosen), stop_ids(), *vars(step).values())
    assert step.tokens[:, 4:5].tolist() == step.token.tolist()
    assert step.position.tolist() == [[4]] * batch
    return step.token.flatten().tolist()


def kept_by_hand(logits: Tensor, chosen: dict[str, float]) -> dict[int, float]:
    """Kept tokens of one row, by id, and their probabilities."""
    vocab = len(logits)
    chosen = dict(chosen)
    if chosen.get("temperature") == 0:
        return {int(logits.argmax()): 1.0}
    if "top_k" in chosen:
        chosen["top_k"] = chosen["top_k"] % vocab if chosen["top_k"] < 0 else min(chosen["top_k"], vocab)
    return analytic(logits.tolist(), **chosen)


def away_from_ends(logits: Tensor, uniform: Tensor, chosen: dict[str, float]) -> Tensor:
    """The same numbers [B, 1], moved on by as little as it takes to be within a token's share."""
    moved = uniform.clone()
    for row, u in zip(logits, moved, strict=True):
        ends = torch.tensor([0.0, *accumulate(kept_by_hand(row, chosen).values())], dtype=torch.float64)
        while (ends - u.double()).abs().min() < 2 * ROUNDING:
            u += ROUNDING if u < 0.5 else -ROUNDING
    return moved


@for_each("chunk", [16, 64])
@for_each("vocab", [5, 211, 512, 4097, 5000])
def test_chunk_maxima(vocab: int, chunk: int) -> None:
    logits = normal_logits(3, vocab) - 5.0
    logits[1, ::7] = -torch.inf
    made, expected = poisoned_scratch(3, vocab, chunk), poisoned_scratch(3, vocab, chunk)
    Maxima(between_poison(logits), made).launch()
    Maxima(logits.to(DEVICE), expected).reference()
    assert torch.equal(made.maxima, expected.maxima)
    by_hand = [[max(row[i : i + chunk]) for i in range(0, vocab, chunk)] for row in logits.tolist()]
    assert expected.maxima.tolist() == by_hand


@pytest.mark.parametrize(
    ("vocab", "name"),
    [*((211, name) for name in SETTINGS), (331, "plain"), (512, "top_k=20"), (2048, "all-three")]
    + [(5000, name) for name in FEW],
    ids=str,
)
def test_kernel_draws_what_its_twin_draws(vocab: int, name: str) -> None:
    chosen = SETTINGS[name]
    logits = normal_logits(2, vocab)
    uniform = away_from_ends(logits, random_uniform(2), chosen)
    assert kernel_tokens(logits, uniform, **chosen) == twin_tokens(logits, uniform, **chosen)


@pytest.mark.parametrize(
    ("name", "chunk", "block"),
    [*((name, 32, 256) for name in SETTINGS), *((name, 16, 4096) for name in FEW)],
    ids=str,
)
def test_kept_tokens_are_exactly_the_expected_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, chunk: int, block: int
) -> None:
    """A number from the middle of a kept token's share draws that token; the ends draw the first and the last."""
    monkeypatch.setattr(module, "BLOCK", block)
    chosen = SETTINGS[name]
    row = normal_logits(1, 331, seed=3)[0]
    kept = kept_by_hand(row, chosen)
    middles = {token: end - p / 2 for (token, p), end in zip(kept.items(), accumulate(kept.values()), strict=True)}
    # The rarest ones lie next to the threshold: what is wrong with it shows there.
    expected = sorted(kept, key=lambda token: kept[token])[:2]
    expected = [token for token in expected if kept[token] > 2 * ROUNDING]
    uniform = torch.tensor([0.0, BELOW_ONE, *(middles[token] for token in expected)]).unsqueeze(1)
    logits = row.expand(len(uniform), -1)
    drawn = kernel_tokens(logits, uniform, chunk, **chosen)
    assert drawn == [min(kept), max(kept), *expected]
    assert drawn == twin_tokens(logits, uniform, **chosen)


@pytest.mark.parametrize(
    ("block", "chosen"),
    [
        (4096, {"temperature": 0.0}),
        (4096, {"top_k": 1}),
        (4096, {"top_p": 0.101}),
        (4096, {"top_k": 100, "top_p": 0.303}),
        (128, {}),
        (128, {"top_k": 37}),
        (128, {"top_p": 0.9}),
        (128, {"top_k": 38, "top_p": 0.9}),
    ],
    ids=str,
)
def test_of_equal_logits_top_k_keeps_all_and_top_p_the_lower_ids(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, float], block: int
) -> None:
    """All equal, as zeros of both signs; and 30 large ones among equals, which thresholds cut or fall between."""
    monkeypatch.setattr(module, "BLOCK", block)
    logits = torch.zeros(2, 211)
    logits[0, ::2] = -0.0
    logits[1, 3::7] = 1.0
    expected = [list(kept_by_hand(row, chosen)) for row in logits]
    for uniform, place in ((0.0, 0), (1.0, -1)):
        numbers = torch.full((2, 1), uniform)
        drawn = kernel_tokens(logits, numbers, **chosen)
        assert drawn == twin_tokens(logits, numbers, **chosen)
        assert drawn == [kept[place] for kept in expected]


@pytest.mark.parametrize("seed", range(4 if DEVICE.type == "cuda" else 2))
def test_random_logits_and_settings_with_ties(seed: int) -> None:
    """The middle of a share draws its token: of the rarest ones, which lie at the border, the first and the last."""
    u = random.Random(seed)
    for _ in range(9):
        vocab = u.choice([17, 97, 300])
        logits = normal_logits(1, vocab, u.choice([1.0, 2.0, 4.0]), seed=u.randrange(2**31)).round()
        if u.random() < 0.3:
            logits[:, u.sample(range(vocab), vocab // 2)] = -torch.inf
        chosen = {"temperature": u.choice([0.3, 0.7, 1.0, 20.0]), "top_k": u.choice([1, 2, 5, 11, vocab - 1])}
        if u.random() < 0.5:
            chosen["top_p"] = u.choice([1e-6, 0.31, 0.55, 0.9])
        kept = kept_by_hand(logits[0], chosen)
        middles = {token: end - kept[token] / 2 for token, end in zip(kept, accumulate(kept.values()), strict=True)}
        seen = [token for token in kept if kept[token] > 2 * ROUNDING]
        rarest = [token for token in seen if kept[token] == min(map(kept.__getitem__, seen))]
        expected = [rarest[0], rarest[-1], u.choice(seen)]
        uniform = torch.tensor([0.0, BELOW_ONE, *map(middles.__getitem__, expected)]).unsqueeze(1)
        rows = logits.expand(len(uniform), -1)
        first, last, *drawn = kernel_tokens(rows, uniform, **chosen)
        assert drawn == expected, (vocab, chosen)
        assert drawn == twin_tokens(rows, uniform, **chosen)[2:], (vocab, chosen)
        assert {first, last} <= set(kept), (vocab, chosen)


@for_each("temperature", [1e-44, 1e-38, 1e-3])
@for_each("chosen", [{}, {"top_p": 0.5}, {"top_k": 9, "top_p": 0.5}])
def test_a_very_low_temperature_is_greedy(temperature: float, chosen: dict[str, float]) -> None:
    logits, uniform = normal_logits(3, 211), torch.tensor([[0.0], [0.7], [BELOW_ONE]])
    assert kernel_tokens(logits, uniform, temperature=temperature, **chosen) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
def test_extreme_logits(chosen: dict[str, float]) -> None:
    """Impossible tokens, whole chunks of them, all but one; and numbers whose difference is over the largest."""
    logits = normal_logits(5, 211)
    logits[0, torch.rand(211, generator=torch.Generator().manual_seed(2)) < 0.5] = -torch.inf
    logits[1, 32:160] = -torch.inf
    logits[2] = -torch.inf
    logits[2, 77] = -8.0
    logits[3, ::3] = -3.4e38
    logits[3, 100] = 3.4e38
    logits[4] -= 1000.0
    uniform = away_from_ends(logits, random_uniform(5), chosen)
    assert kernel_tokens(logits, uniform, **chosen) == twin_tokens(logits, uniform, **chosen)


@for_each("name", FEW)
def test_any_token_comes_of_logits_that_are_no_numbers(name: str) -> None:
    chosen = SETTINGS[name]
    logits = normal_logits(5, 211)
    logits[0] = torch.nan
    logits[1, 100] = torch.nan
    logits[2] = -torch.inf
    logits[3, 5] = torch.inf
    logits[4] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a NaN with the smallest of all keys
    tokens = kernel_tokens(logits, random_uniform(5), **chosen)
    assert all(0 <= token < 211 for token in tokens)
    assert all(0 <= token < 211 for token in twin_tokens(logits, random_uniform(5), **chosen))


@pytest.mark.parametrize("batch", [1, 4])
def test_several_steps_with_stop_tokens(batch: int) -> None:
    """Kernel and twin side by side, the same tensors all along: what a row has stopped with it keeps. Each row is at
    a position of its own."""
    vocab, chosen = 211, settings(211, temperature=0.9, top_k=4)
    made, expected = Step.poisoned(batch, position=0), Step.poisoned(batch, position=0)
    begin = [row % 2 for row in range(batch)]
    for each in (made, expected):
        each.position[:, 0] = torch.tensor(begin)
    scratch = poisoned_scratch(batch, vocab)
    drawn = []
    stops = stop_ids()
    for index in range(8):
        logits, uniform = normal_logits(batch, vocab, seed=index), random_uniform(batch, seed=index)
        placed = between_poison(logits)
        launch(placed, at_its_place(uniform, made), chosen, stops, made, scratch)
        sample_reference(logits.to(DEVICE), at_its_place(uniform, expected), *chosen, stops, *vars(expected).values())
        assert all(torch.equal(a, b) for a, b in zip(astuple(made), astuple(expected), strict=True)), index
        drawn.append(made.token.flatten().tolist())
        if index == 1:  # from now on the last row stops; with what it is about to draw
            next_input = normal_logits(batch, vocab, seed=2), random_uniform(batch, seed=2)
            unstopped = twin_tokens(*next_input, temperature=0.9, top_k=4)
            stops.copy_(stop_ids(5, unstopped[-1], 210))
    assert [row[-1] for row in drawn[2:]] == [unstopped[-1]] * 6
    assert made.stopped[-1].tolist() == [unstopped[-1]]
    assert made.position.flatten().tolist() == [first + 8 for first in begin]
    for row, first in enumerate(begin):
        own = [step[row] for step in drawn]
        assert made.tokens[row].tolist() == [POISON] * (first + 1) + own + [POISON] * (1 - first)
    if batch > 1:
        assert made.stopped[0].tolist() == [-1]
        assert len({row[0] for row in drawn}) > 1


def test_the_token_at_the_last_place_of_the_stop_tokens_stops() -> None:
    step, scratch = Step.poisoned(2), poisoned_scratch(2, 40)
    logits = torch.zeros(2, 40)
    logits[0, 15] = logits[1, 16] = 9.0
    placed = between_poison(logits)
    chosen = settings(40, temperature=0.0)
    launch(placed, at_its_place(random_uniform(2), step), chosen, stop_ids(*range(16)), step, scratch)
    assert step.token.flatten().tolist() == [15, 16]
    assert step.stopped.flatten().tolist() == [15, -1]


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [32000, 128256, 151936], ids="V={}".format)
@pytest.mark.parametrize("spread", [0.05, 1.0, 3.0], ids="spread={}".format)
def test_large_vocabularies_and_many_settings(vocab: int, spread: float) -> None:
    """Each row's token covers its uniform number in the float64 distribution, and is the twin's where rounding
    decides nothing: neither near the end of a share nor, with top_p, which tokens are kept."""
    generator = torch.Generator().manual_seed(vocab)
    logits = normal_logits(4, vocab, spread, seed=vocab)
    logits[2] = (8 * logits[2]).round() / 8  # many equal ones
    for index in range(40):
        pick = torch.rand(4, generator=generator).tolist()
        temperature = [0.0, 0.5, 0.8, 1.0, 2.0][int(5 * pick[0])]
        top_k = vocab if pick[1] < 0.3 else max(1, int(vocab ** pick[2]))
        top_p = 1.0 if pick[3] < 0.4 else (pick[3] - 0.4) / 0.6 + 1e-6
        chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        uniform = torch.rand(4, 1, generator=generator)
        uniform[3] = [0.0, BELOW_ONE, 0.25][index % 3]
        step, scratch = Step.poisoned(4), poisoned_scratch(4, vocab)
        placed, pdl = between_poison(logits), supports_pdl(DEVICE)
        values = settings(vocab, **chosen)
        launch(placed, at_its_place(uniform, step), values, stop_ids(), step, scratch, pdl)
        tokens = step.token.flatten().tolist()
        twin = twin_tokens(logits, uniform, **chosen)
        if temperature == 0:
            assert tokens == twin == logits.argmax(-1).tolist()
            continue
        ordered, ids = logits.double().sort(dim=-1, descending=True, stable=True)
        least = ordered[:, min(top_k, vocab) - 1].unsqueeze(1)
        probability = (ordered / temperature).masked_fill(ordered < least, -torch.inf).softmax(-1)
        before = probability.cumsum(-1) - probability
        for row in range(4):
            kept = torch.zeros(vocab, dtype=torch.float64)
            wide = before[row] < top_p + ROUNDING if top_p < 1 else before[row] >= 0
            narrow = before[row] < top_p - ROUNDING if top_p < 1 else wide
            kept[ids[row][wide]] = probability[row][wide]
            unsure = float(probability[row][wide & ~narrow].sum() / probability[row][wide].sum())
            ends = (kept / kept.sum()).cumsum(-1)
            starts = ends - kept / kept.sum()
            token, u = tokens[row], uniform[row].double().item()
            allowed = ROUNDING + unsure
            assert kept[token] > 0, (chosen, row)
            assert starts[token] - allowed <= u <= ends[token] + allowed, (chosen, row)
            if not unsure and starts[token] + ROUNDING <= u <= ends[token] - ROUNDING:
                assert token == twin[row], (chosen, row)
