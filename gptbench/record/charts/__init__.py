"""Pictures of results, drawn by matplotlib: on the report's page, and beside a run in MLflow."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptbench.record.charts import cost, speed
from gptbench.record.charts.canvas import COLOURS, Run, Target, styled
from gptbench.record.charts.cost import compile_bars
from gptbench.record.kernels import KernelResult
from gptbench.record.labels import labels
from gptbench.record.result import Result

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
    "kernels_figure",
    "styled",
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
        "the run's own limit: as many tokens/s as there would be if each step moved its bytes at the read roof, the "
        "highest rate at which this device was seen to read memory.",
        speed.tokens_per_s,
    ),
    Chart(
        "mbu",
        "Memory bandwidth utilisation",
        "MBU: bytes per step over the time of a step over the read roof. 100 % is a step that takes no longer than "
        "reading its bytes.",
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
        "counts. The colours of each map are its own.",
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
        "Clock, power and temperature",
        "As the device told them during the samples; a cross is a reading in a sample during which power or heat held "
        "it back.",
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


def single(result: Result) -> Run:
    return Run(labels([result])[0], result)


def write(figure: "Figure", path: Path, title: str) -> None:
    """Writes a PNG."""
    with styled():
        figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
        figure.savefig(path, dpi=DPI)


def draw_compile_stages(result: Result, path: Path) -> bool:
    """Writes a stacked bar of compile time by stage for each compilation, as PNG; False if there is nothing to draw."""
    if not compile_bars(result):  # then matplotlib need not be imported, which takes a quarter of a second
        return False
    run = single(result)
    figure = COMPILE.draw([run])
    assert figure is not None
    write(figure, path, f"{COMPILE.title}: {run.label}, {result.environment.device}")
    return True


def write_figures(result: Result | KernelResult, folder: Path) -> dict[str, Exception]:
    """Writes every chart that a record alone has but that of compile time, as PNG. Returns what was raised by those
    that could not be drawn: the others are there."""
    failed: dict[str, Exception] = {}

    def attempt(name: str, title: str, draw: Callable[[], "Figure | None"]) -> None:
        try:
            figure = draw()
            if figure is not None:
                folder.mkdir(exist_ok=True)
                write(figure, folder / f"{name}.png", title)
        except Exception as error:  # a picture is not worth a record
            failed[name] = error

    if isinstance(result, KernelResult):
        attempt("kernels", KERNELS, lambda: kernels_figure([result]))
    else:
        run = single(result)
        for chart in CHARTS:
            if chart is not COMPILE:
                attempt(chart.name, f"{chart.title}: {run.label}", functools.partial(chart.draw, [run]))
    return failed
