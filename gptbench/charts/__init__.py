"""Charts of results, drawn with matplotlib: in the report, and as artifacts of a run or a sweep in MLflow."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptbench.base.errors import UserError
from gptbench.charts import cost, speed
from gptbench.charts.canvas import COLOURS, INK, Run, Target, styled
from gptbench.charts.cost import compile_bars
from gptbench.config import BaselineConfig
from gptbench.config.refusal import read_section
from gptbench.config.targets import instantiate
from gptbench.schema.kernels import KernelResult
from gptbench.schema.labels import NAMED, labels, traits
from gptbench.schema.record import Recorded, of_kind
from gptbench.schema.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CHARTS",
    "COLOURS",
    "KERNELS",
    "Chart",
    "Run",
    "Target",
    "compile_bars",
    "draw_compile_stages",
    "in_order",
    "kernels_figure",
    "styled",
    "targets_of",
    "write_figures",
]

DPI = 130
"""Resolution of a PNG, which is 702 pixels wide."""


@dataclass(frozen=True)
class Chart:
    """A kind of chart of runs."""

    name: str
    """Name of the chart, and of its file."""
    title: str
    """Title of the chart."""
    explanation: str
    """How to read the chart."""
    function: Callable[[Sequence[Run]], "Figure | None"]
    """Function that draws the chart of some runs; it returns None if there is nothing to draw."""

    def draw(self, runs: Sequence[Run]) -> "Figure | None":
        """Return the figure of some runs; None if there is nothing to draw."""
        with styled():
            return self.function(runs)


COMPILE = Chart(
    "compile",
    "Compile time by stage",
    "Time until prefill and decode have run and been captured. Cold: with an empty compile cache; warm: every graph "
    "came from the cache; mixed: some did.",
    cost.compile_stages,
)
CHARTS = (
    Chart(
        "tokens_per_s",
        "Decode speed",
        "Decode tokens/s: median of the samples, with whiskers from the slowest to the fastest. The mark is each "
        "run's limit, or an arrow where that lies far beyond the bars: the tokens/s at which each step would move its "
        "bytes at the read roof, the measured peak read bandwidth of the device.",
        speed.tokens_per_s,
    ),
    Chart(
        "mbu",
        "Memory bandwidth utilisation",
        "MBU: bytes per step, divided by the step's time and the read roof. At 100 %, a step takes exactly as long as "
        "reading its bytes at the read roof. A target is the MBU that the run would have at the target's tokens/s.",
        speed.mbu,
    ),
    Chart(
        "latency",
        "Step latency by position",
        "Median over the samples at each position; the band spans the fastest to the slowest sample. Dotted: the time "
        "that the step's bytes take at the read roof. A few slow steps may lie above the visible range.",
        speed.latency,
    ),
    Chart(
        "distribution",
        "Distribution of step times",
        "Cumulative share of all steps of the valid samples by their time. A steep line means a steady pace.",
        speed.distribution,
    ),
    Chart(
        "heat_map",
        "top_k × temperature",
        "Decode tokens/s by the varied settings: the median where a cell has several runs, a dash where it has no "
        "valid one. Colours are relative to the fastest cell of each map, on the same scale in all maps.",
        speed.heat_maps,
    ),
    Chart(
        "pareto",
        "Speed against quality",
        "Formats of the weights, compared at the same model, text, context, device, batch size and prompt length. "
        "Left is better quality, up is faster; the dashed line is the Pareto front, on which no run is beaten in both.",
        speed.pareto,
    ),
    COMPILE,
    Chart(
        "memory",
        "Memory",
        "Bars: the memory that the run was expected to need. Marks: peak memory in use, by the allocator on a GPU and "
        "by the whole process on a CPU.",
        cost.memory,
    ),
    Chart(
        "breakdown",
        "One decode step by kernel",
        "Time that each kernel adds to the step. The mark is the time that the bytes it reads take at the read roof, "
        "where known; a kernel that prefetches while the previous one runs may be faster than that.",
        cost.breakdown,
    ),
    Chart(
        "energy",
        "Energy per token",
        "Energy by the device's own counter, less its idle consumption with the model in memory: of prefill per token "
        "of the prompt, of decode per new token.",
        cost.energy,
    ),
    Chart(
        "device_state",
        "Clocks, power and temperature",
        "Readings during the samples; values that did not change are written below. A cross marks a reading in a "
        "sample that was power- or thermal-throttled.",
        cost.device_state,
    ),
)
"""Charts in the order of the report."""
KERNELS = "Standalone kernels"
"""Title of the only chart of `task=kernels`."""


def kernels_figure(results: Sequence[KernelResult]) -> "Figure | None":
    """Return the chart of records of `task=kernels`; None if there is nothing to draw."""
    with styled():
        return cost.kernel_rates(results)


class Targets(Protocol):
    """Baseline as charts need it: see `gptbench.compare.Baseline`."""

    device: str
    """Name of the device that it was recorded on."""

    def targets(self, result: Result) -> dict[str, float]:
        """Return the target of each metric for what a result measured."""
        ...


@functools.lru_cache(maxsize=8)
def own_baseline(section: str) -> Targets | None:
    """Return the targets of a run's own baseline; None if it is of a version with other fields. The result is cached
    because the jobs of a sweep share one baseline, which may have many rows.

    Args:
        section: the configuration's section `baseline` as JSON.
    """
    try:
        fields = OmegaConf.create(json.loads(section))
        if not isinstance(fields, DictConfig):
            return None
        config = read_section(fields, BaselineConfig)
    except (OmegaConfBaseException, UserError):
        return None
    return cast(Targets, instantiate(config))


def targets_of(result: Result, baselines: Sequence[Targets] = ()) -> tuple[Target, ...]:
    """Return a result's targets from its own configuration and from other baselines, without duplicates."""
    own = own_baseline(json.dumps(result.config["baseline"])) if "baseline" in result.config else None
    targets = {
        Target(metric, value, baseline.device): None
        for baseline in [*([] if own is None else [own]), *baselines]
        for metric, value in baseline.targets(result).items()
    }
    return tuple(targets)


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Return runs grouped by model, the fastest of each model first."""
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(run.result.config["model"]["name"], []).append(run)
    return [run for of_model in models.values() for run in sorted(of_model, key=lambda run: -run.tokens_per_s)]


def runs_of(results: Sequence[Result]) -> list[Run]:
    """Return the runs of some results, in the order of charts, with the targets of their own baselines."""
    runs = []
    for label, result in zip(labels(results), results, strict=True):
        targets: tuple[Target, ...] = ()
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a version with another configuration
            targets = targets_of(result)
        runs.append(Run(label, result, targets))
    return in_order(runs)


def shared_name(results: Sequence[Result]) -> str:
    """Return those parts of the results' names that all of them share."""
    traits_of = [traits(result) for result in results]
    return " ".join(traits_of[0][key] for key in NAMED if len({values[key] for values in traits_of}) == 1)


def write(figure: "Figure", path: Path, title: str) -> None:
    """Write a PNG. Text that is above the chart already comes below the title."""
    with styled():
        text = "\n".join(line for line in (title, figure.get_suptitle()) if line)
        figure.suptitle(text, fontsize="medium", color=INK, x=0.01, ha="left")
        figure.savefig(path, dpi=DPI)


def draw_compile_stages(result: Result, path: Path) -> bool:
    """Write a PNG with a bar of compile time by stage for each compilation; return False if there is nothing to
    draw."""
    if not compile_bars(result):  # avoids importing matplotlib, which takes a quarter of a second
        return False
    run = Run(labels([result])[0], result)
    figure = COMPILE.draw([run])
    assert figure is not None
    write(figure, path, f"{COMPILE.title}: {run.label}, {result.environment.device}")
    return True


def write_figures(records: Sequence[Recorded], folder: Path) -> dict[str, Exception]:
    """Write a PNG of every chart of some records; for a single record without that of compile time, which lies beside
    the record already.

    Returns:
        The exceptions raised by charts that could not be drawn, by the chart's name; all others are written.
    """
    failed: dict[str, Exception] = {}

    def draw_and_write(name: str, title: str, draw: Callable[[], "Figure | None"]) -> None:
        try:
            figure = draw()
            if figure is not None:
                folder.mkdir(exist_ok=True)
                write(figure, folder / f"{name}.png", title)
        except Exception as error:  # a failed chart must not lose a record
            failed[name] = error

    results, kernels = of_kind(Result, records), of_kind(KernelResult, records)
    if kernels:
        draw_and_write("kernels", KERNELS, lambda: kernels_figure(kernels))
    if results:
        try:
            runs, shared = runs_of(results), shared_name(results)
        except Exception as error:  # such as an older record with other fields: as above
            return failed | {"charts": error}
        for chart in CHARTS:
            if chart is not COMPILE or len(records) > 1:
                title = f"{chart.title}: {shared}" if shared else chart.title
                draw_and_write(chart.name, title, functools.partial(chart.draw, runs))
    return failed
