"""Writes files: each as a whole or not at all, and without secrets (see `gptbench.base.redaction`)."""

import contextlib
import json
import os
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptbench.base.errors import ConfigError, UserError
from gptbench.base.redaction import redacted, redacted_text

TEXTS = (".json", ".yaml", ".csv", ".txt", ".html", ".md")
"""Ends of the names of files that hold text."""
HEAD_BYTES = 1000
"""Of a file, by which it is known."""


@contextlib.contextmanager
def atomic_file(folder: Path, text: str) -> Iterator[Path]:
    """A new file in the folder that holds the text and is on the disk; it is taken away afterwards. Linked or renamed
    to where it belongs, it is there as a whole or not at all, whenever the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{uuid.uuid4().hex}.new"
    try:
        with new.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redacted_text(text))
            file.flush()
            os.fsync(file.fileno())
        yield new
    finally:
        new.unlink(missing_ok=True)


def atomic_write(path: Path, text: str) -> None:
    """Writes a file, or replaces it: all of it or nothing."""
    with atomic_file(path.parent, text) as new:
        new.replace(path)


def as_json(value: Any, **options: Any) -> str:
    """Plain data without secrets."""
    return json.dumps(redacted(value), **{"indent": 1, **options})


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes plain data, or replaces what is there."""
    atomic_write(path, as_json(value, **options))


def redact_files(folder: Path) -> None:
    """Takes secrets out of the texts in a folder, and in those within it, in place."""
    for file in folder.rglob("*"):
        if file.suffix in TEXTS and file.is_file() and not file.is_symlink():
            text = file.read_text(encoding="utf-8")
            if (without := redacted_text(text)) != text:
                file.write_text(without, encoding="utf-8")


def try_folder(folder: Path) -> None:
    """Makes sure that files can be made in a folder, which need not be there yet, and leaves nothing behind.

    Raises:
        OSError: they cannot.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def check_folder(field: str, folder: str) -> None:
    """Raises ConfigError where a field names a folder in which nothing can be written."""
    try:
        try_folder(Path(folder).absolute())
    except OSError as error:
        raise ConfigError(field, folder, f"a folder that can be created ({error.strerror})") from error


def check_output(option: str, path: Path, is_ours: Callable[[str], bool]) -> None:
    """Asks, before any work is done, whether the file that an option names can be written by `write_output`.

    Args:
        is_ours: whether a file that is there already, and begins with that text, may be replaced.

    Raises:
        UserError: it cannot be, or holds something else.
    """
    try:
        kind = mode(path)
        if kind is None or stat.S_ISREG(kind):
            try_folder(path.resolve().parent)
        elif stat.S_ISDIR(kind) or stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
            named = "a folder" if stat.S_ISDIR(kind) else "a disk" if stat.S_ISBLK(kind) else "a socket"
            raise UserError(f"{option}={path}: expected a file, and this is {named}")
        elif not os.access(path, os.W_OK):
            raise PermissionError(0, "Permission denied")
        if kind is not None and stat.S_ISREG(kind) and stream_at(path) is None:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES).decode("utf-8", errors="replace")
            if head and not is_ours(head):
                raise UserError(
                    f"{option}={path}: expected a new file, or an earlier one of the same kind, and this is neither"
                )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, UserError):
            raise
        told = getattr(error, "strerror", None) or error
        raise UserError(f"{option}={path}: expected a file that can be written ({told})") from error


def write_output(option: str, path: Path, text: str) -> None:
    """Writes the file that an option names, and that `check_output` has passed: a regular one as a whole, where
    symbolic links lead; a device or a FIFO, which must stay what it is, in place.

    Raises:
        UserError: it cannot be written.
    """
    try:
        kind = mode(path)
        if (stream := stream_at(path)) is not None:  # with its own position
            sys.stdout.flush()
            with os.fdopen(os.dup(stream), "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(redacted_text(text))
        elif kind is None or stat.S_ISREG(kind):
            atomic_write(path.resolve(), text)
        else:
            with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(redacted_text(text))
    except OSError as error:
        raise UserError(f"{option}={path}: cannot be written ({error.strerror})") from error


def mode(path: Path) -> int | None:
    """Of what a path leads to; None where there is nothing. Raises OSError where that cannot be told."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def stream_at(path: Path) -> int | None:
    """Standard output or error, if a path such as /dev/stdout leads to where that goes."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(stream)):
                return stream
    return None
