"""Pictures: what is drawn is what was measured."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from gptbench.measure.compilation import STAGES
from gptbench.record.charts import COLOURS, compile_bars, draw_compile_stages
from tests.results import made_result


def test_compile_time_is_drawn_by_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = made_result()
    drawn: dict[str, list[float]] = {}
    barh = Axes.barh

    def watched(self: Axes, y: object, width: list[float], **how: object) -> object:
        drawn[str(how["label"])] = width
        left = how["left"]
        assert isinstance(left, list)
        assert left == [sum(widths[bar] for widths in list(drawn.values())[:-1]) for bar in range(2)], "stacked"
        return barh(self, y, width, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "barh", watched)
    path = tmp_path / "compile.png"
    assert draw_compile_stages(result, path)
    cold, warm = result.compilations
    for stage in STAGES:
        values = [cold.costs_s[stage], warm.costs_s.get(stage, 0.0)]
        assert drawn.get(stage, [0.0, 0.0]) == values
    assert [label for label, _ in compile_bars(result)] == ["cold\n20 s", "warm, second process\n3 s"]
    image = imread(path)
    assert image.shape[1] > 1000
    for stage in drawn:
        colour = matplotlib.colors.to_rgb(COLOURS[STAGES.index(stage)])
        assert (abs(image[..., :3] - colour).max(-1) < 0.01).mean() > 0.001, f"{stage} is to be seen"


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    result = made_result()
    result.config["model"]["name"] = "a$b_{$"  # is no formula
    assert draw_compile_stages(result, tmp_path / "compile.png")


def test_nothing_compiled_is_not_drawn(tmp_path: Path) -> None:
    result = made_result()
    nothing = replace(result, compilations=[replace(result.compilations[0], cache="none")])
    assert not draw_compile_stages(nothing, tmp_path / "compile.png")
    assert not (tmp_path / "compile.png").exists()
