"""MLflow's SQLite store as a file: where it is, and that it is whole.

MLflow makes a store in dozens of steps, and brings one of an older version up to date in some more; cut off in between,
by a signal or a full disk, it can be opened by nobody. So both are done to another file in the same folder, which is
then renamed. A store that somebody else's process left half made, or that is damaged, is kept under another name, and
made anew.
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
"""Of the embedded store, in the outputs folder."""
BESIDE = ("-journal", "-wal", "-shm")
"""Ends of the names of files that SQLite keeps beside a store, and without which it is not what it was."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that no waiting makes whole."""


def embedded_store(outputs: Path) -> str:
    """Address of the store of an outputs folder, whatever is in its name."""
    return address(outputs.absolute() / NAME)


def address(file: Path) -> str:
    """Of a store in a file, as SQLAlchemy's `URL.create` makes it; importing that takes long."""
    return f"sqlite:///{urllib.parse.quote(str(file), safe=' +/')}"


def file_of(uri: str) -> Path | None:
    """The file of a store, if it is in one."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    database = "" if found is None else urllib.parse.unquote(found[1])
    return None if database in ("", ":memory:") or database.startswith("file:") else Path(database)


def lock_of(file: Path) -> FileLock:
    """Held by whoever makes a store, or writes to it."""
    return FileLock(file.with_suffix(".lock"))


whole: set[tuple[str, int]] = set()
"""Path and inode of stores that this process has found whole."""


def make_whole(file: Path) -> str | None:
    """Makes a store that is not there, brings an older one up to date, and replaces one that is half made. Call it
    while nobody else does.

    Returns:
        What became of a store that was there, if anything.

    Raises:
        Exception: it could not be done, and what was there is as it was.
    """
    mlflow.make_no_folders()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():  # a device would be replaced
        raise TrackingError(f"{file}: expected a regular file, or none yet")
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
    """Renames a new store to its place; what is there gets another name, about which it returns a remark."""
    remark = None
    if file.exists() and file.stat().st_size:
        number = 1
        while (kept := file.with_name(f"{file.stem}-backup-{number}{file.suffix}")).exists():
            number += 1
        damaged = damage(file)
        made = "brought up to date" if holds_runs(file) else f"{damaged or 'half made'}, and is made anew"
        for old in beside(file):
            old.rename(kept.with_name(kept.name + old.name.removeprefix(file.name)))
        remark = f"{file} was {made}; as it was, it is kept in {kept}"
        if damaged:
            again = shlex.join(["gptbench", "sync", "--all", "--outputs", str(file.parent)])
            remark += f"; to log again what it held: {again}"
    new.replace(file)
    return remark


def beside(file: Path) -> list[Path]:
    """A store and what SQLite keeps beside it, of those that are there."""
    paths = [file.with_name(f"{file.name}{end}") for end in ("", *BESIDE)]
    return [path for path in paths if path.exists()]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection, which is closed afterwards."""
    connection = sqlite3.connect(file, timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def holds_runs(file: Path) -> bool:
    """Whether anybody has logged something to it."""
    if not file.exists():
        return False
    try:
        with opened(file) as connection:
            runs = connection.execute("select count(*) from runs").fetchone()[0]
            return bool(runs + connection.execute("select count(*) from experiments where experiment_id").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if code_of(error) not in (sqlite3.SQLITE_ERROR, *DAMAGED):  # such as a lock, or a disk that cannot be read
            raise
        return False  # it has no such table, or is no database


def code_of(error: sqlite3.Error) -> int:
    """Of what SQLite says is wrong, without the details."""
    return error.sqlite_errorcode & 0xFF


def damage(file: Path) -> str | None:
    """What is wrong with the file of a store that was cut off or overwritten; None where that is not so."""
    if not file.stat().st_size:
        return "empty"
    try:
        with opened(file) as connection:
            connection.execute("select name from sqlite_master").fetchall()
    except sqlite3.DatabaseError as error:
        if code_of(error) in DAMAGED:
            return f"damaged ({error})"
    return None  # or another process holds it, or the disk cannot be read: who writes to it is told


def is_lost(file: Path) -> bool:
    """Whether what was logged to a store is there no more."""
    return not file.exists() or (file.is_file() and damage(file) is not None)


def copy(file: Path, new: Path) -> None:
    """As it is now, whoever writes to it."""
    with opened(file) as connection, opened(new) as other:
        connection.backup(other)


def is_whole(file: Path) -> bool:
    """Whether MLflow can open a store as it is."""
    if is_lost(file):
        return False
    engine = engine_of(file)
    try:
        return mlflow.is_current(engine)
    finally:
        engine.dispose()


def engine_of(file: Path) -> "Engine":
    """MLflow's.

    Raises:
        TrackingError: SQLAlchemy would open another file.
    """
    engine = mlflow.engine_of(address(file))
    if engine.url.database != str(file):
        raise TrackingError(f"{file}: before version 2.1, SQLAlchemy has no address for a folder of that name")
    return engine


def migrate(file: Path) -> None:
    """Makes all tables of this version of MLflow."""
    engine = engine_of(file)
    try:
        mlflow.migrate(engine)
    finally:
        engine.dispose()
    with file.open("rb") as written:
        os.fsync(written.fileno())
