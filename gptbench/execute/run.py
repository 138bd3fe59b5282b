"""One run, from its configuration to its record."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptbench.base.errors import BadResultError
from gptbench.build import memory_need_of
from gptbench.config import Config
from gptbench.config.targets import instantiate
from gptbench.device.group import DeviceGroup
from gptbench.engine import caches
from gptbench.execute.job import Attempt
from gptbench.execute.measurement import Bench, Subject, measure
from gptbench.execute.observer import Observer
from gptbench.execute.preparation import as_recorded, plan, plan_reference, with_engine
from gptbench.execute.reuse import Session, WarmModel, may_store, release
from gptbench.record.identity import identity
from gptbench.record.ledger import Ledger
from gptbench.schema import Measured, Result
from gptbench.schema.breakdown import write_trace
from gptbench.schema.result import Measurement
from gptbench.task import Speed, Standalone
from gptbench.text.prompt import make_tokenizer
from gptbench.text.tokenizer import Tokenizer


def run(attempt: Attempt, session: Session, observer: Observer) -> None:
    """Measure what a job asks for, and write the record to its folder. The attempt holds what has been recorded so far,
    also if this raises.

    Raises:
        UserError: this machine cannot run the configuration, or its checkpoint cannot be read.
        BadResultError: the recorded numbers are invalid, or quality or a breakdown could not be measured.
        KeyboardInterrupt: Ctrl-C; what a task without an engine had measured by then is recorded.
    """
    job = attempt.job
    caches.import_compiler()
    devices = DeviceGroup.of(job.config.device)
    config, choice = job.config, None
    if config.task.RUNS_ENGINE:
        config, choice = with_engine(config, devices, observer.remark)
    attempt.identity = identity(config, devices)
    ledger = Ledger(job.outputs)
    with ledger.claim(attempt.identity, job.resume):
        if job.resume and (before := ledger.recorded(attempt.identity)) is not None:
            (attempt.path, attempt.record), attempt.found = before, True
            return
        ledger.note(attempt.identity, job.folder, job.started)
        if config.task.RUNS_ENGINE:
            run_model(attempt, config, choice, devices, session, observer)
        else:
            session.evict(devices.local)
            run_standalone(attempt, config, devices, observer)


def run_model(
    attempt: Attempt,
    config: Config,
    choice: list[str] | None,
    devices: DeviceGroup,
    session: Session,
    observer: Observer,
) -> None:
    """Run a task that measures a model."""
    device = devices.local
    tokenizer = make_tokenizer(config.model)
    task: Speed = instantiate(config.task, config, tokenizer)
    kept = session.acquire(config, device)
    model = None if kept is None else kept.model
    leaves = False
    try:
        in_use = 0 if kept is None else kept.nbytes
        planned = plan(config, devices, in_use)
        if task.needs_reference:
            plan_reference(config, in_use)
        model = planned if model is None else model
        need = memory_need_of(config, planned)
        observer.planned(config, device, need)
        with observer.stages(stage_count(config, task), config.workload.samples) as stages:
            subject = Subject(config, devices, model, kept, task)
            bench, measurement = measure(subject, session, observer, stages)
        leaves = attempt.job.sweep is not None and may_store(config) and not task.needs_reference
    finally:
        if not leaves and model is not None:
            release(model, device)
    if leaves:
        session.store(to_store(subject, bench.started, measurement))
    if not devices.is_main:
        return
    result = Result(
        **attempt.header(),
        **bench.fields(device),
        **vars(measurement),
        config=as_recorded(attempt.job.asked, config),
        memory_need_bytes=asdict(need),
        prompt=config.workload.prompt,
        prompts=config.workload.prompts,
        engine_choice=choice,
    )
    if tokenizer is not None:
        add_text(result, tokenizer)
    path = saved(attempt, result, config, observer)
    if result.breakdown is not None:
        write_trace(result.breakdown, result.roof.gb_per_s, path.with_name(path.name.replace("result", "trace")))
    observer.measured(result, config, path)
    require_counts(result, path)


def stage_count(config: Config, task: Speed) -> int:
    """Return the number of stages of a run: the roof, weights, compiling, warming up, each sample, and what comes after
    them."""
    after = config.engine.measure_warm_start + config.task.breakdown + config.task.energy + (task.stage is not None)
    return 4 + config.workload.samples + after


def to_store(subject: Subject, started: str, measurement: Measurement) -> WarmModel:
    """Return what a job leaves, which has made its own model or taken one over."""
    compilation, kept = measurement.compilations[0], subject.kept
    spent_s = compilation.total_s if compilation.compiles or compilation.later_s else 0.0
    if kept is None:
        loaded, load_s = measurement.checkpoint, measurement.load_s
        return WarmModel(subject.config, subject.device, subject.model, loaded, load_s, spent_s, started)
    return kept.with_more(spent_s)


def add_text(result: Result, tokenizer: Tokenizer) -> None:
    """Add the texts of the prompt and the answers."""
    result.prompt_text = text_of(result.prompt, tokenizer)
    result.prompt_texts = [text_of(prompt, tokenizer) for prompt in result.prompts]
    for sample in result.samples:
        answers = [row[:count] for row, count in zip(sample.tokens, sample.generated, strict=True)]
        prompts = result.prompts or [result.prompt] * len(answers)
        sample.text = [tokenizer.continuation(*pair) for pair in zip(prompts, answers, strict=True)]


def text_of(prompt: list[int], tokenizer: Tokenizer) -> str:
    """Return a prompt as text, without a begin-of-text token."""
    return tokenizer.decode(prompt[int(prompt[0] == tokenizer.bos) :])


def run_standalone(attempt: Attempt, config: Config, devices: DeviceGroup, observer: Observer) -> None:
    """Run a task without a model and an engine."""
    device = devices.local
    task: Standalone = instantiate(config.task, config, device)
    if task.remark is not None:
        observer.remark(task.remark)
    parts: list[Any] = []
    interrupted = False
    with observer.stages(1 + task.parts) as stages:
        bench = Bench.of(config, devices, stages, observer.warn)
        bench.probes += bench.probe("before")
        begin = time.perf_counter()
        try:
            for part in task.measure(stages.stage):
                parts += [part]
        except KeyboardInterrupt:
            interrupted = True
        wall_s = time.perf_counter() - begin
        bench.probes += bench.probe("after")
    result = task.record(
        parts,
        **attempt.header(),
        **bench.fields(device),
        config=as_recorded(attempt.job.asked, config),
        wall_s=wall_s,
        interrupted=interrupted,
    )
    path = saved(attempt, result, config, observer)
    observer.measured(result, config, path)
    if interrupted:
        observer.remark(f"interrupted: {len(parts)} of {task.parts} {result.FILE} were measured")
        raise KeyboardInterrupt(f"interrupted; what was measured before is recorded: {path}")
    require_counts(result, path)


def saved(attempt: Attempt, result: Measured, config: Config, observer: Observer) -> Path:
    """Write the record to the job's folder and return its path. If the disk is full, the observer's report is all that
    remains."""
    try:
        return attempt.save(result)
    except OSError:
        observer.measured(result, config, None)
        raise


def require_counts(result: Measured, path: Path) -> None:
    """Raise BadResultError for a record that does not count."""
    if (wrong := result.problem()) is not None:
        raise BadResultError(f"{path}: {wrong}")
