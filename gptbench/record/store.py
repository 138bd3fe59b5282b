"""MLflow's SQLite store as a file: where it is, and that it is complete.

MLflow creates a store in dozens of steps, and upgrades one of an older version in several; if a signal or a full disk
interrupts that, nothing can open the store. So both are done in another file in the same folder, which is then renamed.
A store that another process left half made, or that is damaged, is kept under another name and replaced.
"""

import contextlib
import os
import re
import shlex
import sqlite3
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from gptbench.base.errors import TrackingError
from gptbench.private import mlflow

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

NAME = "mlflow.db"
"""File of the embedded store in the outputs folder."""
BESIDE = ("-journal", "-wal", "-shm")
"""Suffixes of files that SQLite keeps beside a store, and that belong to its content."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""SQLite's errors for a file that is damaged, not just locked."""


def embedded_store(outputs: Path) -> str:
    """Return the address of the store of an outputs folder, whatever characters are in its name."""
    return address(outputs.absolute() / NAME)


def address(file: Path) -> str:
    """Return the address of a store in a file, as SQLAlchemy's `URL.create` makes it; importing that takes long."""
    return f"sqlite:///{urllib.parse.quote(str(file), safe=' +/')}"


def file_of(uri: str) -> Path | None:
    """Return the file of a store; None if it is not in a file."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    database = "" if found is None else urllib.parse.unquote(found[1])
    return None if database in ("", ":memory:") or database.startswith("file:") else Path(database)


def lock_of(file: Path) -> FileLock:
    """Return the lock that a process holds while it makes a store or writes to it."""
    return FileLock(file.with_suffix(".lock"))


whole: set[tuple[str, int]] = set()
"""Path and inode of stores that this process has found complete."""


def make_whole(file: Path) -> str | None:
    """Make a store that is missing, upgrade an older one, and replace one that is half made. No other process may do so
    at the same time.

    Returns:
        A remark on what happened to an existing store; None if nothing.

    Raises:
        Exception: it failed, and an existing store is unchanged.
    """
    mlflow.make_no_folders()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():  # a device would be replaced
        raise TrackingError(f"{file}: expected a regular file, or no file yet")
    if file.exists() and (str(file), file.stat().st_ino) in whole:
        return None
    remark = None
    if not is_whole(file):
        for left in file.parent.glob(f".{file.name}-*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        new = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
        try:
            if holds_runs(file):
                copy(file, new)
            migrate(new)
            remark = put(new, file)
        finally:
            for path in beside(new):
                path.unlink(missing_ok=True)
    whole.add((str(file), file.stat().st_ino))
    return remark


def put(new: Path, file: Path) -> str | None:
    """Rename a new store to its place; an existing one is renamed, and a remark on that returned."""
    remark = None
    if file.exists() and file.stat().st_size:
        number = 1
        while (kept := file.with_name(f"{file.stem}-backup-{number}{file.suffix}")).exists():
            number += 1
        damaged = damage(file)
        what = "upgraded" if holds_runs(file) else f"{damaged or 'half made'}, and was replaced"
        for old in beside(file):
            old.rename(kept.with_name(kept.name + old.name.removeprefix(file.name)))
        remark = f"{file} was {what}; the previous file is kept as {kept}"
        if damaged:
            again = shlex.join(["gptbench", "sync", "--all", "--outputs", str(file.parent)])
            remark += f"; to log its content again: {again}"
    new.replace(file)
    return remark


def beside(file: Path) -> list[Path]:
    """Return the existing files of a store: itself, and those that SQLite keeps beside it."""
    paths = [file.with_name(f"{file.name}{end}") for end in ("", *BESIDE)]
    return [path for path in paths if path.exists()]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Return a connection that is closed afterwards."""
    connection = sqlite3.connect(file, timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def holds_runs(file: Path) -> bool:
    """Return whether anything was logged to a store."""
    if not file.exists():
        return False
    try:
        with opened(file) as connection:
            runs = connection.execute("select count(*) from runs").fetchone()[0]
            return bool(runs + connection.execute("select count(*) from experiments where experiment_id").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if code_of(error) not in (sqlite3.SQLITE_ERROR, *DAMAGED):  # such as a lock, or an unreadable disk
            raise
        return False  # it has no such table, or is not a database


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's primary error code."""
    return error.sqlite_errorcode & 0xFF


def damage(file: Path) -> str | None:
    """Return what is wrong with the file of a store that was truncated or overwritten; None if nothing is."""
    if not file.stat().st_size:
        return "empty"
    try:
        with opened(file) as connection:
            connection.execute("select name from sqlite_master").fetchall()
    except sqlite3.DatabaseError as error:
        if code_of(error) in DAMAGED:
            return f"damaged ({error})"
    return None  # locked, or an unreadable disk: whoever writes to it gets the error


def is_lost(file: Path) -> bool:
    """Return whether the content of a store is gone."""
    return not file.exists() or (file.is_file() and damage(file) is not None)


def copy(file: Path, new: Path) -> None:
    """Copy a store as it is now, even while others write to it."""
    with opened(file) as connection, opened(new) as other:
        connection.backup(other)


def is_whole(file: Path) -> bool:
    """Return whether MLflow can open a store as it is."""
    if is_lost(file):
        return False
    engine = engine_of(file)
    try:
        return mlflow.is_current(engine)
    finally:
        engine.dispose()


def engine_of(file: Path) -> "Engine":
    """Return MLflow's engine for a store.

    Raises:
        TrackingError: SQLAlchemy would open another file.
    """
    engine = mlflow.engine_of(address(file))
    if engine.url.database != str(file):
        raise TrackingError(f"{file}: SQLAlchemy before version 2.1 cannot open a store in a folder of that name")
    return engine


def migrate(file: Path) -> None:
    """Make all tables of this version of MLflow."""
    engine = engine_of(file)
    try:
        mlflow.migrate(engine)
    finally:
        engine.dispose()
    with file.open("rb") as written:
        os.fsync(written.fileno())
