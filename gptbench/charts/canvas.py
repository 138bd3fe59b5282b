"""Building blocks of all charts: the runs they show, sizes, colours, and rows of bars.

A chart must be readable at the width of a phone, on white and on black, and printed in grey. So it is narrow; long
names are placed above bars, and even longer ones are replaced by numbers that the legend explains; lines and markers
differ in shape as well as in colour; and ink, grid and paper have colours that nothing else uses, which
`gptbench.present.svg` replaces by those of the page. matplotlib takes a second to import, so it is imported only where
it is needed.
"""

import contextlib
import functools
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptbench.base.numbers import short
from gptbench.schema.labels import shortened
from gptbench.schema.metrics import HEADLINE
from gptbench.schema.result import Result
from gptbench.schema.statistics import step_bytes, valid_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1a1b1e", "#5c5f66", "#d0d1d3", "#fefffe"
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")
"""Tol's bright colour scheme, which colour-blind people can distinguish. https://personal.sron.nl/~pault/"""
BLUE, CYAN, GREEN, YELLOW, RED, PURPLE, GREY = COLOURS
LINES: tuple[tuple[str, Any], ...] = (
    (BLUE, "-"),
    (RED, "--"),
    (GREEN, "-."),
    (PURPLE, ":"),
    (CYAN, (0, (5, 1))),
    (YELLOW, (0, (3, 1, 1, 1))),
)
"""Colour and style of each line of a chart; more lines than these cannot be distinguished."""
WIDTH_IN = 5.4
"""Width of a chart, in inches."""
FONT, SMALL = 10, 9
"""Font sizes in points. At this width, a phone shows them as 8 or 9 pixels."""
MAX_ROWS, MAX_LINES, MAX_PANELS = 24, len(LINES), 4
"""Maximum number of bars, lines, and panels of a chart."""
MAX_POINTS, MAX_MARKS, MAX_COLUMNS = 400, 200, 12
"""Maximum number of points of a line, marks of a chart, and columns of a heat map."""
SHORT_NAME, MAX_NAME, MAX_ENTRY = 16, 58, 62
"""Maximum length, in characters, of names beside their bar, of names above it together with the bar's value, and of a
line of the legend."""
ENTRY_LINES = 4
"""Maximum number of lines of a name in the legend; the middle of a longer one is left out."""
NUMBERED = "numbered"
"""Marker (gid) of legend entries that only explain a number."""
ROW_IN, LINE_IN = 0.21, 0.16
"""Height, in inches, of an entry of the legend, and of each further line of it."""
BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
"""Box around text that lines pass behind."""
BAR = 0.5
"""Thickness of a bar, as a share of the distance between two bars."""

STYLE: Any = {
    "font.size": FONT,
    "text.parse_math": False,  # a name with two $ is not a formula
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": FONT,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "hatch.color": INK,
    "lines.linewidth": 1.6,
    "figure.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text
}


@dataclass(frozen=True)
class Target:
    """Target of a baseline for one metric."""

    metric: str
    """Name of the metric."""
    value: float
    """Target in the metric's unit."""
    device: str
    """Name of the device that the baseline was recorded on."""


@dataclass(frozen=True)
class Run:
    """A result as charts show it, among others."""

    label: str
    """Label that distinguishes the run from others."""
    result: Result
    """Record of the run."""
    targets: tuple[Target, ...] = ()
    """Targets for what the run measured."""

    @property
    def summary(self) -> dict[str, float]:
        """Metrics of the run."""
        return self.result.summary

    @property
    def tokens_per_s(self) -> float:
        """Decode tokens/s; 0 without a valid sample."""
        return self.summary.get(HEADLINE, 0.0)

    @functools.cached_property
    def limit_tokens_per_s(self) -> float:
        """Decode tokens/s if every step moved the bytes that it needs at the read roof."""
        step = step_bytes(self.result)
        return step.tokens / (step.needed / 1e9 / self.result.roof.gb_per_s)

    def spread(self, metric: str) -> tuple[float, float]:
        """Return a metric's minimum and maximum over the valid samples."""
        values = [sample[metric] for sample in self.result.sampled]
        return min(values), max(values)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Apply matplotlib's settings for charts, which are needed both while a chart is drawn and while it is written."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the fonts of a reader's browser may have it
        yield


def new_figure(height_in: float) -> "Figure":
    """Return an empty figure of a chart's width and a given height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def timed(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have a valid sample."""
    return [run for run in runs if valid_samples(run.result)]


def fastest(runs: Sequence[Run], most: int) -> list[Run]:
    """Return the fastest runs, at most `most`, in their given order."""
    kept = sorted(range(len(runs)), key=lambda index: -runs[index].tokens_per_s)[:most]
    return [runs[index] for index in sorted(kept)]


def thinned(x: np.ndarray, y: np.ndarray, reduce: Any = np.mean) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `MAX_POINTS` points, each of which reduces neighbouring ones.

    Args:
        reduce: reduction of the y values; x values are averaged.
    """
    parts = np.array_split(np.arange(len(x)), min(len(x), MAX_POINTS))
    return np.array([x[part].mean() for part in parts]), np.array([reduce(y[part]) for part in parts])


def cut(shown: Sized, there: Sized) -> str:
    """Return a suffix for the name of something that a chart does not show all of; empty if it does."""
    return f" (the fastest {len(shown)} of {len(there)})" if len(shown) < len(there) else ""


def mark(axes: "Axes", points: Sequence[tuple[float, float]], marker: str, **how: Any) -> None:
    """Draw a marker at each point, if there is any."""
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, marker=marker, **how)


def numbers_of(names: Iterable[str], longest: int) -> dict[str, str]:
    """Return a number for each name that is too long, to be shown in its place: see `explain`."""
    return {name: f"#{number}" for number, name in enumerate(dict.fromkeys(n for n in names if len(n) > longest), 1)}


def explain(axes: "Axes", numbers: dict[str, str]) -> None:
    """Add entries to the legend that explain what the numbers stand for."""
    for name, number in numbers.items():
        axes.plot([], [], " ", label=f"{number} {name}", gid=NUMBERED)


def bar_rows(names: Sequence[str], values: Sequence[str], rest_in: float = 1.2) -> tuple["Figure", "Axes"]:
    """Return a figure and axes with a row for each bar, centred at y = 0, 1, … from the top, with the bar's name and
    value as text.

    Args:
        rest_in: height, in inches, of everything but the rows.
    """
    numbers = numbers_of(names, MAX_NAME - max(map(len, values)))
    drawn = [numbers.get(name, name) for name in names]
    figure = new_figure(rest_in + row_height(drawn) * len(drawn))
    axes = figure.subplots()
    name_rows(axes, drawn, values)
    explain(axes, numbers)
    return figure, axes


def row_height(names: Sequence[str]) -> float:
    """Return the height of a row, in inches."""
    return 0.3 if are_short(names) else 0.42


def are_short(names: Sequence[str]) -> bool:
    """Return whether all names fit beside their bars."""
    return max(map(len, names)) <= SHORT_NAME


def name_rows(axes: "Axes", names: Sequence[str], values: Sequence[str]) -> None:
    """Write names to the left of their bars if all are short, else above them, and values to the right."""
    across = axes.get_yaxis_transform()
    if are_short(names):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        for row, value in enumerate(values):
            axes.text(1.015, row, value, transform=across, va="center", fontsize=SMALL)
    else:
        axes.set_yticks([])
        axes.set_ylim(len(names) - 0.6, -0.9)
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            above: dict[str, Any] = {"transform": across, "va": "bottom", "fontsize": SMALL, "bbox": BEHIND}
            axes.text(0.008, row - BAR / 2 - 0.04, name, **above)
            axes.text(0.992, row - BAR / 2 - 0.04, value, ha="right", **above)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def legend_below(figure: "Figure", columns: int = 2, **how: Any) -> None:
    """Add a legend for the whole figure, which ends with what numbers stand for; none if nothing has a label."""
    drawn = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if not drawn:
        return
    explained = {label for label, handle in drawn.items() if getattr(handle, "get_gid", str)() == NUMBERED}
    keys = [label for label in drawn if label not in explained]
    table = sorted(explained, key=lambda label: int(label[1:].partition(" ")[0]))
    numbers = numbers_of(keys, MAX_ENTRY)
    entries = [in_lines(f"{numbers[key]} {key}" if key in numbers else key) for key in keys]
    entries += map(in_lines, table)
    rows = len(keys) / columns  # rows that the figure already has space for
    columns = 1 if max(map(len, entries)) > MAX_ENTRY / columns else columns
    further = sum(entry.count("\n") for entry in entries)
    figure.set_figheight(figure.get_figheight() + LINE_IN * further + ROW_IN * (len(entries) / columns - rows))
    figure.legend([drawn[key] for key in [*keys, *table]], entries, loc="outside lower left", ncols=columns, **how)


def in_lines(entry: str) -> str:
    """Return an entry of the legend wrapped into lines, with its middle left out if there are too many."""
    return textwrap.fill(shortened(entry, ENTRY_LINES * (MAX_ENTRY - 1)), MAX_ENTRY, break_on_hyphens=False)


def finish(figure: "Figure", shown: Sized, there: Sized, columns: int = 2, which: str = "fastest") -> "Figure":
    """Return the figure with its legend, and with a note above it if it does not show everything.

    Args:
        shown: what the figure shows.
        there: everything that there is.
        which: which ones are shown: `fastest` or `first`.
    """
    if len(shown) < len(there):
        note = f"the {which} {len(shown)} of {len(there)}"
        figure.suptitle(note, fontsize=SMALL, color=MUTED, x=0.01, ha="left")
    legend_below(figure, columns)
    return figure


def ink_on(colour: Any) -> str:
    """Return black or white, whichever is more readable on a colour."""
    from matplotlib.colors import to_rgb

    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def name_log_ticks(axis: "Axis") -> None:
    """Label a logarithmic axis at 1, 2, 5, 10, … with plain numbers; matplotlib would write powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the factor and the unit in which to show times of a given size."""
    return (1e6, "µs") if seconds < 1e-3 else (1e3, "ms")
