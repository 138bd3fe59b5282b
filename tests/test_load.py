"""What else the machine did, as its counters say; and whether that makes a measurement one of a busy machine."""

import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from gptbench.measure import load as module
from gptbench.measure.load import Counters, between, counters, observed, pressure, stopped, waiting
from gptbench.measure.sensors import Neighbours, NvmlSensor, Sensor
from gptbench.schema.busy import busy, idle_neighbours
from gptbench.schema.energy import Energy, Spent
from gptbench.schema.machine import Load, Probe
from gptbench.schema.result import Result
from tests.results import made_failure, made_kernels, made_result, made_state, on_cpu
from tests.test_ab import made_ab, made_round

QUIET = Load(
    seconds=1.0,
    cores=2,
    own_s=1.9,
    other_s=0.02,
    stolen_s=0.0,
    iowait_s=0.0,
    waiting_s=0.01,
    pressure_s=0.01,
    system_pressure_s=0.9,
    quota_s=0.0,
    load_average=7.0,
)


def test_counters_of_this_machine_grow() -> None:
    before = counters()
    sum(range(10**6))
    after = counters()
    found = between(before, after, 2)
    assert found.seconds > 0
    assert found.own_s > 0
    for name in ("stolen_s", "waiting_s", "pressure_s", "quota_s"):
        assert getattr(found, name) is None or getattr(found, name) >= 0


def test_only_own_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")  # psutil's
    cpus = [Times(1, 2, 4, 100, 8, 16, 32, 64, 1, 2), Times(*[1000] * 10), Times(1, 2, 4, 100, 8, 16, 32, 64, 1, 2)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cpus)
    monkeypatch.setattr(module, "own_cores", lambda: [0, 2, 7])
    found = counters()
    assert (found.used_s, found.stolen_s, found.iowait_s) == (2 * (1 + 2 + 4 + 16 + 32), 128, 16)
    Apple = namedtuple("Apple", "user nice system idle")
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Apple(1, 2, 4, 8)])
    found = counters()
    assert (found.used_s, found.stolen_s, found.iowait_s) == (7, None, None)


def test_what_grew_is_told_and_what_is_not_counted_is_none() -> None:
    before = Counters(10.0, 1.0, used_s=100.0, stolen_s=5.0, waiting_s=3.0)
    found = between(before, Counters(12.0, 2.5, used_s=103.5, stolen_s=5.5, waiting_s=2.0, quota_s=1.0), 4)
    assert found == Load(seconds=2.0, cores=4, own_s=1.5, other_s=2.0, stolen_s=0.5, waiting_s=0.0)
    found = between(before, Counters(12.0, 2.5, used_s=101.0), 4)
    assert found.other_s == -0.5, "what hundredths of a second leave out of one sample, they add to another"


def process_in(folder: Path, group: str, controllers: str, kind: str, options: str) -> Path:
    """A process of one control group, whose hierarchy is mounted below the folder."""
    process = folder / "proc"
    process.mkdir(parents=True)
    (folder / "cgroup" / group.lstrip("/")).mkdir(parents=True)
    (process / "cgroup").write_text(f"{'0' if not controllers else '3'}:{controllers}:{group}\n")
    (process / "mountinfo").write_text(f"30 24 0:26 / {folder}/cgroup rw - {kind} none {options}\n")
    return process


def test_pressure_and_quota_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    text = "some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    second = process_in(tmp_path / "2", "/a/b", "", "cgroup2", "rw")
    own = tmp_path / "2" / "cgroup" / "a" / "b"
    (own / "cpu.pressure").write_text(text)
    (own / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 1500000\n")
    (own.parent / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 500000\n")
    file = module.pressure_file(second)
    assert file == own / "cpu.pressure"
    assert pressure(file) == 2.5
    assert stopped(second) == 1.5
    first = process_in(tmp_path / "1", "/c", "cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    (tmp_path / "1" / "cgroup" / "c" / "cpu.stat").write_text("nr_periods 0\nthrottled_time 2000000000\n")
    assert module.pressure_file(first) is None
    assert stopped(first) == 2.0
    assert module.pressure_file(tmp_path / "none") is None
    assert stopped(tmp_path / "none") is None
    assert pressure(tmp_path / "none") is None
    own.joinpath("cpu.pressure").write_text("nonsense\nsome avg10=1\n")
    assert pressure(own / "cpu.pressure") is None


def test_waiting_is_of_all_threads(tmp_path: Path) -> None:
    assert waiting(tmp_path) is None
    for thread, text in {1: "5 1500000000 3\n", 2: "7 500000000 1\n", 3: "", 4: "0 0\n"}.items():
        (tmp_path / "task" / str(thread)).mkdir(parents=True)
        (tmp_path / "task" / str(thread) / "schedstat").write_text(text)
    assert waiting(tmp_path) == 2.0


class Shared(Sensor):
    """A GPU that another process comes to."""

    def __init__(self) -> None:
        self.told = [Neighbours(0, 10), Neighbours(2, 5)]

    def neighbours(self) -> Neighbours | None:
        return self.told.pop(0)

    def active_neighbours(self, since: float) -> int | None:
        return 1 if 0 <= time.time() - since < 60 else None


def test_a_load_is_filled_in_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [Counters(1.0, 1.0), Counters(3.0, 1.5)]
    monkeypatch.setattr(module, "counters", lambda family: left.pop(0))
    with pytest.raises(KeyError), observed(Shared()) as load:
        raise KeyError
    assert (load.seconds, load.own_s, load.other_s) == (2.0, 0.5, None)
    assert (load.gpu_processes, load.gpu_other_bytes, load.gpu_active) == (2, 10, 1)
    left += [Counters(1.0, 1.0), Counters(3.0, 1.5)]
    with observed(Sensor()) as load:
        pass
    assert (load.gpu_processes, load.gpu_other_bytes, load.gpu_active) == (None, None, None)


def test_who_else_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    def process(pid: int, size: int | None) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, usedGpuMemory=size)

    found: list[Any] = [process(os.getpid(), 5), process(1, 7)]
    sensor = NvmlSensor.__new__(NvmlSensor)
    sensor.handle = None
    nvml = SimpleNamespace(
        NVMLError=Error,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: found,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=20),
    )
    monkeypatch.setattr(NvmlSensor, "nvml", nvml)
    monkeypatch.setattr("gptbench.measure.sensors.torch.cuda.memory_reserved", lambda: 3)
    assert sensor.neighbours() == Neighbours(1, 15)
    found[:] = [process(4711, 5)]
    assert sensor.neighbours() == Neighbours(0, 17), "this process, as another name space numbers it"
    found[:] = []
    assert sensor.neighbours() == Neighbours(0, 17)

    def refuse(handle: None) -> None:
        raise Error

    nvml.nvmlDeviceGetComputeRunningProcesses = refuse
    assert sensor.neighbours() is None


def test_who_else_computes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    looks: list[Any] = []
    found = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=5), SimpleNamespace(pid=1, usedGpuMemory=7)]
    sensor = NvmlSensor.__new__(NvmlSensor)
    sensor.handle = None
    nvml = SimpleNamespace(
        NVMLError=Error,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: found,
        nvmlDeviceGetProcessUtilization=lambda handle, since: looks,
    )
    monkeypatch.setattr(NvmlSensor, "nvml", nvml)

    def look(pid: int, share: int, at: float = 101.0) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, smUtil=share, timeStamp=int(at * 1e6))

    for name_space in (os.getpid(), 4711):  # a container may know this process by another number than NVML
        found[0].pid = name_space
        for also, expected in (
            ([], 0),
            ([look(1, 0)], 0),
            ([look(1, 80, at=99.0)], 0),
            ([look(1, 80), look(1, 70, 102.0)], 1),
            ([look(1, 80), look(2, 5)], 2),
        ):
            looks[:] = [look(name_space, 90), *also]
            assert sensor.active_neighbours(100.0) == expected, (name_space, also)

    def refuse(handle: None, since: int) -> None:
        raise Error

    nvml.nvmlDeviceGetProcessUtilization = refuse
    assert sensor.active_neighbours(100.0) is None


def measured(load: Load | None = QUIET, rates: tuple[float, ...] = (1.0, 1.01, 0.99), gpu: bool = False) -> Result:
    """Three samples under the same load, of these speeds."""
    result = made_result(compiles=(0,) * len(rates))
    for sample, rate in zip(result.samples, rates, strict=True):
        sample.step_s, sample.load = [0.01 / rate] * 4, load
    return result if gpu else on_cpu(result)


def test_a_quiet_machine_is_not_busy() -> None:
    assert busy(measured()) == []
    assert busy(measured(replace(QUIET, gpu_processes=0, gpu_other_bytes=10**9), (1.0, 1.001, 0.999), gpu=True)) == []
    nothing = Load(seconds=1.0, cores=2, own_s=1.0)
    assert busy(measured(nothing)) == []
    assert busy(measured(replace(nothing, seconds=0.0))) == []
    assert busy(made_failure()) == []


def test_a_record_of_a_version_that_did_not_look_is_not_judged() -> None:
    assert busy(measured(None, (1.0, 3.0, 0.2))) == []


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"other_s": 0.5}, "other processes used 0.5 of 2 cores"),
        ({"stolen_s": 0.2}, "the host took away 0.2 cores (steal)"),
        ({"waiting_s": 0.3}, "threads waited for a core 0.3 s a second"),
        ({"pressure_s": 0.4}, "its control group waited for a core 40% of the time (cpu.pressure)"),
        ({"quota_s": 0.1}, "its CPU quota stopped it 0.1 s a second"),
        ({"gpu_processes": 1, "gpu_active": 1}, "1 other process computed on the GPU"),
        ({"gpu_processes": 3, "gpu_active": 2}, "2 other processes computed on the GPU"),
        ({"gpu_processes": 1, "gpu_other_bytes": 5 * 10**9}, "5 GB of the GPU's memory are in use by other processes"),
        (
            {"gpu_other_bytes": 4 * 10**9},
            "4 GB of the GPU's memory are in use by other processes, which are not visible from here",
        ),
    ],
)
def test_each_reason(more: dict[str, float], reason: str) -> None:
    assert busy(measured(replace(QUIET, **more))) == [reason]  # type: ignore[arg-type]


def short_samples(random: np.random.Generator, own: float, others: float, count: int = 5) -> list[Load]:
    """Return the loads of samples on two cores that this process and others use, by counters in hundredths of a
    second."""
    at, used, loads = 0.0, random.uniform(0, 1, 2), []
    duration = random.uniform(0.015, 0.075)

    def counted() -> Counters:
        return Counters(at, own * at, used_s=float((np.floor(used * 100) / 100).sum()), stolen_s=0.0)

    for _ in range(count):
        before = counted()
        at, used = at + duration, used + (own + others) / 2 * duration
        loads.append(between(before, counted(), 2))
        pause = random.uniform(0.01, 0.02)
        at, used = at + pause, used + (own + others) / 2 * pause
    return loads


def test_the_resolution_of_counters_makes_no_machine_busy() -> None:
    """Samples shorter than ten of the units that CPU time is counted in."""
    random, trials = np.random.default_rng(0), 200
    for others, least, most in ((0.0, 0, 0), (0.02, 0, 0), (1.0, 0.95 * trials, trials)):
        marked = 0
        for _ in range(trials):
            result = measured(rates=(1.0,) * 5)
            for sample, load in zip(result.samples, short_samples(random, 2.0 - others, others), strict=True):
                sample.load = load
            marked += bool(busy(result))
        assert least <= marked <= most, others


def test_an_idle_context_on_the_gpu_is_a_remark() -> None:
    for active in (0, None):
        load = replace(QUIET, gpu_processes=1, gpu_active=active, gpu_other_bytes=2 * 10**9)
        result = measured(load, (1.0, 1.0, 1.0), gpu=True)
        assert busy(result) == []
        told = "1 other process has a context on the GPU, and used too little of it to matter"
        assert idle_neighbours(result) == told
    assert idle_neighbours(measured(replace(QUIET, gpu_processes=1, gpu_active=1), gpu=True)) is None
    assert idle_neighbours(measured()) is None


def test_each_kind_of_metrics_is_judged_by_what_happened_meanwhile() -> None:
    def result(gpu: bool = False, compiling: Load | None = QUIET, measuring: Load | None = QUIET) -> Result:
        made = measured(rates=(1.0, 1.0, 1.0), gpu=gpu)
        made.compilations[0].load = compiling
        phase = Spent(10.0, 1.0, 10)
        return replace(made, energy=Energy("counter", 1.0, phase, phase, measuring))

    loaded = replace(QUIET, other_s=0.5)
    reason = "other processes used 0.5 of 2 cores"
    assert result().busy_kinds() == {}
    assert result(compiling=None, measuring=None).busy_kinds() == {}
    assert result(compiling=loaded).busy_kinds() == {"compile": [reason]}
    assert result(gpu=True, compiling=loaded).busy_kinds() == {"compile": [reason]}, "compilers use all cores"
    assert busy(result(compiling=loaded)) == [f"while it compiled, {reason}"]
    assert result(compiling=replace(QUIET, waiting_s=5.0, pressure_s=0.9)).busy_kinds() == {}, "for its own compilers"
    assert result(measuring=loaded).busy_kinds() == {"energy": [reason]}
    assert busy(result(measuring=loaded)) == [f"while energy was measured, {reason}"]
    assert result(gpu=True, measuring=loaded).busy_kinds() == {}, "the GPU's energy is not the CPU's"
    assert list(result(gpu=True, measuring=replace(QUIET, gpu_processes=1, gpu_active=1)).busy_kinds()) == ["energy"]
    eager = result(compiling=loaded)
    eager.compilations[0].cache = "none"
    assert busy(eager) == [], "nothing was compiled"
    only = measured(loaded)
    assert list(only.busy_kinds()) == ["speed"]


def test_processes_that_this_one_started_are_its_own() -> None:
    """Processes such as a compiler's count as this process's own."""
    burn = "import time; end = time.process_time() + 0.1\nwhile time.process_time() < end: pass"
    with observed(Sensor(), family=True) as own:
        subprocess.run([sys.executable, "-c", burn], check=True, timeout=60)
    with observed(Sensor()) as others:
        subprocess.run([sys.executable, "-c", burn], check=True, timeout=60)
    assert own.own_s >= 0.1
    assert others.own_s < 0.1


def test_what_others_may_use_is_what_the_threads_leave() -> None:
    result = measured(replace(QUIET, other_s=0.9))
    assert busy(result) == ["other processes used 0.9 of 2 cores"]
    result.environment.threads = 1
    assert busy(result) == []
    gpu = measured(replace(QUIET, other_s=0.9), (1.0, 1.0, 1.0), gpu=True)
    assert busy(gpu) == [], "the host's thread has the other core"
    assert busy(measured(replace(QUIET, other_s=1.2), (1.0, 1.0, 1.0), gpu=True)) != []


def test_own_threads_that_wait_for_each_other_are_nobody_elses() -> None:
    result = measured(replace(QUIET, waiting_s=2.0, pressure_s=1.0))
    assert len(busy(result)) == 2
    result.environment.threads = 4
    assert busy(result) == []


def test_samples_that_differ_by_more_than_on_a_quiet_machine() -> None:
    (reason,) = busy(measured(rates=(1.0, 0.5, 1.0)))
    assert reason == "the samples' speeds spread by 40.0% (standard deviation), on a quiet machine by at most 10%"
    assert busy(measured(rates=(1.0, 0.5))) == [], "of two there is nothing to be told"
    assert busy(measured(rates=(1.0, 1.04, 0.96))) == []
    assert len(busy(measured(rates=(1.0, 1.04, 0.96), gpu=True))) == 1, "on a GPU they differ by far less"
    hot = measured(rates=(1.0, 0.5, 1.0))
    hot.samples[1].state = made_state(throttled=True)
    assert busy(hot) == [], "which is told as such"
    compiled = measured(rates=(1.0, 0.1, 1.0, 1.0))
    compiled.samples[1].compiles = 1
    assert busy(compiled) == []


def test_a_probe_far_below_the_roof() -> None:
    result = measured()
    result.roof = replace(result.roof, gb_per_s=50.0)
    result.probes = [Probe("before", 47.6, 1, [1.0], "now"), Probe("after", 48.0, 1, [1.0], "now")]
    assert busy(result) == []
    result.probes[1].gb_per_s = 30.0
    told = "the probe after the samples read 30 GB/s, 40% less than the read roof of 50 GB/s"
    assert busy(result) == [told]
    for probe in result.probes:
        probe.usual_gb_per_s = 31.0
    assert busy(result) == [], "a CPU's probes differ"
    result.probes[1].gb_per_s = 20.0
    assert busy(result) == ["the probe after the samples read 20 GB/s, 35% less than probes usually read here, 31 GB/s"]
    kernels = made_kernels()
    assert busy(kernels) == []
    kernels.probes = [Probe("before", 3000.0, 1, [1.0], "now")]
    assert len(busy(kernels)) == 1


def test_rounds_of_interleaved_measurements_are_judged_each() -> None:
    rounds = [made_round(number, 2, lambda *_: 1e-3) for number in range(3)]
    result = made_ab(rounds)
    for each in rounds:
        each.samples = {name: [replace(one, load=QUIET) for one in side] for name, side in each.samples.items()}
    assert result.busy_rounds() == {}
    rounds[1].samples["B"][0].load = replace(QUIET, other_s=20.0)
    rounds[2].probes = [Probe("before", 1.0, 1, [1.0], "now")]
    assert list(result.busy_rounds()) == [2, 3]
    assert busy(result)[0].startswith("round 2: other processes used ")


def test_loads_are_recorded_and_old_records_have_none(tmp_path: Path) -> None:
    result = measured()
    path = result.save(tmp_path)
    assert Result.load(path).samples == result.samples
    raw = json.loads(path.read_text())
    for sample in raw["samples"]:
        del sample["load"]
    path.write_text(json.dumps(raw))
    assert [sample.load for sample in Result.load(path).samples] == [None] * 3
