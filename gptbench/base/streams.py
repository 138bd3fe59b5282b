"""Standard output and error whose writes neither raise nor steer the terminal, so that printing never stops a
measurement.

A stream may be closed, its reader may be gone (`| head -1`), its disk full, or its terminal closed, at any time and in
any code that prints: Rich, warnings, libraries, Python's flush at exit. Both streams are therefore replaced while
gptbench runs by ones that discard writes once a write has failed. Characters that would steer a terminal (such as
escape sequences in the name of a device) are written as text, `\\x1b`; secrets are hidden."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from gptbench.base.redaction import redacted_message

FORMATS = ("text", "md", "csv", "json")
"""Formats of tables: text goes to stderr, for people; the others replace the line of JSON on stdout."""
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 and C1, except tab and line ends), and characters that change the direction of text. A
carriage return stays, as libraries' progress bars use it."""


def visible(text: str) -> str:
    """Return the text with characters that could steer a terminal as Python escapes."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Lasting:
    """A text stream whose writes never raise.

    Args:
        under: the stream that it writes to. Once a write fails, the file descriptor is redirected to the null device,
            which also takes what is still buffered.
    """

    def __init__(self, under: TextIO) -> None:
        self.under = under
        self.failure: OSError | ValueError | None = None
        """The first error raised by a write; None so far."""

    def write(self, text: str) -> int:
        text = redacted_message(text)
        try:
            try:
                self.under.write(text)
            except UnicodeEncodeError:  # the encoding lacks a character, or half of a surrogate pair
                encoding = self.under.encoding or "ascii"
                self.under.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.under.flush()
        except (OSError, ValueError) as error:
            self.lose(error)

    def lose(self, error: OSError | ValueError) -> None:
        """Notes the error, and redirects the stream to the null device."""
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError):
            lead_nowhere(self.under.fileno())

    @property
    def lost_output(self) -> bool:
        """Whether output is missing that a reader still waits for; not if the reader itself is gone."""
        return isinstance(self.failure, OSError) and self.failure.errno not in (errno.EPIPE, errno.EIO, errno.EBADF)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.under, name)


class Plain(Lasting):
    """A `Lasting` stream for text from any source, which writes control characters as escapes.

    Attributes:
        steered: the stream for code that steers the terminal on purpose.
    """

    def __init__(self, under: TextIO) -> None:
        super().__init__(under)
        self.steered = Lasting(under)
        self.steered.lose = self.lose  # type: ignore[method-assign]

    def write(self, text: str) -> int:
        return super().write(visible(text))


@contextlib.contextmanager
def lasting() -> Iterator[Plain]:
    """Replaces standard output and error within the context, and flushes them at its end. Yields standard output."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, Plain) and isinstance(sys.stderr, Plain):
        yield sys.stdout
        return
    # Otherwise the next file that is opened would get a closed stream's descriptor, and receive what C code prints.
    for number in range(3):
        with contextlib.suppress(OSError):
            if is_closed(number):
                lead_nowhere(number)
    streams = [Plain(nowhere() if stream is None else stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def nowhere() -> TextIO:
    """Return a stream to the null device, in place of one that was closed when Python started."""
    return Path(os.devnull).open("w", encoding="utf-8")


def is_closed(number: int) -> bool:
    """Whether a file descriptor is closed."""
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def lead_nowhere(number: int) -> None:
    """Redirects a file descriptor to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


def outlive_terminal() -> None:
    """Keeps the process running when its terminal is closed; SIGHUP stays ignored if it already is, as under nohup."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)
