"""Steps that give each row another number of tokens: every rate by numbers that can be worked out by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gptbench.base.errors import UserError
from gptbench.charts.speed import Run, distribution, latency
from gptbench.compare.step import Step
from gptbench.config.targets import instantiate
from gptbench.device.group import DeviceGroup
from gptbench.engine import Engine
from gptbench.execute.preparation import make_engine, plan
from gptbench.generate import HostClock, Workload
from gptbench.measure import samples
from gptbench.measure.compilation import CompileWatch
from gptbench.schema import Result
from gptbench.schema.sample import Sample, Traffic
from gptbench.schema.statistics import step_bytes
from gptbench.schema.steps import Steps
from gptbench.schema.summary import sample_metrics
from tests.results import made_result
from tests.test_run import config

EMITTED = [[1, 4, 0], [0, 2, 0], [3, 0, 2], [1, 1, 0]]
"""By step, of each of three rows: 14 tokens in 0.1 s."""


def drafted() -> Result:
    """Seven positions at most, of 1 MB in each row beside weights of 1 GB; a prompt of three tokens."""
    sample = Sample(
        ttft_s=0.05,
        step_s=[0.01, 0.02, 0.03, 0.04],
        call_s=0.2,
        compiles=0,
        allocations=None,
        peak_memory_bytes=7,
        finite=True,
        tokens=[[1] * 6, [2] * 8, [3] * 3],
        step_tokens=EMITTED,
    )
    traffic = Traffic(10**9, kv_per_position=3 * 10**6, positions_read=[10] * 7, kv_len=list(range(4, 11)))
    result = made_result()
    result.config["workload"]["batch_size"] = 3
    return replace(result, samples=[sample], traffic=traffic, roof=replace(result.roof, gb_per_s=100.0))


def test_every_rate_follows_from_the_tokens_that_steps_emitted() -> None:
    result = drafted()
    (sample,) = result.samples
    steps = Steps(sample)
    assert steps.positions.tolist() == [[0, 0, 0], [1, 4, 0], [1, 6, 0], [4, 6, 2]]
    waits = [0.01, *[0.05 / 3] * 3, 0.04, *[0.01 / 4] * 4, *[0.02 / 2] * 2, 0.07, *[0.06 / 2] * 2]
    assert steps.output_s.tolist() == pytest.approx(waits)
    filled = [4 + 4 + 4, 5 + 8 + 4, 5 + 10 + 4, 8 + 10 + 6]
    assert steps.needed(result.traffic).tolist() == [10**9 + 10**6 * positions for positions in filled]
    assert steps.moved(result.traffic).tolist() == [10**9 + 3 * 11 * 10**6] * 4
    assert sample_metrics(result, sample) == pytest.approx(
        {
            "decode_tokens_per_s": 140.0,
            "tpot_p50_s": (0.01 + 0.05 / 3) / 2,
            "tpot_p90_s": 0.03 + 0.7 * 0.01,
            "tpot_p99_s": 0.04 + 0.87 * 0.03,
            "ttft_s": 0.05,
            "decode_gb_per_s": 40.72,
            "mbu": 0.4072,
            "moved_gb_per_s": 41.32,
            "gptfast_tokens_per_s": 17 / 0.2,
            "gptfast_gb_per_s": 17 / 0.2 / 3,
            "peak_memory_bytes": 7.0,
        }
    )
    assert step_bytes(result).needed == 1_018_000_000
    counted = replace(result.traffic, expert_bytes=10**8, experts_least=4)
    assert Steps(replace(sample, experts_chosen=22)).weights(counted) == 1_150_000_000, "of four steps, not of seven"


def test_a_token_for_each_row_is_the_same_said_or_not() -> None:
    """Of three rows that got as many as each other in every step, each step counts once."""
    (sample,) = drafted().samples
    plain = replace(sample, tokens=[[1] * 5] * 3, step_tokens=[])
    said = replace(plain, step_tokens=[[1] * 3] * 4)
    for each in (plain, said):
        steps = Steps(each)
        assert steps.output_s.tolist() == each.step_s
        assert steps.tokens_per_s == 12 / sum(each.step_s) and steps.tokens_per_step == 3
        assert steps.at_positions(4).tolist() == each.step_s
    twice = Steps(replace(plain, step_tokens=[[2] * 3, [0] * 3, [4] * 3, [0] * 3]))
    assert twice.output_s.tolist() == pytest.approx([0.005] * 2 + [0.0125] * 4), "the last step gave nothing"
    assert twice.at_positions(6).tolist() == [0.01, 0.01, 0.03, 0.03, 0.03, 0.03]


def test_what_shows_steps_goes_by_tokens(tmp_path: Path) -> None:
    result = drafted()
    run = Run("drafted", result)
    assert latency([run]) is not None and distribution([run]) is not None
    result.write_files(tmp_path)
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["tokens"]) for row in rows] == [5, 2, 5, 2]
    assert [int(row["bytes"]) for row in rows] == Steps(result.samples[0]).needed(result.traffic).tolist()
    assert run.limit_tokens_per_s == pytest.approx(3.5 / 0.01018)
    step = Step(result)
    assert step.step_s == 0.025 and step.step_tokens == 3.5
    assert step.without(0.005) == pytest.approx(3.5 / (0.025 - 0.005))


def test_the_record_keeps_them_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    path = drafted().save(tmp_path)
    assert Result.load(path).samples == drafted().samples
    raw = json.loads(path.read_text())
    for wrong in ([[1, 4, 0]], [[1, 4]] * 4, [[2, 4, 0], *EMITTED[1:]], [[0, 0, 0]] * 4, [[-1, 6, 2], *EMITTED[1:]]):
        raw["samples"][0]["step_tokens"] = wrong
        path.write_text(json.dumps(raw))
        with pytest.raises(UserError, match="step_tokens"):
            Result.load(path)


def test_a_clock_is_told_what_a_step_emitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HostClock(6)
    for index in range(4):
        clock.tick(index, torch.tensor([2, 0]) if index == 3 else None)
    assert len(clock.intervals()) == 3 and clock.step_tokens(2) == [[1, 1], [2, 0]]
    assert HostClock(6).step_tokens(2) == []

    of = config(tmp_path)
    of = replace(of, workload=replace(of.workload, new_tokens=6, batch_size=2, prompts=[]))
    device = instantiate(of.device)
    engine, _ = make_engine(of, DeviceGroup((device,)), plan(of, DeviceGroup((device,))))
    workload = Workload(of.workload, device)

    def drafting(engine: Engine, workload: Workload) -> None:
        workload.clock.tick(0)
        engine.prefill(workload.prompt)
        for index, emitted in enumerate((None, [3, 1], [2, 0]), 1):
            workload.clock.tick(index, None if emitted is None else torch.tensor(emitted))

    monkeypatch.setattr(samples, "generate", drafting)
    with CompileWatch() as watch:
        sample = samples.take_sample(engine, workload, 1, watch)
    assert sample.step_tokens == [[3, 1], [2, 0]] and [len(row) for row in sample.tokens] == [6, 2]
    assert sample.generated == [6, 2] and len(sample.step_s) == 2
    assert np.isfinite(Steps(sample).tokens_per_s)
