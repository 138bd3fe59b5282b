"""Which jobs were tried, and where: two small files for each identity in the folder `jobs` of the outputs.

`<identity>.jsonl` has a line for each attempt, written before it begins, with the folder that its record goes to.
`<identity>.lock` is locked by the process that runs the attempt, and by none once that process is gone, however it
went. So whoever holds the lock sees all that will ever come of earlier attempts.
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
SWEEPS = "sweeps"
"""Beside it: of the jobs of a sweep, the last sweep over them."""
PATIENCE_S = 0.5
"""Before it is said that a lock is waited for."""


class Ledger:
    """Of one outputs folder.

    Args:
        outputs: the folder, on a file system that all machines share which record there, with locks.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs.absolute()
        self.folder = self.outputs / FOLDER

    @contextlib.contextmanager
    def claim(self, identity: str, resume: bool) -> Iterator[None]:
        """Keeps others that `resume` waiting while a job of this identity runs, and waits itself to `resume`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / f"{identity}.lock"
        if not resume and is_held(lock):  # it measures anyway, and the other one's measurement counts as well
            yield
            return
        with hold(lock, "another process, which measures the same"):
            yield

    def note(self, identity: str, folder: Path, started: str) -> None:
        """Writes down that an attempt begins."""
        # Relative, so that the outputs can be moved.
        where = os.path.relpath(folder.absolute(), self.outputs)
        entry = {"folder": where, "started": started, "host": socket.gethostname(), "pid": os.getpid()}
        path = self.folder / f"{identity}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(entry)}\n")  # the line before may be cut off: its writer was killed
            file.flush()
            os.fsync(file.fileno())

    def attempts(self, identity: str) -> list[Path]:
        """Folders of all attempts, the oldest first."""
        told = [entry.get("folder") for entry in entries(self.folder / f"{identity}.jsonl")]
        return list(dict.fromkeys(self.outputs / folder for folder in told if is_name(folder)))

    def recorded(self, identity: str) -> tuple[Path, Recorded] | None:
        """The measurement of this identity that counts, and its file, the newest of several; None where there is
        none."""
        for folder in reversed(self.attempts(identity)):
            for path in reversed(runs_in(folder)):
                with contextlib.suppress(UserError):  # no record, or one of another version
                    record = load_record(path)
                    if record.identity == identity and record.problem() is None:
                        return path, record
        return None


def folders_told(outputs: Path) -> set[Path]:
    """All folders in which a job or a sweep of these outputs has put something, wherever they are."""
    told = set()
    for path in [*(outputs / FOLDER).glob("*.jsonl"), *(outputs / SWEEPS).glob("*.json")]:
        for entry in entries(path):
            folders = (entry.get(name) for name in ("folder", "sweep", "call"))
            told |= {(outputs / folder).resolve() for folder in folders if is_name(folder)}
    return {folder for folder in told if folder.is_dir()}


def entries(path: Path) -> list[dict[str, Any]]:
    """Objects of the file's lines that are one each: others were cut off, or are nothing of ours."""
    try:
        lines = read_text(path, MAX_JSON_BYTES).splitlines()
    except InputError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def is_name(value: Any) -> TypeGuard[str]:
    """Whether it can be a folder's."""
    return isinstance(value, str) and value != "" and "\0" not in value


@contextlib.contextmanager
def hold(path: Path, whom: str) -> Iterator[None]:
    """Holds the lock of a file, which ends with the process that holds it, however that ends.

    Args:
        whom: who may be waited for; said if so.
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
    """Whether some process holds the lock of a file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
