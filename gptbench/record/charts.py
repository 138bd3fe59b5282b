"""Pictures of a result, drawn by matplotlib."""

from pathlib import Path

from gptbench.measure.compilation import STAGES, Compilation
from gptbench.record.result import Result
from gptbench.record.statistics import compilation_name

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")
"""Of the stages: Tol's bright scheme, which colour-blind people can tell apart. https://personal.sron.nl/~pault/"""
WIDTH_IN, ROW_IN, REST_IN = 8.0, 0.55, 1.5
"""Inches: width, each bar, and all else."""
SMALLEST = 0.04
"""Share of the longest bar from which on a stage has its seconds written into it."""


def compile_bars(result: Result) -> list[tuple[str, Compilation]]:
    """Label and compilation of each bar: what compiled something, or took it over."""
    return [(bar_label(each), each) for each in result.compilations if each.cache != "none" and each.costs_s]


def bar_label(compilation: Compilation) -> str:
    label = compilation_name(compilation).replace("_", ", ")
    label += ", second process" if compilation.process == "second" else ""
    return f"{label}\n{compilation.prepare_s:.3g} s"


def draw_compile_stages(result: Result, path: Path) -> bool:
    """Writes a stacked bar of compile time by stage for each compilation, as PNG; False if there is nothing to draw."""
    bars = compile_bars(result)
    if not bars:
        return False
    from matplotlib.figure import Figure  # takes a second, and a run that fails before has no use for it

    figure = Figure(figsize=(WIDTH_IN, REST_IN + ROW_IN * len(bars)), layout="constrained")
    axes = figure.subplots()
    labels = [label for label, _ in bars]
    begins = [0.0] * len(bars)
    longest = max(compilation.prepare_s for _, compilation in bars)
    for stage, colour in zip(STAGES, COLOURS, strict=True):
        seconds = [compilation.costs_s.get(stage, 0.0) for _, compilation in bars]
        if not any(seconds):
            continue
        drawn = axes.barh(range(len(bars)), seconds, left=begins, color=colour, label=stage, height=0.7)
        told = [f"{value:.2g}" if value >= SMALLEST * longest else "" for value in seconds]
        axes.bar_label(drawn, told, label_type="center", fontsize=8)
        begins = [begin + value for begin, value in zip(begins, seconds, strict=True)]
    axes.set_yticks(range(len(bars)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("seconds until prefill and decode have run, and were captured")
    model, quant, engine = (result.config[group]["name"] for group in ("model", "quant", "engine"))
    title = f"{model}, quant {quant}, {result.dtype}, engine {engine}, {result.environment.device}"
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    return True
