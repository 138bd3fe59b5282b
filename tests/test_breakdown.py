"""The breakdown of a decode step: arithmetic over overlapping kernels, and steps that were really profiled."""

import csv
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from results import made_result

from gptbench.base.errors import BadResultError
from gptbench.compare import Baseline
from gptbench.config import (
    BaselineConfig,
    Config,
    DeviceConfig,
    DeviceKind,
    EngineConfig,
    FusedConfig,
    InductorConfig,
    MLflowConfig,
    QualityConfig,
    TaskConfig,
    Tuning,
)
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Engine
from gptbench.engine.base import KnownKernel
from gptbench.execute import attempt, measurement, preparation
from gptbench.execute.reuse import Session
from gptbench.generate import Workload
from gptbench.measure import breakdown as breakdown_module
from gptbench.measure.breakdown import PROFILED, break_down, find_steps
from gptbench.present.tables import show_result
from gptbench.present.terminal import Terminal
from gptbench.record import MLflowTracker
from gptbench.schema import Result
from gptbench.schema.breakdown import Breakdown, Launch, chrome_trace
from gptbench.schema.summary import summary
from tests.jobs import job_of
from tests.models import DENSE, run_config

BASELINE = Baseline(BaselineConfig(_target_="gptbench.compare.Baseline", name="none", device="none"))
FUSED = FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused")
INDUCTOR = InductorConfig(_target_="gptbench.engine.Inductor", name="inductor", tuning=Tuning.none)
# b overlaps a, c lies within b; then nothing runs; d follows upon a without a gap.
MADE = Breakdown(
    position=9,
    step_s=20.0,
    launches=[
        Launch("a", 0.0, 4.0, [132, 1, 1], 8 * 10**9),
        Launch("b", 3.0, 6.0),
        Launch("c", 4.0, 2.0),
        Launch("a", 10.0, 5.0, [132, 1, 1], 8 * 10**9),
        Launch("d", 15.0, 1.0),
    ],
)


def test_exclusive_times_and_gaps_are_the_step() -> None:
    assert MADE.exclusive_s() == [4.0, 5.0, 0.0, 5.0, 1.0]
    assert MADE.gaps_s == 1.0 + 4.0
    assert sum(MADE.exclusive_s()) + MADE.gaps_s == MADE.step_s


def test_launches_are_added_up_by_kernel() -> None:
    shares = {share.name: share for share in MADE.by_kernel()}
    assert list(shares) == ["a", "b", "d", "c"], "the largest part of the step first"
    a = shares["a"]
    assert (a.launches, a.total_s, a.exclusive_s, a.bytes_read) == (2, 9.0, 9.0, 16 * 10**9)
    assert a.gb_per_s == pytest.approx(16 / 9)
    overlapped = Breakdown(0, 30.0, [Launch(n, 10.0 * i, 15.0, None, 10 * 10**9) for i, n in enumerate("xxy")])
    assert [share.gb_per_s for share in overlapped.by_kernel()] == [pytest.approx(20 / 25), 1.0]
    assert shares["b"].bytes_read is None and shares["b"].gb_per_s is None


def test_what_is_known_to_be_read_counts_for_the_whole_step() -> None:
    assert MADE.gb_per_s == pytest.approx(16 / MADE.step_s)
    assert Breakdown(0, 30.0, [Launch("a", 0.0, 9.0)]).gb_per_s is None


def test_overlapping_kernels_are_on_tracks_of_their_own() -> None:
    assert MADE.tracks() == [0, 1, 0, 0, 0]
    three = Breakdown(
        0, 9.0, [Launch("a", 0.0, 9.0), Launch("b", 1.0, 2.0), Launch("c", 2.0, 5.0), Launch("d", 3.0, 1)]
    )
    assert three.tracks() == [0, 1, 2, 1]


def check_trace(trace: dict[str, Any], step: Breakdown) -> None:
    """Check that a trace is as Perfetto requires: complete events in µs, and only disjoint or nested ones on one
    track."""
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(complete) == 1 + len(step.launches)
    assert {event["ph"] for event in trace["traceEvents"]} == {"X", "M"}
    assert all(isinstance(event[key], (int, float)) for event in complete for key in ("ts", "dur", "pid", "tid"))
    assert complete[0]["dur"] == pytest.approx(step.step_s * 1e6)
    by_track: dict[int, list[dict[str, Any]]] = {}
    for event in complete[1:]:
        by_track.setdefault(event["tid"], []).append(event)
    for events in by_track.values():
        for before, after in itertools.pairwise(events):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-6
    named = {event["tid"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert named == {0, *by_track}


def test_trace() -> None:
    trace = json.loads(json.dumps(chrome_trace(MADE, roof_gb_per_s=4.0)))
    check_trace(trace, MADE)
    first = next(event for event in trace["traceEvents"] if event["name"] == "a")
    expected = {"exclusive (µs)": 4e6, "grid": [132, 1, 1], "bytes": 8 * 10**9, "GB/s": 2.0, "share of roof": 0.5}
    assert first["args"] == expected


def profiled(steps: int, graph: bool) -> list[dict[str, Any]]:
    """Return the profiler's events of steps of three kernels that run long after the host has launched them."""
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1}]
    for step in range(steps):
        call = {"ph": "X", "cat": "user_annotation", "name": "gptbench.step", "ts": 10.0 * step, "dur": 8.0, "args": {}}
        events += [call, {**call, "cat": "gpu_user_annotation"}]
        for number, name in enumerate(("first", "second", "third")):
            correlation = step if graph else 10 * step + number
            if number == 0 or not graph:
                what = {
                    "cat": "cuda_runtime" if number else "cuda_driver",
                    "name": "launch",
                    "ts": 10.0 * step + number,
                }
                events.append({"ph": "X", "dur": 0.5, "args": {"correlation": correlation}, **what})
            ran = {"ts": 1000.0 + 100 * step + 30 * number, "dur": 40.0 if number == 1 else 20.0 + step}
            arguments = {"correlation": correlation, "grid": [number + 1, 1, 1]}
            events.append({"ph": "X", "cat": "kernel", "name": name, "args": arguments, **ran})
    return events[::-1]


@pytest.mark.parametrize("graph", [True, False], ids=["one launch for all", "a launch for each"])
def test_kernels_belong_to_the_step_that_launched_them(graph: bool) -> None:
    steps = find_steps(profiled(3, graph), on_gpu=True, first=5)
    assert [step.position for step in steps] == [5, 6], "the last one's end is not known"
    for number, step in enumerate(steps):
        assert [launch.name for launch in step.launches] == ["first", "second", "third"]
        assert [launch.start_s for launch in step.launches] == pytest.approx([0, 30e-6, 60e-6])
        assert step.step_s == pytest.approx(100e-6)
        assert [launch.grid for launch in step.launches] == [[1, 1, 1], [2, 1, 1], [3, 1, 1]]
        assert step.exclusive_s() == pytest.approx([(20 + number) * 1e-6, 40e-6, (10 + number) * 1e-6])


def test_a_kernel_that_nobody_launched_or_a_step_without_kernels_is_an_error() -> None:
    lost = [event for event in profiled(3, graph=True) if event.get("cat") != "cuda_driver"]
    with pytest.raises(RuntimeError, match="no launch of"):
        find_steps(lost, on_gpu=True, first=5)
    empty = [event for event in profiled(3, graph=True) if event.get("cat") != "kernel"]
    with pytest.raises(RuntimeError, match="3 steps with 0 kernels"):
        find_steps(empty, on_gpu=True, first=5)


def config(folder: Path, engine: EngineConfig | None = None, device: str = "cpu", **workload: int) -> Config:
    of = run_config(DENSE, new_tokens=workload.get("new_tokens", 12))
    on = DeviceConfig(_target_="gptbench.device.Device", name=device, kind=DeviceKind(device))
    task = replace(of.task, breakdown=True)
    return replace(of, outputs=str(folder / "outputs"), device=on, task=task, engine=engine or of.engine)


def prepared(of: Config) -> tuple[Engine, Workload]:
    device = Device(of.device)
    engine, _ = preparation.make_engine(of, DeviceGroup((device,)), preparation.plan(of, DeviceGroup((device,))))
    engine.prepare()
    return engine, Workload(of.workload, device)


def check_step(step: Breakdown, of: Config) -> None:
    first = len(of.workload.prompt)
    assert first <= step.position < first + of.workload.new_tokens
    assert step.launches
    assert all(launch.start_s >= 0 and launch.duration_s >= 0 for launch in step.launches)
    assert step.gaps_s > -1e-9
    assert sum(step.exclusive_s()) + step.gaps_s == pytest.approx(step.step_s)
    check_trace(chrome_trace(step, 10.0), step)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", [None, INDUCTOR], ids=["eager", "inductor"])
def test_a_step_on_a_cpu(tmp_path: Path, engine: EngineConfig | None) -> None:
    torch.compiler.reset()
    of = config(tmp_path, engine)
    step = break_down(*prepared(of))
    check_step(step, of)
    names = [launch.name for launch in step.launches]
    if engine is None:
        assert names.count("aten::linear") == 1 + 4 * DENSE.n_layers, "the head; and of each layer its four matrices"
        assert "aten::addmm" not in names, "what an operation calls is in its time"
    else:
        graphs = [name for name in names if name.startswith("compiled graph ")]
        assert sorted(map(graphs.count, set(graphs))) == [1, DENSE.n_layers], "drawing; and the blocks, which share one"
        assert not any(name.startswith(breakdown_module.NOT_OPERATIONS) for name in names)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("new_tokens", [2, 3, 8, 40])
def test_steps_stay_within_the_cache_and_are_those_of_the_middle(tmp_path: Path, new_tokens: int) -> None:
    engine, workload = prepared(config(tmp_path, new_tokens=new_tokens))
    step = break_down(engine, workload)
    first = engine.prompt_length + max(0, (new_tokens - 2 - PROFILED) // 2)
    assert first <= step.position < first + PROFILED


@pytest.mark.usefixtures("one_thread")
def test_bytes_that_the_engine_knows_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, workload = prepared(config(tmp_path))
    asked = []

    def known(positions: list[int], experts: float | None) -> list[KnownKernel]:
        asked.append(positions)
        return [KnownKernel("aten::linear", "matrices", count) for count in (1000, None, 3)] + [
            KnownKernel("nothing of this name", "other", 1)
        ]

    monkeypatch.setattr(engine, "kernels", known)
    step = break_down(engine, workload)
    assert asked == [[step.position]]
    matrices = [(launch.bytes_read, launch.part) for launch in step.launches if launch.name == "aten::linear"]
    assert matrices[:4] == [(1000, "matrices"), (None, "matrices"), (3, "matrices"), (None, None)]
    assert {launch.bytes_read for launch in step.launches if launch.name != "aten::linear"} == {None}


def run(of: Config, folder: Path) -> Result:
    attempt.alone(job_of(of, folder), Session(), Terminal(quiet=False))
    return Result.load(folder / "result.json")


@pytest.mark.usefixtures("small_roof", "one_thread")
def test_a_run_records_shows_and_logs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality = QualityConfig(_target_="gptbench.task.Quality", name="quality", tokens=12, breakdown=True)
    tracking = MLflowConfig(_target_="gptbench.record.MLflowTracker", name="mlflow", figures=False)
    of = replace(config(tmp_path), task=quality, tracking=tracking)
    result = run(of, tmp_path)
    assert result.breakdown is not None and result.quality is not None
    check_step(result.breakdown, of)
    assert len(result.samples) == 1
    shown = capsys.readouterr()
    assert "aten::linear" in shown.err and "gaps between kernels" in shown.err
    assert re.search(r"step +│ +│ +│ +[0-9.]+ │ +100 │", shown.err)
    line = json.loads(shown.out.splitlines()[-1])
    assert line["breakdown_launches"] == len(result.breakdown.launches)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == chrome_trace(result.breakdown, result.roof.gb_per_s)
    (logged,) = (tmp_path / "outputs" / "mlartifacts").rglob("trace.json")
    assert json.loads(logged.read_text()) == trace
    with (logged.parent / "breakdown.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["exclusive_s"]) for row in rows) + line["breakdown_gaps_s"] == pytest.approx(
        line["breakdown_step_s"]
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (entry,) = client.search_runs([client.get_experiment_by_name("gptbench").experiment_id])  # type: ignore[union-attr]
    assert entry.data.metrics["breakdown_gaps_s"] == line["breakdown_gaps_s"]


@pytest.mark.usefixtures("small_roof", "one_thread")
def test_samples_are_kept_when_the_profiler_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(measurement, "break_down", broken)
    with pytest.raises(BadResultError, match="the breakdown of a step could not be measured"):
        run(config(tmp_path), tmp_path)
    result = Result.load(tmp_path / "result.json")
    assert len(result.samples) == 1
    assert result.breakdown is None
    place = f"{__file__}:{broken.__code__.co_firstlineno + 1}, in broken"
    assert f"Could not measure the breakdown: RuntimeError('out of something') ({place})" in capsys.readouterr().err
    assert list(result.failures) == ["breakdown"]
    assert "in optional" in result.failures["breakdown"] and "in broken" in result.failures["breakdown"]
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.usefixtures("small_roof", "one_thread")
def test_nothing_is_profiled_unless_asked_for(tmp_path: Path) -> None:
    of = config(tmp_path)
    task = TaskConfig(_target_="gptbench.task.Speed", name="speed")
    assert run(replace(of, task=task), tmp_path).breakdown is None


def test_it_is_saved_and_loaded_and_in_the_summary(tmp_path: Path) -> None:
    result = replace(made_result(), breakdown=MADE)
    assert Result.load(result.save(tmp_path)) == result
    metrics = summary(result)
    assert (metrics["breakdown_step_s"], metrics["breakdown_gaps_s"], metrics["breakdown_launches"]) == (20.0, 5.0, 5.0)
    assert not [name for name in summary(made_result()) if name.startswith("breakdown")]


def test_many_kernels_are_shown_as_fifteen_rows(capsys: pytest.CaptureFixture[str]) -> None:
    launches = [Launch(f"kernel_{n:02}_" + "x" * n, float(n), 0.5) for n in range(30)]
    show_result(replace(made_result(), breakdown=Breakdown(3, 30.0, launches)), BASELINE)
    shown = capsys.readouterr().err
    assert shown.count("kernel_") == 14
    assert "16 other kernels" in shown
    assert "decode step at position 3" in shown


def test_logged_later_it_has_its_trace(tmp_path: Path) -> None:
    result = replace(made_result(), breakdown=MADE)
    tracker = MLflowTracker(
        MLflowConfig(_target_="gptbench.record.MLflowTracker", name="mlflow", figures=False), tmp_path / "outputs"
    )
    tracker.log(result, result.save(tmp_path))
    (logged,) = (tmp_path / "outputs" / "mlartifacts").rglob("trace.json")
    check_trace(json.loads(logged.read_text()), MADE)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [None, INDUCTOR, FUSED], ids=["eager", "inductor", "fused"])
def test_a_step_on_a_gpu(tmp_path: Path, engine: EngineConfig | None) -> None:
    """Of the compiled engine, it is kernels of a CUDA graph that are told apart."""
    torch.compiler.reset()
    of = config(tmp_path, engine, "cuda", new_tokens=30)
    step = break_down(*prepared(of))
    check_step(step, of)
    assert len(step.launches) > 5 * DENSE.n_layers
    assert any(launch.grid for launch in step.launches)
    assert 0 < step.gaps_s < step.step_s
