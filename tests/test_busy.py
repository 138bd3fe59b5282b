"""A measurement on a busy machine is marked wherever it is shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptbench import terminal
from gptbench.compare.baseline import Baseline
from gptbench.compare.explain import explain
from gptbench.compare.export import Export
from gptbench.compare.interleaved import remarks
from gptbench.compare.report import html
from gptbench.compare.select import Found
from gptbench.config import BaselineConfig
from gptbench.record.outcome import Outcome
from gptbench.record.result import Result
from gptbench.record.sweep import SweepRecord
from gptbench.record.tracking import BUSY_TAG, make_record
from tests.results import made_result
from tests.test_ab import made_ab, made_round
from tests.test_load import QUIET, measured

REASON = "other processes used 1.5 of 2 cores"
TOLD = f"measured on a busy machine: {REASON}"


def loaded() -> Result:
    return measured(replace(QUIET, other_s=1.5))


def test_after_a_run_and_in_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = Baseline(BaselineConfig(_target_="gptbench.compare.Baseline", name="x", device="Processor Z"))
    terminal.show_result(loaded(), none)
    assert TOLD in capsys.readouterr().err
    terminal.show_result(measured(), none)
    assert "busy" not in capsys.readouterr().err
    terminal.print_json(loaded(), tmp_path, None)
    assert f'"busy": ["{REASON}"]' in capsys.readouterr().out
    terminal.print_json(measured(), tmp_path, None)
    assert '"busy": []' in capsys.readouterr().out


def test_in_mlflow_as_a_tag(tmp_path: Path) -> None:
    path = loaded().save(tmp_path)
    assert make_record(loaded(), path, None).tags[BUSY_TAG] == REASON
    assert BUSY_TAG not in make_record(measured(), path, None).tags


def test_in_the_table_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Outcome(status="recorded", busy=[REASON]), Outcome(status="recorded")]
    record = SweepRecord(started="", command=[], sweep=None, config={}, ended="", status="FINISHED", jobs=jobs)
    head, rows = record.table()
    assert [row[head.index("status")] for row in rows] == ["recorded, busy", "recorded"]
    assert "recorded, busy" in record.markdown()
    terminal.show_sweep(record)
    assert "1 of 2 jobs were measured on a busy machine" in capsys.readouterr().err


def test_in_the_report_in_explain_and_in_the_export() -> None:
    found = [Found(Path("a"), loaded()), Found(Path("b"), measured())]
    page = html(found, [], "title", [], "now")
    assert page.count(TOLD) == 1
    assert page.count("busy machine") == 2, "beside its samples, too"
    assert explain(loaded()).notes[0] == f"It was {TOLD}."
    assert not any("busy" in note for note in explain(measured()).notes)
    lines = Export.of(found).csv().splitlines()
    assert [REASON in line for line in lines] == [False, True, False]
    assert REASON in Export.of(found).markdown()
    assert "busy" not in Export.of(found[1:]).markdown()


def test_in_remarks_on_interleaved_measurements() -> None:
    rounds = [made_round(number, 1, lambda *_: 1e-3) for number in range(2)]
    for number, each in enumerate(rounds):
        load = replace(QUIET, other_s=1.5) if number else QUIET
        each.samples = {name: [replace(one, load=load) for one in side] for name, side in each.samples.items()}
    (remark,) = [each for each in remarks(made_ab(rounds)) if "busy" in each]
    assert remark == f"1 of 2 rounds were measured on a busy machine. Round 2: {REASON}"


def test_records_that_look_made_are_quiet() -> None:
    """What other tests take for measured on a quiet machine."""
    assert Outcome(status="recorded").busy == []
    assert all(sample.load is None for sample in made_result().samples)
