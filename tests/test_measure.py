"""Measuring: what is timed, what is not, what is marked."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptbench.config import DeviceConfig, DeviceKind, EagerConfig, InductorConfig, Tuning, WorkloadConfig
from gptbench.config.targets import instantiate
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Engine, Shape
from gptbench.execute.isolation import in_own_process
from gptbench.generate import HostClock, Workload, generate
from gptbench.measure import environment as surroundings
from gptbench.measure import samples as samples_module
from gptbench.measure.compilation import CompileWatch, cache_state, compile_cache, covered, prepare
from gptbench.measure.environment import environment
from gptbench.measure.samples import (
    StillCompilingError,
    sample_seed,
    take_sample,
    take_samples,
    warm_up,
)
from gptbench.sampling import Sampler
from gptbench.schema.compilation import STAGES, Compilation, costs
from tests.jobs import small_read_roof
from tests.models import DENSE, make_model
from tests.test_engines import DRAWN

EAGER = EagerConfig(_target_="gptbench.engine.Eager", name="eager")
INDUCTOR = InductorConfig(_target_="gptbench.engine.Inductor", name="inductor", tuning=Tuning.none)
PROMPT, NEW = [1, 2, 3], 9


def device(kind: str = "cpu") -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name=kind, kind=DeviceKind(kind)))


def make_workload(on: Device, samples: int = 3, batch: int = 1) -> Workload:
    config = WorkloadConfig(
        _target_="gptbench.generate.Workload",
        name="test",
        prompt=PROMPT,
        new_tokens=NEW,
        samples=samples,
        batch_size=batch,
    )
    return Workload(config, on)


def make_engine(config: EagerConfig | InductorConfig, on: Device, batch: int = 1) -> Engine:
    model = make_model(DENSE, batch=batch, length=16, dtype=torch.float32, device=on.torch)
    sampler, shape = Sampler(DRAWN, DENSE.vocab_size, on.torch), Shape(batch, len(PROMPT), 16)
    engine: Engine = instantiate(config, model, sampler, on, shape)
    return engine


class FakeEngine(Engine):
    """Takes a known time for each call, and counts them."""

    def __init__(self, prefill_s: float, decode_s: float, clock: "FakeTime") -> None:
        self.prefill_s, self.decode_s, self.clock, self.calls = prefill_s, decode_s, clock, []

    def prefill(self, prompt: torch.Tensor) -> None:
        self.calls.append("prefill")
        self.clock.now += self.prefill_s

    def decode(self) -> None:
        self.calls.append("decode")
        self.clock.now += self.decode_s


class FakeTime:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_prefill_and_each_step_have_an_interval_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr("gptbench.generate.time", clock)
    workload = make_workload(device())
    engine = FakeEngine(prefill_s=5.0, decode_s=0.25, clock=clock)
    generate(engine, workload)
    assert engine.calls == ["prefill"] + ["decode"] * (NEW - 1)
    ttft, *steps = workload.clock.intervals()
    assert ttft == 5.0
    assert steps == [0.25] * (NEW - 1)


def test_sample_holds_what_the_engine_did() -> None:
    on = device()
    engine, workload = make_engine(EAGER, on, batch=2), make_workload(on, batch=2)
    with CompileWatch() as watch:
        first, second, other = (take_sample(engine, workload, seed, watch) for seed in (1, 1, 2))
    assert len(first.step_s) == NEW - 1
    assert all(seconds > 0 for seconds in first.step_s)
    assert first.ttft_s + sum(first.step_s) <= first.call_s
    assert [len(row) for row in first.tokens] == [NEW, NEW]
    assert first.tokens == second.tokens != other.tokens
    assert first.finite
    assert first.compiles == 0
    assert first.allocations is None
    assert first.peak_memory_bytes > 50e6


def test_runs_with_neighbouring_seeds_share_no_sample() -> None:
    """Nor does any seed share one with itself, and what is drawn is the same in every version."""
    seeds = [sample_seed(seed, number) for seed in (*range(20), 2**31 - 1) for number in range(50)]
    assert len(set(seeds)) == len({seed % 2**32 for seed in seeds}) == len(seeds)
    assert sample_seed(1234, 0) == 6882349382922872486
    on = device()
    engine = make_engine(EAGER, on)
    with CompileWatch() as watch:
        drawn = []
        for seed in (5, 6):
            workload = make_workload(on)
            workload.config.seed = seed
            drawn += [sample.tokens[0] for sample in take_samples(engine, workload, watch, lambda _: None)]
    assert len({tuple(tokens) for tokens in drawn}) == 6


def test_a_sample_that_compiles_is_marked() -> None:
    on = device()
    engine, workload = make_engine(EAGER, on), make_workload(on)
    decode = engine.run_decode

    def decode_and_compile() -> None:
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
        decode()

    with CompileWatch() as watch:
        engine.run_decode = decode_and_compile  # type: ignore[method-assign]
        assert take_sample(engine, workload, 1, watch).compiles > 0
        engine.run_decode = decode  # type: ignore[method-assign]
        assert take_sample(engine, workload, 1, watch).compiles == 0


def test_warm_up_lasts_until_nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    on = device()
    engine, workload = make_engine(EAGER, on), make_workload(on)
    torch.compiler.reset()
    with CompileWatch() as watch:
        compiling = iter([2, 1, 0])
        run_prefill = engine.run_prefill

        def prefill() -> None:
            watch.count += next(compiling)
            run_prefill()

        engine.run_prefill = prefill  # type: ignore[method-assign]
        calls = warm_up(engine, workload, watch)
        assert [call.compiles for call in calls] == [2, 1, 0]
        compiling = iter([1] * 20)
        with pytest.raises(StillCompilingError):
            warm_up(engine, workload, watch)


def test_nothing_compiles_in_samples_after_the_warm_up() -> None:
    on = device()
    torch.compiler.reset()
    engine, workload = make_engine(INDUCTOR, on), make_workload(on)
    with CompileWatch() as watch:
        compilation = prepare(engine, watch, empty_cache=False)
        assert compilation.compiles == 3
        assert compilation.prepare_s > 0
        assert compilation.torch_stage_s["_compile.compile_inner"] > 0
        assert sum(compilation.stage_s.values()) == pytest.approx(compilation.prepare_s)
        assert min(compilation.stage_s[stage] for stage in ("tracing", "rest")) > 0
        assert compilation.stage_s["lowering"] + compilation.stage_s["kernels"] + compilation.stage_s["loading"] > 0
        assert [call.compiles for call in warm_up(engine, workload, watch)] == [0]
        taken = take_samples(engine, workload, watch, lambda sample: None)
    assert [sample.compiles for sample in taken] == [0, 0, 0]


def test_costs_are_apart_and_add_up() -> None:
    spent = {
        "_compile.compile_inner": 10.0,
        "compile_fx_inner": 7.0,
        "async_compile.wait": 4.0,
        "CachingAutotuner.coordinate_descent_tuning": 3.0,
        "AOTAutogradCache.inductor_load": 1.0,
        "another": 5.0,
    }
    found = costs(15.0, spent, triton_s=2.5, capture_s=0.5)
    assert found == {
        "tracing": 2.0,
        "lowering": 3.0,
        "kernels": 4.0,
        "loading": 1.0,
        "tuning": 3.0,
        "capture": 0.5,
        "rest": 1.5,
    }
    assert tuple(found) == STAGES
    # A warm start: kernels are waited for while a graph is loaded, here with one graph that had to be lowered.
    warm = {"_compile.compile_inner": 3.5, "async_compile.wait": 0.75, "AOTAutogradCache.inductor_load": 1.0}
    found = costs(4.0, warm, triton_s=0.0, capture_s=0.25)
    assert found == {
        "tracing": 2.5,
        "lowering": 0.0,
        "kernels": 0.75,
        "loading": 0.25,
        "tuning": 0.0,
        "capture": 0.25,
        "rest": 0.25,
    }
    mixed = costs(6.0, warm | {"_compile.compile_inner": 5.5, "compile_fx_inner": 2.0}, triton_s=0.0, capture_s=0.0)
    assert sum(mixed.values()) == 6.0
    alone = costs(3.0, {}, triton_s=2.5, capture_s=0.25)
    assert {stage: seconds for stage, seconds in alone.items() if seconds} == {
        "kernels": 2.5,
        "capture": 0.25,
        "rest": 0.25,
    }


def test_time_in_which_several_threads_compile_counts_once() -> None:
    assert covered([]) == 0.0
    assert covered([(5.0, 6.0), (1.0, 3.0), (2.0, 2.5), (2.5, 4.0)]) == 4.0


def test_fresh_cache_is_cold_and_the_next_start_on_it_is_warm() -> None:
    on = device()
    with compile_cache(fresh=True) as empty:
        assert empty
        found = []
        for _ in range(2):
            torch.compiler.reset()
            engine = make_engine(INDUCTOR, on)
            with CompileWatch() as watch:
                process = "later" if found else "first"
                found.append(prepare(engine, watch, empty_cache=empty and not found, process=process))
    assert [compilation.cache for compilation in found] == ["cold", "warm"]
    assert [compilation.metric for compilation in found] == ["cold", None], "the compiler had been started"
    with compile_cache(fresh=False) as empty:
        assert not empty


@pytest.mark.parametrize(
    ("empty", "compiled", "counts", "state"),
    [
        (True, False, (0, 0, 0), "none"),
        (False, False, (0, 0, 0), "none"),
        (True, True, (0, 3, 0), "cold"),
        (False, True, (3, 0, 0), "warm"),
        (False, True, (2, 1, 0), "mixed"),
        (False, True, (2, 0, 1), "mixed"),
        (True, True, (0, 0, 0, 0, 5), "cold"),
        (False, True, (0, 0, 0, 0, 5), "cold"),
        (True, True, (0, 0, 0, 5, 0), "warm"),  # Triton's cache is elsewhere
        (True, True, (0, 0, 0, 4, 1), "mixed"),
        (False, True, (3, 0, 0, 4, 1), "warm"),  # a graph's kernels are found with it
        (False, True, (0, 3, 0), "mixed"),  # something else than whole graphs may have been found
    ],
)
def test_cache_states(empty: bool, compiled: bool, counts: tuple[int, ...], state: str) -> None:
    assert cache_state(empty, compiled, *counts) == state


def test_compile_time_takes_in_what_compiled_later() -> None:
    compilation = Compilation(cache="cold", process="first", prepare_s=3.0, later_s=2.0, first_generation_s=4.0)
    assert (compilation.total_s, compilation.gptfast_s) == (5.0, 7.0)


def test_values_that_are_not_finite_are_found_wherever_they_are() -> None:
    on = device()
    engine, workload = make_engine(EAGER, on), make_workload(on)
    generate(engine, workload)
    assert engine.finite()
    for tensor in (engine.state.logits, *(cache.keys for cache in engine.memory.caches)):
        kept = tensor.flatten()[3].clone()
        tensor.view(-1)[3] = float("nan")
        assert not engine.finite()
        tensor.view(-1)[3] = kept
    assert engine.finite()


def test_the_timed_region_calls_nothing_but_the_engine_and_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of every Python call between the first and the last tick: no tracker, no printing, no collection."""
    on = device()
    engine, workload = make_engine(EAGER, on), make_workload(on)
    generate(engine, workload)
    rooms: set[str] = set()

    def trace(frame: object, event: str, argument: object) -> None:
        if event == "call":
            rooms.add(frame.f_globals.get("__name__", "").split(".")[0])  # type: ignore[attr-defined]

    sys.setprofile(trace)
    try:
        generate(engine, workload)
    finally:
        sys.setprofile(None)
    assert rooms <= {"gptbench", "torch", "tests"}, rooms
    used = {name for name in sys.modules if name.startswith("gptbench.record")}
    assert not any(name in vars(samples_module) for name in used)


def test_host_clock() -> None:
    clock = HostClock(3)
    for index in range(3):
        clock.tick(index)
    assert len(clock.intervals()) == 2
    assert all(seconds >= 0 for seconds in clock.intervals())


def test_two_processes_measure_the_roof_one_after_the_other(tmp_path: Path) -> None:
    """And the second takes what the first one measured."""
    with ThreadPoolExecutor(2) as waiting:
        both = list(waiting.map(in_own_process, [small_read_roof] * 2, [tmp_path] * 2))
    assert [ended.died for ended in both] == [None, None]
    assert both[0].value == both[1].value


def test_environment_tells_commit_and_versions() -> None:
    found = environment(DeviceGroup((device(),)), "given")
    assert found.commit
    assert found.libraries["torch"] == torch.__version__
    assert found.cores >= 1
    assert found.driver is None
    assert (found.ecc, found.mig, found.application_clock_mhz) == (None, None, None)


def test_variables_that_a_number_depends_on_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "OMP_PROC_BIND": "close",
        "CUDA_VISIBLE_DEVICES": "1",
        "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
        "LD_PRELOAD": "/usr/lib/libjemalloc.so",
        "TRITON_CACHE_DIR": "/home/me/cache",
        "HF_TOKEN": "hf_5ecret",
        "CUDA_ACCESS_TOKEN": "5ecret",
        "MKL_SERVER": "https://me:5ecret@host/",
        "AWS_SECRET_ACCESS_KEY": "5ecret",
    }
    monkeypatch.setattr(surroundings, "STARTED_WITH", given)
    found = environment(DeviceGroup((device(),)), "given").variables
    assert "5ecret" not in str(found)
    assert {name for name in given if name not in found} == {"TRITON_CACHE_DIR", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}
    assert all(found[name] == given[name] for name in list(given)[:4])


class FakeNvml:
    """NVML of a GPU that reports only some settings."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:
        return [1, 0]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        raise self.NVMLError

    def nvmlDeviceGetMaxClockInfo(self, handle: str, which: int) -> int:
        return 1980 if which == 1 and handle == "GPU-abc" else 0


def test_how_a_gpu_is_set_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    gpu: Any = SimpleNamespace(is_cuda=True, uuid="abc")
    assert surroundings.gpu_settings(gpu) == {"ecc": True, "max_clock_mhz": 1980}


@pytest.mark.gpu
@pytest.mark.parametrize("config", [EAGER, INDUCTOR], ids=["eager", "inductor"])
def test_the_timed_region_never_waits_for_the_gpu(config: EagerConfig | InductorConfig) -> None:
    on = device("cuda")
    torch.compiler.reset()
    engine, workload = make_engine(config, on), make_workload(on)
    engine.prepare()
    generate(engine, workload)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        generate(engine, workload)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_timed_region_allocates_nothing_on_the_gpu() -> None:
    on = device("cuda")
    torch.compiler.reset()
    engine, workload = make_engine(INDUCTOR, on), make_workload(on)
    with CompileWatch() as watch:
        prepare(engine, watch, empty_cache=False)
        warm_up(engine, workload, watch)
        assert take_sample(engine, workload, 1, watch).allocations == 0
