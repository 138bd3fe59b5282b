"""Progress of a run on the terminal, and its result at the end for people and programs."""

import os
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gptbench.base import limits
from gptbench.base.errors import counted, raised
from gptbench.base.numbers import number
from gptbench.base.redaction import redacted
from gptbench.build import MemoryNeed
from gptbench.charts import draw_compile_stages
from gptbench.config import Config, MLflowConfig, TrackingConfig
from gptbench.config.targets import instantiate
from gptbench.device import Device
from gptbench.present.console import console, near, program, write_line
from gptbench.present.formats import TEXT, write
from gptbench.present.tables import show_kernels, show_result, show_sweep, tables_of
from gptbench.record.store import embedded_store
from gptbench.schema import KernelResult, Measured, Recorded, Result, SweepRecord
from gptbench.schema.machine import Roof
from gptbench.schema.sample import Sample, Traffic


class Terminal:
    """Observer that reports to people on stderr, and to programs on stdout.

    Args:
        quiet: whether only warnings and errors are printed on stderr.
    """

    def __init__(self, quiet: bool) -> None:
        console.quiet = quiet
        self.roof: Roof | None = None
        """The read roof that the limit was printed for."""

    def planned(self, config: Config, device: Device, need: MemoryNeed) -> None:
        """Print what will be run."""
        work, sampling = config.workload, config.sampling
        how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
        how += "".join(
            f", {name} {value:g}"
            for name, value in (("top_k", sampling.top_k), ("top_p", sampling.top_p))
            if value is not None and sampling.temperature > 0
        )
        console.print(
            f"{config.model.name}, quant {config.quant.full_name}, {device.dtype_name}, "
            f"engine {config.engine.name}, on {device.name}",
            style="bold",
            markup=False,
        )
        rows = ""
        if work.batch_size > 1:
            rows = " with a prompt for each row" if work.prompts else " with one prompt for all rows"
        console.print(
            f"  {counted(work.samples, 'sample')} of {len(work.prompt)} prompt + "
            f"{counted(work.new_tokens, 'new token')}, batch {work.batch_size}{rows}, {how}, seed {work.seed}"
        )
        console.print(f"  needs {need}")
        if (allowance := container()) is not None:
            console.print(f"  {allowance}{'' if device.is_cuda else f': {device.threads} threads'}")

    def limit(self, traffic: Traffic, roof: Roof | None, config: Config) -> None:
        """Print the limit by memory bandwidth; for a mixture of experts, that if all rows choose the same experts."""
        batch, steps = config.workload.batch_size, len(traffic.kv_len)
        least, most = (sum(traffic.needed(experts)) / steps for experts in (None, max_experts(config) * steps))
        self.roof = roof
        needs, what = f"{least / 1e9:.3f} GB", "that takes"
        if most > least:
            needs = f"{least / 1e9:.3f} GB, where all rows choose the same experts, to {most / 1e9:.3f} GB"
            what = "the former takes"
        if roof is None:
            console.print(f"  a decode step needs {needs}; the limit is known once a run has measured the read roof")
            return
        fastest = least / roof.gb_per_s / 1e9
        console.print(
            f"  a decode step needs {needs}; at the read roof of {roof.gb_per_s:.4g} GB/s {what} "
            f"{fastest * 1e3:.3g} ms: at most {batch / fastest:.4g} tokens/s"
        )

    @contextmanager
    def stages(self, total: int | None, samples: int = 0) -> Iterator["Stages"]:
        """Show a bar over the stages, or print a line for each without a terminal; never inside a timed region."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # Without a thread that redraws, which would compete with the thread being measured.
        with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not has_bar()) as bar:
            yield Stages(bar, total, samples)

    def remark(self, text: str, style: str | None = None) -> None:
        """Print a remark."""
        console.print(text, markup=False, style=style)

    def warn(self, text: str, style: str = "yellow") -> None:
        """Print a warning."""
        console.warn(text, style)

    def measured(self, record: Measured, config: Config, path: Path | None) -> None:
        """Print the table of a record, and draw its compile stages beside its file."""
        if isinstance(record, KernelResult):
            show_kernels(record, instantiate(config.baseline))
        elif isinstance(record, Result):
            show_result(record, instantiate(config.baseline))
            self.roof_raised(record.roof)
            if path is not None:
                draw_compilation(record, path.with_name(path.stem.replace("result", "compile") + ".png"))
        else:
            for name, value in record.summary.items():
                console.print(f"  {name}: {number(value)}", markup=False)

    def roof_raised(self, roof: Roof) -> None:
        """Print that the read roof is higher now than when the limit was printed."""
        if self.roof is not None and roof.gb_per_s > self.roof.gb_per_s:
            before, now = self.roof.gb_per_s, roof.gb_per_s
            console.print(
                f"the read roof rose from {before:.4g} to {now:.4g} GB/s during this run; MBU and the limit above go "
                "by the latter"
            )

    def swept(self, record: SweepRecord) -> None:
        """Print the table of a sweep."""
        show_sweep(record)

    def recorded(self, record: Recorded, path: Path, logged: str | None) -> None:
        """Print where a record was saved, and where it was tracked."""
        console.print(f"{record.PATH_KEY}: {path}" + (f"\ntracked: {logged}" if logged else ""), markup=False)

    def concluded(self, record: Recorded, path: Path, config: Config, outputs: Path, logged: str | None) -> None:
        """Print commands to continue with, and the line for programs or the tables in the requested format."""
        shown = path if record.IS_RUN else path.parent
        show_next(record, shown, config.tracking, outputs, logged is not None)
        tables = [] if console.format == TEXT else tables_of(record, config)
        if tables:
            write(tables, console.format)
        else:
            write_line(line_of(record, path, logged))


def draw_compilation(result: Result, picture: Path) -> None:
    """Draw the stages of compiling beside a record, which is complete without the picture."""
    try:
        draw_compile_stages(result, picture)
    except Exception as error:
        console.warn(f"{picture}: not drawn: {raised(error)}")


def container() -> str | None:
    """Return in words what the process's control groups allow it to use; None if they set no limit."""
    quota, memory = limits.cpu_quota(), limits.memory_limit()
    cores = None if quota is None else f"{number(quota)} of {os.cpu_count()} CPUs"
    parts = [part for part in (cores, None if memory is None else f"{memory / 1e9:.2f} GB of memory") if part]
    return f"its control group (container, Slurm, systemd) allows {' and '.join(parts)}" if parts else None


def max_experts(config: Config) -> int:
    """Return how many experts a decode step can choose over all layers; 0 for a dense model."""
    mixtures = [layer.mixture for layer in config.model.layer_specs if layer.mixture is not None]
    return sum(mixture.max_distinct(config.workload.batch_size) for mixture in mixtures)


PLAIN_EVERY_S = 5.0
"""Seconds between two lines about one stage, without a terminal."""

REDRAW_S, STILL_S = 1.0, 30.0
"""Seconds between two signs of life of a stage that reports no progress: on the bar, and as lines."""


def has_bar() -> bool:
    """Return whether the terminal can redraw a bar in place."""
    return console.is_terminal and not console.is_dumb_terminal


class Stages:
    """Stages of a run, as steps of the bar."""

    def __init__(self, bar: Progress, total: int | None, samples: int) -> None:
        self.bar, self.samples, self.taken = bar, samples, 0
        self.begin, self.last_line = time.monotonic(), -PLAIN_EVERY_S
        self.task = bar.add_task("starting", total=total)

    @contextmanager
    def stage(self, what: str, *, long: bool = False, counted: bool = True) -> Iterator[None]:
        """Show the current stage, and if it may take long, signs of life while it runs."""
        self.bar.update(self.task, description=what, refresh=True)
        self.line(what)
        with self.signs_of_life(what) if long else nullcontext():
            yield
        self.bar.update(self.task, advance=int(counted), refresh=True)

    @contextmanager
    def signs_of_life(self, what: str) -> Iterator[None]:
        """Redraw the bar or print lines at intervals, from a thread."""
        over, begin = threading.Event(), time.monotonic()

        def look() -> None:
            while not over.wait(REDRAW_S if has_bar() else STILL_S):
                self.bar.refresh()
                self.line(f"still {what}, for {time.monotonic() - begin:.0f} s")

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def reading(self, what: str, share: float) -> None:
        """Show how much of a checkpoint has been read."""
        self.bar.update(self.task, description=f"{what}: {share:.0%}", refresh=True)
        self.line(f"{what}: {share:.0%}", often=True)

    def sampled(self, _: Sample) -> None:
        """Advance the bar by a sample."""
        self.taken += 1
        progress = f"sample {self.taken}/{self.samples}"
        self.bar.update(self.task, advance=1, description=progress, refresh=True)
        self.line(progress, often=self.taken < self.samples)

    def line(self, what: str, often: bool = False) -> None:
        """Print a line about the current stage, unless there is a bar.

        Args:
            often: whether there are many such lines, of which only some are printed.
        """
        now = time.monotonic()
        if has_bar() or (often and now - self.last_line < PLAIN_EVERY_S):
            return
        self.last_line = now
        console.print(f"  [{now - self.begin:4.0f} s] {what}", markup=False, style="dim")
        console.file.flush()


def show_next(record: Recorded, path: Path, tracking: TrackingConfig, outputs: Path, logged: bool) -> None:
    """Print what can be done next with a record, as commands to type."""
    commands = [f"{program('gptbench')} report {near(path)}"]
    if record.IS_RUN:
        same_kind = sorted(outputs.glob(f"2*/*/{record.FILE}*.json"))
        if others := [other for other in same_kind if other.resolve() != path.resolve()]:
            commands.append(f"{program('gptbench')} compare {near(others[-1])} {near(path)}")
    if logged and isinstance(tracking, MLflowConfig):
        uri = redacted(tracking.uri) if tracking.uri else embedded_store(outputs)
        is_server = uri.startswith(("http:", "https:"))
        commands.append(uri if is_server else f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}")
    for index, command in enumerate(commands):
        console.print(f"{'     ' if index else 'next:'} {command}", markup=False, style="dim")


def line_of(record: Recorded, path: Path, logged: str | None) -> dict[str, Any]:
    """Return the line of JSON about a record."""
    return record.line() | {record.PATH_KEY: str(path), "tracking": logged}
