"""task=quality: what is recorded is what a plain computation over the same tokens gives."""

import errno
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gptbench.base.errors import ConfigError
from gptbench.config import Config, DeviceConfig, DeviceKind, EagerConfig, QualityConfig, SamplingConfig, TaskConfig
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Eager, Engine, Shape
from gptbench.sampling import Sampler
from gptbench.schema.summary import part_metrics, summary
from gptbench.task import Quality, Speed
from gptbench.text.prompt import make_tokenizer, with_prompt
from tests.models import DENSE, make_model, model_config, prefill, run_config
from tests.results import made_result

DEMO = model_config("demo")
PREFILLED, PREDICTED = 4, 7


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """Tiny tensors."""


def task(**values: Any) -> QualityConfig:
    return QualityConfig(_target_="gptbench.task.Quality", name="quality", **({"tokens": 21} | values))


def config(batch: int = 1, **workload: Any) -> Config:
    """A run of random weights of the demo model's shape, with its tokenizer."""
    model = replace(DENSE, vocab_size=DEMO.vocab_size, tokenizer=DEMO.checkpoint)
    made = run_config(model, prompt=list(range(PREFILLED)), new_tokens=PREDICTED, batch=batch)
    return replace(made, workload=replace(made.workload, **workload))


def quality(of: Config, **values: Any) -> Quality:
    return Quality(task(**values), of, make_tokenizer(of.model))


def one_core() -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu, threads=1))


def engine(of: Config, seed: int = 1234, dtype: torch.dtype = torch.float32, quant: str = "none") -> Engine:
    device = one_core()
    shape = Shape(of.workload.batch_size, PREFILLED, 16)
    model = make_model(of.model, quant, shape.batch, shape.length, dtype, seed)
    greedy = Sampler(
        SamplingConfig(_target_="gptbench.sampling.Sampler", name="greedy"), of.model.vocab_size, device.torch
    )
    return Eager(EagerConfig(_target_="gptbench.engine.Eager", name="eager"), model, greedy, device, shape)


def never() -> Engine:
    raise AssertionError("no reference was asked for")


def expected_logits(of: Config, windows: Tensor, **made: Any) -> Tensor:
    """float64 [W, n, V] before each predicted token: a prefill of all that is before it, one after the other."""
    model = engine(replace(of, workload=replace(of.workload, batch_size=1)), **made).model
    ends = range(PREFILLED, PREFILLED + PREDICTED)
    rows = [prefill(model, window[None, :end])[0].double() for window in windows for end in ends]
    return torch.stack(rows).unflatten(0, (len(windows), PREDICTED))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_likelihood_divergence_and_agreement_are_those_of_a_plain_computation(batch: int) -> None:
    of = config(batch)
    wanted = quality(of)
    assert wanted.windows.shape == (3, PREFILLED + PREDICTED)
    found = wanted.evaluate(engine(of), lambda: engine(of, seed=9))
    p = expected_logits(of, wanted.windows, seed=9).log_softmax(-1)
    q = expected_logits(of, wanted.windows).log_softmax(-1)
    targets = wanted.windows[:, PREFILLED:].unsqueeze(-1)
    assert found.nll == pytest.approx((-q.gather(2, targets)).flatten().tolist(), rel=1e-4)
    assert found.reference_nll == pytest.approx((-p.gather(2, targets)).flatten().tolist(), rel=1e-4)
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(-1).flatten().tolist(), rel=1e-3)
    assert found.same_top == (p.argmax(-1) == q.argmax(-1)).flatten().tolist()
    assert found.context == [PREFILLED, PREFILLED + PREDICTED - 1]


def test_windows_follow_upon_each_other_and_each_begins_the_text(tmp_path: Path) -> None:
    text = "It was a delightful visit;--perfect, in being much too short. " * 5
    file = tmp_path / "text.txt"
    file.write_text(text)
    of = config()
    tokenizer = make_tokenizer(of.model)
    assert tokenizer is not None
    made = quality(of, text_file=str(file))
    begin, *tokens = tokenizer.encode(text)
    assert made.windows[:, 0].tolist() == [begin] * 3
    context = PREFILLED - 1
    scored = made.windows[:, PREFILLED:].flatten().tolist()
    assert scored == tokens[context : context + 3 * PREDICTED], "each token once, in order"
    assert made.windows[1].tolist() == [begin, *tokens[PREDICTED : PREDICTED + context + PREDICTED]]
    assert made.scored_bytes == len(tokenizer.decode(scored).encode())
    assert made.text == str(file)


def test_logits_that_are_too_many_for_memory_lie_in_a_file_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = replace(config(2), outputs=str(tmp_path))
    expected = quality(of).evaluate(engine(of), lambda: engine(of, seed=9))
    monkeypatch.setattr("gptbench.task.quality.MAX_LOGIT_BYTES_IN_MEMORY", 0)
    assert quality(of).evaluate(engine(of), lambda: engine(of, seed=9)) == expected
    assert not list(tmp_path.iterdir())

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"task.tokens=21: expected fewer tokens.*No space left"):
        quality(of).evaluate(engine(of), never)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"task.tokens=21: .*0.0 GB are free"):
        quality(of)


def test_the_same_model_under_the_same_engine_is_no_distance_away() -> None:
    of = config()
    found = quality(of).evaluate(engine(of), lambda: engine(of))
    assert found.nll == found.reference_nll
    assert found.kl == [0.0] * 21
    assert found.same_top == [True] * 21


def test_worse_weights_have_a_higher_divergence() -> None:
    of = config()

    def divergence(measured: Engine) -> float:
        return sum(quality(of).evaluate(measured, lambda: engine(of)).kl)

    bfloat16, int8 = divergence(engine(of, dtype=torch.bfloat16)), divergence(engine(of, quant="int8"))
    other = divergence(engine(of, seed=2))
    assert 0 < bfloat16 < other
    assert 0 < int8 < other


def test_without_a_reference_there_is_only_the_likelihood() -> None:
    of = config()
    found = quality(of, reference=False).evaluate(engine(of), never)
    assert len(found.nll) == 21
    assert (found.reference_nll, found.kl, found.same_top) == ([], [], [])


def test_a_token_that_the_reference_gives_no_chance_adds_nothing() -> None:
    of = config()
    reference = engine(of)
    reference.model.head.weight[7] = 0.0
    advance = reference.advance

    def forbid(hidden: Tensor) -> None:
        advance(hidden)
        reference.state.logits[:, 7] = -torch.inf

    reference.advance = forbid  # type: ignore[method-assign]
    found = quality(of).evaluate(engine(of), lambda: reference)
    assert all(math.isfinite(value) for value in found.kl)


def test_nonsense_is_not_taken_for_agreement() -> None:
    of = config()
    broken = engine(of)
    broken.model.norm.weight.fill_(torch.nan)
    found = quality(of).evaluate(broken, lambda: engine(of))
    assert all(math.isnan(value) for value in found.kl + found.nll)


def test_a_model_without_a_tokenizer_predicts_random_tokens_and_has_no_perplexity() -> None:
    of = replace(config(), model=DENSE)
    found = quality(of).evaluate(engine(of), lambda: engine(of, seed=9))
    assert (found.text, found.text_sha256, found.scored_bytes) == (None, None, None)
    metrics = part_metrics(replace(made_result(), quality=found), "quality")
    assert set(metrics) == {"kl_divergence", "top1_agreement"}


def test_speed_evaluates_nothing() -> None:
    speed = Speed(TaskConfig(_target_="gptbench.task.Speed", name="speed"), config(), None)
    assert speed.evaluate(engine(config()), never) is None
    assert not speed.needs_reference
    assert part_metrics(made_result(), "quality") == {}


def test_metrics_are_computed_from_what_is_recorded() -> None:
    of = config()
    found = quality(of).evaluate(engine(of), lambda: engine(of, seed=9))
    metrics = summary(replace(made_result(), quality=found))
    mean = sum(found.nll) / 21
    assert metrics["perplexity"] == pytest.approx(math.exp(mean))
    assert metrics["bits_per_byte"] == pytest.approx(21 * mean / math.log(2) / (found.scored_bytes or 0))
    assert metrics["reference_perplexity"] == pytest.approx(math.exp(sum(found.reference_nll) / 21))
    assert metrics["kl_divergence"] == pytest.approx(sum(found.kl) / 21)
    assert metrics["top1_agreement"] == sum(found.same_top) / 21


@pytest.mark.parametrize(
    ("of", "values", "told"),
    [
        (config, {"tokens": 6}, "task.tokens=6: expected at least workload.new_tokens=7"),
        (config, {"text_file": "absent"}, "task.text_file=absent: expected a file"),
        (lambda: replace(config(), model=DENSE), {"text_file": "a"}, "task.text_file=a: expected null"),
    ],
    ids=["tokens", "file", "tokenizer"],
)
def test_mistakes(of: Callable[[], Config], values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        quality(of(), **values)
    assert told in str(raised.value)


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("too short")
    with pytest.raises(ConfigError, match="a text of at least 10 tokens"):
        quality(config(), text_file=str(file))


def test_the_demo_model_predicts_its_held_out_text() -> None:
    """Its model card says about 3.3 nats a token with up to 512 tokens of context."""
    of = with_prompt(run_config(DEMO, prompt=(), new_tokens=100), make_tokenizer(DEMO))
    of = replace(of, workload=replace(of.workload, new_tokens=100))
    from gptbench.execute.preparation import make_engine, plan

    device = one_core()
    measured, loaded = make_engine(of, DeviceGroup((device,)), plan(of, DeviceGroup((device,))))
    found = quality(of, tokens=400, reference=False).evaluate(measured, never)
    assert loaded is not None and loaded.files == ["model.safetensors"]
    assert 2.8 < sum(found.nll) / len(found.nll) < 3.7
