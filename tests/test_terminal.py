"""What a person is told while it runs, and after it."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gptbench.base.errors import counted
from gptbench.config import MLflowConfig, TrackingConfig
from gptbench.present import terminal
from gptbench.present.console import console, program
from gptbench.present.terminal import Terminal, show_next
from tests.results import made_result

NO_TRACKING = TrackingConfig(_target_="gptbench.record.NoTracker", name="none")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed where there is no terminal."""
    file = io.StringIO()
    monkeypatch.setattr(console, "_file", file)
    return file


def test_without_a_terminal_stages_are_lines(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "STILL_S", 0.01)
    with Terminal(quiet=False).stages(9, samples=400) as stages:
        with stages.stage("measuring the read roof"):
            pass
        for share in range(100):
            stages.reading("reading", share / 100)
        with stages.stage("compiling", long=True):
            time.sleep(0.1)
        for _ in range(400):
            stages.sampled(made_result().samples[0])
    lines = [line.partition("] ")[2] for line in shown.getvalue().splitlines()]
    assert lines[0] == "measuring the read roof"
    assert "compiling" in lines and "still compiling, for 0 s" in lines
    assert lines[-1] == "sample 400/400"
    assert len([line for line in lines if line.startswith(("sample", "reading"))]) < 5, "some of many are enough"
    assert "\x1b" not in shown.getvalue()


def test_with_a_terminal_the_time_goes_on_while_it_compiles(
    shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "has_bar", lambda: True)
    monkeypatch.setattr(terminal, "REDRAW_S", 0.01)
    drawn = []
    with Terminal(quiet=False).stages(9) as stages:
        monkeypatch.setattr(stages.bar, "refresh", lambda: drawn.append(stages.bar.tasks[0].description))
        with stages.stage("compiling", long=True):
            time.sleep(0.2)
        assert len(drawn) > 2 and set(drawn) == {"compiling"}
    assert "[   0 s]" not in shown.getvalue(), "lines are for where there is none"


def test_quiet_is_quiet(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "quiet", False)  # and put back
    with Terminal(quiet=True).stages(9, samples=2) as stages, stages.stage("measuring the read roof"):
        stages.sampled(made_result().samples[0])
    assert shown.getvalue() == ""


def test_what_can_be_done_next_can_be_typed(
    tmp_path: Path, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "out puts"
    path = outputs / "2026-12-01" / "12-00-00" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    result = made_result()
    show_next(result, path, NO_TRACKING, outputs, logged=False)
    assert shown.getvalue() == f"next: {program('gptbench')} report 'out puts/2026-12-01/12-00-00/result.json'\n"
    earlier = outputs / "2026-11-30" / "12-00-00" / "result.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    mlflow = MLflowConfig(_target_="gptbench.record.MLflowTracker", name="mlflow")
    show_next(result, path, mlflow, outputs, logged=True)
    *_, compare, store = shown.getvalue().splitlines()
    assert compare.endswith(
        "compare 'out puts/2026-11-30/12-00-00/result.json' 'out puts/2026-12-01/12-00-00/result.json'"
    )
    assert "ui --backend-store-uri " in store and "mlflow.db" in store
    mlflow.uri = "http://user:secret@127.0.0.1:5000"
    show_next(result, path, mlflow, outputs, logged=True)
    assert "secret" not in shown.getvalue()
    assert shown.getvalue().splitlines()[-1].strip().startswith("http://")


def test_one_is_one() -> None:
    assert [counted(number, "sample") for number in (0, 1, 2)] == ["0 samples", "1 sample", "2 samples"]


def test_a_roof_that_rose_during_the_run_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown, roof = Terminal(quiet=False), made_result().roof
    shown.roof_raised(roof)
    shown.roof = replace(roof, gb_per_s=roof.gb_per_s / 2)
    shown.roof_raised(roof)
    assert capsys.readouterr().err.count(f"to {roof.gb_per_s:.4g} GB/s during this run") == 1
