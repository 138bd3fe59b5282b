"""Writes files atomically and without secrets (see `gptbench.base.redaction`)."""

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
"""Suffixes of files that hold text."""
HEAD_BYTES = 1000
"""Number of bytes at the beginning of a file by which its kind is recognised."""


@contextlib.contextmanager
def atomic_file(folder: Path, text: str) -> Iterator[Path]:
    """Yields a new file in the folder that holds the text and is flushed to disk; it is removed afterwards.

    Linked or renamed to its final place, it exists completely or not at all, even if the process is killed.
    """
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
    """Writes or replaces a file atomically."""
    with atomic_file(path.parent, text) as new:
        new.replace(path)


def as_json(value: Any, **options: Any) -> str:
    """Return plain data as JSON, without secrets."""
    return json.dumps(redacted(value), **{"indent": 1, **options})


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes plain data as JSON, atomically, replacing an existing file."""
    atomic_write(path, as_json(value, **options))


def redact_files(folder: Path) -> None:
    """Removes secrets from all text files below a folder, in place."""
    for file in folder.rglob("*"):
        if file.suffix in TEXTS and file.is_file() and not file.is_symlink():
            text = file.read_text(encoding="utf-8")
            if (redacted_content := redacted_text(text)) != text:
                file.write_text(redacted_content, encoding="utf-8")


def try_folder(folder: Path) -> None:
    """Checks that files can be created in a folder, which need not exist yet, and leaves nothing behind.

    Raises:
        OSError: they cannot be created.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


def check_folder(field: str, folder: str) -> None:
    """Raises ConfigError if a field names a folder that cannot be written to."""
    try:
        try_folder(Path(folder).absolute())
    except OSError as error:
        raise ConfigError(field, folder, f"a folder that can be created ({error.strerror})") from error


def check_output(option: str, path: Path, is_ours: Callable[[str], bool]) -> None:
    """Checks, before any work is done, that `write_output` can write the file that an option names.

    Args:
        is_ours: takes the beginning of an existing file, and returns whether it may be replaced.

    Raises:
        UserError: the file cannot be written, or exists and may not be replaced.
    """
    try:
        kind = mode(path)
        if kind is None or stat.S_ISREG(kind):
            try_folder(path.resolve().parent)
        elif stat.S_ISDIR(kind) or stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
            kind_name = "a folder" if stat.S_ISDIR(kind) else "a disk" if stat.S_ISBLK(kind) else "a socket"
            raise UserError(f"{option}={path}: expected a file, but this is {kind_name}")
        elif not os.access(path, os.W_OK):
            raise PermissionError(0, "Permission denied")
        if kind is not None and stat.S_ISREG(kind) and stream_at(path) is None:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES).decode("utf-8", errors="replace")
            if head and not is_ours(head):
                raise UserError(
                    f"{option}={path}: expected a new file, or an earlier one of the same kind, but this is neither"
                )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option}={path}: expected a file that can be written ({reason})") from error


def write_output(option: str, path: Path, text: str) -> None:
    """Writes the file that an option names, after `check_output`.

    A regular file, also behind symbolic links, is written atomically; a device or FIFO is written in place, as it must
    not be replaced.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        kind = mode(path)
        if (stream := stream_at(path)) is not None:  # shares the position of that stream
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
    """Return the st_mode of a path, or None if nothing exists there. Raises OSError if it cannot be read."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def stream_at(path: Path) -> int | None:
    """Return the descriptor of standard output or error if a path such as /dev/stdout leads to the same file, else
    None."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(stream)):
                return stream
    return None
