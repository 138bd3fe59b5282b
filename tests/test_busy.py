"""A measurement on a busy machine is marked wherever it is shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptbench.base.errors import UserError
from gptbench.commands.compare import compare_command, sentence
from gptbench.commands.gate import gate_command, outcome_of
from gptbench.compare.baseline import Baseline, parse_baseline
from gptbench.compare.comparison import compare
from gptbench.compare.explain import explain
from gptbench.compare.gate import gate
from gptbench.compare.interleaved import remarks
from gptbench.compare.ratio import Verdict
from gptbench.compare.recording import recorded_text
from gptbench.compare.select import SelectedRecord
from gptbench.config import BaselineConfig
from gptbench.execute import baseline_runs
from gptbench.present import tables
from gptbench.present.console import write_line
from gptbench.present.export import Export
from gptbench.present.formats import rendered
from gptbench.present.report import html
from gptbench.present.terminal import line_of
from gptbench.record.payload import make_record
from gptbench.schema.machine import Probe
from gptbench.schema.outcome import Outcome
from gptbench.schema.record import BUSY_TAG
from gptbench.schema.result import Result
from gptbench.schema.sweep import SweepRecord
from tests.results import made_kernels, made_predictions, made_result
from tests.test_ab import made_ab, made_round
from tests.test_gate import with_task
from tests.test_load import QUIET, measured

REASON = "other processes used 1.5 of 2 cores"
TOLD = f"measured on a busy machine: {REASON}"


def loaded() -> Result:
    return measured(replace(QUIET, other_s=1.5))


def test_after_a_run_and_in_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = Baseline(BaselineConfig(_target_="gptbench.compare.Baseline", name="x", device="Processor Z"))
    tables.show_result(loaded(), none)
    assert TOLD in capsys.readouterr().err
    tables.show_result(measured(), none)
    assert "busy" not in capsys.readouterr().err
    write_line(line_of(loaded(), tmp_path, None))
    assert f'"busy": ["{REASON}"]' in capsys.readouterr().out
    write_line(line_of(measured(), tmp_path, None))
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
    tables.show_sweep(record)
    assert "1 of 2 jobs were measured on a busy machine" in capsys.readouterr().err


def test_in_the_report_in_explain_and_in_the_export() -> None:
    found = [SelectedRecord(Path("a"), loaded()), SelectedRecord(Path("b"), measured())]
    page = html(found, [], "title", [], "now")
    assert page.count(TOLD) == 1
    assert "3 of 3, busy machine" in page, "beside its samples, too"
    compiling = measured()
    compiling.compilations[0].load = replace(QUIET, other_s=1.5)
    page = html([SelectedRecord(Path("a"), compiling)], [], "title", [], "now")
    assert "busy machine: while it compiled, other processes used" in page
    assert "3 of 3, busy machine" not in page, "its samples are not"
    assert explain(loaded()).notes[0] == f"The run was {TOLD}."
    assert not any("busy" in note for note in explain(measured()).notes)
    lines = rendered([Export.of(found).table()], "csv").splitlines()
    assert [REASON in line for line in lines] == [False, True, False]
    assert REASON in rendered([Export.of(found).table()], "md")
    assert "busy" not in rendered([Export.of(found[1:]).table()], "md")


def test_in_remarks_on_interleaved_measurements() -> None:
    rounds = [made_round(number, 1, lambda *_: 1e-3) for number in range(2)]
    for number, each in enumerate(rounds):
        load = replace(QUIET, other_s=1.5) if number else QUIET
        each.samples = {name: [replace(one, load=load) for one in side] for name, side in each.samples.items()}
    (remark,) = [each for each in remarks(made_ab(rounds)) if "busy" in each]
    assert remark == f"1 of 2 rounds were measured on a busy machine. Round 2: {REASON}"


def test_records_that_look_made_are_quiet() -> None:
    """Other tests assume that these were measured on a quiet machine."""
    assert Outcome(status="recorded").busy == []
    assert all(sample.load is None for sample in made_result().samples)


def runs(*results: Result) -> list[SelectedRecord]:
    return [SelectedRecord(Path(f"run-{number}"), result) for number, result in enumerate(results)]


def at(speed: float, busy_too: bool = False) -> Result:
    """A run at a multiple of the usual speed, whose samples differ by a thousandth."""
    load = replace(QUIET, other_s=1.5) if busy_too else QUIET
    return with_task(measured(load, tuple(speed * (1 + number / 1000) for number in range(3))))


def test_compare_gives_no_verdict_on_a_busy_machine() -> None:
    told = compare(runs(at(1)), runs(at(0.1, busy_too=True)))
    rows = {row.name: row for row in told.pairs[0].rows}
    assert rows["decode_tokens_per_s"].ratio.value == pytest.approx(0.1)
    assert {metric for metric, row in rows.items() if row.verdict is Verdict.busy} == {
        *("decode_tokens_per_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s", "ttft_s"),
    }, "it did not compile then, and memory does not depend on what else there is to do"
    assert all(not row.possible for row in rows.values())
    assert [(str(found.path), why) for found, why in told.busy] == [("run-0", TOLD)]
    assert "no verdict, measured on a busy machine" in sentence(rows["decode_tokens_per_s"])
    forced = compare(runs(at(1)), runs(at(0.1, busy_too=True)), even_if_busy=True)
    assert forced.pairs[0].rows[0].verdict is Verdict.slower
    assert [why for _, why in forced.busy] == [TOLD], "which is said all the same"
    compiling = at(0.1)
    compiling.compilations[0].load = replace(QUIET, other_s=1.5)
    told = compare(runs(at(1)), runs(compiling))
    rows = {row.name: row.verdict for row in told.pairs[0].rows}
    assert {metric for metric, verdict in rows.items() if verdict is Verdict.busy} == {
        *("compile_cold_s", "compile_warm_s"),
    }
    assert rows["decode_tokens_per_s"] is Verdict.slower
    quiet = compare(runs(at(1)), runs(at(0.1)))
    assert (quiet.pairs[0].rows[0].verdict, quiet.busy) == (Verdict.slower, [])


def test_compare_takes_the_runs_of_a_quiet_machine_where_there_are_any() -> None:
    side = runs(at(0.5), at(0.1, busy_too=True), at(0.501))
    told = compare(runs(at(1)), side)
    (row,) = (row for row in told.pairs[0].rows if row.name == "decode_tokens_per_s")
    assert (row.ratio.value, row.basis) == (pytest.approx(0.5, rel=0.01), "1 and 2 runs")
    assert row.verdict is not Verdict.busy
    assert told.left_out == [(side[1], TOLD)]
    assert told.busy == []
    assert len(compare(runs(at(1)), side, even_if_busy=True).pairs[0].b) == 3


def test_compare_of_kernels_is_by_the_probes() -> None:
    kernels, slow = made_kernels(), made_kernels()
    slow.probes = [Probe("before", 2000.0, 1, [1.0], "now")]
    assert not any(row.verdict is Verdict.busy for row in compare(runs(kernels), runs(kernels)).pairs[0].rows)
    assert all(row.verdict is Verdict.busy for row in compare(runs(kernels), runs(slow)).pairs[0].rows)


def test_several_pairs_have_no_verdict_where_one_has_none() -> None:
    def model(result: Result, name: str) -> Result:
        return replace(
            result, config=result.config | {"model": result.config["model"] | {"name": name, "dim": len(name)}}
        )

    a = runs(model(at(1), "a"), model(at(1), "bb"))
    told = compare(a, runs(model(at(0.5), "a"), model(at(0.5, busy_too=True), "bb")))
    assert told.overall is not None
    assert told.overall.verdict is Verdict.busy
    assert [pair.rows[0].verdict is Verdict.busy for pair in told.pairs] == [False, True]


def test_compare_says_it_to_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(result.save(tmp_path / name)) for name, result in (("a", at(1)), ("b", at(0.1, busy_too=True)))]
    assert compare_command(paths) == 0
    said = capsys.readouterr()
    line = json.loads(said.out)
    assert line["pairs"][0]["metrics"]["tpot_p50_s"]["verdict"] == "no verdict: busy"
    assert line["busy"][0] == f"{paths[1]}: {TOLD}"
    assert "--even-if-busy" in line["busy"][1]
    assert TOLD in " ".join(said.err.split())
    assert compare_command([*paths, "--even-if-busy"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["pairs"][0]["metrics"]["tpot_p50_s"]["verdict"] == "slower"
    assert line["busy"] == [f"{paths[1]}: {TOLD}"]
    assert compare_command([*paths, "--format", "md"]) == 0
    assert TOLD in capsys.readouterr().out


def baseline_of(*results: Result, even_if_busy: bool = False) -> BaselineConfig:
    return parse_baseline(recorded_text("made", runs(*results), "gptbench gate", even_if_busy=even_if_busy))


def test_gate_neither_passes_nor_fails_on_a_busy_machine() -> None:
    config = baseline_of(at(1))
    for speed in (0.1, 1.0):
        held = gate(config, runs(at(speed, busy_too=True)))
        assert held.failed == []
        checks = {check.metric: check for check in held.checks}
        assert checks["decode_tokens_per_s"].verdict is Verdict.busy
        assert checks["decode_tokens_per_s"].reason == f"no verdict: now, {TOLD}"
        for other in ("peak_memory_bytes", "compile_cold_s"):
            assert checks[other].verdict is not Verdict.busy
        assert (outcome_of(held, strict=False), outcome_of(held, strict=True)) == ("undecided", "failed")
        assert any(TOLD in remark for remark in held.remarks)
    assert outcome_of(gate(config, runs(at(0.1, busy_too=True)), even_if_busy=True), strict=False) == "failed"
    assert outcome_of(gate(config, runs(at(1, busy_too=True)), even_if_busy=True), strict=False) == "passed"
    assert outcome_of(gate(config, runs(at(1))), strict=False) == "passed"


def test_gate_takes_the_runs_of_a_quiet_machine_where_there_are_any() -> None:
    config = baseline_of(at(1))
    held = gate(config, runs(at(0.1, busy_too=True), at(1)))
    assert (outcome_of(held, strict=False), held.busy) == ("passed", [])
    assert held.left_out == [(Path("run-0"), TOLD)]
    assert outcome_of(gate(config, runs(at(1, busy_too=True), at(0.1))), strict=False) == "failed"


def test_a_worse_quality_fails_on_a_busy_machine_too() -> None:
    good, bad = (replace(at(1, busy_too=True), quality=made_predictions(value)) for value in (5.0, 9.0))
    held = gate(baseline_of(replace(at(1), quality=good.quality)), runs(bad))
    assert [check.metric for check in held.failed] == ["perplexity"]
    assert outcome_of(held, strict=False) == "failed"


def test_no_baseline_is_made_of_a_busy_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = str(at(1, busy_too=True).save(tmp_path)), tmp_path / "made.yaml"
    with pytest.raises(UserError, match=r"1\.5 of 2 cores; measure again, or give --even-if-busy"):
        gate_command(["--record", str(file), path])
    assert not file.exists()
    assert gate_command(["--record", str(file), path, "--even-if-busy"]) == 0
    assert TOLD in capsys.readouterr().err
    config = baseline_of(at(1, busy_too=True), even_if_busy=True)
    (row,) = config.rows.values()
    assert (row.busy, row.busy_kinds) == (TOLD, ["speed"])
    held = gate(config, runs(at(1)))
    assert outcome_of(held, strict=False) == "undecided"
    assert f"no verdict: baseline, {TOLD}" in {check.reason for check in held.checks}
    assert outcome_of(gate(config, runs(at(1)), even_if_busy=True), strict=False) == "passed"
    (row,) = baseline_of(at(1)).rows.values()
    assert row.busy is None


def test_gate_says_it_to_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made.yaml"
    file.write_text(recorded_text("made", runs(at(1)), "gptbench gate"))
    run = str(at(0.1, busy_too=True).save(tmp_path))
    for more, code, outcome in (([], 3, "undecided"), (["--strict"], 1, "failed"), (["--even-if-busy"], 1, "failed")):
        assert gate_command(["--baseline", str(file), run, *more]) == code
        said = capsys.readouterr()
        assert json.loads(said.out)["gate"] == outcome
        assert TOLD in " ".join(said.err.split())


def test_what_was_measured_on_a_busy_machine_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for again, expected, times in (
        (at(1), "passed", 2),
        (at(1, busy_too=True), "undecided", 2),
        (at(0.1), "failed", 2),
    ):
        taken = [at(0.1, busy_too=True), again]
        asked: list[list[str]] = []

        def measure(overrides: list[str], tell: object, taken=taken, asked=asked) -> SelectedRecord:  # type: ignore[no-untyped-def]
            asked.append(overrides)
            return SelectedRecord(Path(f"run-{len(asked)}"), taken[len(asked) - 1])

        monkeypatch.setattr(baseline_runs, "measure", measure)
        monkeypatch.setattr(baseline_runs, "require_device_here", lambda config: None)
        held = baseline_runs.measured_gate(baseline_of(at(1)), 1, [], lambda told: None)
        assert (outcome_of(held, strict=False), len(asked)) == (expected, times)
    asked.clear()
    monkeypatch.setattr(baseline_runs, "measure", lambda overrides, tell: asked.append(overrides) or runs(at(1))[0])
    held = baseline_runs.measured_gate(baseline_of(at(1, busy_too=True), even_if_busy=True), 1, [], lambda told: None)
    assert (outcome_of(held, strict=False), len(asked)) == ("undecided", 1), "the baseline stays what it is"
