"""Files that options name: what cannot be written is refused before any work, and nothing is replaced but its like."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from results import made_result

from gptbench.base.errors import ConfigError, UserError
from gptbench.base.outputs import check_folder, check_output, write_output
from gptbench.commands.ab import ab_command
from gptbench.commands.export import export_command
from gptbench.commands.gate import gate_command
from gptbench.commands.report import report_command
from gptbench.commands.rows import rows_command
from gptbench.config.mistakes import message_for
from gptbench.execute import baseline_runs
from gptbench.sweep.sweeper import launch

WRITERS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "export": (export_command, ["RUN", "--output"]),
    "rows --csv": (rows_command, ["RUN", "--csv"]),
    "rows --json": (rows_command, ["RUN", "--json"]),
    "report": (report_command, ["RUN", "--output"]),
    "gate": (gate_command, ["--run", "engine=eager", "--record"]),
}
"""By name: a command that writes a file, and its arguments, the last one the option for that."""


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("it was not asked first whether the file can be written")

    monkeypatch.setattr(baseline_runs, "measure", measure)


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    run = made_result().save(tmp_path / "run")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    places = [tmp_path, tmp_path / "file" / "x", tmp_path / "loop", tmp_path / ("x" * 300), Path("/proc/nope/x.html")]
    before = sorted(tmp_path.rglob("*"))
    for name, (command, arguments) in WRITERS.items():
        given = [str(run) if argument == "RUN" else argument for argument in arguments]
        for place in places:
            with pytest.raises(UserError) as error:
                command([*given, str(place)])
            message = str(error.value)
            assert message.startswith(f"{given[-1]}={place}: expected a ") and "\n" not in message, name
    assert sorted(tmp_path.rglob("*")) == before


def test_only_an_earlier_file_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    run = made_result().save(tmp_path / "run")
    record = run.read_bytes()
    for name, (command, arguments) in WRITERS.items():
        if name == "gate":  # has --force
            continue
        given = [str(run) if argument == "RUN" else argument for argument in arguments]
        with pytest.raises(UserError, match="expected a new file, or an earlier one of the same kind"):
            command([*given, str(run)])
        made = tmp_path / "new" / name
        assert command([*given, str(made)]) == 0
        assert command([*given, str(made)]) == 0
        link = tmp_path / f"link {name}"
        link.symlink_to(made)
        assert command([*given, str(link)]) == 0 and link.is_symlink(), name
    assert run.read_bytes() == record


def test_what_is_no_regular_file_stays_what_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    check_output("-o", fifo, lambda _: False)
    write_output("-o", fifo, "a table")
    reader.join(10)
    assert read == ["a table"] and fifo.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]
    with pytest.raises(UserError, match="expected a regular file, as it is read back"):
        gate_command(["--run", "engine=eager", "--record", str(fifo)])
    stdout = Path(f"/proc/self/fd/{os.dup(1)}")  # a regular file here, and whatever it is, it goes on behind
    check_output("-o", stdout, lambda _: False)
    for text in ("one\n", "two\n"):
        write_output("-o", stdout, text)
    os.close(int(stdout.name))
    assert capfd.readouterr().out == "one\ntwo\n"


def test_a_folder_that_cannot_be_made_is_named_with_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("/proc/nope", str(tmp_path / "file")):
        with pytest.raises(ConfigError, match=f"^outputs={folder}: expected a folder that can be created \\(.+\\)$"):
            check_folder("outputs", folder)
    check_folder("outputs", str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_every_kind_of_run_asks_for_its_folder_first() -> None:
    def run_job() -> None:  # as Hydra does
        Path("/proc/nope").mkdir()

    expected = "expected a folder that can be created (No such file or directory)"
    for given in ("outputs=/proc/nope", "hydra.run.dir=/proc/nope"):
        with pytest.raises(FileNotFoundError) as error:
            run_job()
        assert message_for(error.value, [given]) == f"{given}: {expected}"
    with pytest.raises(ConfigError, match=f"^outputs=/proc/nope: {re.escape(expected)}"):
        ab_command(["engine=eager", "engine=eager", "outputs=/proc/nope"])
    planned = SimpleNamespace(config=SimpleNamespace(outputs="/proc/nope"))
    with pytest.raises(ConfigError, match=f"^outputs=/proc/nope: {re.escape(expected)}"):
        launch(cast(Any, None), cast(Any, [planned]))
