"""Tables of measurements, and what is printed beside them for people."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from rich.text import Text

from gptbench.base.errors import counted
from gptbench.base.numbers import number
from gptbench.compare import Baseline
from gptbench.compare.explain import binding
from gptbench.compare.step import Step
from gptbench.config import Config
from gptbench.config.targets import instantiate
from gptbench.present.console import console
from gptbench.present.formats import Cell, Column, Table, scaled, show
from gptbench.schema import KernelResult, Measured, Recorded, Result, SweepRecord
from gptbench.schema.busy import idle_neighbours, why_busy
from gptbench.schema.compilation import Compilation
from gptbench.schema.kernels import gptfast_targets, kernel_metrics, means
from gptbench.schema.metrics import METRICS, STEP, Metric, View, shown_in
from gptbench.schema.sample import throttling
from gptbench.schema.statistics import steps_interval, valid_samples
from gptbench.schema.summary import sample_metrics, summary

MAX_ROWS = 15
"""Maximum number of kernels in the table of a step; all others share one row."""

MAX_CHARACTERS = 60
"""Maximum length of a kernel's name there."""

FOOTNOTES = ("tpot_p99_s", "mbu")
"""Names of the metrics that are explained below the table of a run."""

MIN_STAGE_S = 0.05
"""Seconds from which on a stage of compilation is listed."""


def tables_of(record: Recorded, config: Config) -> list[Table]:
    """Return the tables of a record, for people and programs; empty for a failure or another kind of record."""
    if isinstance(record, SweepRecord):
        return [sweep_table(record)]
    if isinstance(record, KernelResult):
        return [kernels_table(record, instantiate(config.baseline))]
    if not isinstance(record, Result):
        return []
    step = [] if record.breakdown is None else [breakdown_table(record)]
    return [result_table(record, instantiate(config.baseline)), *step]


def result_table(result: Result, baseline: Baseline) -> Table:
    """Return the table of a run: each metric with its range over the samples, and its target if there is one.
    Percentiles are over all steps, and have a confidence interval."""
    targets = baseline.targets(result)
    valid = valid_samples(result)
    samples = [sample_metrics(result, sample) for sample in valid]
    medians = summary(result)
    columns = [
        Column(head="metric"),
        Column("metric"),
        Column("median", "median", True),
        Column(head="min … max", right=True),
        Column("min"),
        Column("max"),
        Column(head="95% interval", right=True),
        Column("low"),
        Column("high"),
        Column(head="unit"),
        Column("target", f"target ({baseline.device})" if targets else "", True),
    ]
    rows = []
    for metric in shown_of(result, targets):
        if (value := medians.get(metric.name)) is None:
            continue
        values = [row[metric.name] for row in samples if metric.name in row]
        spread = f"{metric.text(min(values))} … {metric.text(max(values))}" if values else ""
        ends: tuple[float | None, float | None] = (None, None)
        interval = ""
        if metric.share is not None:
            ends = steps_interval(valid, metric.share)
            interval = interval_text(*map(metric.text, ends))
        target = targets.get(metric.name)
        rows.append(
            [
                metric.label,
                metric.name,
                Cell(metric.text(value), value),
                spread,
                min(values, default=None),
                max(values, default=None),
                interval,
                *ends,
                metric.unit,
                Cell(metric.text(target), target),
            ]
        )
    explained = [METRICS[name] for name in FOOTNOTES if name in medians]
    notes = [f"{metric.label}: {metric.meaning}" for metric in explained]
    return Table("run", columns, rows, f"{result.config['model']['name']} on {result.environment.device}", notes)


def show_result(result: Result, baseline: Baseline) -> None:
    """Print the table of a run, what binds it, and everything else there is to know about it."""
    valid = valid_samples(result)
    medians = summary(result)
    show(result_table(result, baseline))
    if valid:
        console.print(binding(Step(result)), markup=False, style="bold")
    show_state(result, medians)
    if result.config.get("task", {}).get("energy") and result.energy is None:
        console.warn("energy not measured: the device has no counter that can be read")
    for compilation in result.compilations:
        if compilation.cache != "none":
            show_stages(compilation)
    if result.shared_compile_s:
        shared = f"{number(result.shared_compile_s)} s of compiling were spent by an earlier job of the sweep"
        console.print(shared, markup=False)
    if result.breakdown is not None:
        show(breakdown_table(result))
    if valid and valid[0].text:
        show_text(result.prompt_text or "", valid[0].text[0])
    if medians.get("mbu", 0) > 1:
        console.warn("MBU is above 100 %: measure the read roof again, with device.measure_roof=true.")
    if len(valid) < len(result.samples):
        console.warn(
            f"{len(result.samples) - len(valid)} of {counted(len(result.samples), 'sample')} "
            "compiled something and are left out."
        )
    if not all(sample.finite for sample in result.samples):
        console.warn("Not all logits and cached values are finite: these numbers mean nothing.", "red")


def shown_of(result: Result, targets: Collection[str]) -> list[Metric]:
    """Return the metrics of a run's table. Those of gpt_fast are shown only for a run of its workload or engine, or if
    they have a target."""
    shown = shown_in(View.run)
    return [metric for metric in shown if metric.gpt_fast is None or result.is_gpt_fast or metric.name in targets]


def interval_text(low: str, high: str) -> str:
    """Return the confidence interval of a percentile in words, as far as there are enough samples for it."""
    if low and high:
        return f"{low} … {high}"
    return f"over {low}" if low else f"under {high}" if high else "too few samples"


def show_state(result: Result, medians: dict[str, float]) -> None:
    """Print clock, power and temperature during the samples as far as the device reports them, and throttling."""
    shown = [METRICS[name] for name in ("clock_mhz", "power_w", "temperature_c") if name in medians]
    readings = [f"{metric.text(medians[metric.name])} {metric.unit}" for metric in shown]
    if readings:
        states = [sample.state for sample in valid_samples(result) if sample.state is not None]
        # A CPU is not read during samples, nor is a GPU in samples shorter than the interval between readings.
        when = "during" if any(len(state.at_s) > 2 for state in states) else "around"
        console.print(f"{when} the samples {', '.join(readings)} (median)", markup=False)
    if (throttled := throttling(result.samples)) is not None:
        console.warn(throttled)
    show_busy(result)


def show_busy(result: Measured) -> None:
    """Print why these numbers may be slower than the device is: what else the machine was busy with."""
    if (busy := why_busy(result)) is not None:
        console.warn(busy, "bold yellow")
    if (idle := idle_neighbours(result)) is not None:
        console.print(idle, style="dim", markup=False)


def show_stages(compilation: Compilation) -> None:
    """Print a compilation's time by stage."""
    by_stage = compilation.stage_s.items()
    stages = ", ".join(f"{stage} {number(seconds)}" for stage, seconds in by_stage if seconds >= MIN_STAGE_S)
    text = f"compile time ({compilation.label}) {number(compilation.prepare_s)} s"
    console.print(f"{text}: {stages}" if stages else text, markup=False)


def breakdown_table(result: Result) -> Table:
    """Return the table of the profiled step, by kernel."""
    step, sampled_s = result.breakdown, summary(result).get(STEP)
    assert step is not None
    title = f"decode step at position {step.position}: {number(step.step_s * 1e6)} µs while profiled"
    title += f", {number(sampled_s * 1e6)} µs in the samples" if sampled_s is not None else ""
    columns = [
        Column("kernel", "kernel"),
        Column("launches", "launches", True),
        Column("seconds_each", "µs each", True),
        Column("exclusive_s", "µs of the step", True),
        Column("share_of_step", "% of the step", True),
        Column("gb_per_s", "GB/s", True),
        Column("share_of_roof", "% of the roof", True),
    ]

    def row(name: str, launches: int, total_s: float, exclusive_s: float, gb_per_s: float | None) -> list[Any]:
        share = None if gb_per_s is None else gb_per_s / result.roof.gb_per_s
        return [
            Cell(name if len(name) <= MAX_CHARACTERS else f"{name[: MAX_CHARACTERS - 1]}…", name),
            launches or None,
            scaled(total_s / launches if launches else None, 1e6),
            scaled(exclusive_s, 1e6),
            scaled(exclusive_s / step.step_s, 100),
            gb_per_s,
            scaled(share, 100),
        ]

    kernels = step.by_kernel()
    shown = kernels[: MAX_ROWS - (len(kernels) > MAX_ROWS)]
    others = kernels[len(shown) :]
    rows = [row(use.name, use.launches, use.total_s, use.exclusive_s, use.gb_per_s) for use in shown]
    if others:
        total_s, exclusive_s = (sum(getattr(use, name) for use in others) for name in ("total_s", "exclusive_s"))
        rows.append(
            row(f"{len(others)} other kernels", sum(use.launches for use in others), total_s, exclusive_s, None)
        )
    rows.append(row("gaps between kernels", 0, 0.0, step.gaps_s, None))
    rows.append(row("step", 0, 0.0, step.step_s, step.gb_per_s))
    return Table("step", columns, rows, title, totals=1)


def kernels_table(result: KernelResult, baseline: Baseline) -> Table:
    """Return the table of `task=kernels`: gptbench's kernel, or if it has none Inductor's code for the reference, and
    the ratio of the other implementations to it."""
    metrics = shown_in(View.kernels)
    columns = [
        *(Column(name, name) for name in ("kernel", "shape", "type", "by")),
        *map(Column.of, metrics),
        Column("inductor_ratio", "inductor", True),
        Column("library_ratio", "library", True),
        Column("target", f"target ({baseline.device})", True),
    ]
    table: list[list[Any]] = []
    for kernel in result.kernels:
        rows = kernel_metrics(result, kernel)
        cells: list[Any] = [
            kernel.name,
            " ".join(f"{name}={size}" for name, size in kernel.shape.items()),
            kernel.dtype,
        ]
        if rows:
            first = next(iter(rows.values()))
            cells += [first.implementation, *(getattr(first, metric.name) for metric in metrics)]
            for other in ("inductor", "library"):
                known = other in rows and other != first.implementation
                ratio = rows[other].seconds / first.seconds if known else None
                cells.append(Cell("" if ratio is None else f"×{number(ratio)}", ratio))
        table.append([*cells, *[None] * (len(columns) - len(cells))])
    targets = gptfast_targets(result)
    for name, value in means(result).items():
        family, implementation, metric_name = name.rsplit("/", 2)
        kernel_name, dtype = family.split("/")
        cells = [kernel_name, f"mean {metric_name}: {number(value)}", dtype, implementation]
        target = targets.get(family, {}).get(metric_name)
        table.append([*cells, *[None] * (len(columns) - len(cells) - 1), target])
    return Table("kernels", columns, table, f"kernels on {result.environment.device}")


def show_kernels(result: KernelResult, baseline: Baseline) -> None:
    """Print the table of kernels, and what could not be measured."""
    show(kernels_table(result, baseline))
    show_busy(result)
    for kernel in result.kernels:
        failures = {name: timing.failed for name, timing in kernel.timings.items() if timing.failed is not None}
        for name, why in ({"": kernel.note} if kernel.note is not None else failures).items():
            line = f"{kernel.label}{' ' if name else ''}{name} not measured: {why}"
            console.warn(line)


def show_text(prompt: str, text: str) -> None:
    """Print a prompt and its continuation, with whatever could control the terminal replaced."""
    shown = Text()
    for part, style in ((prompt, "bold"), (text, "")):
        shown.append("".join(c if c.isprintable() or c in "\n\t" else "�" for c in part), style)
    console.print(shown, soft_wrap=False)


def sweep_table(record: SweepRecord) -> Table:
    """Return the table of a sweep: what was varied, the outcome of each job, and its numbers."""
    head, rows = record.table()
    columns = [Column.of(METRICS[name]) if name in METRICS else Column(name, name) for name in head]
    if not any(job.reason for job in record.jobs):
        columns[-1] = replace(columns[-1], head="")
    return Table("jobs", columns, rows, f"sweep of {counted(len(record.jobs), 'job')}: {record.counts_text}")


def show_sweep(record: SweepRecord) -> None:
    """Print the table of a sweep."""
    show(sweep_table(record))
    if busy := sum(1 for job in record.jobs if job.busy):
        warning = f"{busy} of {len(record.jobs)} jobs were measured on a busy machine; gptbench explain says why"
        console.warn(warning, "bold yellow")
