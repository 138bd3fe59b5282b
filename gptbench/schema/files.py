"""Record files: which kinds there are, and where they lie."""

from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError
from gptbench.schema.ab import AbResult
from gptbench.schema.failure import Failure
from gptbench.schema.kernels import KernelResult
from gptbench.schema.record import NOT_OURS, Recorded, read_record
from gptbench.schema.result import Result
from gptbench.schema.sweep import SweepRecord

KINDS: dict[str, type[Recorded]] = {kind.FILE: kind for kind in (Result, KernelResult, AbResult, Failure, SweepRecord)}
"""Kinds of records by name."""


def load_record(path: Path) -> Recorded:
    """Return the record in a file, of any kind.

    Raises:
        UserError: the file holds no known kind of record.
    """
    raw = read_record(path)
    if (kind := KINDS.get(kind_of(raw))) is None:
        raise UserError(f"{path}: {NOT_OURS}: kind={raw['kind']}: expected one of {', '.join(KINDS)}")
    return kind.of(raw, path)


def kind_of(raw: dict[str, Any]) -> str:
    """Return the kind that a file says it holds. Files of versions that did not say so are recognised by a field that
    no other kind had."""
    fields: dict[str, type[Recorded]] = {
        "kernels": KernelResult,
        "rounds": AbResult,
        "cause": Failure,
        "jobs": SweepRecord,
    }
    older = next((kind for name, kind in fields.items() if name in raw), Result)
    return str(raw.get("kind", older.FILE))


def runs_in(folder: Path) -> list[Path]:
    """Return the files of measurements in a folder."""
    return records_in(folder, *(kind for kind in KINDS.values() if kind.IS_RUN))


def records_in(folder: Path, *kinds: type[Recorded]) -> list[Path]:
    """Return the files of those kinds (or of all, if none is passed) directly in the folder, oldest first."""
    paths = [path for kind in kinds or KINDS.values() for path in folder.glob(f"{kind.FILE}*.json")]
    return sorted(paths, key=lambda path: (path.lstat().st_mtime_ns, path.name))  # a link may be dangling
