"""The errors that a user can cause. Each names the field, the value and the choices."""

import errno
import traceback
from collections.abc import Iterable
from enum import Enum

from gptbench.base.redaction import redacted


def printable(text: str) -> str:
    """The text with everything that a terminal could act on, or not show, as Python's escapes: `\\x1b`, `\\n`."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(number: int, thing: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
"""What an operating system says of a full, read-only or broken disk, and of a folder of somebody else's."""


def is_unwritable(error: BaseException) -> bool:
    """Whether it is about a place where nothing can be written: none of ours, and told in a line."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


class UserError(ValueError):
    """A mistake the user can put right: shown without a traceback, the exit code is 2.

    A message may quote a file that somebody else wrote: all but its line ends is made `printable`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(printable, str(message).split("\n"))))


class NotBegunError(Exception):
    """What went wrong before any job began, whatever it is: it is about what was asked for.

    Args:
        error: that.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def as_written(value: object) -> str:
    """A value as it is written in a configuration: choices by their names, `full` instead of `AttentionKind.full`."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list) and any(isinstance(entry, Enum) for entry in value):
        return f"[{', '.join(map(as_written, value))}]"
    return str(value)


class ConfigError(UserError):
    """A configuration field that holds a value it cannot have.

    Args:
        field: dotted path of the field, as it is written on the command line (``sampling.top_k``).
        value: what it holds.
        expected: what it could hold; joined by commas where it is a list of choices.
    """

    def __init__(self, field: str, value: object, expected: str | Iterable[object]) -> None:
        if not isinstance(expected, str):
            expected = "one of " + ", ".join(str(choice) for choice in expected)
        super().__init__(f"{redacted(f'{field}={as_written(value)}')}: expected {expected}")
        self.field, self.value, self.expected = field, value, expected


class FileError(UserError):
    """What is wrong with a file that somebody else wrote: one line, whatever its names hold."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class InputError(FileError):
    """A file that cannot be read, or does not hold what it should. Names the file and what is wrong with it."""


class DoesNotFitError(UserError):
    """A run that needs more memory than the device has."""


class CheckpointError(FileError):
    """A checkpoint that cannot be read, or does not hold what its model needs. Names the file, and the tensor."""


class BadResultError(RuntimeError):
    """A run that ended and was recorded, but whose numbers mean nothing: the exit code is 1."""


class JobError(RuntimeError):
    """A job that ended without a record of its own, or a sweep not all of whose jobs did well: the exit code is 1."""


class TrackingError(UserError):
    """A tracking server that cannot be reached, or refuses what it is sent."""


def first_line(error: object) -> str:
    """Of what an error says, or a text: libraries append pages of advice. One that says nothing is told by its type."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def in_one_line(error: BaseException) -> str:
    """Type and first line."""
    said = str(error).strip()
    return f"{type(error).__name__}: {first_line(said)}" if said else type(error).__name__


def raised(error: BaseException) -> str:
    """What was raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r} ({place.filename}:{place.lineno}, in {place.name})"
