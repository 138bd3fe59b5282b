"""Writes files: each as a whole or not at all, and without secrets (see `gptbench.redaction`)."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptbench.redaction import redacted, redacted_text

TEXTS = (".json", ".yaml", ".csv", ".txt", ".html", ".md")
"""Ends of the names of files that hold text."""


@contextlib.contextmanager
def whole_file(folder: Path, text: str) -> Iterator[Path]:
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


def write_whole(path: Path, text: str) -> None:
    """Writes a file, or replaces it: all of it or nothing."""
    with whole_file(path.parent, text) as new:
        new.replace(path)


def as_json(value: Any, **options: Any) -> str:
    """Plain data without secrets."""
    return json.dumps(redacted(value), **{"indent": 1, **options})


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes plain data, or replaces what is there."""
    write_whole(path, as_json(value, **options))


def redact_files(folder: Path) -> None:
    """Takes secrets out of the texts in a folder, and in those within it, in place."""
    for file in folder.rglob("*"):
        if file.suffix in TEXTS and file.is_file() and not file.is_symlink():
            text = file.read_text(encoding="utf-8")
            if (without := redacted_text(text)) != text:
                file.write_text(without, encoding="utf-8")
