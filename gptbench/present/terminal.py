"""What a person sees of a run while it goes on, and what a program is told of it in the end."""

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
    """An observer that tells people on stderr, and programs on stdout.

    Args:
        quiet: whether people are told nothing but what went wrong.
    """

    def __init__(self, quiet: bool) -> None:
        console.quiet = quiet

    def planned(self, config: Config, device: Device, need: MemoryNeed) -> None:
        """Says what will be run."""
        work, drawing = config.workload, config.sampling
        how = "greedy" if drawing.temperature == 0 else f"temperature {drawing.temperature:g}"
        how += "".join(
            f", {name} {value:g}"
            for name, value in (("top_k", drawing.top_k), ("top_p", drawing.top_p))
            if value is not None and drawing.temperature > 0
        )
        console.print(
            f"{config.model.name}, quant {config.quant.full_name}, {device.dtype_name}, "
            f"engine {config.engine.name}, on {device.name}",
            style="bold",
            markup=False,
        )
        rows = ""
        if work.batch_size > 1:
            rows = " with a prompt each" if work.prompts else " with one prompt for all rows"
        console.print(
            f"  {counted(work.samples, 'sample')} of {len(work.prompt)} prompt + "
            f"{counted(work.new_tokens, 'new token')}, batch {work.batch_size}{rows}, {how}, seed {work.seed}"
        )
        console.print(f"  needs {need}")
        if (told := container()) is not None:
            console.print(f"  {told}{'' if device.is_cuda else f': {device.threads} threads'}")

    def limit(self, traffic: Traffic, roof: Roof | None, config: Config) -> None:
        """Says what the memory allows at best: of a mixture, where all rows of a batch choose the same experts."""
        batch, steps = config.workload.batch_size, len(traffic.kv_len)
        least, most = (sum(traffic.needed(experts)) / steps for experts in (None, max_experts(config) * steps))
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
        """A bar over so many stages, or a line for each where there is no terminal; never inside a timed region."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # No thread that redraws: it would take turns with the thread that is measured.
        with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not has_bar()) as bar:
            yield Stages(bar, total, samples)

    def remark(self, text: str, style: str | None = None) -> None:
        console.print(text, markup=False, style=style)

    def warn(self, text: str, style: str = "yellow") -> None:
        console.warn(text, style)

    def measured(self, record: Measured, config: Config, path: Path | None) -> None:
        """Its table, and beside its file a picture of the stages of compiling."""
        if isinstance(record, KernelResult):
            show_kernels(record, instantiate(config.baseline))
        elif isinstance(record, Result):
            show_result(record, instantiate(config.baseline))
            if path is not None:
                draw_compilation(record, path.with_name(path.stem.replace("result", "compile") + ".png"))
        else:
            for name, value in record.summary.items():
                console.print(f"  {name}: {number(value)}", markup=False)

    def swept(self, record: SweepRecord) -> None:
        show_sweep(record)

    def recorded(self, record: Recorded, path: Path, logged: str | None) -> None:
        console.print(f"{record.PATH_KEY}: {path}" + (f"\ntracked: {logged}" if logged else ""), markup=False)

    def concluded(self, record: Recorded, path: Path, config: Config, outputs: Path, logged: str | None) -> None:
        """Commands to type, and the line for programs, or in its place the tables in the format that was asked for."""
        shown = path if record.IS_RUN else path.parent
        show_next(record, shown, config.tracking, outputs, logged is not None)
        tables = [] if console.format == TEXT else tables_of(record, config)
        if tables:
            write(tables, console.format)
        else:
            write_line(line_of(record, path, logged))


def draw_compilation(result: Result, picture: Path) -> None:
    """Draws the stages of compiling beside the record, which is complete without that."""
    try:
        draw_compile_stages(result, picture)
    except Exception as error:
        console.warn(f"{picture}: not drawn: {raised(error)}")


def container() -> str | None:
    """Says what the process's control groups allow it; None where they set no limit."""
    quota, memory = limits.cpu_quota(), limits.memory_limit()
    cores = None if quota is None else f"{number(quota)} of {os.cpu_count()} CPUs"
    parts = [part for part in (cores, None if memory is None else f"{memory / 1e9:.2f} GB of memory") if part]
    return f"its control group (container, Slurm, systemd) allows {' and '.join(parts)}" if parts else None


def max_experts(config: Config) -> int:
    """That a decode step can choose, in all layers together; 0 of a dense model."""
    mixtures = [layer.mixture for layer in config.model.layer_specs if layer.mixture is not None]
    return sum(mixture.max_distinct(config.workload.batch_size) for mixture in mixtures)


PLAIN_EVERY_S = 5.0
"""Seconds between two lines about one stage, where there is no terminal."""

REDRAW_S, STILL_S = 1.0, 30.0
"""Seconds between two signs of life of a stage that tells nothing of itself: of the bar, and of lines."""


def has_bar() -> bool:
    """Whether a bar can be drawn, again and again in its place."""
    return console.is_terminal and not console.is_dumb_terminal


class Stages:
    """Parts of a run, as steps of the bar."""

    def __init__(self, bar: Progress, total: int | None, samples: int) -> None:
        self.bar, self.samples, self.taken = bar, samples, 0
        self.begin, self.last_line = time.monotonic(), -PLAIN_EVERY_S
        self.task = bar.add_task("starting", total=total)

    @contextmanager
    def stage(self, what: str, *, long: bool = False, counted: bool = True) -> Iterator[None]:
        """Shows what is being done now, and if it may take long, that the time goes on beside it."""
        self.bar.update(self.task, description=what, refresh=True)
        self.line(what)
        with self.signs_of_life(what) if long else nullcontext():
            yield
        self.bar.update(self.task, advance=int(counted), refresh=True)

    @contextmanager
    def signs_of_life(self, what: str) -> Iterator[None]:
        """Now and then, from a thread beside it."""
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
        """Shows how much of a checkpoint is read."""
        self.bar.update(self.task, description=f"{what}: {share:.0%}", refresh=True)
        self.line(f"{what}: {share:.0%}", often=True)

    def sampled(self, _: Sample) -> None:
        """Moves the bar on by a sample."""
        self.taken += 1
        told = f"sample {self.taken}/{self.samples}"
        self.bar.update(self.task, advance=1, description=told, refresh=True)
        self.line(told, often=self.taken < self.samples)

    def line(self, what: str, often: bool = False) -> None:
        """The same as a line, where there is no bar.

        Args:
            often: whether there are many of the kind, of which some are enough.
        """
        now = time.monotonic()
        if has_bar() or (often and now - self.last_line < PLAIN_EVERY_S):
            return
        self.last_line = now
        console.print(f"  [{now - self.begin:4.0f} s] {what}", markup=False, style="dim")
        console.file.flush()


def show_next(record: Recorded, path: Path, tracking: TrackingConfig, outputs: Path, logged: bool) -> None:
    """Says what can be done with a record now, as commands to type."""
    told = [f"{program('gptbench')} report {near(path)}"]
    if record.IS_RUN:
        alike = sorted(outputs.glob(f"2*/*/{record.FILE}*.json"))
        if others := [other for other in alike if other.resolve() != path.resolve()]:
            told.append(f"{program('gptbench')} compare {near(others[-1])} {near(path)}")
    if logged and isinstance(tracking, MLflowConfig):
        uri = redacted(tracking.uri) if tracking.uri else embedded_store(outputs)
        is_server = uri.startswith(("http:", "https:"))
        told.append(uri if is_server else f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}")
    for place, command in enumerate(told):
        console.print(f"{'     ' if place else 'next:'} {command}", markup=False, style="dim")


def line_of(record: Recorded, path: Path, logged: str | None) -> dict[str, Any]:
    """What a program is told of a record."""
    return record.line() | {record.PATH_KEY: str(path), "tracking": logged}
