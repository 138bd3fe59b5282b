"""What people read, on stderr, and the one line of JSON for programs, on stdout."""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from gptbench.base.outputs import as_json
from gptbench.base.streams import Plain, visible


class PlainConsole(Console):
    """A console that shows what could steer a terminal as its escapes, wherever it comes from.

    Attributes:
        format: in which the tables of a run or a sweep are written: see `gptbench.present.formats`.
    """

    format = "text"

    @property
    def file(self) -> IO[str]:
        """Rich's own control codes go through as they are; see `gptbench.base.streams`."""
        file = super().file
        return cast(IO[str], file.steered) if isinstance(file, Plain) else file

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def warn(self, text: str, style: str = "yellow") -> None:
        """Says what went wrong, however quiet it is to be otherwise."""
        before, self.quiet = self.quiet, False
        try:
            self.print(text, style=style, markup=False)
        finally:
            self.quiet = before

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text.replace("\r", "\\r"))
            yield segment if shown == segment.text else Segment(shown, segment.style)


console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def print_whole(table: Table, fits: bool = False) -> None:
    """A table with all its columns, wider than the terminal if need be: a number that was cut is worse.

    Args:
        fits: whether columns that may have several lines are made as narrow as the terminal needs.
    """
    wide = console.measure(table, options=console.options.update(max_width=1000))
    table.width = max(wide.minimum, min(wide.maximum, console.width)) if fits else wide.maximum
    console.print(table)


def program(name: str) -> str:
    """What to type for a program of this Python's environment."""
    found, beside = shutil.which(name), Path(sys.executable).with_name(name)
    if found and Path(found) == beside:
        return name
    return near(beside) if beside.exists() else f"{near(Path(sys.executable))} -m {name}"


def near(path: Path) -> str:
    """A path as it is typed here."""
    path = path.absolute()
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


def write_line(line: dict[str, Any]) -> None:
    """The one line of JSON on stdout."""
    console.file.flush()
    sys.stdout.write(in_line(line))
    sys.stdout.flush()


def in_line(value: dict[str, Any]) -> str:
    """JSON for programs, with null for what is no number: JSON has neither NaN nor infinity."""
    return as_json(finite(value), indent=None, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same with None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
