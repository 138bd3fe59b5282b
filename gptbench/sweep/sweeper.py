"""Hydra's sweeper: plans the jobs, hands them to a launcher, and records the outcome of each, however the sweep ends.

The launcher is any of Hydra's. What a job needs beyond its configuration is in a file (`Plan`), and its outcome in
another (`Outcome`), so that nothing is lost if a process dies or a launcher gives up.
"""

import contextlib
import dataclasses
import datetime
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from gptbench.base.errors import ConfigError, JobError, TrackingError, UserError, counted
from gptbench.base.inputs import read_object
from gptbench.base.outputs import check_folder, write_json
from gptbench.base.redaction import redacted
from gptbench.config import Config, ModelConfig, SweepConfig, load
from gptbench.config.grammar import quoted
from gptbench.config.targets import instantiate
from gptbench.execute.dry_run import dry_run
from gptbench.execute.job import RaisedError, own_options
from gptbench.private.hydra import BASIC_LAUNCHER, register_plugin
from gptbench.sweep.dry_run import dry_sweep
from gptbench.sweep.space import Overrides, Space, overrides_parser
from gptbench.text.prompt import make_tokenizer, with_prompt

if TYPE_CHECKING:
    from gptbench.execute.observer import Observer
    from gptbench.schema.outcome import Outcome
    from gptbench.schema.plan import Plan

NAME = "hydra_plugins.gptbench.Sweeper"
"""Name of the sweeper in a configuration."""
HOW_TO_RESUME = "to resume: the same command with sweep.resume=true"
MAX_STALLED = 2
"""Number of launches in a row without a job that ended, after which the sweep gives up. After one, jobs of the first
launch may still run."""
LOOK_S = 1.0
"""Seconds between two looks at jobs in other processes."""


def register() -> None:
    """Make the sweeper known to Hydra."""
    register_plugin(NAME, Sweeper)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A job before it runs."""

    overrides: Overrides
    """All overrides of the job."""
    swept: list[str]
    """Overrides of the job for the keys that the sweep varies."""
    config: Config
    """Validated configuration with its prompt as tokens."""


class Sweeper(HydraSweeper):
    """Sweeper that Hydra calls: see the module."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context; Hydra calls this once, before `sweep`."""
        self.context, self.task, self.base = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        """Plan and run all jobs.

        Args:
            arguments: overrides as they were typed.

        Raises:
            UserError: a job's configuration is invalid; nothing was run.
            RaisedError: a JobError if not every job is recorded, or a ConfigError.
            KeyboardInterrupt: Ctrl-C; what was recorded before remains.
        """
        jobs = self.plan(arguments)
        if self.task is dry_run:
            dry_sweep(jobs, Path(self.base.hydra.runtime.cwd))
            return
        try:
            launch(self, jobs)
        except Exception as error:
            raise RaisedError(error) from error

    def plan(self, arguments: list[str]) -> list[Planned]:
        """Return all jobs, each composed and validated."""
        section = OmegaConf.to_object(self.base.sweep)
        assert isinstance(section, SweepConfig)
        parser = overrides_parser(self.context.config_loader)
        space = Space.of(parser.parse_overrides(arguments), section.paired)
        sampled = instantiate(section).draw(space)
        if not self.base.quiet:
            print(f"planning {counted(len(sampled), 'job')}", file=sys.stderr, flush=True)
        tokenizer_of = functools.cache(lambda index: make_tokenizer(models[index]))
        models: list[ModelConfig] = []
        planned: list[Planned] = []
        for overrides in sampled:
            swept = [override for override in overrides if override.partition("=")[0] in space.swept]
            try:
                composed = self.context.config_loader.load_sweep_config(self.base, list(overrides))
                with open_dict(composed):
                    del composed["hydra"]
                config = load(composed, overrides)
                if config.model not in models:
                    models.append(config.model)
                config = with_prompt(config, tokenizer_of(models.index(config.model)))
            except UserError as error:
                raise UserError(f"job {len(planned)} ({' '.join(swept)}): {error}") from error
            planned.append(Planned(overrides, swept, config))
        return planned


def launch(sweeper: Sweeper, jobs: list[Planned]) -> None:
    """Run the planned jobs, and report the outcome. Raises JobError, KeyboardInterrupt, or ConfigError."""
    from gptbench.record.ledger import hold, is_held  # importing torch takes seconds
    from gptbench.schema.plan import LOCK, PLAN

    check_folder("outputs", jobs[0].config.outputs)
    check_folder("hydra.sweep.dir", sweeper.base.hydra.sweep.dir)
    folder = Path(sweeper.base.hydra.sweep.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if is_held(folder / LOCK) or (folder / PLAN).exists():
        # The outcomes of another sweep's jobs would be taken for those of this one.
        raise ConfigError("hydra.sweep.dir", folder, "a folder that holds no other sweep")
    with hold(folder / LOCK, "another sweep"):
        Sweep(sweeper, jobs, folder).run()


class Sweep:
    """One call of a sweep.

    Args:
        folder: folder that Hydra made for the call.
    """

    def __init__(self, sweeper: Sweeper, jobs: list[Planned], folder: Path) -> None:
        from gptbench.present.terminal import Terminal
        from gptbench.record import Tracker
        from gptbench.record.identity import plan_identity
        from gptbench.schema.identity import digest
        from gptbench.schema.plan import STOP

        self.observer: Observer = Terminal(jobs[0].config.quiet)
        self.sweeper, self.jobs, self.folder = sweeper, jobs, folder
        first = jobs[0].config
        self.outputs = (Path(sweeper.base.hydra.runtime.cwd) / first.outputs).absolute()
        self.section = first.tracking
        self.tracker: Tracker = instantiate(self.section, self.outputs)
        identity = digest(sorted({plan_identity(job.config) for job in jobs}))
        self.plan = self.make_plan(identity, first.sweep.resume)
        self.progress = Progress(len(jobs), self.observer)
        self.stop_file = os.fspath(folder / STOP)
        self.interrupted = False
        self.trouble: str | None = None

    def make_plan(self, identity: str, resume: bool) -> "Plan":
        """Return the plan, written to the folder, where the jobs find it."""
        from gptbench.record.ledger import SWEEPS, hold

        last = self.outputs / SWEEPS / f"{identity}.json"
        last.parent.mkdir(parents=True, exist_ok=True)
        with hold(last.with_suffix(".lock"), "another sweep over the same jobs"):  # two at once would each be the first
            return self.written_plan(identity, last, self.earlier(last) if resume else None, resume)

    def written_plan(self, identity: str, last: Path, sweep: Path | None, resume: bool) -> "Plan":
        """Return the plan of a sweep that continues an earlier one, or none, and write it."""
        from gptbench.schema.plan import Plan

        hydra_config = self.sweeper.base.hydra
        first = OmegaConf.to_container(OmegaConf.structured(self.jobs[0].config), enum_to_str=True)
        assert isinstance(first, dict)
        plan = Plan(
            sweep=str(sweep or self.folder),
            identity=identity,
            resume=resume,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=["python", "-m", "gptbench", *own_options(hydra_config), "-m", *hydra_config.overrides.task],
            config={str(group): values for group, values in first.items()},
            jobs={str(number): job.swept for number, job in enumerate(self.jobs)},
        )
        plan.save(self.folder)
        # Relative paths, so that the outputs can be moved.
        folders = {"sweep": plan.sweep, "call": str(self.folder)}
        write_json(last, {key: os.path.relpath(where, self.outputs) for key, where in folders.items()}, indent=None)
        return plan

    def earlier(self, last: Path) -> Path | None:
        """Return the folder of the last sweep over the same jobs; None if there is none.

        Raises:
            ConfigError: that sweep is still running.
        """
        from gptbench.record.ledger import is_held, is_name
        from gptbench.schema.plan import LOCK, PLAN

        folders = read_object(last)
        if not all(is_name(folders.get(key)) for key in ("sweep", "call")):
            return None
        sweep, call = ((self.outputs / folders[key]).resolve() for key in ("sweep", "call"))
        if is_held(call / LOCK):
            raise ConfigError("sweep.resume", "true", f"no other process to run the sweep, and {call} is still running")
        return sweep if (sweep / PLAN).exists() else None

    def run(self) -> None:
        from gptbench.record.sync import log_recorded
        from gptbench.schema.sweep import record_of

        swept = list(dict.fromkeys(override.partition("=")[0] for job in self.jobs for override in job.swept))
        try:
            with stopping(self):
                try:
                    self.tracker.begin_sweep(self.plan.sweep, self.plan.started, swept)
                except TrackingError as error:
                    self.observer.warn(f"Not tracked yet: {error}")
                self.launch_all()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            record = record_of(self.folder, self.plan, self.interrupted, self.trouble)
            try:
                path = record.save(self.folder)
            finally:  # if the disk is full, this report is all that remains
                self.observer.swept(record)
            logged = log_recorded(record, path, self.section, self.outputs, self.observer.warn)
            self.observer.recorded(record, path, logged)
            self.observer.concluded(record, path, self.jobs[0].config, self.outputs, logged)
        if self.interrupted:
            raise KeyboardInterrupt(
                f"interrupted; of {counted(len(self.jobs), 'job')} {record.counts_text}; {HOW_TO_RESUME}"
            )
        if record.status != "FINISHED":
            raise JobError(f"of {counted(len(self.jobs), 'job')} {record.counts_text}; {HOW_TO_RESUME}")

    def stop(self) -> None:
        """Keep further jobs from beginning, in whatever process. A signal handler calls this: it imports and prints
        nothing."""
        self.interrupted = True
        with contextlib.suppress(OSError):
            os.close(os.open(self.stop_file, os.O_WRONLY | os.O_CREAT, 0o644))

    def launch_all(self) -> None:
        """Hand the jobs to the launcher, and those without an outcome once more: if a launcher gives up on the first of
        its processes that dies, the others keep running, and the second copy of each job waits for the first."""
        waiting = list(range(len(self.jobs)))
        stalled = 0
        while waiting and not self.interrupted and stalled < MAX_STALLED:
            launcher = self.launcher()
            self.progress.begin(len(self.jobs) - len(waiting))
            jobs = [self.overrides(number) for number in waiting]
            jobs = HandedOut(self, jobs) if is_in_this_process(launcher) else jobs
            with self.watching(launcher):
                try:
                    returned = launcher.launch(jobs, initial_job_idx=0)
                    for job in returned:
                        _ = job.return_value  # raises the error of the job
                except Exception as error:  # a launcher lost a job, or a job could not write
                    self.trouble = f"{type(launcher).__name__}: {error!r}"
                    self.observer.warn(self.trouble, "red")
            before, waiting = waiting, [number for number in waiting if self.outcome(number) is None]
            stalled = stalled + 1 if len(waiting) == len(before) else 0

    def launcher(self) -> Launcher:
        """Return the launcher that was asked for. If it runs jobs in this process, each job reports its end."""
        context, config = self.sweeper.context, self.sweeper.base

        def task(composed: DictConfig) -> Any:
            outcome: Outcome = self.sweeper.task(composed)
            self.progress.ended(outcome)
            return outcome

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=self.sweeper.task, config=config
        )
        if is_in_this_process(launcher):
            launcher.setup(hydra_context=context, task_function=task, config=config)
        return launcher

    def overrides(self, number: int) -> Sequence[str]:
        """Return the overrides of a job, including its folder, whatever number its launcher gives it."""
        return [
            *self.jobs[number].overrides,
            f"hydra.sweep.dir={quoted(str(self.folder))}",
            f"hydra.sweep.subdir={number}",
        ]

    def outcome(self, number: int) -> "Outcome | None":
        from gptbench.schema.outcome import Outcome

        return Outcome.of(self.folder / str(number))

    @contextlib.contextmanager
    def watching(self, launcher: Launcher) -> Iterator[None]:
        """Report the end of jobs in other processes while the context lasts. For jobs in this process there is no
        watching thread, which would disturb them."""
        if is_in_this_process(launcher):
            yield
            return
        over = threading.Event()
        seen = {number for number in range(len(self.jobs)) if self.outcome(number) is not None}

        def look() -> None:
            last = False
            while not last:
                last = over.wait(LOOK_S)
                for number in range(len(self.jobs)):
                    if number not in seen and (outcome := self.outcome(number)) is not None:
                        seen.add(number)
                        self.progress.ended(outcome)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class HandedOut(list[Sequence[str]]):
    """Overrides of jobs for a launcher in this process, which takes one after the other: none once the sweep is
    interrupted."""

    def __init__(self, sweep: Sweep, jobs: list[Sequence[str]]) -> None:
        super().__init__(jobs)
        self.sweep = sweep

    def __iter__(self) -> Iterator[Sequence[str]]:
        for overrides in super().__iter__():
            if self.sweep.interrupted:
                raise KeyboardInterrupt
            number = int(overrides[-1].rpartition("=")[2])
            swept = " ".join(redacted(self.sweep.jobs[number].swept))
            self.sweep.observer.remark(f"\njob {number} of {len(self.sweep.jobs)}: {swept}", "bold")
            yield overrides


def is_in_this_process(launcher: Launcher) -> bool:
    """Return whether a launcher runs the jobs one after the other in the process that planned them."""
    return f"{type(launcher).__module__}.{type(launcher).__qualname__}" == BASIC_LAUNCHER


class Progress:
    """Progress of a sweep, and an estimate of the remaining time from the time per job so far, whether jobs run in
    parallel or not."""

    def __init__(self, total: int, observer: "Observer") -> None:
        self.total, self.done, self.failed, self.run = total, 0, 0, 0
        self.observer = observer
        self.start = time.monotonic()

    def begin(self, done: int) -> None:
        self.done = done

    def ended(self, outcome: "Outcome") -> None:
        """Count a job, and report the progress. Jobs that were recorded before took no time, and are left out of the
        estimate."""
        from gptbench.schema.outcome import Status

        self.done += 1
        self.failed += outcome.status == Status.failed.value
        self.run += outcome.status in (Status.recorded.value, Status.failed.value)
        line = f"sweep: {self.done}/{counted(self.total, 'job')}"
        if self.failed:
            line += f", {self.failed} failed"
        if self.run and self.done < self.total:
            remaining_s = (time.monotonic() - self.start) / self.run * (self.total - self.done)
            line += f"; about {duration(remaining_s)} left"
        self.observer.remark(line, "bold")


def duration(seconds: float) -> str:
    """Return a rough duration in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def stopping(sweep: Sweep) -> Iterator[None]:
    """Handle signals while the context lasts. The first Ctrl-C, or a closed terminal, ends the sweep after the jobs
    that run now; the second Ctrl-C, or SIGTERM, ends it at once. Signals that are ignored stay ignored: Ctrl-C if a
    script started the sweep in the background, a closed terminal under nohup."""

    def on_interrupt(number: int, _: FrameType | None) -> None:
        again = sweep.interrupted and number != signal.SIGHUP
        sweep.stop()
        if again or number == signal.SIGTERM:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # unbuffered: a thread may hold the lock of sys.stderr
            os.write(2, b"\nstopping after the job that runs now; press Ctrl-C again to stop at once\n")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heeded = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, on_interrupt)
    try:
        yield
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)
