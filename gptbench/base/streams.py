"""Standard output and error that can neither fail nor be steered: printing decides over no measurement.

A stream may be closed, its reader may be gone (`| head -1`), its disk full, or its terminal closed, at any time and in
whatever prints: rich, warnings, libraries, Python's own flush at its end. So both are replaced while gptbench runs, in
one place, by streams whose writes go nowhere once they fail. What would steer a terminal (escape sequences in the name
of a device, say) is written as text: `\\x1b`; secrets are not written at all.
"""

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
"""Of tables: text goes to stderr, for people; the others go to stdout in the place of the line of JSON."""
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that do something else than to appear: of C0 and C1 all but tab and line ends, and what turns the
direction of writing around. A carriage return stays: bars of libraries draw with it."""


def visible(text: str) -> str:
    """The text with characters that could steer a terminal as their escapes in Python."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Lasting:
    """A text stream whose writes never raise.

    Args:
        under: the stream that it writes to. Once that fails, its file descriptor leads to the null device, and so does
            what is still in its buffer.
    """

    def __init__(self, under: TextIO) -> None:
        self.under = under
        self.failure: OSError | ValueError | None = None
        """Why it could not be written first."""

    def write(self, text: str) -> int:
        text = redacted_message(text)
        try:
            try:
                self.under.write(text)
            except UnicodeEncodeError:  # of an encoding that has not all characters, or half of a surrogate pair
                encoding = self.under.encoding or "ascii"
                self.under.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
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
        """From now on it leads nowhere."""
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError):
            lead_nowhere(self.under.fileno())

    @property
    def lost_output(self) -> bool:
        """Whether somebody who waits for it did not get all: not where its reader has gone."""
        return isinstance(self.failure, OSError) and self.failure.errno not in (errno.EPIPE, errno.EIO, errno.EBADF)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.under, name)


class Plain(Lasting):
    """The same for text that anybody may have written.

    Attributes:
        steered: the stream for who means what steers the terminal.
    """

    def __init__(self, under: TextIO) -> None:
        super().__init__(under)
        self.steered = Lasting(under)
        self.steered.lose = self.lose  # type: ignore[method-assign]

    def write(self, text: str) -> int:
        return super().write(visible(text))


@contextlib.contextmanager
def lasting() -> Iterator[Plain]:
    """Replaces standard output and error for a while, and flushes them at its end. Gives standard output."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, Plain) and isinstance(sys.stderr, Plain):
        yield sys.stdout
        return
    # A file that is opened next would otherwise get the number of a stream that is closed, and what C code prints.
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
    """In place of a stream that Python found closed when it started."""
    return Path(os.devnull).open("w", encoding="utf-8")


def is_closed(number: int) -> bool:
    """Whether a file descriptor is."""
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def lead_nowhere(number: int) -> None:
    """Makes a file descriptor the null device's."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


def outlive_terminal() -> None:
    """A terminal that is closed ends no measurement; a SIGHUP that is ignored already, as under nohup, stays so."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)
