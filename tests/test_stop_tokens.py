"""Stop tokens: a row that has drawn one draws it from then on, and its answer ends with it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptbench.base.errors import ConfigError
from gptbench.config import DeviceConfig, DeviceKind, EagerConfig, SamplingConfig, WorkloadConfig
from gptbench.device import Device
from gptbench.engine import Eager, Shape
from gptbench.execute.run import add_text
from gptbench.generate import Workload
from gptbench.measure.compilation import CompileWatch
from gptbench.measure.samples import answer_length, take_sample
from gptbench.sampling import Sampler
from gptbench.schema import Result
from tests.models import CPU, DENSE, make_model, random_tokens, run_config
from tests.results import made_result

PROMPT, NEW, LENGTH, BATCH = 5, 12, 24, 3

pytestmark = pytest.mark.usefixtures("one_thread")


def sampling(**chosen: Any) -> SamplingConfig:
    chosen = {"temperature": 1.5} | chosen
    return SamplingConfig(_target_="gptbench.sampling.Sampler", name="test", **chosen)


def make_engine(batch: int = BATCH) -> Eager:
    device = Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu))
    config = EagerConfig(_target_="gptbench.engine.Eager", name="eager")
    sampler = Sampler(sampling(), DENSE.vocab_size, CPU)
    return Eager(config, make_model(DENSE, batch=batch, length=LENGTH), sampler, device, Shape(batch, PROMPT, LENGTH))


def generated(engine: Eager, seed: int = 3) -> Tensor:
    """New tokens [B, NEW]."""
    engine.seed(seed)
    engine.prefill(random_tokens(DENSE, engine.batch, PROMPT))
    for _ in range(NEW - 1):
        engine.decode()
    assert torch.equal(engine.state.token, engine.state.tokens[:, PROMPT + NEW - 1 : PROMPT + NEW])
    return engine.state.tokens[:, PROMPT : PROMPT + NEW].clone()


def test_a_row_draws_its_stop_token_from_then_on_and_others_go_on() -> None:
    engine = make_engine()
    free = generated(engine)
    # The first row stops with its fourth token, the second with its first, the third with none.
    stops = [int(free[0, 3]), int(free[1, 0])]
    assert not set(stops) & {*free[0, :3].tolist(), *free[2].tolist()}, "another seed is needed"
    engine.sampler.set(sampling(stop_tokens=stops))
    stopped = generated(engine)
    assert stopped[0].tolist() == free[0, :4].tolist() + [stops[0]] * (NEW - 4)
    assert stopped[1].tolist() == [stops[1]] * NEW
    assert torch.equal(stopped[2], free[2])
    assert engine.state.stopped.flatten().tolist() == [*stops, -1]
    assert engine.state.position.tolist() == [[PROMPT + NEW - 1]] * 3


def test_a_prefill_begins_anew() -> None:
    engine = make_engine()
    free = generated(engine)
    engine.sampler.set(sampling(stop_tokens=[int(free[0, 0])]))
    assert generated(engine)[0].unique().numel() == 1
    engine.sampler.set(sampling())
    assert torch.equal(generated(engine), free)
    assert engine.state.stopped.flatten().tolist() == [-1] * BATCH


def test_what_is_fed_instead_does_not_change_what_a_row_stopped_with() -> None:
    """As where a text is predicted: the fed tokens are the text's."""
    engine = make_engine()
    stop = int(generated(engine)[0, 0])
    engine.sampler.set(sampling(stop_tokens=[stop]))
    engine.seed(3)
    engine.prefill(random_tokens(DENSE, BATCH, PROMPT))
    engine.state.token.fill_((stop + 1) % DENSE.vocab_size)
    engine.decode()
    assert engine.state.token[0].tolist() == [stop]


def test_greedy_rows_stop_too() -> None:
    engine = make_engine()
    engine.sampler.set(sampling(temperature=0.0))
    free = generated(engine)
    stop = int(free[1, 2])
    first = free[1].tolist().index(stop)
    engine.sampler.set(sampling(temperature=0.0, stop_tokens=[stop]))
    assert generated(engine)[1].tolist() == free[1, :first].tolist() + [stop] * (NEW - first)


@pytest.mark.parametrize(
    ("tokens", "stops", "length"),
    [([4, 5, 6], set(), 3), ([4, 5, 6], {-1}, 3), ([4, 5, 6, 6], {6, -1}, 3), ([4, 4], {4}, 1), ([1, 2, 3], {3, 2}, 2)],
)
def test_answer_length(tokens: list[int], stops: set[int], length: int) -> None:
    assert answer_length(tokens, stops) == length


def test_a_sample_says_how_long_each_answer_is() -> None:
    engine = make_engine()
    workload = Workload(
        WorkloadConfig(
            _target_="gptbench.generate.Workload",
            name="test",
            prompt=[1, 2, 3, 4, 5],
            new_tokens=NEW,
            samples=1,
            batch_size=BATCH,
        ),
        engine.device,
    )
    with CompileWatch() as watch:
        free = take_sample(engine, workload, 7, watch)
        assert free.generated == [NEW] * BATCH
        stop = free.tokens[0][5]
        engine.sampler.set(sampling(stop_tokens=[stop]))
        sample = take_sample(engine, workload, 7, watch)
    assert len(sample.step_s) == NEW - 1
    for row, before, count in zip(sample.tokens, free.tokens, sample.generated, strict=True):
        assert len(row) == NEW
        assert row[:count] == before[:count]
        assert (stop in before) == (row[count - 1] == stop)
        assert row[count:] == [stop] * (NEW - count)
    assert sample.generated[0] <= 6


class Letters:
    """A tokenizer whose tokens are letters."""

    bos = 0

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(96 + token) for token in tokens)

    def continuation(self, prompt: list[int], tokens: list[int]) -> str:
        return self.decode(tokens)


def test_text_ends_with_the_stop_token() -> None:
    result = made_result()
    for sample in result.samples:
        sample.tokens, sample.generated = [[1, 2, 3, 3], [4, 5, 6, 7]], [3, 4]
    result.prompt = [0, 8]
    add_text(result, Letters())  # type: ignore[arg-type]
    assert result.prompt_text == "h"
    assert [sample.text for sample in result.samples] == [["abc", "defg"]] * 3


def test_each_row_has_a_text_of_its_own() -> None:
    result = made_result(compiles=(0,))
    result.samples[0].tokens, result.samples[0].generated = [[1], [2]], [1, 1]
    result.prompt, result.prompts = [0, 8], [[0, 8], [0, 9]]
    told = Letters()
    told.continuation = lambda prompt, tokens: told.decode(prompt[1:] + tokens)  # type: ignore[method-assign]
    add_text(result, told)  # type: ignore[arg-type]
    assert (result.prompt_text, result.prompt_texts) == ("h", ["h", "i"])
    assert result.samples[0].text == ["ha", "ib"]


def test_a_result_from_before_stop_tokens_is_read(tmp_path: Path) -> None:
    raw = asdict(made_result())
    for sample in raw["samples"]:
        del sample["generated"]
    raw["config"]["sampling"].pop("stop_tokens", None)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(raw))
    assert [sample.generated for sample in Result.load(path).samples] == [[], [], []]


@pytest.mark.parametrize("token", [-1, DENSE.vocab_size])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(ConfigError, match=rf"sampling.stop_tokens={token}: expected token ids from 0 to 210 for dense"):
        replace(run_config(DENSE), sampling=sampling(stop_tokens=[1, token]))


def test_more_than_there_are_places_for_are_refused() -> None:
    assert len(sampling(stop_tokens=list(range(16))).stop_tokens) == 16
    with pytest.raises(ConfigError, match=r"sampling.stop_tokens=.*at most 16 token ids"):
        sampling(stop_tokens=list(range(17)))
