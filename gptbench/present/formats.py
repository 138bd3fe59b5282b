"""Tables, and the formats in which they are written: as text on stderr, or as Markdown, CSV or JSON on stdout.

A column has a key, a heading, or both. Text and Markdown contain the columns with headings, with numbers in the unit
shown; CSV and JSON contain those with keys, with values as recorded, in base units and with all digits.
"""

import csv
import io
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import table as rich
from rich.markup import escape

from gptbench.base.numbers import number
from gptbench.base.outputs import as_json
from gptbench.present.console import console, finite, print_whole
from gptbench.schema.metrics import Metric

TEXT = "text"
"""Format of tables on stderr; tables in all other formats go to stdout."""


@dataclass(frozen=True)
class Cell:
    """Value whose text for people differs from its value for programs."""

    text: str
    """Text for people and Markdown."""
    value: Any = None
    """Value for CSV and JSON."""
    style: str | None = None
    """Rich's style of the text on a terminal."""


def scaled(value: float | None, factor: float) -> Cell:
    """Return the cell of a recorded value that people read multiplied by a factor."""
    return Cell("" if value is None else number(value * factor), value)


@dataclass(frozen=True)
class Column:
    """Column of a table, whose values are text, numbers, None or `Cell`s."""

    key: str = ""
    """Name of the column in CSV and JSON; empty if they do not have it."""
    head: str = ""
    """Heading for people and Markdown; empty if they do not have the column."""
    right: bool = False
    """Whether the column is aligned to the right, as numbers are."""
    metric: Metric | None = None
    """Metric whose recorded values the column holds, and in whose unit they are shown; None for other values."""
    wraps: bool = False
    """Whether its text may wrap on a terminal that is too narrow for the table."""
    under: str = ""
    """Key of the object within a row's JSON that holds the value if there is one; empty for the row itself."""

    @classmethod
    def of(cls, metric: Metric, under: str = "") -> "Column":
        """Return the column of a metric's recorded values."""
        return cls(metric.name, metric.heading, True, metric, under=under)

    def text(self, value: Any) -> str:
        """Return the text of a value for people."""
        if isinstance(value, Cell):
            return value.text
        if self.metric is not None:
            return self.metric.text(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "" if value is None else number(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """Table with columns and rows."""

    name: str
    """Key of the table in JSON if several tables with different columns are written."""
    columns: Sequence[Column]
    """Columns in order."""
    rows: Sequence[Sequence[Any]]
    """Rows in order, each with a value for each column."""
    title: str = ""
    """Title for people; empty for none."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Lines below the table for people."""
    totals: int = 0
    """Number of rows at the end that are separated by a line."""
    objects: Sequence[str] = field(default_factory=tuple)
    """Keys of the objects that each row's JSON has, even if empty: see `Column.under`."""

    @property
    def seen(self) -> list[int]:
        """Indices of the columns for people."""
        return [place for place, column in enumerate(self.columns) if column.head]

    @property
    def keyed(self) -> list[int]:
        """Indices of the columns for programs."""
        return [place for place, column in enumerate(self.columns) if column.key]

    @property
    def head(self) -> list[str]:
        """Headings for people."""
        return [self.columns[place].head for place in self.seen]

    @property
    def numbers(self) -> list[int]:
        """Indices among the headings of the columns that are aligned to the right."""
        return [number for number, place in enumerate(self.seen) if self.columns[place].right]

    @property
    def lines(self) -> list[list[str]]:
        """Rows for people, as text."""
        return [[self.columns[place].text(row[place]) for place in self.seen] for row in self.rows]

    @property
    def keys(self) -> list[str]:
        """Names of the columns for programs."""
        return [self.columns[place].key for place in self.keyed]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows for programs, as objects."""
        return [self.record(row) for row in self.rows]

    def record(self, row: Sequence[Any]) -> dict[str, Any]:
        """Return one row for programs, as an object."""
        objects: dict[str, dict[str, Any]] = {name: {} for name in self.objects}
        fields: dict[str, Any] = {}
        for place in self.keyed:
            column, value = self.columns[place], recorded(row[place])
            if not column.under:
                fields[column.key] = value
            elif value is not None:
                objects[column.under][column.key] = value
        return fields | objects


def recorded(value: Any) -> Any:
    """Return a value for programs."""
    return value.value if isinstance(value, Cell) else value


def write(tables: Sequence[Table], to: str) -> None:
    """Write tables in a format: `text` to stderr, all others to stdout."""
    if to == TEXT:
        for table in tables:
            show(table)
        return
    console.file.flush()
    sys.stdout.write(rendered(tables, to))
    sys.stdout.flush()


def rendered(tables: Sequence[Table], to: str) -> str:
    """Return tables in the format `md`, `csv` or `json`."""
    return {"md": markdown, "csv": as_csv, "json": json_rows}[to](tables)


def show(table: Table) -> None:
    """Print a table with its notes on stderr."""
    rich_table = rich.Table(title=escape(table.title) or None, title_justify="left")
    for place in table.seen:
        column = table.columns[place]
        rich_table.add_column(
            escape(column.head), justify="right" if column.right else "left", no_wrap=not column.wraps
        )
    for number_, row in enumerate(table.rows):
        if table.totals and number_ == len(table.rows) - table.totals:
            rich_table.add_section()
        rich_table.add_row(*(styled(table.columns[place], row[place]) for place in table.seen))
    print_whole(rich_table, fits=console.is_terminal and any(column.wraps for column in table.columns))
    for note in table.notes:
        console.print(note, markup=False, style="dim")


def styled(column: Column, value: Any) -> str:
    """Return the first line of a value's text in Rich's markup, with its style."""
    text = escape(next(iter(column.text(value).splitlines()), ""))
    return f"[{value.style}]{text}[/]" if isinstance(value, Cell) and value.style else text


def markdown(tables: Sequence[Table]) -> str:
    """Return tables in GitHub's Markdown, each with its title above and its notes below."""
    parts = []
    for table in tables:
        text = f"**{cell(table.title)}**\n\n" if table.title else ""
        text += markdown_table([table.head, *table.lines], table.numbers)
        parts.append(text + "".join(f"\n{' '.join(note.split())}\n" for note in table.notes))
    return "\n".join(parts)


def as_csv(tables: Sequence[Table]) -> str:
    """Return tables as CSV: rows under one header, or if columns differ, each table under its own header, separated by
    an empty line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    last: list[str] | None = None
    for table in tables:
        if table.keys != last:
            text.write("" if last is None else "\n")
            writer.writerow(last := table.keys)
        places = table.keyed
        writer.writerows([in_csv(recorded(row[place])) for place in places] for row in table.rows)
    return text.getvalue()


def in_csv(value: Any) -> str:
    """Return a value as CSV has it: a number with all digits, None as empty text, lists and dicts as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple):
        return as_json(finite(value), indent=None, allow_nan=False)
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def json_rows(tables: Sequence[Table]) -> str:
    """Return tables as JSON: a list with an object for each row; for tables with different columns, an object of such
    lists by the tables' names."""
    alike = len({tuple(table.keys) for table in tables}) <= 1
    content: Any = {table.name: table.records() for table in tables}
    if alike:
        content = [row for table in tables for row in table.records()]
    return as_json(finite(content), indent=1, allow_nan=False) + "\n"


def markdown_table(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return a table in GitHub's Markdown.

    Args:
        lines: the header, and then the rows.
        right: indices of the columns that are aligned to the right.
    """
    rule = ["--:" if column in right else "---" for column in range(len(lines[0]))]
    rows = [lines[0], rule, *lines[1:]]
    return "".join(f"| {' | '.join(cell(value) for value in row)} |\n" for row in rows)


def cell(value: str) -> str:
    """Return text escaped so that it stays within its cell."""
    return " ".join(value.split()).replace("\\", "\\\\").replace("|", "\\|")
