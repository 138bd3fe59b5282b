"""Reads files that somebody else wrote, whatever they are: never without end, and never with a traceback.

A FIFO, a device, a sparse file of a terabyte, text in another encoding, JSON that nests ten thousand levels deep: each
is an `InputError` that names the file and what is wrong with it. Everything that gptbench reads and did not just write
itself (prompts, checkpoints' JSON, tokenizers, records, baselines, cache files) goes through here.
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
"""Larger than any record or tokenizer that was seen; smaller than what takes all memory when parsed."""

LFS_POINTER = b"version https://git-lfs"
"""How a pointer of Git LFS begins: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""


MAX_YAML_BYTES = 2**20
MAX_YAML_VALUES = 20_000
"""Of a file, keys included: thirty times those of the largest baseline that comes with it; it loads in seconds."""
MAX_YAML_DEPTH = 50
"""Levels; a configuration has five."""


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Opens a regular file for reading; symbolic links are followed.

    Args:
        max_bytes: size in bytes above which the file is refused; None for no limit.

    Raises:
        InputError: the file is missing, unreadable, not a regular file, or larger than `max_bytes`.
    """
    try:
        # Opening a FIFO for reading would wait for a writer, for ever; O_NONBLOCK returns at once.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    file = os.fdopen(descriptor, "rb") if not stat.S_ISDIR(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise InputError(f"{path}: a folder, and a file was expected")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise InputError(f"{path}: not a regular file (a FIFO, socket or device), which could be without end")
    if max_bytes is not None and status.st_size > max_bytes:
        file.close()
        raise InputError(f"{path}: {status.st_size:,} bytes, and at most {max_bytes:,} are read")
    return file


def refuse_pointer(path: Path, head: bytes) -> None:
    """Raises InputError where a file begins as what `git clone` without Git LFS leaves in a large file's place."""
    if head.startswith(LFS_POINTER):
        raise InputError(f"{path}: a Git LFS pointer in the place of the file, which `git lfs pull` downloads")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file.

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
        raise InputError(f"{path}: more than {max_bytes:,} bytes, the most that are read")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a regular file in UTF-8, without a byte order mark; line ends stay as they are.

    Raises:
        InputError: see `read_bytes`; or the file is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 (byte {error.start})") from error


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a regular JSON file.

    Raises:
        InputError: see `read_text`; or the file is not JSON, nests too deeply, or holds an integer of too many digits.
    """
    text = read_text(path, max_bytes)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{path}: JSON that nests too deeply") from error
    except ValueError as error:  # a JSONDecodeError, or an integer of more digits than Python converts
        raise InputError(f"{path}: not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file whose loss does no harm: empty where there is none that can be read."""
    try:
        value = read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def is_finite_number(value: object) -> bool:
    """Whether a value read from JSON is a number, and neither NaN nor infinite; a bool is no number."""
    # Compared, as math.isfinite raises OverflowError for an integer of 400 digits.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def require_bounded_yaml(text: str, source: str) -> None:
    """Refuses YAML that is little to read and endless to expand, by its aliases, or that nests too deeply to be read.
    What is no YAML passes: whoever loads it says what is wrong.

    Args:
        source: what it is of, for the message.

    Raises:
        InputError: with what it would become.
    """
    sizes: dict[str, int] = {}
    """Of what an anchor names: values and keys, expanded."""
    inside: list[tuple[str | None, int]] = [(None, 0)]
    """Of lists and mappings that have begun: anchor, and what is in them so far."""
    with contextlib.suppress(yaml.YAMLError):
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            size = 0
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append((event.anchor, 1))
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in inside):
                    raise InputError(f"{source}: *{event.anchor} is within &{event.anchor}: YAML without end")
                size = sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
            elif isinstance(event, yaml.CollectionEndEvent):
                own, size = inside.pop()
                if own is not None:
                    sizes[own] = size
            if isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
                sizes[event.anchor] = 1
            anchor, before = inside[-1]
            inside[-1] = (anchor, before + size)
            if before + size > MAX_YAML_VALUES:
                raise InputError(f"{source}: YAML of over {MAX_YAML_VALUES:,} values, with what its aliases repeat")
            if len(inside) > MAX_YAML_DEPTH:
                raise InputError(f"{source}: YAML that nests more than {MAX_YAML_DEPTH} levels deep")


def yaml_fault(error: yaml.YAMLError) -> str:
    """Where a YAML text cannot be read, and why, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    return f"{where}no YAML: {problem or str(error).splitlines()[0]}"


def read_yaml(path: Path) -> str:
    """The text of a regular YAML file that is not too much to load.

    Raises:
        InputError: see `read_text` and `require_bounded_yaml`.
    """
    text = read_text(path, MAX_YAML_BYTES)
    require_bounded_yaml(text, str(path))
    return text
