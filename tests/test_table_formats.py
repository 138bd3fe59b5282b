"""`--format`: tables of runs, sweeps and commands on stdout, for programs in recorded units under recorded names."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptbench.commands.compare import compare_command
from gptbench.commands.explain import explain_command
from gptbench.commands.gate import gate_command
from gptbench.commands.rows import rows_command
from gptbench.config import BaselineConfig
from gptbench.present.console import console
from gptbench.present.terminal import Terminal
from gptbench.schema import Recorded
from gptbench.schema.breakdown import Breakdown, Launch
from gptbench.schema.summary import summary
from tests.models import MOE, run_config
from tests.results import made_failure, made_kernels, made_result
from tests.test_damaged import made_sweep


@pytest.fixture
def concluded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What stdout has of a record in a format, as the last of a run."""
    baseline = BaselineConfig(_target_="gptbench.compare.Baseline", name="test", device="an A100")
    config = replace(run_config(MOE), baseline=baseline)

    def printed(record: Recorded, to: str) -> str:
        monkeypatch.setattr(console, "format", to)
        Terminal(False).concluded(record, tmp_path / "result.json", config, tmp_path, None)
        return capsys.readouterr().out

    return printed


def test_a_runs_table_takes_the_place_of_the_line(concluded: Any) -> None:
    result = made_result()
    assert json.loads(concluded(result, "text"))["result"].endswith("result.json")
    rows = {row["metric"]: row for row in json.loads(concluded(result, "json"))}
    known = summary(result)
    assert rows["tpot_p50_s"]["median"] == known["tpot_p50_s"]
    assert rows["mbu"]["min"] < rows["mbu"]["median"] == known["mbu"] < rows["mbu"]["max"]
    assert rows["read_roof_gb_per_s"]["min"] is None
    table = list(csv.DictReader(io.StringIO(concluded(result, "csv"))))
    assert float(table[0]["median"]) == known["decode_tokens_per_s"]
    text = concluded(result, "md")
    assert text.startswith("**stories15m on Processor X**\n\n| metric | median | min … max | 95% interval | unit |\n")
    assert "| decode | 90.31 | 82.1 … 98.52 |  | tokens/s |" in text and "\nMBU: Memory bandwidth" in text
    step = Breakdown(position=5, step_s=1e-3, launches=[Launch("linear_8x8", 0.0, 4e-4, None, 100)])
    both = json.loads(concluded(replace(result, breakdown=step), "json"))
    assert list(both) == ["run", "step"]
    assert [row["kernel"] for row in both["step"]] == ["linear_8x8", "gaps between kernels", "step"]
    assert both["step"][0]["share_of_step"] == pytest.approx(0.4)


def test_so_do_those_of_sweeps_and_kernels_and_a_failure_has_its_line(concluded: Any) -> None:
    jobs = json.loads(concluded(made_sweep(), "json"))
    assert [row["job"] for row in jobs] == list(range(len(jobs))) and "status" in jobs[0]
    kernels = json.loads(concluded(made_kernels(), "json"))
    assert {"kernel", "shape", "type", "by", "seconds", "target"} <= set(kernels[0])
    assert concluded(made_kernels(), "md").count("\n|") >= 2
    assert json.loads(concluded(made_failure(), "json"))["result"]


def test_commands_write_the_same_rows_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = made_result(), made_result(step_s=0.02)
    a, b = (str(record.save(tmp_path / name)) for name, record in (("a", fast), ("b", slow)))
    file = str(tmp_path / "base.yaml")
    own = ["--outputs", str(tmp_path)]
    assert gate_command([a, "--record", file, *own]) == 0
    capsys.readouterr()
    for command, arguments, key, code in (
        (compare_command, [a, b, *own], "metric", 0),
        (gate_command, [b, "--baseline", file, *own], "metric", 1),
        (explain_command, [a, *own], "part", 0),
        (rows_command, [a, *own], "metric", 0),
    ):
        assert command([*arguments, "--format", "json"]) == code
        rows = json.loads(capsys.readouterr().out)
        assert command([*arguments, "--format", "csv"]) == code
        table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [row[key] for row in table] == [row[key] or "" for row in rows] and rows, command
        assert command([*arguments, "--format", "md"]) == code
        printed = capsys.readouterr()
        assert sum(line.startswith("|") for line in printed.out.splitlines()) == 2 + len(rows)
        assert command([*arguments, "--format", "text"]) == code
        assert len(capsys.readouterr().out.splitlines()) == 1, "the line for programs"
    assert compare_command([a, b, *own, "--format", "table"]) == 0, "as it was called"
    ratios = {row["metric"]: row["ratio"] for row in json_of(compare_command, [a, b, *own], capsys)}
    assert ratios["decode_tokens_per_s"] == pytest.approx(0.5)


def json_of(command: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert command([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)
