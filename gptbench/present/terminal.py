"""What a person sees, on stderr; and the one JSON object for programs, the last line of stdout."""

import math
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from gptbench.base import limits
from gptbench.base.errors import counted
from gptbench.base.outputs import as_json
from gptbench.base.redaction import redacted
from gptbench.base.streams import Plain, visible
from gptbench.build import MemoryNeed
from gptbench.compare import Baseline
from gptbench.config import Config, MLflowConfig, TrackingConfig
from gptbench.device import Device
from gptbench.record.store import embedded_store
from gptbench.schema import Failure, KernelResult, Measured, Recorded, Result, SweepRecord
from gptbench.schema.breakdown import Breakdown
from gptbench.schema.busy import busy, idle_neighbours, why_busy
from gptbench.schema.compilation import Compilation
from gptbench.schema.display import display
from gptbench.schema.kernels import kernel_metrics, kernel_summary, means, seed_targets
from gptbench.schema.machine import Roof
from gptbench.schema.sample import Sample, Traffic, throttling
from gptbench.schema.statistics import (
    METRICS,
    QUANTILES,
    compilation_name,
    compile_metrics,
    energy_metrics,
    quality_metrics,
    sample_metrics,
    steps_interval,
    summary,
    valid_samples,
)
from gptbench.schema.sweep import COLUMNS, in_display_units
from gptbench.task import Speed


class PlainConsole(Console):
    """A console that shows what could steer a terminal as its escapes, wherever it comes from."""

    @property
    def file(self) -> IO[str]:
        """Rich's own control codes go through as they are; see `gptbench.base.streams`."""
        file = super().file
        return cast(IO[str], file.steered) if isinstance(file, Plain) else file

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def warn(self, text: str, style: str = "yellow") -> None:
        """Says what went wrong, however quiet it is to be otherwise."""
        before, self.quiet = self.quiet, False
        try:
            self.print(text, style=style, markup=False)
        finally:
            self.quiet = before

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text.replace("\r", "\\r"))
            yield segment if shown == segment.text else Segment(shown, segment.style)


console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)

MOST_ROWS = 15
"""Kernels in the table of a step; what there is beyond is one row."""
MOST_CHARACTERS = 60
"""Of a kernel's name there."""
SHORTEST_STAGE_S = 0.05
"""Of preparing, to be told."""


def show_plan(config: Config, device: Device, need: MemoryNeed) -> None:
    """Says what will be run."""
    work, drawing = config.workload, config.sampling
    how = "greedy" if drawing.temperature == 0 else f"temperature {drawing.temperature:g}"
    how += "".join(
        f", {name} {value:g}"
        for name, value in (("top_k", drawing.top_k), ("top_p", drawing.top_p))
        if value is not None and drawing.temperature > 0
    )
    console.print(
        f"{config.model.name}, quant {config.quant.name}, {device.dtype_name}, "
        f"engine {config.engine.name}, on {device.name}",
        style="bold",
        markup=False,
    )
    rows = ""
    if work.batch_size > 1:
        rows = " with a prompt each" if work.prompts else " with one prompt for all rows"
    console.print(
        f"  {counted(work.samples, 'sample')} of {len(work.prompt)} prompt + {counted(work.new_tokens, 'new token')}, "
        f"batch {work.batch_size}{rows}, {how}, seed {work.seed}"
    )
    console.print(f"  needs {need}")
    if (told := container()) is not None:
        console.print(f"  {told}{'' if device.is_cuda else f': {device.threads} threads'}")


def container() -> str | None:
    """Says what the process's control groups allow it; None where they set no limit."""
    quota, memory = limits.cpu_quota(), limits.memory_limit()
    cores = None if quota is None else f"{number(quota)} of {os.cpu_count()} CPUs"
    parts = [part for part in (cores, None if memory is None else f"{memory / 1e9:.2f} GB of memory") if part]
    return f"its control group (container, Slurm, systemd) allows {' and '.join(parts)}" if parts else None


def show_limit(traffic: Traffic, roof: Roof, config: Config) -> None:
    """Says what the device's memory allows at best: of a mixture, where all rows of a batch choose the same experts."""
    batch, steps = config.workload.batch_size, len(traffic.positions_filled)
    least, most = (sum(traffic.needed(experts)) / steps for experts in (None, max_experts(config) * steps))
    needs, what = f"{least / 1e9:.3f} GB", "that takes"
    if most > least:
        needs = f"{least / 1e9:.3f} GB, where all rows choose the same experts, to {most / 1e9:.3f} GB"
        what = "the former takes"
    fastest = least / roof.gb_per_s / 1e9
    console.print(
        f"  a decode step needs {needs}; at the read roof of {roof.gb_per_s:.4g} GB/s {what} {fastest * 1e3:.3g} ms: "
        f"at most {batch / fastest:.4g} tokens/s"
    )


def max_experts(config: Config) -> int:
    """That a decode step can choose, in all layers together; 0 of a dense model."""
    model = config.model
    return model.n_layers * min(model.n_experts, config.workload.batch_size * model.n_active_experts)


def progress(config: Config, task: Speed) -> AbstractContextManager["Stages"]:
    """A bar over the stages of a run."""
    after = config.engine.measure_warm_start + config.task.breakdown + config.task.energy + (task.stage is not None)
    return stage_bar(4 + config.workload.samples + after, config.workload.samples)


@contextmanager
def stage_bar(total: int, samples: int = 0) -> Iterator["Stages"]:
    """A bar over so many stages, or a line for each where there is no terminal; never inside a timed region."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # No thread that redraws: it would take turns with the thread that is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not has_bar()) as bar:
        yield Stages(bar, total, samples)


PLAIN_EVERY_S = 5.0
"""Seconds between two lines about one stage, where there is no terminal."""
REDRAW_S, STILL_S = 1.0, 30.0
"""Seconds between two signs of life of a stage that tells nothing of itself: of the bar, and of lines."""


def has_bar() -> bool:
    """Whether a bar can be drawn, again and again in its place."""
    return console.is_terminal and not console.is_dumb_terminal


class Stages:
    """Steps of the bar. Of a run: roof, weights, compile, warm-up, each sample, and what comes after them."""

    def __init__(self, bar: Progress, total: int, samples: int) -> None:
        self.bar, self.samples, self.sampled = bar, samples, 0
        self.begin, self.last_line = time.monotonic(), -PLAIN_EVERY_S
        self.task = bar.add_task("starting", total=total)

    def start(self, what: str) -> None:
        """Shows what is being done now; all before it is done."""
        self.bar.update(self.task, description=what, refresh=True)
        self.line(what)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """`start`, of what takes long and tells nothing meanwhile: the time goes on beside it. Not for what is
        sampled: a thread wakes up now and then."""
        self.start(what)
        over, begin = threading.Event(), time.monotonic()

        def sign_of_life() -> None:
            while not over.wait(REDRAW_S if has_bar() else STILL_S):
                self.bar.refresh()
                self.line(f"still {what}, for {time.monotonic() - begin:.0f} s")

        thread = threading.Thread(target=sign_of_life, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def done(self) -> None:
        """Moves the bar on by one."""
        self.bar.update(self.task, advance=1, refresh=True)

    def reading(self, what: str, share: float) -> None:
        """Shows how much of a checkpoint is read."""
        self.bar.update(self.task, description=f"{what}: {share:.0%}", refresh=True)
        self.line(f"{what}: {share:.0%}", often=True)

    def sample_done(self, *_: object) -> None:
        """Moves the bar on by a sample."""
        self.sampled += 1
        told = f"sample {self.sampled}/{self.samples}"
        self.bar.update(self.task, advance=1, description=told, refresh=True)
        self.line(told, often=self.sampled < self.samples)

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
    if not isinstance(record, SweepRecord):
        others = [other for other in sorted(outputs.glob("2*/*/result*.json")) if other.resolve() != path.resolve()]
        if others and isinstance(record, Result):
            told.append(f"{program('gptbench')} compare {near(others[-1])} {near(path)}")
    if logged and isinstance(tracking, MLflowConfig):
        uri = redacted(tracking.uri) if tracking.uri else embedded_store(outputs)
        is_server = uri.startswith(("http:", "https:"))
        told.append(uri if is_server else f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}")
    for number, command in enumerate(told):
        console.print(f"{'     ' if number else 'next:'} {command}", markup=False, style="dim")


def program(name: str) -> str:
    """What to type for a program of this Python's environment."""
    found, beside = shutil.which(name), Path(sys.executable).with_name(name)
    if found and Path(found) == beside:
        return name
    return near(beside) if beside.exists() else f"{near(Path(sys.executable))} -m {name}"


def near(path: Path) -> str:
    """A path as it is typed here."""
    path = path.absolute()
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


def show_result(result: Result, baseline: Baseline) -> None:
    """The table: each metric, its spread over the samples, and a target where there is one. Percentiles are of all
    steps, and have an interval."""
    targets = baseline.targets(result)
    valid = valid_samples(result)
    title = f"{result.config['model']['name']} on {result.environment.device}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("metric")
    table.add_column("median", justify="right")
    table.add_column("min … max", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("unit")
    if targets:
        table.add_column(escape(f"target ({baseline.device})"), justify="right")
    rows = [sample_metrics(result, sample) for sample in valid]
    medians = summary(result)

    def add(name: str, value: float, spread: str = "") -> None:
        metric = display(name)
        target = [number(targets[name] * metric.factor)] if name in targets else []
        interval = interval_of(valid, name, metric.factor) if name in QUANTILES else ""
        table.add_row(metric.label, number(value * metric.factor), spread, interval, metric.unit, *target)

    for metric in METRICS if rows else ():
        values = [row[metric.name] * display(metric.name).factor for row in rows]
        add(metric.name, medians[metric.name], f"{number(min(values))} … {number(max(values))}")
    for name, seconds in compile_metrics(result).items():
        add(name, seconds)
    for name, value in (quality_metrics(result) | energy_metrics(result)).items():
        add(name, value)
    print_whole(table)
    show_state(result, medians)
    if result.config.get("task", {}).get("energy") and result.energy is None:
        console.warn("energy not measured: the device has no counter that can be read")
    for compilation in result.compilations:
        if compilation.cache != "none":
            show_stages(compilation)
    if result.breakdown is not None:
        show_breakdown(result.breakdown, result.roof, medians.get("tpot_p50_s"))
    if valid and valid[0].text:
        show_text(result.prompt_text or "", valid[0].text[0])
    if medians.get("mbu", 0) > 1:
        console.warn("More than the read roof: measure it again, with device.measure_roof=true.")
    if len(valid) < len(result.samples):
        console.warn(
            f"{len(result.samples) - len(valid)} of {counted(len(result.samples), 'sample')} "
            "compiled something and are left out."
        )
    if not all(sample.finite for sample in result.samples):
        console.warn("Not all logits and cached values are finite: these numbers measure nonsense.", "red")


def interval_of(samples: Sequence[Sample], metric: str, factor: float) -> str:
    """Of a percentile, as far as the samples tell."""
    low, high = (None if end is None else number(end * factor) for end in steps_interval(samples, metric))
    if low is not None and high is not None:
        return f"{low} … {high}"
    return f"over {low}" if low is not None else f"under {high}" if high is not None else "too few samples"


def show_state(result: Result, medians: dict[str, float]) -> None:
    """Clock, power and temperature during the samples, as far as the device tells; and what held it back."""
    units = {"clock_mhz": "MHz", "power_w": "W", "temperature_c": "°C"}
    told = [f"{number(medians[name])} {unit}" for name, unit in units.items() if name in medians]
    if told:
        states = [sample.state for sample in valid_samples(result) if sample.state is not None]
        # A CPU is not read meanwhile, nor a GPU in samples that are over before the first reading.
        when = "during" if any(len(state.at_s) > 2 for state in states) else "around"
        console.print(f"{when} the samples {', '.join(told)} (median)", markup=False)
    if (held_back := throttling(result.samples)) is not None:
        console.warn(held_back)
    show_busy(result)


def show_busy(result: Measured) -> None:
    """Why these numbers may be slower than the device is."""
    if (told := why_busy(result)) is not None:
        console.warn(told, "bold yellow")
    if (told := idle_neighbours(result)) is not None:
        console.print(told, style="dim", markup=False)


def show_stages(compilation: Compilation) -> None:
    """What preparing was spent on."""
    costs = compilation.costs_s.items()
    told = ", ".join(f"{stage} {number(seconds)}" for stage, seconds in costs if seconds >= SHORTEST_STAGE_S)
    name = compilation_name(compilation).replace("_", ", ")
    console.print(f"compile {name}, {number(compilation.prepare_s)} s" + (f": {told}" if told else ""), markup=False)


def show_breakdown(step: Breakdown, roof: Roof, sampled_s: float | None) -> None:
    """Where the time of a profiled step goes; `sampled_s` is the median step of the samples."""
    title = f"decode step at position {step.position}: {number(step.step_s * 1e6)} µs while profiled"
    title += f", {number(sampled_s * 1e6)} µs in the samples" if sampled_s is not None else ""
    table = Table(title=title, title_justify="left")
    table.add_column("kernel", no_wrap=True, overflow="ellipsis", max_width=MOST_CHARACTERS)
    for name in ("launches", "µs each", "µs of the step", "% of the step", "GB/s", "% of the roof"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, launches: int, total_s: float, exclusive_s: float, gb_per_s: float | None) -> None:
        counted = [str(launches), number(total_s / launches * 1e6)] if launches else ["", ""]
        share = [number(exclusive_s * 1e6), number(exclusive_s / step.step_s * 100)]
        rate = [] if gb_per_s is None else [number(gb_per_s), number(gb_per_s / roof.gb_per_s * 100)]
        table.add_row(escape(name), *counted, *share, *rate)

    kernels = step.by_kernel()
    shown = kernels[: MOST_ROWS - (len(kernels) > MOST_ROWS)]
    others = kernels[len(shown) :]
    for kernel in shown:
        add(kernel.name, kernel.launches, kernel.total_s, kernel.exclusive_s, kernel.gb_per_s)
    if others:
        add(
            f"{len(others)} others",
            sum(kernel.launches for kernel in others),
            sum(kernel.total_s for kernel in others),
            sum(kernel.exclusive_s for kernel in others),
            None,
        )
    add("gaps, in which none runs", 0, 0.0, step.gaps_s, None)
    table.add_section()
    add("step", 0, 0.0, step.step_s, step.gb_per_s)
    print_whole(table)


def show_kernels(result: KernelResult, baseline: Baseline) -> None:
    """The table: our kernel, or where there is none what Inductor makes of its twin, and how the others compare."""
    table = Table(title=escape(f"kernels on {result.environment.device}"), title_justify="left")
    for name in ("kernel", "shape", "type", "by"):
        table.add_column(name, no_wrap=True)
    for name in ("µs", "MB", "GB/s", "% of the roof", "% of peak flops", "inductor", "library"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(escape(f"target ({baseline.device})"), justify="right", no_wrap=True)
    for kernel in result.kernels:
        rows = kernel_metrics(result, kernel)
        shape = " ".join(f"{letter}={size}" for letter, size in kernel.shape.items())
        cells = [kernel.name, shape, kernel.dtype]
        if rows:
            first = next(iter(rows.values()))
            flops = "" if first.flops_utilisation is None else number(first.flops_utilisation * 100)
            cells += [first.implementation, number(first.seconds * 1e6), number(first.moved_bytes / 1e6)]
            cells += [number(first.gb_per_s)]
            cells += [number(first.share_of_roof * 100), flops]
            for other in ("inductor", "library"):
                known = other in rows and other != first.implementation
                cells.append(f"×{number(rows[other].seconds / first.seconds)}" if known else "")
        table.add_row(*map(escape, cells))
    targets = seed_targets(result)
    for name, value in means(result).items():
        family, implementation, metric = name.rsplit("/", 2)
        target = targets.get(family, {}).get(metric)
        kernel_name, dtype = family.split("/")
        cells = [kernel_name, f"mean {metric}: {number(value)}", dtype, implementation]
        table.add_row(*map(escape, cells), *[""] * 7, "" if target is None else number(target))
    print_whole(table)
    show_busy(result)
    for kernel in result.kernels:
        failures = {name: timing.failed for name, timing in kernel.timings.items() if timing.failed is not None}
        for name, told in ({"": kernel.note} if kernel.note is not None else failures).items():
            line = f"{kernel.label}{' ' if name else ''}{name} not measured: {told}"
            console.warn(line)


def print_whole(table: Table) -> None:
    """A table with all its columns, wider than the terminal if need be: a number that was cut is worse."""
    table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table)


def show_text(prompt: str, text: str) -> None:
    """A prompt and what followed it. Whatever could steer the terminal is replaced."""
    shown = Text()
    for part, style in ((prompt, "bold"), (text, "")):
        shown.append("".join(c if c.isprintable() or c in "\n\t" else "�" for c in part), style)
    console.print(shown, soft_wrap=False)


def number(value: float) -> str:
    """Four significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def show_sweep(record: SweepRecord) -> None:
    """The table: what was varied, what came of it, and the numbers."""
    table = Table(title=f"sweep of {counted(len(record.jobs), 'job')}: {record.told}", title_justify="left")
    head, rows = record.table()
    if not any(job.reason for job in record.jobs):
        head, rows = head[:-1], [row[:-1] for row in rows]
    for name in head:
        metric = name in COLUMNS
        table.add_column(escape(display(name).heading if metric else name), justify="right" if metric else "left")
    for row in rows:
        cells = []
        for value in in_display_units(head, row):
            text = number(value) if isinstance(value, float) else value
            cells.append("" if text is None else escape(str(text).splitlines()[0] if str(text) else ""))
        table.add_row(*cells)
    print_whole(table)
    if marked := sum(1 for job in record.jobs if job.busy):
        told = f"{marked} of {len(record.jobs)} jobs were measured on a busy machine; gptbench explain says why"
        console.warn(told, "bold yellow")


def place(result: Measured) -> dict[str, str | None]:
    """Where it was measured."""
    environment = result.environment
    return {"dtype": result.dtype, "device": environment.device, "commit": environment.commit}


def in_line(value: dict[str, Any]) -> str:
    """JSON for programs, with null for what is no number: JSON has neither NaN nor infinity."""
    return as_json(finite(value), indent=None, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same with None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_sweep(record: SweepRecord, path: Path, logged: str | None) -> None:
    """The one line of JSON on stdout; what each job came to is in the sweep's record."""
    counts = {name.replace(" ", "_"): count for name, count in record.counts.items()}
    line = {"jobs": len(record.jobs), **counts, "status": record.status, "sweep": str(path), "tracking": logged}
    console.file.flush()
    sys.stdout.write(in_line(line))
    sys.stdout.flush()


def print_json(result: Recorded, path: Path, logged: str | None) -> None:
    """One line of JSON on stdout."""
    config = result.config
    groups = (
        ("task", "model", "quant") if isinstance(result, KernelResult) else ("model", "quant", "engine", "sampling")
    )
    line = {
        **{group: config[group]["name"] for group in groups},
        "batch_size": config["workload"]["batch_size"],
        **(place(result) if isinstance(result, Measured) else {}),
        **({"failed": result.cause, "reason": result.reason} if isinstance(result, Failure) else {}),
        **(summary(result) if isinstance(result, Result) else {}),
        **(kernel_summary(result) if isinstance(result, KernelResult) else {}),
        **({"busy": busy(result)} if isinstance(result, Measured) else {}),
        "result": str(path),
        "tracking": logged,
    }
    console.file.flush()
    sys.stdout.write(in_line(line))
    sys.stdout.flush()
