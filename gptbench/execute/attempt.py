"""Running a job such that there is a record of it, whatever happens.

A job's folder gets, one after the other: a lock of the process that runs it, a mark that it began, the record of its
measurement or its failure, and in a sweep its outcome. Each is written atomically, so that if a process is killed, any
other one knows how far it had got.
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
from gptbench.execute.job import Attempt, Job
from gptbench.execute.observer import Observer
from gptbench.execute.reuse import Session
from gptbench.execute.run import run
from gptbench.measure.environment import git_commit
from gptbench.record.ledger import hold
from gptbench.record.sync import log_recorded
from gptbench.schema.busy import busy
from gptbench.schema.failure import Cause, Failure
from gptbench.schema.files import load_record, runs_in
from gptbench.schema.outcome import BEGUN, LOCK, Outcome, Status
from gptbench.schema.plan import STOP, Plan
from gptbench.schema.record import Recorded

DIED = "its process ended without a record"
RUNNING = ".attempt.lock"
"""File in a job's folder that is locked by the process that runs it, which may differ from the one that is responsible
for it."""


def alone(job: Job, session: Session, observer: Observer) -> None:
    """Run a single job. Errors are raised; those of a separate process are raised again by their message. If Ctrl-C
    comes once there is a record, its message says so."""
    attempt = Attempt(job)
    try:
        alone_and_published(attempt, session, observer)
    except KeyboardInterrupt as interrupt:
        if attempt.path is None or str(interrupt):
            raise
        raise KeyboardInterrupt(f"interrupted; the result is recorded: {attempt.path}") from interrupt


def alone_and_published(attempt: Attempt, session: Session, observer: Observer) -> None:
    """Run a single job, and publish its record."""
    if attempt.job.config.isolation is Isolation.none:
        try:
            run(attempt, session, observer)
        finally:
            publish(attempt, observer)
        return
    outcome = isolated(attempt, observer)
    publish(attempt, observer)
    if outcome.cause is not None:
        kinds = {Cause.refused.value: UserError, Cause.bad_result.value: BadResultError}
        raise kinds.get(outcome.cause, JobError)(outcome.reason)


def of_sweep(
    folder: Path, sweep: Path, read: Callable[..., Job], session: Session, make_observer: Callable[[bool], Observer]
) -> Outcome:
    """Run one job of a sweep, and return its outcome. A launcher that lost sight of a process may start a job twice:
    the first one counts.

    Args:
        folder: folder of the job.
        sweep: folder that Hydra made for the sweep.
        read: function that returns the job; it takes the fields that the sweep adds.
        make_observer: function that returns the observer; its argument is whether to be quiet.
    """
    plan = Plan.load(sweep)
    swept = plan.jobs[folder.name]
    with hold(folder / LOCK, "an earlier process with the same job"):
        if (before := Outcome.of(folder)) is not None:
            return before
        if (sweep / STOP).exists():
            outcome = Outcome(status=Status.not_run.value, swept=swept, reason="the sweep ended before it began")
            outcome.save(folder)
            return outcome
        try:
            job = read(sweep=Path(plan.sweep), swept=swept, resume=plan.resume)
        except UserError as error:  # such as a file that the sweeper could read, and this machine cannot
            reason = str(error)
            outcome = Outcome(status=Status.failed.value, swept=swept, cause=Cause.refused.value, reason=reason)
            outcome.save(folder)
            return outcome
        attempt, observer = Attempt(job), make_observer(job.config.quiet)
        outcome = outcome_of(attempt, session, observer)
        outcome.save(folder)
        publish(attempt, observer)
        return outcome


def outcome_of(attempt: Attempt, session: Session, observer: Observer) -> Outcome:
    """Run a job, or clean up if an earlier process began it and is gone, and return its outcome.

    Raises:
        KeyboardInterrupt: Ctrl-C; its folder then has the outcome.
    """
    job = attempt.job
    if (job.folder / BEGUN).exists():
        return after_death(attempt, observer)
    begin(job)
    try:
        if job.config.isolation is Isolation.none:
            return attempted(attempt, session, observer)
        return isolated(attempt, observer)
    except KeyboardInterrupt:
        paths = [*(path for path, _ in records_since(job, job.started)), attempt.path]
        outcome = Outcome(status=Status.interrupted.value, swept=job.swept, identity=attempt.identity, reason="Ctrl-C")
        outcome.record = None if paths[0] is None else str(paths[0])
        outcome.save(job.folder)
        raise


def begin(job: Job) -> None:
    """Leave a mark by which a later process knows that this one began the job."""
    process = {"started": job.started, "host": socket.gethostname(), "pid": os.getpid(), "command": job.command}
    write_json(job.folder / BEGUN, process)


def attempted(attempt: Attempt, session: Session, observer: Observer) -> Outcome:
    """Run a job in this process, and return its outcome; errors are recorded.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    start = time.perf_counter()

    def failed(cause: Cause, reason: str, trace: str | None = None) -> Outcome:
        return recorded_failure(attempt, observer, cause, reason, start, trace)

    try:
        with hold(attempt.job.folder / RUNNING, "the process that began the job"):
            run(attempt, session, observer)
    except Exception as error:
        if is_of_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, UserError):
            return failed(Cause.refused, str(error))
        if isinstance(error, BadResultError):
            return failed(Cause.bad_result, str(error))
        if is_unwritable(error):
            return failed(Cause.raised, in_one_line(error))
        traceback.print_exc()
        cause = Cause.memory if is_for_memory(error) else Cause.raised
        return failed(cause, in_one_line(error), traceback.format_exc())
    return measured(attempt, start)


def isolated(attempt: Attempt, observer: Observer) -> Outcome:
    """Run a job in a separate process, and return its outcome; its death is recorded."""
    start, job = time.perf_counter(), attempt.job
    ended = in_own_process(attempted_apart, job, type(observer), timeout_s=job.config.sweep.timeout_s)
    if ended.value is not None:
        outcome, remote = ended.value
        attempt.identity, attempt.record = remote.identity, remote.record
        attempt.path, attempt.found = remote.path, remote.found
        return outcome
    assert ended.died is not None
    cause = Cause.timed_out if ended.died.timed_out else Cause.memory if ended.died.out_of_memory else Cause.killed
    return after_death(attempt, observer, cause, ended.died.reason, start)


def attempted_apart(job: Job, make_observer: Callable[[bool], Observer]) -> tuple[Outcome, Attempt]:
    """Return the outcome of `attempted`, and what it has found out about the job."""
    attempt = Attempt(job)
    return attempted(attempt, Session(), make_observer(job.config.quiet)), attempt


def after_death(
    attempt: Attempt, observer: Observer, cause: Cause = Cause.killed, reason: str = DIED, start: float | None = None
) -> Outcome:
    """Return the outcome of a job whose process is gone: it may have written its record before."""
    start, job = time.perf_counter() if start is None else start, attempt.job
    started = str(read_object(job.folder / BEGUN).get("started", job.started))
    with hold(job.folder / RUNNING, "the process that began the job"):  # it ends a moment after its parent
        records = records_since(job, started)
    for attempt.path, record in records:
        attempt.record, attempt.identity = record, record.identity
        if record.problem() is None:
            return measured(attempt, start)
    return recorded_failure(attempt, observer, cause, reason, start)


def records_since(job: Job, started: str) -> list[tuple[Path, Recorded]]:
    """Return the measurements in a job's folder, without those of an earlier run in the same folder."""
    records = []
    for path in runs_in(job.folder):
        with contextlib.suppress(UserError):  # damaged, or not a record
            if (record := load_record(path)).started >= started:
                records.append((path, record))
    return records


def measured(attempt: Attempt, start: float) -> Outcome:
    """Return the outcome of a job that is recorded and counts."""
    assert attempt.record is not None
    return Outcome(
        status=(Status.found if attempt.found else Status.recorded).value,
        swept=attempt.job.swept,
        identity=attempt.identity,
        record=str(attempt.path),
        seconds=time.perf_counter() - start,
        metrics=attempt.record.summary,
        busy=busy(attempt.record),
    )


def recorded_failure(
    attempt: Attempt, observer: Observer, cause: Cause, reason: str, start: float, trace: str | None = None
) -> Outcome:
    """Return the outcome of a job that failed, after writing a record of that if there is no other."""
    seconds, job = time.perf_counter() - start, attempt.job
    if attempt.record is None and job.sweep is not None:
        failure = Failure(
            **attempt.header(),
            started=job.started,
            config=job.asked.as_dict(),
            cause=cause.value,
            reason=reason,
            traceback=trace,
            seconds=seconds,
            commit=job.config.commit or git_commit(),
        )
        with contextlib.suppress(OSError):  # the disk is full: the outcome is still reported
            attempt.save(failure)
    if job.sweep is not None:
        observer.warn(f"failed, {cause.value}: {reason}", "red")
    return Outcome(
        status=Status.failed.value,
        swept=job.swept,
        cause=cause.value,
        reason=reason,
        identity=attempt.identity,
        record=None if attempt.path is None else str(attempt.path),
        seconds=seconds,
    )


def publish(attempt: Attempt, observer: Observer) -> None:
    """Log the record of a job, and report where it is; what cannot be logged now is sent later."""
    if attempt.record is None or attempt.path is None:
        return
    job = attempt.job
    logged = log_recorded(attempt.record, attempt.path, job.config.tracking, job.outputs, observer.warn)
    observer.recorded(attempt.record, attempt.path, logged)
    if job.sweep is None:  # the last line of a sweep on stdout is its own
        observer.concluded(attempt.record, attempt.path, job.config, job.outputs, logged)


def is_of_interrupt(error: BaseException | None) -> bool:
    """Return whether an error was caused by Ctrl-C."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_for_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out. On a CPU, torch has no type for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
