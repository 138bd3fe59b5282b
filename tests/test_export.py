"""`gptbench export` and Markdown of a comparison: a row for each run, with what was varied, measured, and where."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from results import made_failure, made_result

from gptbench.base.errors import UserError
from gptbench.commands.compare import compare_command
from gptbench.commands.export import export_command
from gptbench.compare.select import SelectedRecord
from gptbench.present.export import Export
from gptbench.present.formats import rendered
from gptbench.schema import Recorded
from gptbench.schema.metrics import METRICS, View, metric_of
from gptbench.schema.summary import summary


def swept(top_k: int, **values: object) -> Recorded:
    made = made_result(top_k=top_k, **values)  # type: ignore[arg-type]
    return replace(made, swept=[f"sampling.top_k={top_k}"], identity=f"{top_k:016x}")


def failed() -> Recorded:
    return replace(made_failure(), swept=["sampling.top_k=9"], reason="no room | for it\nat all")


def text(made: Export, to: str) -> str:
    return rendered([made.table()], to)


def table(*records: Recorded) -> Export:
    return Export.of([SelectedRecord(Path(f"{index}.json"), record) for index, record in enumerate(records)])


def test_csv_has_overrides_metrics_with_all_their_digits_and_identity() -> None:
    one, two = swept(5), swept(50, step_s=0.02)
    rows = list(csv.DictReader(io.StringIO(text(table(one, two, failed()), "csv"))))
    assert [row["sampling.top_k"] for row in rows] == ["5", "50", "9"]
    assert [row["identity"] for row in rows[:2]] == [one.identity, two.identity]
    for row, record in zip(rows, (one, two), strict=False):
        for name, value in summary(record).items():  # type: ignore[arg-type]
            assert float(row[name]) == value
        assert (row["status"], row["device"], row["weights"]) == ("recorded", "Processor X", "bfloat16")
    assert rows[2]["status"].startswith("failed (") and rows[2]["status"].endswith("no room | for it")
    assert rows[2]["decode_tokens_per_s"] == ""


def test_thousands_of_rows_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table(swept(5))
    many = Export(whole.rows * 3000, whole.metrics)
    asked = 0

    def overrides(self: Export) -> list[str]:
        nonlocal asked
        asked += 1
        return list(self.rows[0].overrides)

    monkeypatch.setattr(Export, "overrides", property(overrides))
    assert len(text(many, "csv").splitlines()) == 3001
    assert asked == 1


def test_json_is_json() -> None:
    rows = json.loads(text(table(swept(5), failed()), "json"))
    assert rows[0]["overrides"] == {"sampling.top_k": "5"}
    assert rows[0]["metrics"]["mbu"] == summary(swept(5))["mbu"]  # type: ignore[arg-type]
    assert rows[1]["metrics"] == {}


def test_markdown_shows_what_differs_and_cells_hold(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for record in (swept(5), swept(50, step_s=0.02), failed()):
        record.save(tmp_path)
    assert export_command([str(tmp_path), "--format", "md", "--metrics", "decode_tokens_per_s,tpot_p50_s,mbu"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| sampling.top_k | device | commit | decode (tokens/s) | TPOT p50 (ms) | MBU (%) | status |"
    assert rule == "| --- | --- | --- | --: | --: | --: | --- |"
    by_top_k = {row.split(" | ")[0].removeprefix("| "): row for row in rows[:3]}
    assert set(by_top_k) == {"5", "50", "9"}
    assert "no room \\| for it |" in by_top_k["9"]
    assert all(row.replace("\\|", "").count("|") == 8 for row in rows[:3])
    assert "model stories15m" in rows[-1]


def test_reasons_for_a_busy_machine_stand_below_a_markdown_table(monkeypatch: pytest.MonkeyPatch) -> None:
    why = ["others used 3 cores | of 4", "the samples' speeds spread by 20%"]
    monkeypatch.setattr("gptbench.present.export.busy", lambda record: why if "50" in record.swept[0] else [])
    for records, row in ([swept(50)], 1), ([swept(5), swept(50)], 2):
        shown = text(table(*records), "md")
        assert f"| busy ({row}) |" in shown
        assert shown.endswith(f"\nbusy ({row}): {why[0]}; {why[1]}\n")
        assert shown.count(why[1]) == 1


def test_a_file_is_written_and_a_metric_that_no_run_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept(5).save(tmp_path / "runs")
    file = tmp_path / "out.csv"
    assert export_command([str(tmp_path / "runs"), "-o", str(file)]) == 0
    assert file.read_text().startswith("model,weights,engine,batch,sampling.top_k,status,decode_tokens_per_s,")
    assert json.loads(capsys.readouterr().out) == {"rows": 1, "format": "csv", "output": str(file)}
    with pytest.raises(UserError, match=r"--metrics=tokens: expected one of .*decode_tokens_per_s"):
        export_command([str(tmp_path / "runs"), "--metrics", "tokens"])


def test_a_metric_is_found_by_its_former_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(5).save(tmp_path)
    assert export_command([str(tmp_path), "--format", "json", "--metrics", "seed_tokens_per_s"]) == 0
    assert list(json.loads(capsys.readouterr().out)[0]["metrics"]) == ["gptfast_tokens_per_s"]


def test_a_comparison_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [made_result().save(tmp_path / "a"), made_result(step_s=0.02).save(tmp_path / "b")]
    assert compare_command([*map(str, sides), "--format", "md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| metric | A | B | B / A | 95% interval | verdict | of |"
    assert next(line for line in lines if line.startswith("| decode (tokens/s) |")).split(" | ")[3] == "0.5000"
    assert all(line.count("|") == 8 for line in lines if line.startswith("|"))


def test_every_metric_has_one_name_and_its_unit_fits_its_factor() -> None:
    labels = [each.heading for each in METRICS.values()]
    assert len(set(labels)) == len(labels)
    for name, each in METRICS.items():
        if View.kernels in each.views:
            continue
        expected = {"ms": 1e3, "GB": 1e-9 if name.endswith("_bytes") else 1.0, "%": 1e2}.get(each.unit, 1.0)
        assert each.factor == expected, name
        assert each.brief is None or each.brief.endswith({"ms": "_ms", "GB": "_gb", "%": "_percent"}.get(each.unit, ""))
    assert metric_of("gemv/D4096/int8/kernel/gb_per_s").unit == "GB/s"
