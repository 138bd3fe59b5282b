"""The measurement of one engine: it is made, prepared, warmed up and sampled, and evaluated beyond its speed."""

import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

from gptbench.base.errors import raised
from gptbench.config import Config
from gptbench.config.targets import instantiate, target
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Engine, Runner
from gptbench.execute.job import now
from gptbench.execute.observer import Observer, Stages
from gptbench.execute.preparation import engine_over, make_engine, plan, reference_of
from gptbench.execute.reuse import Session, WarmModel, release
from gptbench.generate import Workload
from gptbench.measure.breakdown import break_down
from gptbench.measure.compilation import CompileWatch, compile_cache, in_second_process, prepare
from gptbench.measure.energy import measure_energy
from gptbench.measure.environment import environment
from gptbench.measure.roof import Roofs
from gptbench.measure.samples import take_samples, warm_up
from gptbench.measure.sensors import sensor_of
from gptbench.measure.traffic import traffic
from gptbench.model import Transformer
from gptbench.schema.compilation import Compilation
from gptbench.schema.machine import Environment, Probe, Roof
from gptbench.schema.result import CheckpointInfo, Measurement
from gptbench.task import Speed

T = TypeVar("T")


class BenchFields(TypedDict):
    """Fields of every record of a measurement: see `Measured`."""

    started: str
    environment: Environment
    dtype: str
    roof: Roof
    probes: list[Probe]
    failures: dict[str, str]


@dataclass
class Bench:
    """The place of a measurement, and what is found out about it meanwhile, as every record of a measurement has it."""

    started: str
    """Start of the measurement, ISO 8601."""
    environment: Environment
    """Hardware and software of the measurement."""
    roofs: Roofs
    """Read roofs of the device that are known."""
    warn: Callable[[str], None]
    """Function that reports what could not be measured."""
    probes: list[Probe] = field(default_factory=list)
    """Probes of the read roof so far."""
    failures: dict[str, str] = field(default_factory=dict)
    """Traceback of each optional measurement that failed."""

    @classmethod
    def of(
        cls,
        config: Config,
        devices: DeviceGroup,
        stages: Stages,
        warn: Callable[[str], None],
        beside_model: bool = False,
    ) -> "Bench":
        """Return the place of a measurement, measuring the read roof if there is none or a new one is wanted. Beside a
        model there is less memory for it, and the job that made the model has measured it."""
        started = now()
        with stages.stage("measuring the read roof"):
            surroundings = environment(devices, config.commit)
            roofs = Roofs(devices, surroundings, Path(config.outputs) / "roofs")
            roofs.read(again=config.device.measure_roof and not beside_model)
            devices.local.release_memory()
        return cls(started, surroundings, roofs, warn)

    def optional(self, what: str, measure: Callable[..., T], *args: object) -> T | None:
        """Return the result of `measure`; if it fails, report it, add the traceback to the failures, and return None,
        because the samples are worth keeping."""
        try:
            return measure(*args)
        except Exception as error:
            self.failures[what] = traceback.format_exc()
            where = "the traceback is under `failures` in the record"
            self.warn(f"Could not measure the {what}: {raised(error)}; {where}")
            return None

    def probe(self, when: str) -> list[Probe]:
        """Return a probe of the read roof before or after samples; an empty list if there is no memory for it, or it
        fails."""
        probe = self.optional("probe of the read roof", self.roofs.probe, when)
        return [] if probe is None else [probe]

    def fields(self, device: Device) -> "BenchFields":
        """Return the fields for a record."""
        return BenchFields(
            started=self.started,
            environment=self.environment,
            dtype=device.dtype_name,
            roof=self.roofs.read(),
            probes=self.probes,
            failures=self.failures,
        )


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    config: Config
    """Configuration with the engine by name and the prompt as tokens."""
    devices: DeviceGroup
    model: Transformer
    """Model on `meta`, or the one that was taken over."""
    kept: WarmModel | None
    """Model that an earlier job of this process has left for this one."""
    task: Speed

    @property
    def device(self) -> Device:
        """Device that this process drives."""
        return self.devices.local

    def make_engine(self, stages: Stages) -> tuple[Runner, CheckpointInfo | None, float]:
        """Return the engine with nothing compiled yet, the checkpoint that was read, and the seconds to allocate and
        fill the weights."""
        config, device = self.config, self.device
        if self.kept is not None:
            return engine_over(config, self.devices, self.model), self.kept.loaded, self.kept.load_s
        start = time.perf_counter()
        engine, loaded = make_engine(config, self.devices, self.model, stages.reading)
        device.synchronize()
        return engine, loaded, time.perf_counter() - start


def measure(subject: Subject, session: Session, observer: Observer, stages: Stages) -> tuple[Bench, Measurement]:
    """Do everything that takes time, and return the place and the measurement."""
    config, device, kept = subject.config, subject.device, subject.kept
    if kept is None:
        target(config.engine).warm_up_compiler(config.engine, device)
    bench = Bench.of(config, subject.devices, stages, observer.warn, beside_model=kept is not None)
    device.reset_peak_memory()
    with compile_cache(config.engine.fresh_cache, keep=kept is not None) as empty_cache:
        measurement = measure_engine(subject, bench, session, empty_cache, observer, stages)
        if config.engine.measure_warm_start:
            with stages.stage("compiling again in a second process"):
                release(subject.model, device)  # so that the weights can be made again
                second = bench.optional("warm start", in_second_process, prepare_alone, config)
            measurement.compilations += [] if second is None else [second]
    return bench, measurement


def measure_engine(
    subject: Subject, bench: Bench, session: Session, empty_cache: bool, observer: Observer, stages: Stages
) -> Measurement:
    """Make, prepare, warm up, sample and evaluate one engine, and free it."""
    config, device, kept, task = subject.config, subject.device, subject.kept, subject.task
    with ExitStack() as leaving:
        with stages.stage("making the weights"):
            workload: Workload = instantiate(config.workload, device)
            engine, loaded, load_s = subject.make_engine(stages)
            leaving.callback(engine.release)
        sensor = sensor_of(subject.devices)
        moved = traffic(engine, config.workload.new_tokens)
        observer.limit(moved, bench.roofs.read(), config)
        tune_s = autotuned(engine, stages)
        with CompileWatch() as watch:
            with stages.stage("compiling", long=True):
                process = "later" if session.has_compiled else "first"
                compilation = prepare(engine, watch, empty_cache, process, taken_over=kept is not None, sensor=sensor)
                session.has_compiled |= compilation.compiles > 0
            prepare_peak = device.peak_memory()
            bench.probes += bench.probe("before")  # it evicts the model from the caches: so before the warm-up
            with stages.stage("warming up"):
                warm_ups = warm_up(engine, workload, watch, sensor)
            prepare_peak = max(prepare_peak, device.peak_memory())
            samples = take_samples(engine, workload, watch, stages.sampled, sensor)
            bench.probes += bench.probe("after")
        measurement = Measurement(
            checkpoint=loaded,
            load_s=load_s,
            tune_s=tune_s,
            engine_details=engine.details(),
            prepare_peak_memory_bytes=prepare_peak,
            traffic=moved,
            reused=None if kept is None else kept.started,
            shared_compile_s=None if kept is None else kept.compile_s,
            compilations=[compilation.with_warm_ups(warm_ups)],
            warm_ups=warm_ups,
            samples=samples,
        )

        def reference() -> Engine:
            engine.release()
            release(subject.model, device)  # so that there is room
            of, on = reference_of(config)
            reference_model = plan(of, on)
            leaving.callback(release, reference_model, on.local)
            reference_engine, _ = make_engine(of, on, reference_model, stages.reading)
            leaving.callback(reference_engine.release)
            assert isinstance(reference_engine, Engine)
            return reference_engine

        if config.task.breakdown:
            with stages.stage("profiling a step"):
                measurement.breakdown = bench.optional("breakdown", break_down, engine, workload)
        if config.task.energy:
            with stages.stage("measuring energy"):
                measurement.energy = bench.optional("energy", measure_energy, engine, workload, sensor)
        if task.stage is not None:
            with stages.stage(task.stage):
                measurement.quality = bench.optional("quality", task.evaluate, engine, reference)
        return measurement


def autotuned(engine: Runner, stages: Stages) -> float | None:
    """Autotune tiles if the engine does, and return the seconds that it took; None otherwise."""
    if not engine.tunes:
        return None
    start = time.perf_counter()
    with stages.stage("autotuning tiles", counted=False):
        engine.tune()
    return time.perf_counter() - start


def prepare_alone(config: Config) -> Compilation:
    """Build and prepare an engine in a separate process, and return its compilation."""
    devices = DeviceGroup.of(config.device)
    device = devices.local
    target(config.engine).warm_up_compiler(config.engine, device)
    with CompileWatch() as watch:
        engine, _ = make_engine(config, devices, plan(config, devices))
        workload: Workload = instantiate(config.workload, device)
        sensor = sensor_of(devices)
        compilation = prepare(engine, watch, empty_cache=False, process="second", sensor=sensor)
        return compilation.with_warm_ups(warm_up(engine, workload, watch, sensor))
