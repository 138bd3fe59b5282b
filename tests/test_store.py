"""MLflow's SQLite store: whole or not there, whatever happens, wherever it lies."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import config, hasty_pictures, hasty_sqlite, sweep_job

from gptbench.__main__ import run
from gptbench.base.errors import TrackingError
from gptbench.commands.sync import sync_command
from gptbench.record import MLflowTracker
from gptbench.record import store as stores
from gptbench.record.store import address, embedded_store, file_of, holds_runs, is_lost, is_whole, make_whole
from tests.results import made_result

MLFLOW = {"uri": None, "experiment": "gptbench"}
ODD = ("a b%20c%?d#e", "a'b\"c", 'a"b;c&d', "ü€\n\\", "-m{a}`$b+@c:d")
"""Folders' names, legal ones."""


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    with hasty_sqlite(), hasty_pictures():
        yield


def logged(outputs: Path) -> int:
    client = MlflowClient(embedded_store(outputs))
    found = client.get_experiment_by_name("gptbench")
    return 0 if found is None else len(client.search_runs([found.experiment_id]))


def half_made(made: Path, file: Path) -> None:
    """As a process leaves it that is killed meanwhile: some tables, and an older version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("drop table traces" if has_table(connection, "traces") else "drop table trace_info")
        connection.execute("update alembic_version set version_num = '451aebb31d03'")
        connection.commit()


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    return bool(connection.execute("select 1 from sqlite_master where name = ?", (name,)).fetchone())


def test_a_half_made_store_is_kept_aside_and_made_anew(
    empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_made(empty_store, tmp_path / "mlflow.db")
    made_result(tracking=MLFLOW, outputs=str(tmp_path)).save(tmp_path / "run")
    assert sync_command(["--outputs", str(tmp_path)]) == 0
    assert "half made, and was replaced" in capsys.readouterr().err
    assert logged(tmp_path) == 1
    assert (tmp_path / "mlflow-backup-1.db").exists()
    for content in (b"", b"no database at all, but long enough to be taken for one"):
        file = tmp_path / str(len(content)) / "mlflow.db"
        file.parent.mkdir()
        file.write_bytes(content)
        make_whole(file)
        assert is_whole(file)
        assert (file.parent / "mlflow-backup-1.db").exists() == bool(content)


def test_a_damaged_store_is_kept_aside_and_all_that_it_held_is_logged_again(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The test above really makes them.
    monkeypatch.setattr(stores, "migrate", lambda new: shutil.copy(empty_store, new))
    whole = empty_store.read_bytes()
    cases = {"a": b"SQLite format 3\0" + b"garbage" * 1000, "b": whole[:100], "c": whole[:300_000], "d": b""}
    for name, content in cases.items():
        outputs = tmp_path / name
        for number in (1, 2):
            result = made_result(tracking=MLFLOW | {"figures": False}, outputs=str(outputs), step_s=0.01 * number)
            path = result.save(outputs / str(number))
            marks = {f"{embedded_store(outputs)} gptbench": "MLflow run of the store that was lost"}
            path.with_name(f"tracked-{path.name}").write_text(json.dumps(marks))
        (outputs / "mlflow.db").write_bytes(content)
        kept = outputs / "mlflow-backup-1.db"
        again = ["--outputs", str(outputs)]
        if name == "b":  # found by another command, which logs one record
            assert run(["log", str(path)]) == 0
            assert logged(outputs) == 1
            again.append("--all")
        assert sync_command(again) == 0
        assert logged(outputs) == 2, name
        if content:
            assert kept.read_bytes() == content
            again = f"gptbench sync --all --outputs {outputs}"
            told = f"the previous file is kept as {kept}; to log its content again: {again}"
            assert told in capsys.readouterr().err
        assert sync_command(["--outputs", str(outputs)]) == 0
        assert logged(outputs) == 2


def test_what_is_no_regular_file_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "migrate", lambda new: new.touch())
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        assert not is_lost(tmp_path / name)
        with pytest.raises(TrackingError, match="expected a regular file"):
            make_whole(tmp_path / name)
    assert (tmp_path / "fifo").is_fifo()


def test_a_store_that_is_locked_is_not_taken_for_a_damaged_one(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_store, file)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
    with closing(connect(file)) as other:
        other.execute("begin exclusive")
        assert not is_lost(file)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            holds_runs(file)


def test_killed_or_out_of_space_while_it_is_made_it_is_not_there(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"

    def full(new: Path) -> None:
        half_made(empty_store, new)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores, "migrate", full)
    with pytest.raises(OSError, match="No space"):
        make_whole(file)
    assert list(tmp_path.iterdir()) == []
    half_made(empty_store, tmp_path / ".mlflow.db-of-one-that-was-killed")
    monkeypatch.setattr(stores, "migrate", lambda new: shutil.copy(empty_store, new))
    make_whole(file)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_an_older_store_is_brought_up_to_date_in_a_copy(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_store, file)
    MlflowClient(address(file)).create_experiment("mine")
    with closing(sqlite3.connect(file)) as connection:
        head = connection.execute("select version_num from alembic_version").fetchone()[0]
        connection.execute("update alembic_version set version_num = 'an older one'")
        connection.commit()
    before = file.read_bytes()

    def migrated(new: Path) -> None:
        with closing(sqlite3.connect(new)) as connection:
            assert connection.execute("select count(*) from experiments where name = 'mine'").fetchone() == (1,)
            connection.execute("update alembic_version set version_num = ?", (head,))
            connection.commit()

    def cut_off(new: Path) -> None:
        new.write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "migrate", cut_off)
    with pytest.raises(KeyboardInterrupt):
        make_whole(file)
    assert file.read_bytes() == before
    monkeypatch.setattr(stores, "migrate", migrated)
    assert "upgraded" in str(make_whole(file))
    assert is_whole(file)
    assert (tmp_path / "mlflow-backup-1.db").read_bytes() == before


def test_addresses_and_files(tmp_path: Path) -> None:
    for name in ODD:
        assert file_of(address(tmp_path / name / "mlflow.db")) == tmp_path / name / "mlflow.db"
    assert file_of("sqlite:///later.db") == Path("later.db")
    for uri in (
        "http://host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://host/sqlite",
        "file:///x",
        "sqlite:x",
    ):
        assert file_of(uri) is None


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_data(name: str, empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the outputs folder: a sweep and a run are logged there and nowhere else, and found again by every command."""
    outputs = tmp_path / name
    outputs.mkdir()
    shutil.copy(empty_store, outputs / "mlflow.db")
    sweep = outputs / "sweep"
    tracker = MLflowTracker(config(), outputs)
    tracker.begin_sweep(str(sweep), "2026-11-22T11:00:00+00:00", ["sampling.top_k"])
    for hour in (12, 13):
        sweep_job(sweep, hour, tracking=MLFLOW, outputs=str(outputs), step_s=0.01 * hour)
    paths = [sweep / str(hour) / "result.json" for hour in (12, 13)]
    assert run(["sync", "--outputs", str(outputs)]) == 0
    assert run(["log", str(paths[0])]) == 0
    assert "already logged" in capsys.readouterr().out
    assert logged(outputs) == 3
    client = MlflowClient(embedded_store(outputs))
    parents = {run.data.tags.get("mlflow.parentRunId") for run in client.search_runs([tracker.experiment(client)])}
    assert len(parents) == 2, "all jobs have the same parent"
    assert run(["compare", *map(str, paths), "--outputs", str(outputs)]) == 0
    for command in ("explain", "rows", "report")[: 3 if name == ODD[0] else 2]:  # the last draws
        assert run([command, str(outputs), "--outputs", str(outputs)]) == 0
    assert (outputs / "report.html").exists() == (name == ODD[0])
    assert len(list((outputs / "mlartifacts").rglob("result.json"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_deleted_experiment_is_named_with_the_way_back(empty_store: Path, tmp_path: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = MlflowClient(embedded_store(tmp_path))
    client.delete_experiment(number := client.create_experiment("gptbench"))
    path = made_result().save(tmp_path / "run")
    with pytest.raises(TrackingError, match=f"was deleted; mlflow experiments restore --experiment-id {number} "):
        MLflowTracker(config(), tmp_path).log(made_result(), path)
