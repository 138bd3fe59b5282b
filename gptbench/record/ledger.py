"""Ledger of which jobs were attempted, and where: two small files per identity in the folder `jobs` of the outputs.

`<identity>.jsonl` has a line for each attempt, written before it begins, with the folder of its record.
`<identity>.lock` is locked by the process that runs the attempt; the lock ends with that process, however it ends. So
whoever holds the lock sees all records that earlier attempts will ever produce.
"""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock, Timeout

from gptbench.base.errors import InputError, UserError
from gptbench.base.inputs import MAX_JSON_BYTES, read_text
from gptbench.schema.files import load_record, runs_in
from gptbench.schema.record import Recorded

FOLDER = "jobs"
"""Folder of the ledger in the outputs."""
SWEEPS = "sweeps"
"""Folder beside it with the last sweep over each set of jobs."""
PATIENCE_S = 0.5
"""Seconds of waiting for a lock before a message says so."""


class Ledger:
    """Ledger of one outputs folder.

    Args:
        outputs: the folder, on a file system that all machines share which record there, with locks.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs.absolute()
        self.folder = self.outputs / FOLDER

    @contextlib.contextmanager
    def claim(self, identity: str, resume: bool) -> Iterator[None]:
        """Make others that `resume` wait while a job of this identity runs, and wait for them if `resume`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / f"{identity}.lock"
        if not resume and is_held(lock):  # without resume both measure, and both measurements count
            yield
            return
        with hold(lock, "another process that measures the same"):
            yield

    def note(self, identity: str, folder: Path, started: str) -> None:
        """Write down that an attempt begins."""
        # A relative path, so that the outputs can be moved.
        where = os.path.relpath(folder.absolute(), self.outputs)
        entry = {"folder": where, "started": started, "host": socket.gethostname(), "pid": os.getpid()}
        path = self.folder / f"{identity}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(entry)}\n")  # the previous line may be incomplete if its writer was killed
            file.flush()
            os.fsync(file.fileno())

    def attempts(self, identity: str) -> list[Path]:
        """Return the folders of all attempts, oldest first."""
        folders = [entry.get("folder") for entry in entries(self.folder / f"{identity}.jsonl")]
        return list(dict.fromkeys(self.outputs / folder for folder in folders if is_name(folder)))

    def recorded(self, identity: str) -> tuple[Path, Recorded] | None:
        """Return file and record of the newest measurement of this identity that counts; None if there is none."""
        for folder in reversed(self.attempts(identity)):
            for path in reversed(runs_in(folder)):
                with contextlib.suppress(UserError):  # not a record, or one of another version
                    record = load_record(path)
                    if record.identity == identity and record.problem() is None:
                        return path, record
        return None


def folders_in(outputs: Path) -> set[Path]:
    """Return all folders in which jobs or sweeps of these outputs have written something, wherever they lie."""
    known = set()
    for path in [*(outputs / FOLDER).glob("*.jsonl"), *(outputs / SWEEPS).glob("*.json")]:
        for entry in entries(path):
            folders = (entry.get(name) for name in ("folder", "sweep", "call"))
            known |= {(outputs / folder).resolve() for folder in folders if is_name(folder)}
    return {folder for folder in known if folder.is_dir()}


def entries(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file's lines; incomplete and foreign lines are skipped."""
    try:
        lines = read_text(path, MAX_JSON_BYTES).splitlines()
    except InputError:
        return []
    values = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values.append(json.loads(line))
    return [entry for entry in values if isinstance(entry, dict)]


def is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value can be the name of a folder."""
    return isinstance(value, str) and value != "" and "\0" not in value


@contextlib.contextmanager
def hold(path: Path, whom: str) -> Iterator[None]:
    """Hold the lock of a file while the context lasts; the lock ends with the process, however it ends.

    Args:
        whom: description of whoever holds the lock, for the message.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        print(f"waiting for {whom} ({path})", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether some process holds the lock of a file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
