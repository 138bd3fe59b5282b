"""Output for people on stderr, and one line of JSON for programs on stdout."""

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
    """Console that escapes whatever could control the terminal, wherever it comes from.

    Attributes:
        format: format in which the tables of a run or a sweep are written: see `gptbench.present.formats`.
    """

    format = "text"

    @property
    def file(self) -> IO[str]:
        """Stream that Rich writes to, to which its own control codes pass unchanged: see `gptbench.base.streams`."""
        file = super().file
        return cast(IO[str], file.steered) if isinstance(file, Plain) else file

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def warn(self, text: str, style: str = "yellow") -> None:
        """Print a warning, even on a quiet console."""
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
    """Print a table with all its columns, wider than the terminal if necessary: a truncated number would be worse.

    Args:
        fits: whether columns that may wrap are narrowed to fit the terminal.
    """
    wide = console.measure(table, options=console.options.update(max_width=1000))
    table.width = max(wide.minimum, min(wide.maximum, console.width)) if fits else wide.maximum
    console.print(table)


def program(name: str) -> str:
    """Return what to type to run a program of this Python's environment."""
    on_path, beside = shutil.which(name), Path(sys.executable).with_name(name)
    if on_path and Path(on_path) == beside:
        return name
    return near(beside) if beside.exists() else f"{near(Path(sys.executable))} -m {name}"


def near(path: Path) -> str:
    """Return a path as it is typed in the current folder."""
    path = path.absolute()
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


def write_line(line: dict[str, Any]) -> None:
    """Write the one line of JSON to stdout."""
    console.file.flush()
    sys.stdout.write(in_line(line))
    sys.stdout.flush()


def in_line(value: dict[str, Any]) -> str:
    """Return a line of JSON, with null for NaN and infinity, which JSON does not have."""
    return as_json(finite(value), indent=None, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return a value with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
