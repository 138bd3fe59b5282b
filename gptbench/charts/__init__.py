"""Pictures of results, drawn by matplotlib: on the report's page, and beside a run or a sweep in MLflow."""

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
"""Of a picture: 702 pixels wide."""


@dataclass(frozen=True)
class Chart:
    """What is drawn of runs."""

    name: str
    title: str
    explanation: str
    function: Callable[[Sequence[Run]], "Figure | None"]

    def draw(self, runs: Sequence[Run]) -> "Figure | None":
        """None where there is nothing to draw."""
        with styled():
            return self.function(runs)


COMPILE = Chart(
    "compile",
    "Compile time by stage",
    "Until prefill and decode have run and were captured. Cold: from an empty compile cache; warm: every graph was "
    "found there; mixed: some things were.",
    cost.compile_stages,
)
CHARTS = (
    Chart(
        "tokens_per_s",
        "Decode speed",
        "Tokens/s of the decode steps: median of the samples, whiskers from the slowest to the fastest. The mark is "
        "the run's own limit, an arrow where it is far beyond the bars: as many tokens/s as there would be if each "
        "step moved its bytes at the read roof, the highest rate at which this device was seen to read memory.",
        speed.tokens_per_s,
    ),
    Chart(
        "mbu",
        "Memory bandwidth utilisation",
        "MBU: bytes per step over the time of a step over the read roof. 100 % is a step that takes no longer than "
        "reading its bytes. A target is the MBU that the run would have at the target's tokens/s.",
        speed.mbu,
    ),
    Chart(
        "latency",
        "Latency of a step by position",
        "Median over the samples at each position; the band reaches from the fastest sample to the slowest. Dotted: "
        "the time that the step's bytes take at the read roof. Single slow steps may lie above what is shown.",
        speed.latency,
    ),
    Chart(
        "distribution",
        "Distribution of the steps",
        "Share of all steps of the valid samples that took no longer than so long. A steep line is an even pace.",
        speed.distribution,
    ),
    Chart(
        "heat_map",
        "top_k × temperature",
        "Decode tokens/s by what was varied; the median where a cell has several runs, a dash where it has none that "
        "counts. A colour is a share of the map's fastest cell, the same in all maps.",
        speed.heat_maps,
    ),
    Chart(
        "pareto",
        "Speed against quality",
        "Each way to store the weights, beside those with the same model, text, context, device, batch size and prompt "
        "length. Further to the left predicts better, further up is faster; on the dashed line are those than which "
        "none is better in both.",
        speed.pareto,
    ),
    COMPILE,
    Chart(
        "memory",
        "Memory",
        "Bars: what the run was expected to need. Marks: the most that was in use, by the allocator on a GPU, by the "
        "whole process on a CPU.",
        cost.memory,
    ),
    Chart(
        "breakdown",
        "One decode step by kernel",
        "Time by which each kernel makes the step longer. The mark is the time that the bytes it reads take at the "
        "read roof, where they are known; a kernel that loads something while the one before it runs may be faster.",
        cost.breakdown,
    ),
    Chart(
        "energy",
        "Energy per token",
        "By the device's own counter, without what it uses while idle with the model in memory: of prefill per token "
        "of the prompt, of decode per new token.",
        cost.energy,
    ),
    Chart(
        "device_state",
        "Clocks, power and temperature",
        "As read during the samples; what stayed the same throughout is written below. A cross is a reading in a "
        "sample that was throttled by power or heat.",
        cost.device_state,
    ),
)
"""In the order of the page."""
KERNELS = "Kernels by themselves"
"""Title of the one chart of `task=kernels`."""


def kernels_figure(results: Sequence[KernelResult]) -> "Figure | None":
    """Of `task=kernels`, whose records have no other chart."""
    with styled():
        return cost.kernel_rates(results)


class Targets(Protocol):
    """What `gptbench.compare` makes of a baseline."""

    device: str

    def targets(self, result: Result) -> dict[str, float]: ...


@functools.lru_cache(maxsize=8)
def own_baseline(section: str) -> Targets | None:
    """Of a configuration's baseline, as JSON: the jobs of a sweep share one, which may have many rows. None where it is
    of a version with other fields."""
    try:
        given = OmegaConf.create(json.loads(section))
        if not isinstance(given, DictConfig):
            return None
        config = read_section(given, BaselineConfig)
    except (OmegaConfBaseException, UserError):
        return None
    return cast(Targets, instantiate(config))


def targets_of(result: Result, baselines: Sequence[Targets] = ()) -> tuple[Target, ...]:
    """Of its own configuration and of other baselines, each once."""
    own = own_baseline(json.dumps(result.config["baseline"])) if "baseline" in result.config else None
    found = {
        Target(metric, value, baseline.device): None
        for baseline in [*([] if own is None else [own]), *baselines]
        for metric, value in baseline.targets(result).items()
    }
    return tuple(found)


def in_order(runs: Iterable[Run]) -> list[Run]:
    """By model, the fastest first."""
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(run.result.config["model"]["name"], []).append(run)
    return [run for each in models.values() for run in sorted(each, key=lambda run: -run.tokens_per_s)]


def runs_of(results: Sequence[Result]) -> list[Run]:
    """Those of a single run, or of a sweep, with the targets of their own baselines."""
    made = []
    for label, result in zip(labels(results), results, strict=True):
        targets: tuple[Target, ...] = ()
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of a version whose configuration was another one
            targets = targets_of(result)
        made.append(Run(label, result, targets))
    return in_order(made)


def shared_name(results: Sequence[Result]) -> str:
    """What all of them have in common of what a record is called."""
    found = [traits(result) for result in results]
    return " ".join(found[0][key] for key in NAMED if len({each[key] for each in found}) == 1)


def write(figure: "Figure", path: Path, title: str) -> None:
    """Writes a PNG. What stands above the chart already comes below the title."""
    with styled():
        text = "\n".join(each for each in (title, figure.get_suptitle()) if each)
        figure.suptitle(text, fontsize="medium", color=INK, x=0.01, ha="left")
        figure.savefig(path, dpi=DPI)


def draw_compile_stages(result: Result, path: Path) -> bool:
    """Writes a stacked bar of compile time by stage for each compilation, as PNG; False if there is nothing to draw."""
    if not compile_bars(result):  # then matplotlib need not be imported, which takes a quarter of a second
        return False
    run = Run(labels([result])[0], result)
    figure = COMPILE.draw([run])
    assert figure is not None
    write(figure, path, f"{COMPILE.title}: {run.label}, {result.environment.device}")
    return True


def write_figures(records: Sequence[Recorded], folder: Path) -> dict[str, Exception]:
    """Writes every chart that some records together have, as PNG; of one alone not that of compile time, which is
    beside them. Returns what was raised by those that could not be drawn: the others are there."""
    failed: dict[str, Exception] = {}

    def attempt(name: str, title: str, draw: Callable[[], "Figure | None"]) -> None:
        try:
            figure = draw()
            if figure is not None:
                folder.mkdir(exist_ok=True)
                write(figure, folder / f"{name}.png", title)
        except Exception as error:  # a picture is not worth a record
            failed[name] = error

    results, kernels = of_kind(Result, records), of_kind(KernelResult, records)
    if kernels:
        attempt("kernels", KERNELS, lambda: kernels_figure(kernels))
    if results:
        try:
            runs, shared = runs_of(results), shared_name(results)
        except Exception as error:  # of an older record, whose fields were others: as above, no picture is worth it
            return failed | {"charts": error}
        for chart in CHARTS:
            if chart is not COMPILE or len(records) > 1:
                title = f"{chart.title}: {shared}" if shared else chart.title
                attempt(chart.name, title, functools.partial(chart.draw, runs))
    return failed
