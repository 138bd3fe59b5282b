"""The figures of the documentation are those that their script draws."""

from pathlib import Path

from scripts import draw_figures

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def test_the_figures_are_as_the_script_draws_them(tmp_path: Path) -> None:
    draw_figures.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in PICTURES.glob("*-*.svg")}
    assert len(drawn) == 6
