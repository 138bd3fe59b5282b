"""Charts of speed: against the limit, by step, by varied settings, and against quality."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptbench.base.numbers import short
from gptbench.charts.canvas import (
    BAR,
    BLUE,
    GREY,
    INK,
    LINES,
    MAX_COLUMNS,
    MAX_LINES,
    MAX_MARKS,
    MAX_NAME,
    MAX_PANELS,
    MAX_POINTS,
    MAX_ROWS,
    MUTED,
    PAPER,
    PURPLE,
    RED,
    SMALL,
    Run,
    bar_rows,
    cut,
    explain,
    fastest,
    finish,
    ink_on,
    mark,
    name_log_ticks,
    new_figure,
    numbers_of,
    thinned,
    time_unit,
    timed,
)
from gptbench.schema.labels import names, traits
from gptbench.schema.metrics import CALL_RATE, HEADLINE, QUALITY, Direction, Metric, compared
from gptbench.schema.quality import Predictions
from gptbench.schema.result import Result
from gptbench.schema.statistics import valid_samples
from gptbench.schema.steps import Steps, output_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_UNMARKED_POINTS = 10
"""Number of points below which each is marked: a line through a single one would not be visible."""
SHOWN_STEPS, SHOWN_MEDIANS = 0.995, 5.0
"""Upper end of the range shown of a run's steps: this quantile, but at most this multiple of their median."""
MIN_LOG_RATIO = 5.0
"""Ratio of the slowest run's median step to the fastest's from which on the axis is logarithmic."""
SPREAD = "slowest … fastest sample"
"""Label of whiskers."""
FAR = 3.0
"""Multiple of the longest bar beyond which a limit is drawn as an arrow at the edge, as it would leave the bars no
space."""


def tokens_per_s(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart with a bar for each run, whiskers over its samples, its limit, and targets."""
    there = timed(runs)
    if not there:
        return None
    shown = fastest(there, MAX_ROWS)
    values = [run.tokens_per_s for run in shown]
    limits = [run.limit_tokens_per_s for run in shown]
    texts = [f"{short(value)} of {short(limit)}" for value, limit in zip(values, limits, strict=True)]
    figure, axes = bar_rows([run.label for run in shown], texts, rest_in=1.5)
    draw_bars(axes, shown, values, [run.spread(HEADLINE) for run in shown])
    furthest = max(draw_targets(axes, shown, [1.0] * len(shown)), *(run.spread(HEADLINE)[1] for run in shown))
    near = [(limit, row) for row, limit in enumerate(limits) if limit <= FAR * furthest]
    mark(axes, near, "|", s=260, color=RED, linewidths=3, label="limit: its bytes at the read roof")
    end = 1.06 * max([furthest, *(limit for limit, _ in near)])
    far = [(end, row) for row, limit in enumerate(limits) if limit > FAR * furthest]
    mark(axes, far, ">", s=40, color=RED, clip_on=False, label="limit, beyond the axis")
    axes.set_xlim(0, end)
    axes.set_xlabel("decode tokens/s")
    return finish(figure, shown, there, 1)


def draw_bars(axes: "Axes", runs: list[Run], values: list[float], spreads: list[tuple[float, float]]) -> None:
    """Draw bars with whiskers; those of throttled runs are hatched."""
    reach = np.array(
        [(max(value - low, 0), max(high - value, 0)) for value, (low, high) in zip(values, spreads, strict=True)]
    )
    throttled = [run.summary["samples_throttled"] > 0 for run in runs]
    rows = np.arange(len(runs))
    for which, hatch, label in ((False, "", None), (True, "////", "throttled in a sample")):
        chosen = [row for row in rows if throttled[row] is which]
        if chosen:
            axes.barh(chosen, [values[row] for row in chosen], height=BAR, color=BLUE, hatch=hatch, label=label)
    axes.errorbar(values, rows, xerr=reach.T, fmt="none", ecolor=INK, elinewidth=1, capsize=3, label=SPREAD)


def draw_targets(axes: "Axes", runs: list[Run], factors: list[float], suffix: str = "") -> float:
    """Draw targets of decode tokens/s, and return the greatest value drawn. The rate of gpt_fast includes the prefill:
    next to its target, the run's own rate of that kind is drawn.

    Args:
        factors: factor of each run, by which its values are multiplied.
        suffix: what the factors mean, appended to labels.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for row, run in enumerate(runs):
        for target in run.targets:
            if target.metric in (HEADLINE, CALL_RATE):
                what = "target" if target.metric != CALL_RATE else "target, prefill included"
                points.setdefault(f"{what} ({target.device}){suffix}", []).append((factors[row] * target.value, row))
    for (label, known), marker in zip(points.items(), "Dsovd^<>", strict=False):
        mark(axes, known, marker, s=44, facecolors=PAPER, edgecolors=INK, zorder=3, label=label)
    with_call_rate = [row for row, run in enumerate(runs) if CALL_RATE in {target.metric for target in run.targets}]
    own = [(factors[row] * runs[row].summary[CALL_RATE], row) for row in with_call_rate]
    mark(axes, own, "D", s=18, color=INK, zorder=4, label="measured, prefill included")
    drawn = sum(points.values(), own)
    return max((value for value, _ in drawn), default=0.0)


def mbu(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart with a bar for each run, a line at the read roof, and targets. A target in tokens/s is shown as
    the MBU that it would be with the run's own read roof and bytes per step."""
    there = timed(runs)
    if not there:
        return None
    shown = fastest(there, MAX_ROWS)
    values = [100 * run.summary["mbu"] for run in shown]
    spreads = [(100 * low, 100 * high) for low, high in (run.spread("mbu") for run in shown)]
    figure, axes = bar_rows([run.label for run in shown], [f"{short(value)} %" for value in values], rest_in=1.3)
    draw_bars(axes, shown, values, spreads)
    axes.axvline(100, color=RED, linewidth=2, linestyle="--", label="read roof")
    factors = [100 / run.limit_tokens_per_s for run in shown]
    furthest = draw_targets(axes, shown, factors, ", of the run's own roof")
    axes.set_xlim(0, max(118.0, 1.03 * furthest, *(1.03 * high for _, high in spreads)))
    axes.set_xlabel("% of the read roof, while decoding")
    return finish(figure, shown, there)


def step_times(run: Run) -> np.ndarray:
    """Return the seconds of the step at each position, for the valid samples: (samples, positions)."""
    count = len(run.result.traffic.kv_len)
    return np.array([Steps(sample).at_positions(count) for sample in valid_samples(run.result)])


def longest_shown(run: Run) -> float:
    """Return the longest step time to be shown, in seconds: a few slow steps would leave no space for all others."""
    seconds = step_times(run)
    return float(min(np.quantile(seconds, SHOWN_STEPS), SHOWN_MEDIANS * np.median(seconds)))


def latency(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of step time by position: median and range of the samples, and the time at the read roof."""
    there = timed(runs)
    if not there:
        return None
    shown = fastest(there, MAX_LINES)
    medians = [float(np.median(step_times(run))) for run in shown]
    factor, unit = time_unit(min(medians))
    figure = new_figure(3.0 + 0.17 * len(shown))
    axes = figure.subplots()
    top = 0.0
    for run, (colour, style) in zip(shown, LINES, strict=False):
        positions = np.array(run.result.traffic.kv_len)
        seconds = step_times(run) * factor
        chosen = [(sample.experts_chosen, len(sample.step_s)) for sample in valid_samples(run.result)]
        needed = np.mean([run.result.traffic.needed(*sample) for sample in chosen], 0)
        least = needed / run.result.roof.gb_per_s / 1e9 * factor
        where, middle = thinned(positions, np.median(seconds, 0), np.median)
        low, high = thinned(positions, seconds.min(0), np.min)[1], thinned(positions, seconds.max(0), np.max)[1]
        axes.fill_between(where, low, high, color=colour, alpha=0.2, linewidth=0)
        point = "." if len(where) < MIN_UNMARKED_POINTS else None
        axes.plot(where, middle, color=colour, linestyle=style, marker=point, label=run.label)
        axes.plot(*thinned(positions, least), color=colour, linestyle=(0, (1, 2)), linewidth=1.2)
        top = max(top, longest_shown(run) * factor, float(least.max()))
    axes.plot([], [], color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="its bytes at the read roof")
    if max(medians) > MIN_LOG_RATIO * min(medians):
        axes.set_yscale("log")
        name_log_ticks(axes.yaxis)
        axes.set_ylim(top=1.1 * top)
    else:
        axes.set_ylim(0, 1.1 * top)
    axes.set_xlabel("position (cached tokens, including the step's own)")
    axes.set_ylabel(f"decode step, {unit}")
    axes.grid()
    return finish(figure, shown, there)


def distribution(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of the cumulative distribution of step times."""
    there = timed(runs)
    if not there:
        return None
    shown = fastest(there, MAX_LINES)
    medians = [float(np.median(step_times(run))) for run in shown]
    factor, unit = time_unit(min(medians))
    figure = new_figure(3.0 + 0.17 * len(shown))
    axes = figure.subplots()
    end = 1.02 * factor * max(longest_shown(run) for run in shown)
    beyond, count = 0, 0
    for run, (colour, style) in zip(shown, LINES, strict=False):
        seconds = np.sort(np.concatenate(output_times(valid_samples(run.result)))) * factor
        share = np.arange(1, len(seconds) + 1) / len(seconds) * 100
        kept = np.unique(np.linspace(0, len(seconds) - 1, min(len(seconds), MAX_POINTS)).astype(int))
        p50, p99 = (run.summary[f"tpot_{name}_s"] * factor for name in ("p50", "p99"))
        label = f"{run.label}: p50 {short(p50)}, p99 {short(p99)} {unit}"
        axes.step(seconds[kept], share[kept], where="post", color=colour, linestyle=style, label=label)
        beyond, count = beyond + int((seconds > end).sum()), count + len(seconds)
    if max(medians) > MIN_LOG_RATIO * min(medians):
        axes.set_xscale("log")
        name_log_ticks(axes.xaxis)
    for level in (50, 99):
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(f"p{level}", (1, level), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
    axes.set_xlim(right=end)
    axes.set_ylim(0, 101)
    slower = f"; {beyond} of {count} are beyond the axis" if beyond else ""
    axes.set_xlabel(f"decode step, {unit}{slower}")
    axes.set_ylabel("% of the steps")
    axes.grid()
    return finish(figure, shown, there, 1)


VARIED = ("sampling.temperature", "sampling.top_k", "sampling.name", "commit")
"""Traits that may differ between the runs of a heat map: code may have been committed while they were measured."""
MAX_MAPS = 6
"""Maximum number of maps of a chart."""


def heat_maps(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of decode tokens/s by top_k and temperature, with a map for each setting of everything else."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in timed(runs):
        rest = {key: value for key, value in traits(run.result).items() if key not in VARIED}
        groups.setdefault(tuple(rest.items()), []).append(run)
    maps = {rest: grid for rest, group in groups.items() if (grid := heat_grid(group)) is not None}
    if not maps:
        return None
    shown = list(maps.items())[:MAX_MAPS]
    titles = names([dict(rest) for rest, _ in shown]) if len(maps) > 1 else [""]
    numbers = numbers_of(titles, MAX_NAME)
    heights = [0.75 + 0.34 * min(len(top_ks), MAX_ROWS) for _, (_, top_ks, _) in shown]
    figure = new_figure(sum(heights))
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    lowest = min(float(np.nanmin(grid) / np.nanmax(grid)) for _, (_, _, grid) in shown)
    for axes, title, (_, grid) in zip(panels, titles, shown, strict=True):
        draw_heat_map(axes, *grid, lowest)
        if title:
            axes.set_title(numbers.get(title, title))
    explain(panels[-1], numbers)
    return finish(figure, shown, list(maps), which="first")


def heat_grid(runs: list[Run]) -> tuple[list[float], list[float | None], np.ndarray] | None:
    """Return the temperatures, the top_ks (no limit last), and the median of the runs in each cell, NaN if it has none;
    None if there are too few cells for a map."""
    sampling = [run.result.config["sampling"] for run in runs]
    columns = sorted({section["temperature"] for section in sampling})
    rows = sorted({section.get("top_k") for section in sampling}, key=lambda top_k: (top_k is None, top_k))
    cells: dict[tuple[int, int], list[float]] = {}
    for run, section in zip(runs, sampling, strict=True):
        place = rows.index(section.get("top_k")), columns.index(section["temperature"])
        cells.setdefault(place, []).append(run.tokens_per_s)
    if len(cells) < 3:
        return None
    grid = np.full((len(rows), len(columns)), np.nan)
    for place, values in cells.items():
        grid[place] = np.median(values)
    return columns, rows, grid


NOISE = 0.9
"""Share of a map's fastest cell at which its colours begin, at most, so that cells within a percent look alike."""


def draw_heat_map(
    axes: "Axes", columns: list[float], rows: list[float | None], grid: np.ndarray, lowest: float
) -> None:
    """Draw a heat map as squares and not as an image, so that it stays sharp at any size.

    Args:
        lowest: lowest cell of all maps, as a share of its map's fastest one: the lower end of the colour scale.
    """
    from matplotlib.colors import Normalize

    best = float(np.nanmax(grid))
    kept_rows, kept_columns = highest(grid, 1, MAX_ROWS), highest(grid, 0, MAX_COLUMNS)
    cuts = cut(kept_columns, columns), cut(kept_rows, rows)
    grid = grid[np.ix_(kept_rows, kept_columns)]
    rows, columns = [rows[row] for row in kept_rows], [columns[column] for column in kept_columns]
    scale = Normalize(best * min(lowest, NOISE), best)
    mesh = axes.pcolormesh(np.ma.masked_invalid(grid), cmap="cividis", norm=scale, edgecolors=PAPER, linewidth=1.5)
    size = SMALL if len(columns) <= 7 else SMALL - 1
    for (row, column), value in np.ndenumerate(grid):
        if np.isnan(value):
            axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center", color=MUTED, fontsize=size)
        else:
            colour = ink_on(mesh.cmap(mesh.norm(value))[:3])
            axes.text(column + 0.5, row + 0.5, short(value), ha="center", va="center", color=colour, fontsize=size)
    labels = ["greedy" if temperature == 0 else f"{temperature:g}" for temperature in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, labels)
    axes.set_yticks(np.arange(len(rows)) + 0.5, ["all" if top_k is None else f"{top_k:g}" for top_k in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlabel(f"temperature{cuts[0]}")
    axes.set_ylabel(f"top_k{cuts[1]}")


def highest(grid: np.ndarray, axis: int, most: int) -> np.ndarray:
    """Return the indices of the rows (axis 1) or columns (axis 0) with the highest cells, in their given order."""
    return np.sort(np.argsort(-np.nanmax(grid, axis))[:most])


QUALITIES = [metric for metric in compared() if metric.kind is QUALITY and metric.direction is Direction.lower]
"""Metrics of quality of which lower is better."""


def pareto(runs: Sequence[Run]) -> "Figure | None":
    """Return a chart of decode tokens/s against quality, with a panel for each set of comparable runs with several
    formats of weights."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in timed(runs):
        if run.result.quality is not None:
            groups.setdefault(tuple(shared(run.result, run.result.quality).items()), []).append(run)
    titles = names([dict(group) for group in groups]) if len(groups) > 1 else [""]
    panels = []
    for title, group in zip(titles, groups.values(), strict=False):
        for metric in QUALITIES:
            known = [run for run in group if metric.name in run.summary]
            if len({run.result.weights for run in known}) > 1:
                panels.append((title, metric, known))
                break
    if not panels:
        return None
    shown = panels[:MAX_PANELS]
    numbers = numbers_of([title for title, _, _ in shown], MAX_NAME)
    count = len(numbers)
    figure = new_figure(0.2 + 3.0 * len(shown))
    for axes, (title, metric, known) in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        count += draw_pareto(axes, metric, known, count)
        if title:
            axes.set_title(numbers.get(title, title))
        explain(axes, {title: numbers[title]} if title in numbers else {})
    return finish(figure, shown, panels, which="first")


def shared(result: Result, quality: Predictions) -> dict[str, str]:
    """Return what speed and quality depend on apart from the format of weights, as traits."""
    first, last = quality.context
    return {
        "model": result.config["model"]["name"],
        "text": "random" if quality.text_sha256 is None else quality.text_sha256[:12],
        "context": f"{first}…{last}",
        "predicted": str(len(quality.nll)),
        "device": result.environment.device,
        "batch": f"b{result.config['workload']['batch_size']}",
        "prompt_tokens": str(len(result.prompt)),
    }


def draw_pareto(axes: "Axes", metric: Metric, runs: list[Run], before: int) -> int:
    """Draw numbered points, as names beside them could cover other points, and return how many have a number.

    Args:
        before: number of numbers already used by other panels.
    """
    there = [(run.summary[metric.name], run.tokens_per_s) for run in runs]
    best = front(there)
    kept = sorted(range(len(runs)), key=lambda index: (there[index] not in best, -there[index][1]))[:MAX_MARKS]
    runs, points = [runs[index] for index in sorted(kept)], [there[index] for index in sorted(kept)]
    line = [*best, (max(quality for quality, _ in points), best[-1][1])]
    axes.step(*zip(*line, strict=True), where="post", color=GREY, linestyle="--", label="Pareto front")
    for marker, chosen, colour in (("o", True, BLUE), ("s", False, PURPLE)):
        label = "on the front" if chosen else f"behind it{cut(points, there)}"
        some = [point for point in points if (point in best) is chosen]
        mark(axes, some, marker, s=150, color=colour, edgecolors=PAPER, zorder=3, label=label)
    numbers: dict[str, str] = {}
    for name, point in zip(names([traits(run.result) for run in runs]), points, strict=True):
        if point in best or len(points) <= MAX_ROWS:  # many names would fill most of the chart
            number = str(before + len(numbers) + 1)
            numbers[name] = f"#{number}"
            colour = BLUE if point in best else PURPLE
            box = {"facecolor": colour, "edgecolor": "none", "pad": 0}
            at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL - 1, "zorder": 4}
            axes.text(*point, number, color=ink_on(colour), bbox=box, **at)
    explain(axes, numbers)
    axes.margins(x=0.15)
    axes.set_ylim(0, 1.2 * max(speed for _, speed in points))
    axes.set_xlabel(f"{metric.heading}, lower is better")
    axes.set_ylabel("decode tokens/s")
    axes.grid()
    return len(numbers)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of (quality, speed) points, sorted by quality: those of which no other has lower quality
    loss and higher speed."""
    kept: list[tuple[float, float]] = []
    for quality, speed in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or speed > kept[-1][1]:
            kept.append((quality, speed))
    return kept
