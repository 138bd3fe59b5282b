"""The registry of metrics: a row is all that a further one needs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from results import made_result

from gptbench.base.errors import UserError
from gptbench.compare import Baseline
from gptbench.compare.baseline import parse_baseline
from gptbench.compare.comparison import compare
from gptbench.compare.gate import gate
from gptbench.compare.recording import recorded_text
from gptbench.compare.select import SelectedRecord
from gptbench.config import BaselineConfig
from gptbench.present.export import Export
from gptbench.present.report import html
from gptbench.present.tables import show_result
from gptbench.schema import SweepRecord
from gptbench.schema.metrics import ENERGY, KINDS, METRICS, Direction, Metric, View, compared, register, shown_in
from gptbench.schema.outcome import Outcome
from gptbench.schema.summary import summary

TOY = Metric(
    "toy_j",
    "toy energy",
    "mJ",
    1e3,
    "of a sample, made up",
    Direction.lower,
    ENERGY,
    of_sample=lambda sample, *_: sample.call_s,
    views=dict.fromkeys((View.run, View.sweep, View.report, View.markdown), 9),
    brief="toy_mj",
)


@pytest.fixture
def toy() -> Iterator[Metric]:
    yield register(TOY)
    del METRICS[TOY.name]


def test_a_registered_metric_is_wherever_it_says(
    toy: Metric, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = made_result()
    slow = replace(slow, samples=[replace(sample, call_s=2 * sample.call_s) for sample in slow.samples])
    a, b = (SelectedRecord(tmp_path / name, result) for name, result in (("a", made_result()), ("b", slow)))
    value = summary(a.record)[toy.name]  # type: ignore[arg-type]

    row = next(row for row in compare([a] * 3, [b] * 3).pairs[0].rows if row.metric is toy)
    assert (row.verdict.value, row.ratio.value, row.label) == ("more", pytest.approx(2), "toy energy")

    show_result(made_result(), Baseline(BaselineConfig(**made_result().config["baseline"])))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "toy energy" in line)
    assert toy.text(value) in line and "mJ" in line

    page = html([a, b], [], "title", ["a"], "now")
    assert "toy energy (mJ)" in page and toy.text(value) in page

    logged = {name: value for name, value, _ in made_result().publication().metrics}
    assert logged["brief/toy_mj"] == 1e3 * logged["toy_j"] == pytest.approx(1e3 * value)
    assert "sample/toy_j" in logged
    assert "toy energy" in made_result().publication().note

    table = Export.of([a, b], [one.name for one in shown_in(View.markdown)]).table()
    assert toy.name in table.keys and "toy energy (mJ)" in table.head

    sweep = {"started": "2026-11-22T12:00:00+00:00", "command": [], "sweep": None, "config": {}, "status": "FINISHED"}
    jobs = [Outcome(status="recorded", metrics={toy.name: value})]
    assert "toy energy (mJ)" in SweepRecord(**sweep, ended="2026-11-22T12:00:00+00:00", jobs=jobs).markdown()

    baseline = parse_baseline(recorded_text("own", [a, a], "gptbench gate --record"))
    assert toy.name in [check.metric for check in gate(baseline, [b, b]).failed]


def test_every_meaning_can_be_read_alone() -> None:
    for one in METRICS.values():
        assert len(one.meaning) > 30 and one.meaning.endswith("."), one.name
        assert not [name for name in METRICS if "_" in name and name in one.meaning.split()], one.name
    assert len({one.meaning for one in METRICS.values()}) == len(METRICS)


def test_a_name_is_registered_once() -> None:
    before = list(METRICS.values())
    with pytest.raises(UserError, match="metric=mbu: expected a new name: a metric of that name is registered already"):
        register(replace(TOY, name="mbu"))
    with pytest.raises(
        UserError, match="metric=toy_j: expected a direction, because a metric of kind energy is compared"
    ):
        replace(TOY, direction=Direction.neither)
    assert list(METRICS.values()) == before


def test_what_is_compared_is_of_a_kind_and_every_kind_is_of_something() -> None:
    assert [kind.name for kind in KINDS.values()] == list(
        dict.fromkeys(one.kind.name for one in compared() if one.kind)
    )
    assert all(shown_in(view) for view in View)
