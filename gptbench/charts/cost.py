"""Charts of cost: compile time, memory, the parts of a step, energy, and the state of the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptbench.base.numbers import short
from gptbench.charts.canvas import (
    BAR,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    LINE_IN,
    LINES,
    MAX_LINES,
    MAX_NAME,
    MAX_PANELS,
    MAX_ROWS,
    PAPER,
    PURPLE,
    RED,
    SMALL,
    YELLOW,
    Run,
    bar_rows,
    explain,
    fastest,
    finish,
    ink_on,
    mark,
    name_rows,
    new_figure,
    numbers_of,
    row_height,
    thinned,
)
from gptbench.schema.breakdown import Breakdown
from gptbench.schema.compilation import STAGES, Compilation
from gptbench.schema.kernels import KernelResult, kernel_metrics
from gptbench.schema.metrics import STATES
from gptbench.schema.result import Result
from gptbench.schema.sample import Sample
from gptbench.schema.statistics import valid_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_LABELLED = 0.06
"""Share of the longest bar from which on a part has its value written into it."""
HATCHES = ("", "///", "\\\\\\", "xxx", "--", "++", "||")
"""Hatches of the parts of a bar, which distinguish them in grey."""
MAX_LABEL = 26
"""Maximum length, in characters, of a run's name in front of the label of one of its bars."""
MAX_KERNELS = 10
"""Maximum number of rows of a step, not counting that of the gaps."""


def compile_bars(result: Result) -> list[tuple[str, Compilation]]:
    """Return the label and the compilation of each bar: of each compilation that compiled something."""
    compiled = [entry for entry in result.compilations if entry.cache != "none" and entry.stage_s]
    return [(entry.label, entry) for entry in compiled]


def compile_stages(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart with a bar for each compilation, stacked by stage."""
    there = [run for run in runs if compile_bars(run.result)]
    shown = fastest(there, MAX_ROWS // 2)  # most have two bars
    numbers = numbers_of([run.label for run in shown], MAX_LABEL) if len(there) > 1 else {}
    bars = [
        (f"{numbers.get(run.label, run.label)}: {label}" if len(there) > 1 else label, compilation)
        for run in shown
        for label, compilation in compile_bars(run.result)
    ]
    if not bars:
        return None
    names = [name for name, _ in bars]
    figure, axes = bar_rows(names, [f"{short(compilation.prepare_s)} s" for _, compilation in bars], rest_in=1.3)
    longest = max(compilation.prepare_s for _, compilation in bars)
    stages = {stage: [compilation.stage_s.get(stage, 0.0) for _, compilation in bars] for stage in STAGES}
    draw_stacked(axes, stages, longest)
    explain(axes, numbers)
    axes.set_xlabel("seconds until prefill and decode have run and been captured")
    return finish(figure, shown, there, 4)


def draw_stacked(axes: "Axes", parts: dict[str, list[float]], longest: float) -> None:
    """Draw stacked bars; parts that no bar has are left out."""
    begins = [0.0] * len(next(iter(parts.values())))
    for (name, values), colour, hatch in zip(parts.items(), COLOURS, HATCHES, strict=False):
        if not any(values):
            continue
        drawn = axes.barh(
            range(len(values)), values, left=begins, color=colour, label=name, height=BAR, hatch=hatch,
            edgecolor=PAPER, linewidth=0.5,
        )  # fmt: skip
        texts = [short(value) if value >= MIN_LABELLED * longest else "" for value in values]
        box = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
        for text in axes.bar_label(drawn, texts, label_type="center", fontsize=SMALL - 1, color=ink_on(colour)):
            if text.get_text():
                text.set_bbox(box)
        begins = [begin + value for begin, value in zip(begins, values, strict=True)]


NEEDS = {"weights": "weights", "kv_cache": "KV cache", "workspace": "workspace"}
"""Parts of the expected memory, by their recorded names, as the legend calls them."""


def memory(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of the memory that each run was expected to need, and of its peaks."""
    there = [run for run in runs if valid_samples(run.result)]
    if not there:
        return None
    shown = fastest(there, MAX_ROWS)
    measured = [run.summary["peak_memory_bytes"] / 1e9 for run in shown]
    prepared = [run.result.prepare_peak_memory_bytes / 1e9 for run in shown]
    parts = {label: [run.result.memory_need_bytes.get(name, 0) / 1e9 for run in shown] for name, label in NEEDS.items()}
    figure, axes = bar_rows([run.label for run in shown], [f"{short(value)} GB" for value in measured], rest_in=1.6)
    draw_stacked(axes, parts, longest=2 * max(*measured, *prepared))
    rows = range(len(shown))
    axes.scatter(
        prepared, rows, marker="o", s=80, facecolors=PAPER, edgecolors=INK, zorder=3, label="peak, preparation"
    )
    axes.scatter(measured, rows, marker="D", s=34, color=RED, edgecolors=INK, zorder=4, label="peak, samples")
    axes.set_xlim(left=0)
    axes.set_xlabel("GB (1e9 bytes)")
    return finish(figure, shown, there, 3)


def breakdown(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of the kernels of one step, with a panel for each run."""
    there = [run for run in runs if run.result.breakdown is not None]
    if not there:
        return None
    shown = fastest(there, MAX_PANELS)
    steps = [(run, run.result.breakdown) for run in shown if run.result.breakdown is not None]
    rows = [step_parts(step, run.result.roof.gb_per_s) for run, step in steps]
    values = [[f"{short(part.us)} µs" for part in parts] for parts in rows]
    titles = [run.label for run in shown] if len(there) > 1 else []
    longest = MAX_NAME - max(len(value) for texts in values for value in texts)
    numbers = numbers_of([*titles, *(part.name for parts in rows for part in parts)], longest)
    names = [[numbers.get(part.name, part.name) for part in parts] for parts in rows]
    heights = [0.75 + row_height(panel) * len(panel) + LINE_IN * bool(titles) for panel in names]
    figure = new_figure(sum(heights) + 0.5)
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (axes, (_, step), parts) in enumerate(zip(panels, steps, rows, strict=True)):
        colours = [BLUE if part.is_kernel else GREY for part in parts]
        axes.barh(range(len(parts)), [part.us for part in parts], height=BAR, color=colours)
        known = [(part.least_us, row) for row, part in enumerate(parts) if part.least_us is not None]
        mark(axes, known, "|", s=160, color=RED, linewidths=3, label="the bytes it reads, at the read roof")
        name_rows(axes, names[panel], values[panel])
        axes.set_xlim(left=0)
        title = f"step at position {step.position}: {short(step.step_s * 1e6)} µs while profiled"
        axes.set_title("\n".join([*(numbers.get(name, name) for name in titles[panel : panel + 1]), title]))
    panels[-1].set_xlabel("µs of the step")
    explain(panels[-1], numbers)
    return finish(figure, shown, there)


@dataclass(frozen=True)
class Part:
    """A part of a step, as a bar."""

    name: str
    """Name of the kernel, with the number of its launches, or of what else the part is."""
    us: float
    """Microseconds that the part adds to the step."""
    least_us: float | None = None
    """Microseconds that the bytes it reads take at the read roof; None if they are not known."""
    is_kernel: bool = True
    """Whether the part is a single kernel."""


def step_parts(step: Breakdown, roof_gb_per_s: float) -> list[Part]:
    """Return the kernels that take most time, all others together, and the gaps."""
    kernels = step.by_kernel()
    shown = kernels[: MAX_KERNELS - (len(kernels) > MAX_KERNELS)]
    parts = []
    for kernel in shown:
        name = kernel.name + (f" ×{kernel.launches}" if kernel.launches > 1 else "")
        least_us = None if kernel.bytes_read is None else kernel.bytes_read / roof_gb_per_s / 1e3
        parts.append(Part(name, kernel.exclusive_s * 1e6, least_us))
    if rest := kernels[len(shown) :]:
        us = sum(kernel.exclusive_s for kernel in rest) * 1e6
        parts.append(Part(f"{len(rest)} other kernels", us, is_kernel=False))
    return [*parts, Part("gaps between kernels", step.gaps_s * 1e6, is_kernel=False)]


def energy(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of the energy per token of decode and prefill, in joules."""
    there = [run for run in runs if run.result.energy is not None]
    if not there:
        return None
    shown = fastest(there, MAX_ROWS)
    idle = [f"idle {short(run.summary['idle_w'])} W" for run in shown]
    figure, axes = bar_rows([run.label for run in shown], idle, rest_in=1.3)
    rows = np.arange(len(shown))
    for name, colour, hatch, side in (("decode", BLUE, "", -1), ("prefill", YELLOW, "////", 1)):
        values = [run.summary[f"{name}_joules_per_token"] for run in shown]
        drawn = axes.barh(rows + side * BAR / 4, values, height=BAR / 2, color=colour, hatch=hatch, label=name)
        axes.bar_label(drawn, [short(value) for value in values], padding=3, fontsize=SMALL - 1)
    axes.margins(x=0.12)
    axes.set_xlabel("joules per token, above idle")
    return finish(figure, shown, there)


READINGS = {name: f"{label}, {unit}" for name, (label, unit, _) in STATES.items()}
"""Label and unit of each reading, by its recorded name."""


def device_state(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of clocks, power and temperature over the samples."""
    there = [run for run in runs if any(readings(sample) for sample in run.result.samples)]
    if not there:
        return None
    shown = fastest(there, MAX_LINES)
    values = {name: all_readings(shown, name) for name in READINGS}
    constant = [name for name, known in values.items() if len(known) == 1]
    varying = [name for name, known in values.items() if len(known) > 1]
    if not varying:
        return None
    figure = new_figure(1.0 + 1.45 * len(varying) + 0.17 * len(shown))
    panels = figure.subplots(len(varying), 1, squeeze=False, sharex=True)[:, 0]
    for axes, name in zip(panels, varying, strict=True):
        for run, (colour, style) in zip(shown, LINES, strict=False):
            draw_readings(axes, run, name, colour, style)
        axes.set_ylabel(READINGS[name])
        axes.grid()
    same = ", ".join(f"{READINGS[name].replace(',', f' {short(*values[name])}')}" for name in constant)
    panels[-1].set_xlabel("seconds, samples in sequence" + (f"\nunchanged: {same}" if same else ""))
    figure.align_ylabels()
    return finish(figure, shown, there)


def all_readings(runs: Sequence[Run], name: str) -> set[float]:
    """Return all distinct values of a reading over some runs."""
    return {value for run in runs for sample in run.result.samples for value in readings(sample).get(name, [])}


def readings(sample: Sample) -> dict[str, list[float]]:
    """Return the values of each reading that was taken throughout a sample."""
    state = sample.state
    series = {} if state is None else {name: getattr(state, name) for name in READINGS}
    return {name: values for name, values in series.items() if values and state and len(values) == len(state.at_s)}


def draw_readings(axes: "Axes", run: Run, name: str, colour: str, style: str) -> None:
    """Draw a line over all samples, with a cross at each reading of a throttled sample. Neighbouring readings are
    averaged if there are many."""
    begin = 0.0
    where, values, throttled = [], [], []
    for sample in run.result.samples:
        known = readings(sample).get(name)
        if known is not None and sample.state is not None:
            where += [begin + second for second in sample.state.at_s]
            values += known
            throttled += [sample.throttled] * len(known)
        begin += max(sample.call_s, *sample.state.at_s) if sample.state else sample.call_s
    if values:
        at, middle = thinned(np.array(where), np.array(values))
        crosses = thinned(np.array(where), np.array(throttled), np.any)[1]
        all_shown = len(at) == len(where)
        label = run.label if all_shown else f"{run.label} (means of neighbouring readings)"
        point = "." if all_shown else None
        axes.plot(at, middle, color=colour, linestyle=style, marker=point, markersize=4, label=label)
        if crosses.any():
            axes.plot(at[crosses], middle[crosses], "x", color=INK, markersize=6, label="throttled")


IMPLEMENTATIONS = {"kernel": ("o", BLUE), "inductor": ("s", GREEN), "library": ("^", PURPLE)}
"""Marker and colour of each implementation."""


def kernel_rates(results: Sequence[KernelResult]) -> "Figure | None":
    """Return the chart of `task=kernels`: the rate at which each kernel moves its bytes, relative to the read roof."""
    points: dict[str, dict[str, float]] = {}
    for result in results:
        for kernel in result.kernels:
            rows = kernel_metrics(result, kernel)
            if rows:
                device = f" ({result.environment.device})" if len(results) > 1 else ""
                shares = {name: 100 * row.share_of_roof for name, row in rows.items()}
                points[kernel.label + device] = points.get(kernel.label + device, {}) | shares
    if not points:
        return None
    shown = dict(list(points.items())[: 2 * MAX_ROWS])
    best = [f"{short(max(shares.values()))} %" for shares in shown.values()]
    figure, axes = bar_rows(list(shown), best, rest_in=1.3)
    for name, (marker, colour) in IMPLEMENTATIONS.items():
        known = [(shares[name], row) for row, shares in enumerate(shown.values()) if name in shares]
        mark(axes, known, marker, s=40, color=colour, zorder=3, label=name)
    axes.axvline(100, color=RED, linewidth=2, linestyle="--", label="read roof")
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the read roof")
    return finish(figure, shown, points, 4, which="first")
