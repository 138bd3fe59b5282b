"""Pictures: what is drawn is what was measured."""

import dataclasses
import io
import math
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread

from gptbench.charts import (
    CHARTS,
    COLOURS,
    Run,
    Target,
    canvas,
    compile_bars,
    cost,
    draw_compile_stages,
    kernels_figure,
    own_baseline,
    speed,
    styled,
    write_figures,
)
from gptbench.charts import runs_of as runs_with_targets
from gptbench.compare import Baseline
from gptbench.record.payload import write_artifacts
from gptbench.schema import SweepRecord
from gptbench.schema.compilation import STAGES
from gptbench.schema.labels import labels, names
from gptbench.schema.outcome import Outcome, Status
from gptbench.schema.result import Result
from gptbench.schema.summary import sample_metrics, summary
from tests.results import (
    made_breakdown,
    made_energy,
    made_kernels,
    made_result,
    made_state,
)

DRAWN = {chart.name: chart for chart in CHARTS}


def runs_of(results: Sequence[Result]) -> list[Run]:
    return [Run(label, result) for label, result in zip(labels(results), results, strict=True)]


def draw(name: str, *results: Result) -> Figure:
    """A chart that is there, and can be laid out."""
    figure = DRAWN[name].draw(runs_of(results))
    assert figure is not None
    return laid_out(figure)


def laid_out(figure: Figure) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the layout, for one: too little room
        with styled():
            figure.draw_without_rendering()
    return figure


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Row, beginning and length of each."""
    found = [
        (round(bar.get_y() + bar.get_height() / 2, 6), bar.get_x(), bar.get_width())
        for container in axes.containers
        if isinstance(container, BarContainer)
        for bar in container
    ]
    return sorted(found)


def marks(axes: Axes, label: str) -> list[tuple[float, float]]:
    """Points of the marker whose label begins so, by row."""
    (found,) = (
        each
        for each in axes.collections
        if isinstance(each, PathCollection) and str(each.get_label()).startswith(label)
    )
    points = [(float(x), float(y)) for x, y in np.asarray(found.get_offsets())]
    return sorted(points, key=lambda point: point[1])


def texts(figure: Figure) -> list[str]:
    """All that is written, but in legends."""
    ticks = [tick.get_text() for axes in figure.axes for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    axes_texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    names = [
        f() for axes in figure.axes for f in (axes.get_xlabel, axes.get_ylabel, lambda a=axes: a.get_title("left"))
    ]
    above = [] if figure.get_suptitle() == "" else [figure.get_suptitle()]
    return [text for text in (*ticks, *axes_texts, *names, *above) if text]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def many(count: int) -> list[Result]:
    """Each slower than the one before it."""
    return [made_result(step_s=0.001 * (1 + n / 10), temperature=(n + 1) / 100) for n in range(count)]


def test_nothing_is_drawn_of_nothing() -> None:
    for chart in CHARTS:
        assert chart.draw([]) is None
    assert kernels_figure([]) is None


def test_a_run_alone_has_the_charts_that_compare_none() -> None:
    told = {chart.name for chart in CHARTS if chart.draw(runs_of([made_result()])) is not None}
    assert told == {"tokens_per_s", "mbu", "latency", "distribution", "compile", "memory"}


def test_a_run_without_a_valid_sample_has_no_times() -> None:
    invalid = made_result(compiles=(1, 2))
    told = {chart.name for chart in CHARTS if chart.draw(runs_of([invalid])) is not None}
    assert told == {"compile"}


def test_a_limit_far_beyond_the_bars_is_an_arrow_at_the_edge() -> None:
    near, far = made_result(step_s=2e-5), made_result(step_s=0.005, quant="int8")
    (axes,) = draw("tokens_per_s", near, far).axes
    assert [row for _, row in marks(axes, "limit: its bytes at the read roof")] == [0]
    assert axes.get_xlim()[1] < 3.2 * summary(near)["decode_tokens_per_s"]
    (arrow,) = marks(axes, "limit, beyond the axis")
    assert arrow == (pytest.approx(axes.get_xlim()[1]), 1)


def test_decode_speed_stands_beside_its_own_limit() -> None:
    results = [made_result(step_s=1e-5), made_result(step_s=5e-6, quant="int8")]
    (axes,) = draw("tokens_per_s", *results).axes
    medians = [summary(result)["decode_tokens_per_s"] for result in results]
    assert bars(axes) == [(row, 0, pytest.approx(median)) for row, median in enumerate(medians)]
    limits = [1 / (np.mean(result.traffic.needed()) / 4000e9) for result in results]
    assert marks(axes, "limit") == [(pytest.approx(limit), row) for row, limit in enumerate(limits)]
    (whiskers,) = (each for each in axes.containers if isinstance(each, ErrorbarContainer))
    reach = [segment[:, 0].tolist() for segment in whiskers.lines[2][0].get_segments()]
    rates = [
        [sample_metrics(result, sample)["decode_tokens_per_s"] for sample in result.samples if not sample.compiles]
        for result in results
    ]
    assert reach == [[pytest.approx(min(each)), pytest.approx(max(each))] for each in rates]


def test_targets_of_the_whole_call_stand_beside_its_rate() -> None:
    results = runs_of([made_result(step_s=0.01), made_result(step_s=0.005, quant="int8")])
    targets = (Target("gptfast_tokens_per_s", 60.0, "Processor Z"), Target("gptfast_gb_per_s", 1.0, "Processor Z"))
    figure = DRAWN["tokens_per_s"].draw([results[0], replace(results[1], targets=targets)])
    assert figure is not None
    (axes,) = figure.axes
    assert marks(axes, "target, prefill included (Processor Z)") == [(60.0, 1)]
    assert marks(axes, "measured, prefill included") == [(results[1].summary["gptfast_tokens_per_s"], 1)]


def test_targets_of_speed_are_utilisations_of_the_own_roof() -> None:
    slow, fast = runs_of([made_result(step_s=0.01), made_result(step_s=0.005, quant="int8")])
    numbers, own = fast.summary, ", of the run's own roof"
    targets = [
        Target("decode_tokens_per_s", 2 * numbers["decode_tokens_per_s"], "Processor X"),
        Target("decode_tokens_per_s", 1.5 * fast.limit_tokens_per_s, "Processor Z"),
        Target("gptfast_tokens_per_s", numbers["decode_tokens_per_s"], "Processor Z"),
        Target("mbu", 0.5, "Processor Z"),
    ]
    figure = DRAWN["mbu"].draw([slow, replace(fast, targets=tuple(targets))])
    assert figure is not None
    (axes,) = laid_out(figure).axes
    mbu = 100 * numbers["mbu"]
    assert marks(axes, f"target (Processor X){own}") == [(pytest.approx(2 * mbu), 1)]
    assert marks(axes, f"target (Processor Z){own}") == [(pytest.approx(150), 1)]
    assert marks(axes, f"target, prefill included (Processor Z){own}") == [(pytest.approx(mbu), 1)]
    share = numbers["gptfast_tokens_per_s"] / numbers["decode_tokens_per_s"]
    assert marks(axes, "measured, prefill included") == [(pytest.approx(share * mbu), 1)]
    assert axes.get_xlim()[1] > 150


def test_utilisation_is_drawn_to_the_read_roof() -> None:
    result = made_result(step_s=1e-5)
    (axes,) = draw("mbu", result).axes
    assert bars(axes) == [(0, 0, pytest.approx(100 * summary(result)["mbu"]))]
    roof = next(line for line in axes.lines if line.get_label() == "read roof")
    assert list(roof.get_xdata()) == [100, 100]
    assert axes.get_xlim()[1] > 100


def test_runs_that_were_throttled_are_hatched() -> None:
    result = made_result()
    result.samples[0].state = made_state(throttled=True)
    figure = draw("mbu", result, made_result(quant="int8"))
    hatched = {
        round(bar.get_y() + bar.get_height() / 2): bool(bar.get_hatch())
        for container in figure.axes[0].containers
        if isinstance(container, BarContainer)
        for bar in container
    }
    assert hatched == {0: True, 1: False}
    assert "throttled in a sample" in legend(figure)


def test_latency_is_median_and_range_over_positions() -> None:
    result = made_result(step_s=0.01, compiles=(0, 0, 0))
    (axes,) = draw("latency", result).axes
    middle, least = axes.lines[:2]
    assert list(middle.get_xdata()) == result.traffic.kv_len
    assert list(middle.get_ydata()) == pytest.approx([1e3 * step for step in result.samples[1].step_s])
    assert list(least.get_ydata()) == pytest.approx([moved / 4000e9 * 1e3 for moved in result.traffic.needed()])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(10.0)
    assert heights.max() == pytest.approx(12 * 1.03)
    assert axes.get_ylim()[0] == 0


def test_long_runs_are_thinned() -> None:
    x = np.arange(10_000.0)
    where, least = speed.thinned(x, x % 100, np.min)
    assert len(where) == len(least) == speed.MAX_POINTS
    assert least.max() == 75
    few = speed.thinned(x[:5], x[:5], np.median)
    assert few[0].tolist() == few[1].tolist() == [0, 1, 2, 3, 4]


def test_distribution_is_that_of_all_valid_steps() -> None:
    result = made_result(step_s=0.01)
    figure = draw("distribution", result)
    (axes,) = figure.axes
    steps = sorted(step for sample in result.samples if not sample.compiles for step in sample.step_s)
    line = axes.lines[0]
    assert list(line.get_xdata()) == pytest.approx([1e3 * step for step in steps])
    assert list(line.get_ydata()) == pytest.approx([100 * (n + 1) / len(steps) for n in range(len(steps))])
    numbers = summary(result)
    told = f"p50 {canvas.short(numbers['tpot_p50_s'] * 1e3)}, p99 {canvas.short(numbers['tpot_p99_s'] * 1e3)} ms"
    assert told in legend(figure)[0]


def test_distribution_says_what_it_does_not_show() -> None:
    result = made_result(compiles=(0,))
    steps = 1000
    result.samples[0].step_s = [0.001] * (steps - 2) + [0.5, 0.7]
    result.traffic = replace(result.traffic, positions_read=list(range(steps)), kv_len=list(range(1, steps + 1)))
    figure = draw("distribution", result)
    assert figure.axes[0].get_xlim()[1] < 2
    assert "decode step, ms; 2 of 1000 are beyond the axis" in texts(figure)


def test_slow_and_fast_runs_share_a_logarithmic_axis() -> None:
    assert draw("distribution", made_result(), made_result(quant="int8")).axes[0].get_xscale() == "linear"
    both = made_result(step_s=0.1), made_result(step_s=0.001, quant="int8")
    (axes,) = draw("distribution", *both).axes
    assert axes.get_xscale() == "log"
    assert {"1", "10", "100"} <= {tick.get_text() for tick in axes.get_xticklabels()}
    assert draw("latency", *both).axes[0].get_yscale() == "log"


def test_heat_map_has_the_median_of_each_cell() -> None:
    sweep = [
        made_result(step_s=0.001 * top_k * temperature, top_k=top_k, temperature=temperature)
        for top_k in (1, 5, 50)
        for temperature in (0.5, 1.0)
    ]
    unlimited = made_result(step_s=0.01, top_k=None, temperature=0.0)
    again = made_result(step_s=0.03, top_k=None, temperature=0.0)
    figure = draw("heat_map", *sweep, unlimited, again)
    (axes,) = figure.axes
    (mesh,) = (each for each in axes.collections if isinstance(each, QuadMesh))
    found = np.ma.getmaskarray(mesh.get_array())
    assert found.tolist() == [[True, False, False]] * 3 + [[False, True, True]], "rows top_k, columns temperature"
    rate = [summary(result)["decode_tokens_per_s"] for result in (*sweep, unlimited, again)]
    grid = mesh.get_array()
    assert grid[0, 1:].tolist() == pytest.approx(rate[:2])
    assert grid[2, 1:].tolist() == pytest.approx(rate[4:6])
    assert grid[3, 0] == pytest.approx(np.median(rate[6:]))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["greedy", "0.5", "1"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "5", "50", "all"]
    assert [text.get_text() for text in axes.texts].count("–") == found.sum(), "an empty cell is to be seen"
    assert canvas.short(rate[0]) in texts(figure)


def test_colours_of_heat_maps_are_shares_of_the_fastest_cell_and_noise_looks_like_noise() -> None:
    def sweep(quant: str, *rates: float) -> list[Result]:
        return [
            made_result(step_s=0.01 / rate, top_k=top_k, quant=quant)
            for top_k, rate in zip((1, 5, 50), rates, strict=True)
        ]

    figure = draw("heat_map", *sweep("none", 1.0, 1.003, 0.997), *sweep("int8", 2.0, 1.99, 2.01))
    for axes in figure.axes:
        (mesh,) = (each for each in axes.collections if isinstance(each, QuadMesh))
        shades = mesh.norm(mesh.get_array().compressed())
        assert shades.min() > 0.9, "less than a percent"
    figure = draw("heat_map", *sweep("none", 1.0, 0.5, 0.5), *sweep("int8", 2.0, 1.5, 1.5))
    least = [
        mesh.norm(mesh.get_array().min()) for a in figure.axes for mesh in a.collections if isinstance(mesh, QuadMesh)
    ]
    assert sorted(least) == pytest.approx([0.0, 0.5], abs=0.01), "the same colours for the same shares"


def test_there_is_a_heat_map_for_each_setting_of_all_else() -> None:
    sweep = [made_result(quant=quant, top_k=top_k) for quant in ("none", "int8") for top_k in (1, 5, 50)]
    figure = draw("heat_map", *sweep)
    assert [axes.get_title("left") for axes in figure.axes] == ["bfloat16", "int8"]
    assert DRAWN["heat_map"].draw(runs_of(sweep[1:3])) is None, "two cells are no map"
    later = [replace(result, environment=replace(result.environment, commit="7654321")) for result in sweep[:2]]
    assert len(draw("heat_map", *later, sweep[2]).axes) == 1, "code may be committed during a sweep"


def test_quality_is_drawn_with_its_front() -> None:
    ways = {"none": (0.010, 10.0), "int8": (0.006, 10.5), "int4": (0.005, 12.0), "nf4": (0.008, 12.5)}
    results = [made_result(quant=quant, step_s=step, perplexity=value) for quant, (step, value) in ways.items()]
    figure = draw("pareto", *results)
    (axes,) = figure.axes
    rates = [summary(result)["decode_tokens_per_s"] for result in results]
    on, behind = marks(axes, "on the front"), marks(axes, "behind it")
    assert on == [
        (pytest.approx(value), pytest.approx(rate)) for value, rate in zip((10, 10.5, 12), rates, strict=False)
    ]
    assert behind == [(pytest.approx(12.5), pytest.approx(rates[3]))]
    line = axes.lines[0]
    assert list(line.get_xdata()) == pytest.approx([10, 10.5, 12, 12.5])
    assert list(line.get_ydata()) == pytest.approx([*rates[:3], rates[2]])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"]
    assert legend(figure)[-4:] == ["#1 bfloat16", "#2 int8", "#3 int4", "#4 nf4"]
    assert axes.get_xlabel().startswith("perplexity")


def test_quality_of_random_tokens_is_their_divergence() -> None:
    results = [made_result(quant=quant, perplexity=10) for quant in ("none", "int8")]
    for result in results:
        assert result.quality is not None
        result.quality.text = None
    assert draw("pareto", *results).axes[0].get_xlabel().startswith("KL divergence")
    assert DRAWN["pareto"].draw(runs_of(results[:1])) is None, "one way to store weights is no comparison"


def test_points_have_numbers_that_the_legend_explains() -> None:
    results = [made_result(quant=f"int{n}", step_s=0.01 + n / 1e5, perplexity=10 + n / 50) for n in range(6)]
    figure = draw("pareto", *results)
    points = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert list(points) == ["1", "2", "3", "4", "5", "6"]
    assert points["3"] == (summary(results[2])["perplexity"], summary(results[2])["decode_tokens_per_s"])
    assert legend(figure)[-6:] == [f"#{n + 1} int{n}" for n in range(6)]


def test_of_many_points_those_on_the_front_have_names() -> None:
    sweep = [made_result(quant=("none", "int8")[n % 2], temperature=n / 100, perplexity=10 + n) for n in range(30)]
    figure = draw("pareto", *sweep)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"]
    assert legend(figure)[-1] == "#1 bfloat16 temperature=greedy"


def of_another(what: str, result: Result) -> Result:
    """Measured like the others, but for one thing."""
    assert result.quality is not None
    if what == "model":
        result.config["model"]["name"] = "other"
    elif what == "text":
        result.quality.text_sha256 = "fedcba9876543210"
    elif what == "context":
        result.quality.context = [1, 8]
    elif what == "predicted":
        result.quality.nll = result.quality.nll[:2]
    elif what == "device":
        result.environment.device = "Processor Z"
    elif what == "batch":
        result.config["workload"]["batch_size"] = 8
    else:
        result.prompt = [1, 2]
    return result


SHARED = {
    "model": ("stories15m", "other"),
    "text": ("text=abc", "text=fedcba987654"),
    "context": ("context=1…4", "context=1…8"),
    "predicted": ("predicted=4", "predicted=2"),
    "device": ("Processor X", "Processor Z"),
    "batch": ("b1", "b8"),
    "prompt_tokens": ("prompt_tokens=3", "prompt_tokens=2"),
}


@pytest.mark.parametrize("what", SHARED)
def test_only_what_can_be_compared_shares_a_front(what: str) -> None:
    results = [made_result(quant=quant, perplexity=10) for quant in ("none", "int8")]
    results += [of_another(what, made_result(quant=quant, perplexity=9)) for quant in ("none", "int8")]
    figure = DRAWN["pareto"].draw(runs_of(results))
    assert figure is not None
    assert tuple(axes.get_title("left") for axes in figure.axes) == SHARED[what]
    for axes, perplexity in zip(figure.axes, (10, 9), strict=True):
        assert [x for x, _ in marks(axes, "on the front")] == [pytest.approx(perplexity)] * 2
    alone = DRAWN["pareto"].draw(runs_of(results[1:3]))
    assert alone is None, "one way to store weights on each side is no comparison"


def test_of_many_fronts_the_first_are_drawn() -> None:
    results = [made_result(model=f"m{n}", quant=q, perplexity=10) for n in range(5) for q in ("none", "int8")]
    figure = draw("pareto", *results)
    assert [axes.get_title("left") for axes in figure.axes] == ["m0", "m1", "m2", "m3"]
    assert "the first 4 of 5" in texts(figure)


def test_compile_time_is_stacked_by_stage() -> None:
    result = made_result()
    figure = draw("compile", result)
    (axes,) = figure.axes
    for row, compilation in enumerate(result.compilations):
        begin = 0.0
        expected = []
        for stage in STAGES:
            expected.append((begin, compilation.stage_s.get(stage, 0.0)))
            begin += expected[-1][1]
        drawn = [(x, width) for at, x, width in bars(axes) if at == row and width]
        assert drawn == [pytest.approx(each) for each in expected if each[1]]
    assert [label for label, _ in compile_bars(result)] == ["cold", "warm, second process"]
    assert {"20 s", "3 s"} <= set(texts(figure))


def test_compile_time_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "compile.png"
    assert draw_compile_stages(made_result(), path)
    image = imread(path)
    assert image.shape[1] == 702
    for stage in ("tracing", "lowering", "kernels", "tuning"):
        colour = matplotlib.colors.to_rgb(COLOURS[STAGES.index(stage)])
        assert (abs(image[..., :3] - colour).max(-1) < 0.01).mean() > 0.001, f"{stage} is to be seen"


def test_nothing_compiled_is_not_drawn(tmp_path: Path) -> None:
    result = made_result()
    nothing = replace(result, compilations=[replace(result.compilations[0], cache="none")])
    assert not draw_compile_stages(nothing, tmp_path / "compile.png")
    assert not (tmp_path / "compile.png").exists()


def test_memory_is_what_was_expected_and_what_was_seen() -> None:
    result = made_result()
    (axes,) = draw("memory", result).axes
    needs = list(result.memory_need_bytes.values())
    begins = [sum(needs[:n]) / 1e9 for n in range(3)]
    assert bars(axes) == [
        (0, pytest.approx(x), pytest.approx(need / 1e9)) for x, need in zip(begins, needs, strict=True)
    ]
    assert marks(axes, "peak, samples") == [(pytest.approx(summary(result)["peak_memory_bytes"] / 1e9), 0)]
    assert marks(axes, "peak, preparation") == [(0.2, 0)]


def test_a_step_is_drawn_by_kernel() -> None:
    result = made_result()
    result.breakdown = made_breakdown()
    figure = draw("breakdown", result)
    (axes,) = figure.axes
    gaps = 300 - 90 - 80 - 70
    assert bars(axes) == [(row, 0, pytest.approx(us)) for row, us in enumerate((90, 80, 70, gaps))]
    assert marks(axes, "the bytes it reads") == [(pytest.approx(80_000 / 4000e9 * 1e6), 0)]
    assert "kernel_0 ×2" in texts(figure)


def test_small_kernels_are_one_row() -> None:
    assert len(cost.step_parts(made_breakdown(kernels=8), 4000.0)) == 8 + 1
    step = made_breakdown(kernels=8)
    for number, launch in enumerate(step.launches):
        launch.name += f"_{number}"
    parts = cost.step_parts(step, 4000.0)
    assert [part.name for part in parts if not part.is_kernel] == ["7 other kernels", "gaps between kernels"]
    assert len(parts) == cost.MAX_KERNELS + 1
    assert sum(part.us for part in parts) == pytest.approx(step.step_s * 1e6)


def test_energy_is_per_token() -> None:
    result = made_result()
    result.energy = made_energy()
    figure = draw("energy", result)
    assert [length for _, _, length in bars(figure.axes[0])] == pytest.approx([0.5, 0.125])
    assert "idle 60 W" in texts(figure)


def test_states_follow_one_another() -> None:
    result = made_result()
    for number, sample in enumerate(result.samples):
        sample.state = replace(made_state(throttled=number == 2), memory_clock_mhz=[2619.0, 2619.0, 1593.0])
    figure = draw("device_state", result)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "clock, MHz",
        "memory clock, MHz",
        "power, W",
        "temperature, °C",
    ]
    assert list(figure.axes[1].lines[0].get_ydata()) == [2619, 2619, 1593] * 3
    line, crosses = figure.axes[0].lines
    begins = np.cumsum([0, *(sample.call_s for sample in result.samples[:2])])
    assert list(line.get_xdata()) == pytest.approx([begin + at for begin in begins for at in (0, 0.03, 0.06)])
    assert list(line.get_ydata()) == [1980, 1970, 1755] * 3
    assert list(crosses.get_ydata()) == [1980, 1970, 1755]
    assert crosses.get_xdata()[0] == pytest.approx(begins[2])


def test_what_a_device_does_not_tell_and_what_does_not_change_is_not_drawn() -> None:
    result = made_result()
    for sample in result.samples:
        state = replace(made_state(), power_w=[], memory_clock_mhz=[2619.0] * 3, temperature_c=[40.0])
        sample.state = state  # the temperature was not read every time
    (axes,) = draw("device_state", result).axes
    assert axes.get_ylabel() == "clock, MHz"
    assert "unchanged: memory clock 2619 MHz" in axes.get_xlabel()
    for sample in result.samples:
        sample.state = replace(sample.state or made_state(), clock_mhz=[1980.0] * 3)
    assert DRAWN["device_state"].draw(runs_of([result])) is None


def test_kernels_stand_below_the_read_roof() -> None:
    figure = kernels_figure([made_kernels()])
    assert figure is not None
    (axes,) = laid_out(figure).axes
    assert marks(axes, "kernel") == [(pytest.approx(75), 0), (pytest.approx(50), 1)]
    assert marks(axes, "library") == [(pytest.approx(25), 0)]


def test_names_are_drawn_as_they_are() -> None:
    names = ["a$b_{$", "<script>", "x" * 300 + "模型"]
    results = [made_result(model=name, perplexity=10, quant=q) for name in names for q in ("none", "int8")]
    found = {chart.name: chart.draw(runs_of(results)) for chart in CHARTS}
    for figure in found.values():
        if figure is not None:
            with styled():
                figure.savefig(io.BytesIO(), format="svg")
    bars_of = found["mbu"]
    assert bars_of is not None
    told = [*texts(bars_of), *legend(bars_of)]
    assert all(any(name[:8] in text for text in told) for name in names)
    assert any("模型" in text for text in told)


def test_of_many_runs_the_fastest_are_drawn() -> None:
    results = many(canvas.MAX_ROWS + 1)
    bars_of, lines_of = draw("tokens_per_s", *results), draw("latency", *results)
    assert len(bars(bars_of.axes[0])) == canvas.MAX_ROWS
    assert f"the fastest {canvas.MAX_ROWS} of {len(results)}" in texts(bars_of)
    assert len(lines_of.axes[0].collections) == canvas.MAX_LINES
    assert f"the fastest {canvas.MAX_LINES} of {len(results)}" in texts(lines_of)
    kept = labels(results)[: canvas.MAX_LINES]
    assert legend(lines_of)[: canvas.MAX_LINES] == kept
    for name in ("mbu", "distribution", "compile", "memory"):
        figure = draw(name, *results)
        assert any(text.startswith("the fastest") and text.endswith(f"of {len(results)}") for text in texts(figure))
        assert figure.get_figheight() < 14


def test_labels_are_what_differs() -> None:
    alone = labels([made_result()])
    assert alone == ["stories15m bfloat16 inductor"]
    assert labels([made_result(), made_result(quant="int8")]) == ["bfloat16", "int8"]
    swept = [made_result(top_k=top_k, temperature=t) for top_k, t in ((1, 0.0), (None, 0.0), (1, 0.5))]
    assert labels(swept) == [
        "temperature=greedy top_k=1",
        "temperature=greedy top_k=all",
        "temperature=0.5 top_k=1",
    ]
    assert labels([made_result(engine="eager"), made_result()]) == ["eager", "inductor"]


def test_what_changes_no_number_tells_no_runs_apart() -> None:
    sweep = [made_result(top_k=top_k) for top_k in (1, 5, 50)]
    words: list[dict[str, object]] = [{"samples": 9}, {"prompt_text": "Once"}, {"name": "own", "prompt_length": 3}]
    for result, changed in zip(sweep, words, strict=True):
        result.config["workload"] |= changed
    sweep[1].config["engine"]["measure_warm_start"] = False
    assert labels(sweep) == ["top_k=1", "top_k=5", "top_k=50"]
    assert len(draw("heat_map", *sweep).axes) == 1


def test_prompts_of_one_length_are_told_where_nothing_else_is_different() -> None:
    first, second, third = made_result(), made_result(), made_result(top_k=1)
    second.prompt = [1, 2, 3]
    assert len(set(told := labels([first, second]))) == 2
    assert all(each.startswith("prompt=") for each in told)
    assert labels([second, third]) == ["top_k=200", "top_k=1"], "it is not needed"


def test_values_that_differ_in_their_middle_are_told_whole() -> None:
    paths = ["/checkpoints/stories/15m/first/of/all", "/checkpoints/stories/42m/first/of/all"]
    results = [made_result(), made_result()]
    for result, path in zip(results, paths, strict=True):
        result.config["model"]["checkpoint"] = path
    assert labels(results) == [f"checkpoint={path}" for path in paths]


VARIED = {
    "engine": {"scope": ("block", "model"), "tuning": ("none", "candidates"), "cuda_graph": ("none", "step")},
    "workload": {"seed": (1234, 4321)},
    "sampling": {"top_p": (None, 0.95)},
    "model": {"rope_theta": (10000.0, 500000.0), "norm_eps": (1e-5, 1e-6), "tied": (False, True)},
}


def varied(fields: int) -> list[Result]:
    """A run of each value of so many fields, which are all in its label, and six more that differ in the middle of it;
    with all that there are charts of."""
    chosen = [(group, name, values) for group, named in VARIED.items() for name, values in named.items()][:fields]
    results = []
    for number, (top_k, temperature, quant) in enumerate(
        (top_k, temperature, quant) for top_k in (1, 5, 50) for temperature in (0.5, 1.0) for quant in ("none", "int8")
    ):
        result = made_result(top_k=top_k, temperature=temperature, quant=quant, perplexity=10 + number)
        result.breakdown, result.energy = made_breakdown(), made_energy()
        result.samples[0].state = made_state()
        for group, name, values in chosen:
            result.config[group][name] = values[number % 2 if group == "model" else top_k // 50]
        results.append(result)
    return results


@pytest.mark.parametrize("fields", [1, len([name for named in VARIED.values() for name in named])])
def test_names_as_they_are_drawn_are_all_different(fields: int) -> None:
    """Long ones are numbers, and stand in the legend."""
    results = varied(fields)
    runs = runs_of(results)
    count = {"heat_map": 2, "latency": 6, "distribution": 6, "device_state": 6, "breakdown": 4, "compile": 24}
    for chart in CHARTS:
        figure = chart.draw(runs)
        assert figure is not None
        if chart.name in ("heat_map", "pareto"):
            drawn = [text for axes in figure.axes for text in (axes.get_title("left"), *texts_of_points(axes)) if text]
        elif chart.name in ("latency", "distribution", "device_state"):
            drawn = [entry for entry in legend(figure) if "=" in entry]
        else:
            drawn = [text for text in texts(figure) if "=" in text or text.startswith("#")]
        assert len(drawn) == len(set(drawn)) == count.get(chart.name, len(results)), chart.name
        numbers = {found[1] for text in drawn if (found := re.match(r"#?(\d+)(?![\d.])", text))}
        explained = [entry for entry in legend(figure) if entry.startswith("#")]
        assert numbers == {entry[1:].split()[0] for entry in explained}, chart.name
        assert len(numbers) == len(explained)
        lines = [line for text in (*drawn, *legend(figure)) for line in text.splitlines()]
        assert max(map(len, lines)) <= canvas.MAX_ENTRY


def texts_of_points(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts] if "perplexity" in axes.get_xlabel() else []


def test_long_names_are_numbers_that_the_legend_explains() -> None:
    models = ["a$b_{$", "x" * 300 + "y", "x" * 300 + "z"]
    figure = draw("mbu", *(made_result(model=model) for model in models))
    assert {"a$b_{$", "#1", "#2"} <= set(texts(figure))
    first, second = legend(figure)[-2:]
    assert first.startswith("#1 x") and first.endswith("y") and "…" in first
    assert second.startswith("#2 x") and second.endswith("z")
    assert first.count("\n") < canvas.ENTRY_LINES
    assert canvas.numbers_of(["long", "a", "long", "other"], 2) == {"long": "#1", "other": "#2"}


def test_equal_labels_are_told_by_commit_and_number() -> None:
    assert labels([made_result(commit="a" * 40), made_result(commit="b" * 40 + "-dirty")]) == [
        "aaaaaaa",
        "bbbbbbb-dirty",
    ]
    twice = labels([made_result(), made_result(), made_result(quant="int8")])
    assert twice == ["bfloat16 #1", "bfloat16 #2", "int8"]
    different = [made_result(commit="a" * 40), made_result(commit="b" * 40, quant="int8")]
    assert labels(different) == ["bfloat16", "int8"], "the commit is not needed"
    assert labels([made_result(), made_result(device="Y")]) == ["Processor X", "Y"]


def test_fields_of_another_model_tell_nothing() -> None:
    other = made_result(model="other")
    other.config["model"]["dim"] = 4096
    assert labels([made_result(), other]) == ["stories15m", "other"]
    wide = made_result()
    wide.config["model"]["dim"] = 4096
    assert labels([made_result(), wide]) == ["dim=288", "dim=4096"]


def test_figures_of_a_run_are_pictures(tmp_path: Path) -> None:
    result = made_result()
    result.breakdown, result.energy = made_breakdown(), made_energy()
    begin = time.perf_counter()
    assert write_figures([result], tmp_path / "figures") == {}
    assert time.perf_counter() - begin < 20, "it takes half a second; a machine may be busy"
    names = {"tokens_per_s", "mbu", "latency", "distribution", "memory", "breakdown", "energy"}
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == names
    for path in (tmp_path / "figures").iterdir():
        image = imread(path)
        assert image.shape[1] == 702
        assert (image[..., :3].std((0, 1)) > 0.05).all(), f"{path.name} is not blank"


def test_figures_of_kernels_are_a_picture(tmp_path: Path) -> None:
    assert write_figures([made_kernels()], tmp_path / "figures") == {}
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["kernels.png"]


def test_a_figure_that_fails_leaves_the_others(tmp_path: Path) -> None:
    result = made_result()
    result.memory_need_bytes = {"weights": math.nan, "kv_cache": "nonsense"}  # type: ignore[dict-item]
    assert list(write_figures([result], tmp_path / "figures")) == ["memory"]
    assert (tmp_path / "figures" / "mbu.png").exists()


def test_figures_are_logged_with_a_run_unless_they_are_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [DRAWN["mbu"], DRAWN["compile"]]
    monkeypatch.setattr("gptbench.charts.CHARTS", chosen)
    result = made_result()
    path = result.save(tmp_path)
    for folder in ("with", "without", "failing"):
        (tmp_path / folder).mkdir()
    write_artifacts(result, path, tmp_path / "with", figures=True)
    assert (tmp_path / "with" / "figures" / "mbu.png").exists()
    assert not (tmp_path / "with" / "figures" / "compile.png").exists(), "it is beside them"
    write_artifacts(result, path, tmp_path / "without", figures=False)
    assert not (tmp_path / "without" / "figures").exists()
    assert (tmp_path / "without" / "compile.png").exists()

    def fail(runs: Sequence[Run]) -> None:
        raise ValueError("no room")

    monkeypatch.setattr("gptbench.charts.CHARTS", [replace(chart, function=fail) for chart in chosen])
    write_artifacts(result, path, tmp_path / "failing", figures=True)
    assert (tmp_path / "failing" / "steps.csv").exists()
    assert "Not drawn: mbu: ValueError('no room')" in capsys.readouterr().err


def test_figures_of_a_run_have_the_targets_of_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Baseline, "targets", lambda self, result: {"decode_tokens_per_s": 90.0})
    drawn: list[Run] = []
    chart = replace(DRAWN["mbu"], function=drawn.extend)
    monkeypatch.setattr("gptbench.charts.CHARTS", [chart])
    other = made_result()
    other.config["baseline"] = ["of a version", "with other fields"]
    for result in (made_result(), other):
        assert write_figures([result], tmp_path) == {}
    assert [run.targets for run in drawn] == [(Target("decode_tokens_per_s", 90.0, "Processor Z"),), ()]


def test_jobs_of_a_sweep_share_a_baseline_that_is_read_once() -> None:
    own_baseline.cache_clear()
    runs_with_targets([made_result(top_k=top_k) for top_k in range(1, 5)])
    assert own_baseline.cache_info().misses == 1


def saved_sweep(folder: Path) -> tuple[SweepRecord, Path]:
    """Return the saved sweep of a grid with jobs of which one has lost its record, one has no valid samples, and one
    failed."""
    records = [
        made_result(quant=quant, top_k=top_k, perplexity=10.0, sweep=str(folder)).save(folder / f"{quant}{top_k}")
        for quant in ("none", "int8")
        for top_k in (1, 5, 50)
    ]
    records += [folder / "gone" / "result.json", made_result(compiles=(1,), top_k=9).save(folder / "none9")]
    jobs = [Outcome(status=Status.recorded.value, record=str(path)) for path in (*records, records[0])]
    failed = Outcome(status=Status.failed.value, record=str(folder / "x" / "failure.json"))
    started = "2026-11-22T12:00:00+00:00"
    record = SweepRecord(
        started=started, command=[], sweep=str(folder), config={}, ended=started, status="FAILED", jobs=[*jobs, failed]
    )
    return record, record.save(folder)


def test_figures_of_a_sweep_are_those_of_its_jobs_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, path = saved_sweep(tmp_path / "sweep")
    path.parent.rename(tmp_path / "moved")
    path = tmp_path / "moved" / path.name
    drawn: list[Run] = []
    charts = [DRAWN["heat_map"], DRAWN["pareto"], DRAWN["compile"], replace(DRAWN["mbu"], function=drawn.extend)]
    monkeypatch.setattr("gptbench.charts.CHARTS", charts)
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
        write_artifacts(record, path, tmp_path / folder, figures=folder == "with")
    assert {each.name for each in (tmp_path / "with" / "figures").iterdir()} == {
        "heat_map.png",
        "pareto.png",
        "compile.png",
    }
    assert len(drawn) == 6, "each job once, and none that does not count"
    assert "gone/result.json" in capsys.readouterr().err
    assert {each.name for each in (tmp_path / "without").iterdir()} == {"jobs.csv", "sweep.json"}


def test_what_a_chart_leaves_out_stands_below_the_title_of_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: told.append(self.get_suptitle()))
    monkeypatch.setattr("gptbench.charts.CHARTS", [DRAWN["mbu"]])
    assert write_figures(many(canvas.MAX_ROWS + 1), tmp_path) == {}
    title = "Memory bandwidth utilisation: stories15m bfloat16 inductor"
    assert told == [f"{title}\nthe fastest {canvas.MAX_ROWS} of {canvas.MAX_ROWS + 1}"]


def test_charts_have_names_and_texts() -> None:
    assert len({chart.name for chart in CHARTS}) == len(CHARTS)
    for chart in CHARTS:
        assert all(getattr(chart, field.name) for field in dataclasses.fields(chart))


def test_a_prompt_is_told_only_where_it_tells_runs_apart() -> None:
    """Starts of one configuration with one prompt, beside those of another with another."""
    first, second = {"model": "a", "prompt": "1"}, {"model": "b", "prompt": "2"}
    assert names([first, first, second]) == ["a #1", "a #2", "b"]
    assert names([first, first | {"prompt": "3"}, second]) == ["a prompt=1", "a prompt=3", "b prompt=2"]
