"""What was measured, as tables for people."""

from collections.abc import Collection, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gptbench.base.errors import counted
from gptbench.base.numbers import number
from gptbench.compare import Baseline
from gptbench.compare.explain import binding
from gptbench.compare.step import Step
from gptbench.present.console import console, print_whole
from gptbench.schema import KernelResult, Measured, Result, SweepRecord
from gptbench.schema.breakdown import Breakdown
from gptbench.schema.busy import idle_neighbours, why_busy
from gptbench.schema.compilation import Compilation
from gptbench.schema.kernels import kernel_metrics, means, seed_targets
from gptbench.schema.machine import Roof
from gptbench.schema.metrics import METRICS, STEP, Metric, View, shown_in
from gptbench.schema.sample import Sample, throttling
from gptbench.schema.statistics import steps_interval, valid_samples
from gptbench.schema.sweep import in_display_units

MOST_ROWS = 15
"""Kernels in the table of a step; what there is beyond is one row."""

MOST_CHARACTERS = 60
"""Of a kernel's name there."""

FOOTNOTES = ("tpot_p99_s", "mbu")
"""Metrics that are explained below the table of a run."""

SHORTEST_STAGE_S = 0.05
"""Of preparing, to be told."""


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
    rows = result.sampled
    medians = result.summary

    for metric in shown_of(result, targets):
        if (value := medians.get(metric.name)) is not None:
            values = [row[metric.name] for row in rows if metric.name in row]
            spread = f"{metric.text(min(values))} … {metric.text(max(values))}" if values else ""
            interval = "" if metric.share is None else interval_of(valid, metric)
            target = [metric.text(targets[metric.name])] if metric.name in targets else []
            table.add_row(metric.label, metric.text(value), spread, interval, metric.unit, *target)
    print_whole(table)
    for metric in (METRICS[name] for name in FOOTNOTES if name in medians):
        console.print(f"{metric.label}: {metric.meaning}", markup=False, style="dim")
    if valid:
        console.print(binding(Step(result)), markup=False, style="bold")
    show_state(result, medians)
    if result.config.get("task", {}).get("energy") and result.energy is None:
        console.warn("energy not measured: the device has no counter that can be read")
    for compilation in result.compilations:
        if compilation.cache != "none":
            show_stages(compilation)
    if result.shared_compile_s:
        told = f"{number(result.shared_compile_s)} s of compiling were an earlier job's of the sweep"
        console.print(told, markup=False)
    if result.breakdown is not None:
        show_breakdown(result.breakdown, result.roof, medians.get(STEP))
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


def shown_of(result: Result, targets: Collection[str]) -> list[Metric]:
    """Metrics of the table: gpt_fast's own only of a run of its workload or engine, or where they have a target."""
    shown = shown_in(View.run)
    return [one for one in shown if one.gpt_fast is None or result.is_gpt_fast or one.name in targets]


def interval_of(samples: Sequence[Sample], metric: Metric) -> str:
    """Of a percentile, as far as the samples tell."""
    assert metric.share is not None
    low, high = map(metric.text, steps_interval(samples, metric.share))
    if low and high:
        return f"{low} … {high}"
    return f"over {low}" if low else f"under {high}" if high else "too few samples"


def show_state(result: Result, medians: dict[str, float]) -> None:
    """Clock, power and temperature during the samples, as far as the device tells; and what held it back."""
    shown = [METRICS[name] for name in ("clock_mhz", "power_w", "temperature_c") if name in medians]
    told = [f"{metric.text(medians[metric.name])} {metric.unit}" for metric in shown]
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
    text = f"compile time ({compilation.label}) {number(compilation.prepare_s)} s"
    console.print(f"{text}: {told}" if told else text, markup=False)


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
    """The table: our kernel, or where there is none what Inductor makes of its reference; and the others."""
    table = Table(title=escape(f"kernels on {result.environment.device}"), title_justify="left")
    for name in ("kernel", "shape", "type", "by"):
        table.add_column(name, no_wrap=True)
    for name in (*(metric.heading for metric in shown_in(View.kernels)), "inductor", "library"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(escape(f"target ({baseline.device})"), justify="right", no_wrap=True)
    for kernel in result.kernels:
        rows = kernel_metrics(result, kernel)
        shape = " ".join(f"{letter}={size}" for letter, size in kernel.shape.items())
        cells = [kernel.name, shape, kernel.dtype]
        if rows:
            first = next(iter(rows.values()))
            values = [metric.text(getattr(first, metric.name)) for metric in shown_in(View.kernels)]
            cells += [first.implementation, *values]
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


def show_text(prompt: str, text: str) -> None:
    """A prompt and what followed it. Whatever could steer the terminal is replaced."""
    shown = Text()
    for part, style in ((prompt, "bold"), (text, "")):
        shown.append("".join(c if c.isprintable() or c in "\n\t" else "�" for c in part), style)
    console.print(shown, soft_wrap=False)


def show_sweep(record: SweepRecord) -> None:
    """The table: what was varied, what came of it, and the numbers."""
    table = Table(title=f"sweep of {counted(len(record.jobs), 'job')}: {record.told}", title_justify="left")
    head, rows = record.table()
    if not any(job.reason for job in record.jobs):
        head, rows = head[:-1], [row[:-1] for row in rows]
    for name in head:
        metric = METRICS.get(name)
        table.add_column(escape(metric.heading if metric else name), justify="right" if metric else "left")
    for row in in_display_units(head, rows):
        table.add_row(*(escape(text.splitlines()[0] if text else "") for text in row))
    print_whole(table)
    if marked := sum(1 for job in record.jobs if job.busy):
        told = f"{marked} of {len(record.jobs)} jobs were measured on a busy machine; gptbench explain says why"
        console.warn(told, "bold yellow")
