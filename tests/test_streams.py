"""Printing decides over no measurement, and what is printed steers no terminal."""

import io
import os
import sys
from pathlib import Path

import pytest
from rich.table import Table

from gptbench.__main__ import main
from gptbench.base.streams import Plain, lasting, visible
from gptbench.compare.select import SelectedRecord
from gptbench.present.console import PlainConsole
from gptbench.present.report import html
from gptbench.schema.files import load_record
from tests.results import made_result
from tests.sweeps import PLAIN, SHORT
from tests.warm import Warm

UNTRACKED = [*SHORT, *PLAIN, "tracking=none"]


def recorded(folder: Path) -> int:
    """Results that can be read."""
    return len([load_record(path) for path in (folder / "outputs").rglob("result*.json")])


@pytest.mark.parametrize("how", ["closed", "full", "unread", "terminal"])
def test_a_result_is_kept_wherever_messages_go(warm: Warm, tmp_path: Path, how: str) -> None:
    code, call = warm.run(tmp_path, *UNTRACKED, streams={"err": how})
    assert (code, len(call.lines), recorded(tmp_path)) == (0, 1, 1)


@pytest.mark.parametrize("how", ["closed", "full", "unread"])
def test_and_where_its_line_for_programs_goes(warm: Warm, tmp_path: Path, how: str) -> None:
    code, call = warm.run(tmp_path, *UNTRACKED, streams={"out": how})
    assert (code, recorded(tmp_path)) == (0, 1), call.err
    assert "Traceback" not in call.err and "Exception ignored" not in call.err
    assert ("No space left on device" in call.err) == (how == "full")


def test_so_are_those_of_a_sweep_whose_jobs_have_processes_of_their_own(warm: Warm, tmp_path: Path) -> None:
    swept = ["-m", *UNTRACKED, "sampling.top_k=1,2", "isolation=process"]
    code, _ = warm.run(tmp_path, *swept, streams={"err": "unread", "out": "unread"})
    assert (code, recorded(tmp_path)) == (0, 2)


def test_a_full_disk_is_a_line_and_what_was_measured_is_shown(warm: Warm, tmp_path: Path) -> None:
    code, call = warm.run(tmp_path, *UNTRACKED, faults={"full from": "gptbench.schema.record.Recorded.save"})
    assert (code, recorded(tmp_path)) == (1, 0)
    assert "Traceback" not in call.err and "TTFT" in call.err
    assert call.err.splitlines()[-1] == "gptbench: a file: No space left on device"


def test_so_it_is_in_a_sweep(warm: Warm, tmp_path: Path) -> None:
    swept = ["-m", *UNTRACKED, "sampling.top_k=1,2"]
    code, call = warm.run(tmp_path, *swept, faults={"full from": "gptbench.schema.record.Recorded.save:2"})
    assert (code, recorded(tmp_path)) == (1, 1), call.err
    assert "Traceback" not in call.err and "sweep of 2 jobs" in call.err
    assert "No space left on device" in call.err.splitlines()[-1]


def test_a_command_fails_where_its_output_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["gptbench", "rows", str(made_result().save(tmp_path))])
    for device, expected in (("/dev/full", 1), (os.devnull, 0)):
        with Path(device).open("w") as file:
            monkeypatch.setattr(sys, "stdout", file)
            assert main() == expected


def test_writes_that_fail_go_nowhere_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(full, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with lasting() as output:
            print("lost")
            sys.stdout.flush()
            assert output.lost_output
            os.write(full, b"no error")
        assert sys.stdout is file
    closed = Plain(io.StringIO())
    closed.under.close()
    assert closed.write("lost") == 4
    assert not closed.lost_output, "nobody waits for it"


def test_what_an_encoding_has_not_is_written_as_its_escape() -> None:
    under = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = Plain(under)
    stream.write("\u00e9 \udc80")
    stream.flush()
    assert under.buffer.getvalue() == b"\\xe9 \\udc80"  # type: ignore[attr-defined]


def test_nothing_printed_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible("a\tb\r\n") == "a\tb\r\n"
    under = io.StringIO()
    monkeypatch.setattr(sys, "stderr", under)
    with lasting():
        print("\x1b]0;title\x07", file=sys.stderr)
        console = PlainConsole(stderr=True, force_terminal=True, color_system="standard", highlight=False)
        console.print("device \x1b[2J", style="red", markup=False)
        table = Table("the name of a device")
        table.add_row("\x9b31m\u202eabc")
        console.print(table)
    shown = under.getvalue()
    assert "\\x1b]0;title\\x07" in shown
    assert "\x1b[31mdevice \\x1b[2J\x1b[0m" in shown, "rich's own colours stay"
    assert "\\x9b31m\\u202eabc" in shown


def test_nor_does_a_report_that_is_printed() -> None:
    found = [SelectedRecord(Path("result.json"), made_result(device="a \x1b]0;title\x07 device"))]
    page = html(found, [], "title", ["outputs"], "now")
    assert "\x1b" not in page and "\\x1b]0;title\\x07" in page
