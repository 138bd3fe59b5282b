"""Tables, and the formats in which they are written: for people on stderr, or as Markdown, CSV or JSON on stdout.

A column of a table has a key, a heading or both. People and Markdown get the columns with headings, with numbers in the
unit that is shown; CSV and JSON get those with keys, with values as they are recorded, in base units and all digits.
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
"""The format of tables on stderr; those of all others go to stdout."""


@dataclass(frozen=True)
class Cell:
    """What is shown in one way and recorded in another."""

    text: str
    """For people and Markdown."""
    value: Any = None
    """For CSV and JSON."""
    style: str | None = None
    """Rich's name of the colour in which people see it."""


def scaled(value: float | None, factor: float) -> Cell:
    """A value as it is recorded, and times a factor as people read it."""
    return Cell("" if value is None else number(value * factor), value)


@dataclass(frozen=True)
class Column:
    """A column; what a row has there is text, a number, None or a `Cell`."""

    key: str = ""
    """Name in CSV and JSON; empty where they do not have the column."""
    head: str = ""
    """Heading for people and Markdown; empty where they do not have the column."""
    right: bool = False
    """Whether it is aligned at the right, as numbers are."""
    metric: Metric | None = None
    """The metric whose recorded values it has, which are shown in its unit; None for any others."""
    wraps: bool = False
    """Whether a terminal that is too narrow for the table shows it in several lines."""
    under: str = ""
    """Key of an object within a row's JSON that holds the values which a row has; empty for the row itself."""

    @classmethod
    def of(cls, metric: Metric, under: str = "") -> "Column":
        """The column of a metric's recorded values."""
        return cls(metric.name, metric.heading, True, metric, under=under)

    def text(self, value: Any) -> str:
        """What people read of a value."""
        if isinstance(value, Cell):
            return value.text
        if self.metric is not None:
            return self.metric.text(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "" if value is None else number(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """Columns and rows of one table."""

    name: str
    """Key of the table in JSON, where several tables with different columns are written."""
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    """A value for each column."""
    title: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    """What people read below it, in lines."""
    totals: int = 0
    """Rows at the end that a line sets apart from the others."""
    objects: Sequence[str] = field(default_factory=tuple)
    """Keys of objects that each row's JSON has, empty ones included; see `Column.under`."""

    @property
    def seen(self) -> list[int]:
        """Places of the columns for people."""
        return [place for place, column in enumerate(self.columns) if column.head]

    @property
    def keyed(self) -> list[int]:
        """Places of the columns for programs."""
        return [place for place, column in enumerate(self.columns) if column.key]

    @property
    def head(self) -> list[str]:
        """Headings for people."""
        return [self.columns[place].head for place in self.seen]

    @property
    def numbers(self) -> list[int]:
        """Places among the headings whose columns are aligned at the right."""
        return [number for number, place in enumerate(self.seen) if self.columns[place].right]

    @property
    def lines(self) -> list[list[str]]:
        """Rows for people."""
        return [[self.columns[place].text(row[place]) for place in self.seen] for row in self.rows]

    @property
    def keys(self) -> list[str]:
        """Names of the columns for programs."""
        return [self.columns[place].key for place in self.keyed]

    def records(self) -> list[dict[str, Any]]:
        """Rows for programs, each an object."""
        return [self.record(row) for row in self.rows]

    def record(self, row: Sequence[Any]) -> dict[str, Any]:
        """One row for programs."""
        objects: dict[str, dict[str, Any]] = {name: {} for name in self.objects}
        found: dict[str, Any] = {}
        for place in self.keyed:
            column, value = self.columns[place], recorded(row[place])
            if not column.under:
                found[column.key] = value
            elif value is not None:
                objects[column.under][column.key] = value
        return found | objects


def recorded(value: Any) -> Any:
    """What programs get of a value."""
    return value.value if isinstance(value, Cell) else value


def write(tables: Sequence[Table], to: str) -> None:
    """Writes tables in a format: `text` to stderr, every other to stdout."""
    if to == TEXT:
        for table in tables:
            show(table)
        return
    console.file.flush()
    sys.stdout.write(rendered(tables, to))
    sys.stdout.flush()


def rendered(tables: Sequence[Table], to: str) -> str:
    """Tables as `md`, `csv` or `json`."""
    return {"md": markdown, "csv": as_csv, "json": json_rows}[to](tables)


def show(table: Table) -> None:
    """A table on the terminal, and its notes below."""
    made = rich.Table(title=escape(table.title) or None, title_justify="left")
    for place in table.seen:
        column = table.columns[place]
        made.add_column(escape(column.head), justify="right" if column.right else "left", no_wrap=not column.wraps)
    for number_, row in enumerate(table.rows):
        if table.totals and number_ == len(table.rows) - table.totals:
            made.add_section()
        made.add_row(*(styled(table.columns[place], row[place]) for place in table.seen))
    print_whole(made, fits=console.is_terminal and any(column.wraps for column in table.columns))
    for note in table.notes:
        console.print(note, markup=False, style="dim")


def styled(column: Column, value: Any) -> str:
    """One line of a value's text, with its colour as Rich has it."""
    text = escape(next(iter(column.text(value).splitlines()), ""))
    return f"[{value.style}]{text}[/]" if isinstance(value, Cell) and value.style else text


def markdown(tables: Sequence[Table]) -> str:
    """Tables of GitHub's Markdown, each with its title above and its notes below."""
    parts = []
    for table in tables:
        text = f"**{cell(table.title)}**\n\n" if table.title else ""
        text += markdown_table([table.head, *table.lines], table.numbers)
        parts.append(text + "".join(f"\n{' '.join(note.split())}\n" for note in table.notes))
    return "\n".join(parts)


def as_csv(tables: Sequence[Table]) -> str:
    """Rows under one head, or where columns differ, each table under its own with an empty line between."""
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
    """A value as CSV has it: with all digits, and empty where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def json_rows(tables: Sequence[Table]) -> str:
    """A list with an object for each row; of several tables with different columns an object of lists, by their
    names."""
    alike = len({tuple(table.keys) for table in tables}) <= 1
    found: Any = {table.name: table.records() for table in tables}
    if alike:
        found = [row for table in tables for row in table.records()]
    return as_json(finite(found), indent=1, allow_nan=False) + "\n"


def markdown_table(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table of GitHub's Markdown: the first line is its head, columns in `right` are aligned at the right."""
    rule = ["--:" if column in right else "---" for column in range(len(lines[0]))]
    rows = [lines[0], rule, *lines[1:]]
    return "".join(f"| {' | '.join(cell(value) for value in row)} |\n" for row in rows)


def cell(value: str) -> str:
    """Text that cannot leave its cell."""
    return " ".join(value.split()).replace("\\", "\\\\").replace("|", "\\|")
