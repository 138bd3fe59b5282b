"""The errors that a user can cause. Each message names the field, the value and the choices."""

import errno
import traceback
from collections.abc import Iterable
from enum import Enum

from gptbench.base.redaction import redacted


def printable(text: str) -> str:
    """Return the text with every non-printable character, which might steer a terminal, as a Python escape: `\\x1b`,
    `\\n`."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: `1 run`, `2 runs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
"""Error numbers for a full, read-only or broken disk, and for missing permissions."""


def is_unwritable(error: BaseException) -> bool:
    """Whether an error means that a place cannot be written to; such errors are reported in one line, without a
    traceback."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


class UserError(ValueError):
    """A mistake that the user can correct: it is shown without a traceback, and the exit code is 2.

    A message may quote a file from an unknown source, so that everything but its line ends is made `printable`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(printable, str(message).split("\n"))))


class NotBegunError(Exception):
    """Any error that was raised before the first job began, and therefore concerns the command line.

    Args:
        error: the original error.
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
    """A configuration field with an invalid value.

    Args:
        field: dotted path of the field, as on the command line (``sampling.top_k``).
        value: the invalid value.
        expected: description of valid values, or a list of choices.
    """

    def __init__(self, field: str, value: object, expected: str | Iterable[object]) -> None:
        if not isinstance(expected, str):
            expected = "one of " + ", ".join(str(choice) for choice in expected)
        super().__init__(f"{redacted(f'{field}={as_written(value)}')}: expected {expected}")
        self.field, self.value, self.expected = field, value, expected


class FileError(UserError):
    """A problem with a file from an unknown source. The message is a single line, whatever the file contains."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class InputError(FileError):
    """A file that cannot be read or has invalid content. The message names the file and what is wrong with it."""


class DoesNotFitError(UserError):
    """A run that needs more memory than the device has available."""


class CheckpointError(FileError):
    """A checkpoint that cannot be read, or lacks what its model needs. The message names the file and the tensor."""


class BadResultError(RuntimeError):
    """A run that finished and was recorded, but whose results are invalid; the exit code is 1."""


class JobError(RuntimeError):
    """A job that ended without a record, or a sweep of which a job failed; the exit code is 1."""


class TrackingError(UserError):
    """A tracking server that cannot be reached, or that rejects a request."""


def first_line(error: object) -> str:
    """Return the first line of an error's message or of a text, as libraries append pages of advice; without a message,
    the repr."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def in_one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    message = str(error).strip()
    return f"{type(error).__name__}: {first_line(message)}" if message else type(error).__name__


def raised(error: BaseException) -> str:
    """Return the repr of an error, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r} ({place.filename}:{place.lineno}, in {place.name})"
