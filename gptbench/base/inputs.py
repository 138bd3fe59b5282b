"""Reads files from unknown sources, in bounded time and memory and without tracebacks.

A FIFO, a device, a sparse file of a terabyte, text in another encoding, JSON nested ten thousand levels deep: each
raises an `InputError` that names the file and what is wrong with it. Every file that gptbench reads and did not just
write (prompts, checkpoints' JSON, tokenizers, records, baselines, cache files) is read by this module.
"""

import contextlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]

from gptbench.base.errors import InputError

MAX_JSON_BYTES = 256 * 2**20
"""Largest JSON file that is read, in bytes: more than any known record or tokenizer, and little enough to be parsed in
memory."""

LFS_POINTER = b"version https://git-lfs"
"""Beginning of a Git LFS pointer file: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""

MAX_YAML_BYTES = 2**20
"""Largest YAML file that is read, in bytes."""
MAX_YAML_VALUES = 20_000
"""Largest number of values in a YAML file, keys included: thirty times that of the largest shipped baseline; so many
load in seconds."""
MAX_YAML_DEPTH = 50
"""Largest number of nested levels; a configuration has five."""


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading; symbolic links are followed.

    Args:
        max_bytes: largest size of the file, in bytes; None for no limit.

    Raises:
        InputError: the file is missing, unreadable, not a regular file, or larger than `max_bytes`.
    """
    try:
        # Opening a FIFO for reading would wait for a writer; with O_NONBLOCK it returns at once.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    file = os.fdopen(descriptor, "rb") if not stat.S_ISDIR(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise InputError(f"{path}: expected a file, but this is a folder")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise InputError(f"{path}: not a regular file (a FIFO, socket or device), which might never end")
    if max_bytes is not None and status.st_size > max_bytes:
        file.close()
        raise InputError(f"{path}: {status.st_size:,} bytes, but at most {max_bytes:,} are read")
    return file


def refuse_pointer(path: Path, head: bytes) -> None:
    """Raises InputError for a Git LFS pointer, which `git clone` without Git LFS leaves in place of a large file."""
    if head.startswith(LFS_POINTER):
        raise InputError(f"{path}: a Git LFS pointer instead of the file itself, which `git lfs pull` downloads")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        InputError: see `open_regular` and `refuse_pointer`; or the file grew past `max_bytes` while it was read.
    """
    with open_regular(path, max_bytes) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
    refuse_pointer(path, content)
    if len(content) > max_bytes:
        raise InputError(f"{path}: more than {max_bytes:,} bytes, the largest size that is read")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a regular UTF-8 file without a byte order mark; line ends stay as they are.

    Raises:
        InputError: see `read_bytes`; or the file is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the value in a regular JSON file.

    Raises:
        InputError: see `read_text`; or the file is not JSON, is nested too deeply, or has an integer with too many
    digits."""
    text = read_text(path, max_bytes)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{path}: JSON that is nested too deeply") from error
    except ValueError as error:  # a JSONDecodeError, or an integer of more digits than Python converts
        raise InputError(f"{path}: not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in an optional JSON file; empty if the file is missing, unreadable or holds no object."""
    try:
        value = read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def is_finite_number(value: object) -> bool:
    """Whether a value read from JSON is a number, and neither a bool, NaN nor infinite."""
    # Not math.isfinite, which raises OverflowError for an integer of 400 digits.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def require_bounded_yaml(text: str, source: str) -> None:
    """Raises InputError for YAML whose aliases expand to too many values, or that is nested too deeply.

    Text that is not valid YAML passes, as loading it gives a better message.

    Args:
        source: name of the text's source, for the message.
    """
    sizes: dict[str, int] = {}
    """Anchors, mapped to the number of expanded values and keys that they stand for."""
    inside: list[tuple[str | None, int]] = [(None, 0)]
    """Anchor and number of values so far of each list and mapping that is still open."""
    with contextlib.suppress(yaml.YAMLError):
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            size = 0
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append((event.anchor, 1))
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in inside):
                    raise InputError(
                        f"{source}: *{event.anchor} is within &{event.anchor}, so that the YAML never ends"
                    )
                size = sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
            elif isinstance(event, yaml.CollectionEndEvent):
                closed, size = inside.pop()
                if closed is not None:
                    sizes[closed] = size
            if isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
                sizes[event.anchor] = 1
            anchor, before = inside[-1]
            inside[-1] = (anchor, before + size)
            if before + size > MAX_YAML_VALUES:
                raise InputError(
                    f"{source}: YAML of over {MAX_YAML_VALUES:,} values, including those that its aliases repeat"
                )
            if len(inside) > MAX_YAML_DEPTH:
                raise InputError(f"{source}: YAML that is nested more than {MAX_YAML_DEPTH} levels deep")


def yaml_fault(error: yaml.YAMLError) -> str:
    """Return in one line where a YAML text is invalid, and why."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    return f"{where}not valid YAML: {problem or str(error).splitlines()[0]}"


def read_yaml(path: Path) -> str:
    """Return the text of a regular YAML file of bounded size.

    Raises:
        InputError: see `read_text` and `require_bounded_yaml`.
    """
    text = read_text(path, MAX_YAML_BYTES)
    require_bounded_yaml(text, str(path))
    return text
