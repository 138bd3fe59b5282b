"""One run: configured, built, prepared, generated, measured, recorded, compared."""

import datetime
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf

from gptbench.base.errors import BadResultError, DoesNotFitError, raised
from gptbench.build import alternatives, build, cache_length, memory_need_of, on_meta, require_fit
from gptbench.charts import draw_compile_stages
from gptbench.checkpoint import Checkpoint
from gptbench.config import AutoConfig, Config, Dtype, EagerConfig, KernelsConfig, QuantConfig, require_possible
from gptbench.config.targets import instantiate, target
from gptbench.device import Device
from gptbench.engine import Auto, Engine, Runner, caches
from gptbench.execute.reuse import Kept, give_back, keep, may_keep, release, take
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
from gptbench.present.console import console
from gptbench.present.tables import show_kernels, show_result
from gptbench.present.terminal import Stages, progress, show_limit, show_plan, stage_bar
from gptbench.record.identity import identity
from gptbench.record.ledger import Ledger
from gptbench.schema import KernelResult, Recorded, Result
from gptbench.schema.breakdown import write_trace
from gptbench.schema.compilation import Compilation
from gptbench.schema.kernels import KernelTimes
from gptbench.schema.machine import Environment, Probe, Roof
from gptbench.schema.result import Loaded
from gptbench.task import Kernels, Speed
from gptbench.task.kernels import peak_flops
from gptbench.text.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass
class Job:
    """One run as it was asked for, as plain data that can go to another process, and what has come of it so far."""

    config: Config
    """Validated, with its prompt as tokens."""
    resolved: dict[str, Any]
    """The same as plain data, for the record."""
    command: list[str]
    """Command line that repeats it."""
    folder: Path
    """For its record."""
    sweep: Path | None = None
    """Folder of the sweep that it belongs to."""
    swept: list[str] = field(default_factory=list)
    """The overrides that the sweep varies."""
    resume: bool = False
    """Whether an earlier measurement of the same identity will do."""
    started: str = field(default_factory=lambda: now())
    """When, ISO 8601."""
    identity: str | None = None
    """See `gptbench.record.identity`; known once it is known on which device it runs."""
    record: Path | None = None
    """File that holds what was measured, once there is one."""
    found: bool = False
    """Whether that was there before."""

    @property
    def outputs(self) -> Path:
        return Path(self.config.outputs)

    def header(self) -> dict[str, Any]:
        """Fields of every record."""
        return {
            "command": self.command,
            "sweep": None if self.sweep is None else str(self.sweep),
            "swept": self.swept,
            "identity": self.identity,
        }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def run(job: Job, tokenizer: Tokenizer | None) -> None:
    """Measures what a job asks for, shows it, and writes it to the job's folder; `job.record` tells where.

    Raises:
        UserError: the configuration asks for what this machine cannot do, or its checkpoint cannot be read.
        BadResultError: what was measured, and recorded, means nothing, or quality or a breakdown could not be measured.
        KeyboardInterrupt: Ctrl-C; what `task=kernels` has measured until then is recorded.
    """
    caches.import_compiler()
    device: Device = instantiate(job.config.device)
    of, resolved, choice = job.config, job.resolved, None
    if not isinstance(of.task, KernelsConfig):
        of, resolved, choice = with_engine(of, resolved, device)
    job.identity = identity(of, device)
    ledger = Ledger(job.outputs)
    with ledger.claim(job.identity, job.resume):
        if job.resume and (before := ledger.recorded(job.identity)) is not None:
            job.record, job.found = before, True
            return
        ledger.note(job.identity, job.folder, job.started)
        if isinstance(of.task, KernelsConfig):
            give_back()
            run_kernels(job, of, resolved, device)
        else:
            run_model(job, of, resolved, choice, device, tokenizer)


def run_model(
    job: Job,
    config: Config,
    resolved: dict[str, Any],
    choice: list[str] | None,
    device: Device,
    tokenizer: Tokenizer | None,
) -> None:
    """What `run` does, for every task but `task=kernels`."""
    task: Speed = instantiate(config.task, config, tokenizer)
    kept = take(config)
    model = None if kept is None else kept.model
    leaves = False
    try:
        in_use = 0 if kept is None else kept.nbytes
        planned = plan(config, device, in_use)
        if task.needs_reference:
            plan_reference(config, in_use)
        model = planned if model is None else model
        need = memory_need_of(config, planned)
        show_plan(config, device, need)
        with progress(config, task) as stages:
            measured = measure(config, device, model, kept, task, stages)
        leaves = job.sweep is not None and may_keep(config) and not task.needs_reference
    finally:
        if not leaves and model is not None:
            release(model, device)
    if leaves:
        keep(to_keep(config, device, model, kept, measured))
    result = Result(
        **job.header(),
        prompt=config.workload.prompt,
        prompts=config.workload.prompts,
        config=resolved,
        dtype=device.dtype_name,
        memory_need_bytes=asdict(need),
        engine_choice=choice,
        **measured,
    )
    if tokenizer is not None:
        add_text(result, tokenizer)
    try:
        path = job.record = result.save(job.folder)
    except OSError:  # the disk is full: then this is all that is left of it
        show_result(result, instantiate(config.baseline))
        raise
    if result.breakdown is not None:
        write_trace(result.breakdown, result.roof.gb_per_s, path.with_name(path.name.replace("result", "trace")))
    show_result(result, instantiate(config.baseline))
    picture = path.with_name(path.stem.replace("result", "compile") + ".png")
    draw_compilation(result, picture)
    require_counts(result, path)


def require_counts(result: Recorded, path: Path) -> None:
    """Raises BadResultError for what was recorded and means nothing."""
    if (wrong := result.problem()) is not None:
        raise BadResultError(f"{path}: {wrong}")


def run_kernels(job: Job, config: Config, resolved: dict[str, Any], device: Device) -> None:
    """What `run` does, for `task=kernels`: there is no model, and no engine."""
    task: Kernels = instantiate(config.task, config, device)
    if task.left_out is not None:
        console.print(f"Without the kernels of {config.model.name}: {task.left_out}", markup=False)
    with stage_bar(1 + len(task.cases)) as stages:
        started, surroundings, roofs, _ = beginning(config, device, stages, again=config.device.measure_roof)
        failures: dict[str, str] = {}
        probes = probe(roofs, "before", failures)
        begin = time.perf_counter()
        kernels: list[KernelTimes] = []
        interrupted = False
        try:
            for kernel in task.measure(stages.start, stages.done):
                kernels += [kernel]
        except KeyboardInterrupt:
            interrupted = True
        wall_s = time.perf_counter() - begin
        probes += probe(roofs, "after", failures)
    result = KernelResult(
        **job.header(),
        started=started,
        config=resolved,
        environment=surroundings,
        dtype=device.dtype_name,
        roof=roofs.read(),
        probes=probes,
        wall_s=wall_s,
        peak_flops=peak_flops(device.name),
        interrupted=interrupted,
        failures=failures,
        kernels=kernels,
    )
    try:
        path = job.record = result.save(job.folder)
    except OSError:
        show_kernels(result, instantiate(config.baseline))
        raise
    show_kernels(result, instantiate(config.baseline))
    if interrupted:
        console.print(f"interrupted: {len(kernels)} of {len(task.cases)} kernels were measured", markup=False)
        raise KeyboardInterrupt(f"interrupted; what was measured until then is recorded: {path}")
    require_counts(result, path)


def with_engine(
    config: Config, resolved: dict[str, Any], device: Device
) -> tuple[Config, dict[str, Any], list[str] | None]:
    """The same with the engine that `engine=auto` stands for here, and why that was not a faster one; None where an
    engine was asked for by name."""
    if not isinstance(config.engine, AutoConfig):
        return config, resolved, None
    auto: Auto = instantiate(config.engine, config, device)
    console.print(f"engine=auto takes {'; '.join([auto.section.name, *auto.reasons])}", markup=False)
    section = OmegaConf.to_container(OmegaConf.structured(auto.section), enum_to_str=True)
    return replace(config, engine=auto.section), resolved | {"engine": section}, auto.reasons


def add_text(result: Result, tokenizer: Tokenizer) -> None:
    """What the prompt and the answers say."""
    result.prompt_text = text_of(result.prompt, tokenizer)
    result.prompt_texts = [text_of(prompt, tokenizer) for prompt in result.prompts]
    for sample in result.samples:
        answers = [row[:count] for row, count in zip(sample.tokens, sample.generated, strict=True)]
        prompts = result.prompts or [result.prompt] * len(answers)
        sample.text = [tokenizer.continuation(*pair) for pair in zip(prompts, answers, strict=True)]


def text_of(prompt: list[int], tokenizer: Tokenizer) -> str:
    """Without a begin-of-text token."""
    return tokenizer.decode(prompt[int(prompt[0] == tokenizer.bos) :])


def plan(config: Config, device: Device, kept: int = 0) -> Transformer:
    """The model on `meta`, once it is sure that it can be built and fits, `kept` bytes in use being its own."""
    require_possible(config)
    engine: type[Runner] = target(config.engine)
    engine.require(config, device)
    model = on_meta(config.model, instantiate(config.quant), device.dtype)
    if config.model.reads_checkpoint:
        Checkpoint(config.model).check(model)
    if engine.BUILDS_MODEL:
        require_fit(config, model, device, alternatives(config, device), kept)
    return model


def plan_reference(config: Config, kept: int) -> None:
    """Raises DoesNotFitError if what quality is compared with does not fit."""
    try:
        plan(*reference_of(config), kept)
    except DoesNotFitError as error:
        told = "task.reference=true: the unquantised model does not fit; task.reference=false leaves it out"
        raise DoesNotFitError(f"{told}\n{error}") from error


def reference_of(config: Config) -> tuple[Config, Device]:
    """What quality is compared with: the same model unquantised, in bfloat16, under the eager engine."""
    config = replace(
        config,
        quant=QuantConfig.named("none"),
        engine=EagerConfig.named("eager"),
        device=replace(config.device, dtype=Dtype.bfloat16),
    )
    return config, instantiate(config.device)


def measure(
    config: Config, device: Device, model: Transformer, kept: Kept | None, task: Speed, stages: Stages
) -> dict[str, Any]:
    """Everything that takes time: fields of `Result`, by name. The model is on `meta`, or was kept."""
    if kept is None:
        target(config.engine).begin(config.engine, device)
    # Beside a model there is less room to measure the roof in; the job that made it has measured it.
    again = config.device.measure_roof and kept is None
    started, surroundings, roofs, roof = beginning(config, device, stages, again)
    device.reset_peak_memory()
    with compile_cache(config.engine.fresh_cache, keep=kept is not None) as empty_cache:
        measured = measure_engine(config, device, model, kept, roofs, roof, empty_cache, task, stages)
        if config.engine.measure_warm_start:
            stages.start("compiling again in a second process")
            release(model, device)  # so that the weights can be made again
            if (
                second := attempt("warm start", measured["failures"], in_second_process, prepare_alone, config)
            ) is not None:
                measured["compilations"].append(second)
            stages.done()
    return {"started": started, "environment": surroundings, "roof": roofs.read()} | measured


def beginning(config: Config, device: Device, stages: Stages, again: bool) -> tuple[str, Environment, Roofs, Roof]:
    """What every record begins with: when, where, what is known of that device's read roof, and the roof itself,
    measured `again` or not."""
    started = now()
    stages.start("measuring the read roof")
    surroundings = environment(device, config.commit)
    roofs = Roofs(device, surroundings, Path(config.outputs) / "roofs")
    roof = roofs.read(again)
    device.release_memory()
    stages.done()
    return started, surroundings, roofs, roof


def probe(roofs: Roofs, when: str, failures: dict[str, str]) -> list[Probe]:
    """A probe of the roof, before or after samples; none where there is no memory for it, or it fails: the samples are
    there."""
    found = attempt("probe of the read roof", failures, roofs.probe, when)
    return [] if found is None else [found]


def attempt(what: str, failures: dict[str, str], measure: Callable[..., T], *args: Any) -> T | None:
    """What `measure` gives, or None where it fails, which is then among the failures with its traceback: whatever it
    dies of, the samples are there."""
    try:
        return measure(*args)
    except Exception as error:
        failures[what] = traceback.format_exc()
        told = f"{what.capitalize()} not measured: {raised(error)}; the record has the traceback, under `failures`"
        console.warn(told)
        return None


def draw_compilation(result: Result, picture: Path) -> None:
    """Draws the stages of compiling beside the record, which is complete without that."""
    try:
        draw_compile_stages(result, picture)
    except Exception as error:
        console.warn(f"{picture}: not drawn: {raised(error)}")


def measure_engine(
    config: Config,
    device: Device,
    model: Transformer,
    kept: Kept | None,
    roofs: Roofs,
    roof: Roof,
    empty_cache: bool,
    task: Speed,
    stages: Stages,
) -> dict[str, Any]:
    """Makes, prepares, warms up and samples one engine, sees how good it is, and lets it go."""
    with ExitStack() as leaving:
        stages.start("making the weights")
        workload: Workload = instantiate(config.workload, device)
        start = time.perf_counter()
        if kept is None:
            engine, loaded = make_engine(config, device, model, stages.reading)
            device.synchronize()
            load_s = time.perf_counter() - start
        else:
            with torch.no_grad():
                model.allocate(config.workload.batch_size, cache_length(config), device.torch)
            engine, loaded, load_s = engine_over(config, device, model), kept.loaded, kept.load_s
        leaving.callback(engine.release)
        stages.done()
        sensor = sensor_of(device)
        moved = traffic(engine, config.workload.new_tokens)
        show_limit(moved, roof, config)
        if engine.tunes:
            stages.start("searching tiles")
        start = time.perf_counter()
        engine.tune()
        tune_s = time.perf_counter() - start if engine.tunes else None
        with CompileWatch() as watch:
            with stages.waiting("compiling"):
                compilation = prepare(engine, watch, empty_cache, taken_over=kept is not None, sensor=sensor)
            prepare_peak = device.peak_memory()
            stages.done()
            failures: dict[str, str] = {}
            probes = probe(
                roofs, "before", failures
            )  # which leaves nothing of the model in the caches: before the warm-up
            stages.start("warming up")
            warm_ups = warm_up(engine, workload, watch, sensor)
            compilation.first_generation_s = warm_ups[0].call_s
            compilation.later_s = sum(call.call_s for call in warm_ups if call.compiles)
            prepare_peak = max(prepare_peak, device.peak_memory())
            stages.done()
            samples = take_samples(engine, workload, watch, stages.sample_done, sensor)
            probes += probe(roofs, "after", failures)
        details = engine.details()

        def reference() -> Engine:
            engine.release()
            release(model, device)  # so that there is room
            of, on = reference_of(config)
            reference_model = plan(of, on)
            leaving.callback(release, reference_model, on)
            made, _ = make_engine(of, on, reference_model, stages.reading)
            assert isinstance(made, Engine)
            return made

        breakdown = None
        if config.task.breakdown:
            stages.start("profiling a step")
            breakdown = attempt("breakdown", failures, break_down, engine, workload)
            stages.done()
        energy = None
        if config.task.energy:
            stages.start("measuring energy")
            energy = attempt("energy", failures, measure_energy, engine, workload, sensor)
            stages.done()
        if task.stage is not None:
            stages.start(task.stage)
        quality = attempt("quality", failures, task.evaluate, engine, reference)
    return {
        "checkpoint": loaded,
        "quality": quality,
        "breakdown": breakdown,
        "energy": energy,
        "failures": failures,
        "load_s": load_s,
        "tune_s": tune_s,
        "engine_details": details,
        "prepare_peak_memory_bytes": prepare_peak,
        "traffic": moved,
        "reused": None if kept is None else kept.started,
        "compilations": [compilation] if kept is None else [compilation, kept.shared],
        "warm_ups": warm_ups,
        "samples": samples,
        "probes": probes,
    }


def make_engine(
    config: Config, device: Device, model: Transformer, progress: Callable[[str, float], None] = lambda *_: None
) -> tuple[Runner, Loaded | None]:
    """The engine over a model that is still on `meta`, nothing compiled yet; and the checkpoint that was read."""
    if not target(config.engine).BUILDS_MODEL:
        return engine_over(config, device, model), None
    with torch.no_grad():
        loaded = build(config, model, device, progress)
    return engine_over(config, device, model), loaded


@torch.no_grad()
def engine_over(config: Config, device: Device, model: Transformer) -> Runner:
    """The engine over a model that has its weights and its cache."""
    engine: type[Runner] = target(config.engine)
    return engine.make(config, model, device)


def to_keep(config: Config, device: Device, model: Transformer, kept: Kept | None, measured: dict[str, Any]) -> Kept:
    """What a job leaves, which has made its own model or taken over a kept one."""
    own: Compilation = measured["compilations"][0]
    if kept is not None:
        return replace(kept, compilation=kept.compilation.with_more(own) if own.compiles else kept.compilation)
    return Kept(config, device, model, measured["checkpoint"], measured["load_s"], own, measured["started"])


def prepare_alone(config: Config) -> Compilation:
    """Builds and prepares, for a process of its own."""
    device: Device = instantiate(config.device)
    target(config.engine).begin(config.engine, device)
    with CompileWatch() as watch:
        engine, _ = make_engine(config, device, plan(config, device))
        workload: Workload = instantiate(config.workload, device)
        sensor = sensor_of(device)
        compilation = prepare(engine, watch, empty_cache=False, process="second", sensor=sensor)
        warm_ups = warm_up(engine, workload, watch, sensor)
        compilation.later_s = sum(call.call_s for call in warm_ups if call.compiles)
        return compilation
