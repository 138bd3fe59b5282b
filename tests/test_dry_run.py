"""`--dry-run`: plan, memory and limit of a run or a sweep, of which nothing is measured and nothing is left."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptbench.config.commandline import CommandLineError, without_format
from gptbench.execute.dry_run import forecast
from gptbench.measure.roof import Roofs
from tests.models import MOE, run_config
from tests.results import made_result
from tests.warm import ROOT, Warm

QUICK = ["model=mixtral_tiny", "workload.prompt=[1,2,3]", "workload.new_tokens=8", "device=cpu", "engine=eager"]


def left(folder: Path) -> list[Path]:
    """What is in a folder beside what was printed."""
    return [path for path in folder.iterdir() if path.suffix not in (".out", ".err")]


def test_a_run_says_what_it_would_be_and_leaves_nothing(warm: Warm, tmp_path: Path) -> None:
    code, call = warm.run(tmp_path, *QUICK, "--dry-run")
    assert code == 0, call.err
    (line,) = map(json.loads, call.out.splitlines())
    assert line["dry_run"] is True and line["model"] == "mixtral_tiny" and line["engine"] == "eager"
    assert line["needs_bytes"] > line["step_bytes"] > 0 and line["max_tokens_per_s"] is None
    assert "mixtral_tiny, quant none, float32, engine eager, on" in call.err
    assert "needs 0.0" in call.err and "the limit is known once a run has measured the read roof" in call.err
    assert left(tmp_path) == []


def test_a_runs_table_takes_the_place_of_its_line(warm: Warm, tmp_path: Path) -> None:
    mixed = [*QUICK, "quant=int8", "+quant.weights={lm_head: none}", "--dry-run", "--format=csv"]
    code, call = warm.run(tmp_path, *mixed)
    assert code == 0, call.err
    (row,) = csv.DictReader(call.out.splitlines())
    assert row["quant"] == "int8 (lm_head=none)" and float(row["needs_bytes"]) > float(row["step_bytes"]) > 0
    assert "nothing was measured" in call.err


def test_a_task_of_a_plugin_without_an_engine_is_counted(warm: Warm, tmp_path: Path) -> None:
    copying = ["--plugin", str(ROOT / "tests" / "plugins" / "copying.py"), "task=copying", "model=demo", "device=cpu"]
    code, call = warm.run(tmp_path, *copying, "--dry-run")
    assert code == 0, call.err
    assert json.loads(call.out)["task"] == "copying" and "2 parts of task=copying on" in call.err
    assert left(tmp_path) == []


def test_what_was_there_before_stays(warm: Warm, tmp_path: Path) -> None:
    """Empty folders and logs, too, whether it is a dry run or one that is refused."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "ex").mkdir()
    (tmp_path / "ex" / "my.log").touch()
    for folder, last, code in (("empty", "--dry-run", 0), ("ex", "--dry-run", 0), ("ex", "model=llama3_1_405b", 2)):
        assert warm.run(tmp_path, *QUICK, last, f"hydra.run.dir={folder}")[0] == code
    assert list((tmp_path / "empty").iterdir()) == []
    assert [path.name for path in (tmp_path / "ex").iterdir()] == ["my.log"]


def test_what_a_run_is_refused_for_a_dry_run_is_refused_for(warm: Warm, tmp_path: Path) -> None:
    for arguments, why in (
        (["model=llama3_1_405b", "device=cpu"], "These would fit:"),
        (["engine=fused", "device=cpu"], "engine=fused: expected another engine, or device.kind=cuda"),
        ([*QUICK, "-m", "quant=none,int8", "device.dtype=float16"], "job 1 (quant=int8)"),
    ):
        code, call = warm.run(tmp_path, *arguments, "--dry-run")
        assert (code, call.out) == (2, ""), call.err
        assert why in call.err
        assert left(tmp_path) == []


def test_a_sweep_is_a_table_of_its_jobs(warm: Warm, tmp_path: Path) -> None:
    sweep = [*QUICK, "-m", "quant=none,int8", "sampling.temperature=0,1", "--dry-run"]
    code, call = warm.run(tmp_path, *sweep)
    assert code == 0, call.err
    assert json.loads(call.out) | {"needs_bytes": 0} == {"dry_run": True, "jobs": 4, "needs_bytes": 0}
    assert "sampling.temperature" in call.err and "needs (GB)" in call.err
    code, call = warm.run(tmp_path, *sweep, "--format=json")
    rows = json.loads(call.out)
    assert "nothing was measured" in call.err
    assert [row["quant"] for row in rows] == ["none", "none", "int8", "int8"]
    assert rows[0]["needs_bytes"] > rows[2]["needs_bytes"]
    assert left(tmp_path) == []


def test_the_limit_is_of_the_roof_that_was_measured_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = replace(run_config(MOE), outputs=str(tmp_path))
    monkeypatch.setattr(Roofs, "highest", lambda self: made_result().roof)
    line = forecast(config).line()
    assert line["max_tokens_per_s"] == pytest.approx(4000e9 * config.workload.batch_size / line["step_bytes"])


def test_the_format_of_tables_is_an_option_with_a_value() -> None:
    assert without_format(["a=1", "--format", "md", "-m"]) == (["a=1", "-m"], "md")
    assert without_format(["--format=csv"]) == ([], "csv")
    assert without_format(["a=1"]) == (["a=1"], None)
    for wrong in (["--format"], ["--format", "yaml"]):
        with pytest.raises(CommandLineError, match=r"--format=.*: expected one of text, md, csv, json"):
            without_format(wrong)
