"""What becomes of a job: whatever happens, there is a record of it.

A job's folder holds, one after the other: a lock of the process that runs it, a mark that it began, the record of its
measurement or its failure, and in a sweep what came of it. Each is written as a whole, so that a process that looks in
after any other was killed knows how far that had got.
"""

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from gptbench.base.errors import BadResultError, JobError, UserError, in_one_line, is_unwritable
from gptbench.base.inputs import read_object
from gptbench.base.outputs import write_json
from gptbench.config import Isolation
from gptbench.execute.isolation import in_own_process
from gptbench.execute.run import Job, run
from gptbench.measure.environment import git_commit
from gptbench.present.console import console, write_line
from gptbench.present.terminal import line_of, show_next
from gptbench.record.ledger import hold
from gptbench.record.sync import log_recorded
from gptbench.schema.busy import busy
from gptbench.schema.failure import Cause, Failure
from gptbench.schema.files import load_record, runs_in
from gptbench.schema.outcome import BEGUN, LOCK, Outcome, Status
from gptbench.schema.plan import STOP, Plan
from gptbench.text.prompt import make_tokenizer

DIED = "its process ended without a record of it"
RUNNING = ".attempt.lock"
"""In a job's folder, locked by the process that runs it, which may be another one than answers for it."""


def alone(job: Job) -> None:
    """A run by itself. Raises what it raises; where it ran in a process of its own, that in words. Once there is a
    record, Ctrl-C says so."""
    try:
        alone_and_published(job)
    except KeyboardInterrupt as interrupt:
        if job.record is None or str(interrupt):
            raise
        raise KeyboardInterrupt(f"interrupted; the result is recorded: {job.record}") from interrupt


def alone_and_published(job: Job) -> None:
    """The same."""
    if job.config.isolation is Isolation.none:
        try:
            execute(job)
        finally:
            publish(job)
        return
    outcome = isolated(job)
    publish(job)
    if outcome.cause is not None:
        kinds = {Cause.refused.value: UserError, Cause.bad_result.value: BadResultError}
        raise kinds.get(outcome.cause, JobError)(outcome.reason)


def execute(job: Job) -> None:
    """Runs it in this process."""
    run(job, make_tokenizer(job.config.model))


def of_sweep(folder: Path, sweep: Path, read: Callable[[], Job]) -> Outcome:
    """One job of a sweep. A launcher may start it twice, where it lost sight of a process: the first counts.

    Args:
        folder: the job's.
        sweep: folder that Hydra made for the sweep.
        read: gives the job.
    """
    plan = Plan.load(sweep)
    swept = plan.jobs[folder.name]
    with hold(folder / LOCK, "an earlier process with the same job"):
        if (before := Outcome.of(folder)) is not None:
            return before
        if (sweep / STOP).exists():
            outcome = Outcome(status=Status.not_run.value, swept=swept, reason="the sweep was ended before")
            outcome.save(folder)
            return outcome
        try:
            job = read()
        except UserError as error:  # what the sweeper could read, and this machine cannot
            told = str(error)
            outcome = Outcome(status=Status.failed.value, swept=swept, cause=Cause.refused.value, reason=told)
            outcome.save(folder)
            return outcome
        job.sweep, job.swept, job.resume = Path(plan.sweep), swept, plan.resume
        outcome = tried(job)
        outcome.save(folder)
        publish(job)
        return outcome


def tried(job: Job) -> Outcome:
    """What comes of it, or has come of it where an earlier process began it and is gone.

    Raises:
        KeyboardInterrupt: Ctrl-C; that is told in its folder.
    """
    if (job.folder / BEGUN).exists():
        return after_death(job)
    begin(job)
    try:
        return attempt(job) if job.config.isolation is Isolation.none else isolated(job)
    except KeyboardInterrupt:
        recorded = [*records_since(job), job.record]
        outcome = Outcome(status=Status.interrupted.value, swept=job.swept, identity=job.identity, reason="Ctrl-C")
        outcome.record = None if recorded[0] is None else str(recorded[0])
        outcome.save(job.folder)
        raise


def begin(job: Job) -> None:
    """Leaves a mark, by which a later process knows that this one began it."""
    process = {"started": job.started, "host": socket.gethostname(), "pid": os.getpid(), "command": job.command}
    write_json(job.folder / BEGUN, process)


def attempt(job: Job) -> Outcome:
    """Runs a job in this process, and tells what came of it; what it raises becomes a record.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    start = time.perf_counter()
    try:
        with hold(job.folder / RUNNING, "the process that began the job"):
            execute(job)
    except Exception as error:
        if is_of_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, UserError):
            return failed(job, Cause.refused, str(error), start)
        if isinstance(error, BadResultError):
            return failed(job, Cause.bad_result, str(error), start)
        if is_unwritable(error):
            return failed(job, Cause.raised, in_one_line(error), start)
        traceback.print_exc()
        cause = Cause.memory if is_for_memory(error) else Cause.raised
        return failed(job, cause, in_one_line(error), start, traceback.format_exc())
    return measured(job, start)


def isolated(job: Job) -> Outcome:
    """The same in a process of its own, whose death becomes a record, too."""
    start = time.perf_counter()
    ended = in_own_process(attempt_apart, job, timeout_s=job.config.sweep.timeout_s)
    if ended.value is not None:
        outcome, job.identity, job.record, job.found = ended.value
        return outcome
    assert ended.died is not None
    cause = Cause.timed_out if ended.died.timed_out else Cause.memory if ended.died.out_of_memory else Cause.killed
    return after_death(job, cause, ended.died.reason, start)


def attempt_apart(job: Job) -> tuple[Outcome, str | None, Path | None, bool]:
    """`attempt`, and what it has learnt of the job."""
    console.quiet = job.config.quiet
    return attempt(job), job.identity, job.record, job.found


def after_death(job: Job, cause: Cause = Cause.killed, reason: str = DIED, start: float | None = None) -> Outcome:
    """What came of a job whose process is gone: it may have written its record before."""
    start = time.perf_counter() if start is None else start
    job.started = str(read_object(job.folder / BEGUN).get("started", job.started))
    with hold(job.folder / RUNNING, "the process that began the job"):  # which ends a moment after its parent
        found = records_since(job)
    for job.record in found:
        record = load_record(job.record)
        job.identity = record.identity
        if record.problem() is None:
            return measured(job, start)
    return failed(job, cause, reason, start)


def records_since(job: Job) -> list[Path]:
    """Measurements in a job's folder, without those of an earlier run in the same folder."""
    found = []
    for path in runs_in(job.folder):
        with contextlib.suppress(UserError):  # it was damaged, or is nothing of ours
            if load_record(path).started >= job.started:
                found.append(path)
    return found


def measured(job: Job, start: float) -> Outcome:
    """Of a job that is recorded, and counts."""
    assert job.record is not None
    record = load_record(job.record)
    return Outcome(
        status=(Status.found if job.found else Status.recorded).value,
        swept=job.swept,
        identity=job.identity,
        record=str(job.record),
        seconds=time.perf_counter() - start,
        metrics=record.summary(),
        busy=busy(record),
    )


def failed(job: Job, cause: Cause, reason: str, start: float, trace: str | None = None) -> Outcome:
    """Of a job that is not, or does not count. Writes the record of that, where there is no other."""
    seconds = time.perf_counter() - start
    if job.record is None and job.sweep is not None:
        failure = Failure(
            **job.header(),
            started=job.started,
            config=job.resolved,
            cause=cause.value,
            reason=reason,
            traceback=trace,
            seconds=seconds,
            commit=job.config.commit or git_commit(),
        )
        with contextlib.suppress(OSError):  # the disk is full: its outcome may be told all the same
            job.record = failure.save(job.folder)
    if job.sweep is not None:
        console.warn(f"failed, {cause.value}: {reason}", "red")
    return Outcome(
        status=Status.failed.value,
        swept=job.swept,
        cause=cause.value,
        reason=reason,
        identity=job.identity,
        record=None if job.record is None else str(job.record),
        seconds=seconds,
    )


def publish(job: Job) -> None:
    """Logs the record of a job, and says where it is; what cannot be logged now is sent later."""
    if job.record is None:
        return
    record = load_record(job.record)
    logged = log_recorded(record, job.record, job.config.tracking, Path(job.config.outputs), console.warn)
    console.print(f"result: {job.record}" + (f"\ntracked: {logged}" if logged else ""), markup=False)
    if job.sweep is not None:  # whose own line is the last one on stdout
        return
    show_next(record, job.record, job.config.tracking, Path(job.config.outputs), logged is not None)
    write_line(line_of(record, job.record, logged))


def is_of_interrupt(error: BaseException | None) -> bool:
    """Whether it is what some library made of a Ctrl-C."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_for_memory(error: Exception) -> bool:
    """Whether there was not enough. On a CPU, torch has no type for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
