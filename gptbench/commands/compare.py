"""`gptbench compare`: are recorded runs faster than others, by how much, and is it noise. And how that is shown."""

import shlex
import sys
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from gptbench.base.errors import UserError
from gptbench.commands import parsers
from gptbench.compare.comparison import Comparison, compare
from gptbench.compare.ratio import Verdict, in_words
from gptbench.compare.row import Row
from gptbench.compare.select import select
from gptbench.compare.starts import History, StartSpread
from gptbench.present.console import console, print_whole, write_line
from gptbench.present.formats import markdown_table
from gptbench.schema.metrics import HEADLINE

COLOUR = {
    Verdict.faster: "green",
    Verdict.better: "green",
    Verdict.less: "green",
    Verdict.slower: "red",
    Verdict.worse: "red",
    Verdict.more: "red",
    Verdict.undecided: "yellow",
    Verdict.busy: "yellow",
}


def compare_command(arguments: list[str]) -> int:
    """`gptbench compare`: recorded runs A beside recorded runs B. Returns the exit code.

    Raises:
        UserError: a side means no record, or nothing of A can be compared with anything of B.
    """
    options = parsers.compare().parse_args(arguments)
    sides = [select(side, options.outputs, options.uri, unread=tell_unread) for side in (options.a, options.b)]
    if both := {each.path.resolve() for each in sides[0]} & {each.path.resolve() for each in sides[1]}:
        raise UserError(f"{min(both)}: it is in A and in B, and nothing is to be learnt from comparing it with itself")
    comparison = compare(sides[0], sides[1], options.margin, History(options.outputs), options.even_if_busy)
    if options.format == "md":
        sys.stdout.write(markdown_of(comparison))
        sys.stdout.flush()
        return 0
    show_comparison(comparison)
    write_line(line_of(comparison))
    return 0


def tell_unread(why: str) -> None:
    """Of a file that should be a record."""
    console.warn(f"left out: {why}")


def words(text: str) -> list[str]:
    """Overrides in one argument."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text}: {error}") from error


def line_of(comparison: Comparison) -> dict[str, Any]:
    pairs = [
        {
            "key": pair.key,
            "a": [str(found.path) for found in pair.a],
            "b": [str(found.path) for found in pair.b],
            "metrics": {row.name: row_line(row) for row in pair.rows},
        }
        for pair in comparison.pairs
    ]
    return {
        "pairs": pairs,
        "overall": None if comparison.overall is None else row_line(comparison.overall),
        "differences": comparison.differences,
        "remarks": comparison.remarks,
        "busy": busy_lines(comparison),
        "left_out": [[str(found.path), why] for found, why in comparison.left_out],
    }


def row_line(row: Row) -> dict[str, Any]:
    return {
        "a": row.a,
        "b": row.b,
        "ratio": row.ratio.value,
        "low": row.ratio.low,
        "high": row.ratio.high,
        "verdict": row.verdict.value,
        "possible": {word.value: share for word, share in row.possible.items()},
        "of": row.of,
        "starts": None if row.starts is None else str(row.starts),
    }


def show_comparison(comparison: Comparison) -> None:
    """A table for each pair; of many pairs one, with the metric that decides."""
    for key, (a, b) in comparison.differences.items():
        console.print(f"{key}: A {shortened(a)}, B {shortened(b)}", markup=False, style="dim")
    if len(comparison.pairs) <= MOST_TABLES:
        for pair in comparison.pairs:
            title = ", ".join(f"{key}={value}" for key, value in pair.key.items()) or "B beside A"
            print_whole(table_of(title, [(row.label, row) for row in pair.rows]))
    else:
        rows = [
            (" ".join(f"{key.rpartition('.')[2]}={value}" for key, value in pair.key.items()), row)
            for pair in comparison.pairs
            for row in pair.rows
            if row.name == HEADLINE
        ]
        print_whole(table_of("decode tokens/s, B beside A", rows))
    if told := starts_told((row.label, row.starts) for pair in comparison.pairs for row in pair.rows):
        told = f"one start each: intervals are widened by what starts differ by: {told}; several runs a side tell more"
        console.print(told, markup=False, style="dim")
    if (row := comparison.overall) is not None:
        console.print(f"all {row.of}: {sentence(row)}", markup=False, style="bold")
    for remark in comparison.remarks:
        console.warn(remark)
    for line in busy_lines(comparison):
        console.warn(line, "bold yellow")
    for found, why in comparison.left_out:
        console.warn(f"left out: {found.path}: {why}")


def starts_told(of: Iterable[tuple[str, StartSpread | None]]) -> str:
    """What single starts differ by, of each metric, or of all where it is the same: `decode 0.21%, TTFT 1.2% (8
    recorded starts …)`; empty where nothing was widened by it."""
    by_source: dict[str, dict[str, str]] = {}
    for label, starts in of:
        if starts is not None:
            by_source.setdefault(starts.source, {}).setdefault(label, f"{starts.value:.2%}")
    told = []
    for source, values in by_source.items():
        same = set(values.values())
        shown = same.pop() if len(same) == 1 else ", ".join(f"{label} {value}" for label, value in values.items())
        told.append(f"{shown} ({source})")
    return "; ".join(told)


MOST_TABLES = 4
"""Of more pairs, one table with a line for each."""
MOST_CHARACTERS = 80


def shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def table_of(title: str, rows: list[tuple[str, Row]]) -> Table:
    """A row of it for each of a comparison."""
    table = Table(title=escape(title), title_justify="left")
    for name in ("metric", "mean of A", "mean of B"):  # geometric
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    table.add_column("unit")
    for name in ("B / A", "95% interval", "verdict", "of"):
        table.add_column(name, justify="right" if name in ("B / A", "95% interval") else "left", no_wrap=True)
    for name, row in rows:
        told = row.told
        colour = COLOUR.get(row.verdict)
        table.add_row(
            escape(name),
            row.metric.text(row.a),
            row.metric.text(row.b),
            row.metric.unit,
            f"{row.ratio.value:.4f}",
            interval(row),
            f"[{colour}]{told}[/]" if colour else told,
            row.of,
        )
    return table


def markdown_of(comparison: Comparison) -> str:
    """A comparison as Markdown: a table for each pair, what differs between the sides, and every remark."""
    parts = []
    for pair in comparison.pairs:
        lines = [["metric", "A", "B", "B / A", "95% interval", "verdict", "of"]]
        for row in pair.rows:
            numbers = [row.metric.text(row.a), row.metric.text(row.b), f"{row.ratio.value:.4f}"]
            lines.append([row.heading, *numbers, interval(row), row.told, row.of])
        title = ", ".join(f"{key}={value}" for key, value in pair.key.items())
        parts.append((f"**{title}**\n\n" if title else "") + markdown_table(lines, right=range(1, 5)))
    if comparison.overall is not None:
        parts.append(f"All {comparison.overall.of}: {sentence(comparison.overall)}\n")
    notes = [f"{key}: A {shortened(a)}, B {shortened(b)}" for key, (a, b) in comparison.differences.items()]
    notes += [*comparison.remarks, *busy_lines(comparison)]
    notes += [*(f"left out: {found.path}: {why}" for found, why in comparison.left_out)]
    if notes:
        parts.append("".join(f"- {' '.join(note.split())}\n" for note in notes))
    return "\n".join(parts)


def interval(row: Row) -> str:
    if row.ratio.low is None or row.ratio.high is None:
        return ""
    return f"{row.ratio.low:.4f} … {row.ratio.high:.4f}"


def busy_lines(comparison: Comparison) -> list[str]:
    """Which runs are from a busy machine, and what that means here."""
    lines = [f"{found.path}: {why}" for found, why in comparison.busy]
    withheld = [row for pair in comparison.pairs for row in pair.rows if row.verdict is Verdict.busy]
    if withheld:
        kinds = " and ".join(dict.fromkeys(row.metric.kind.noun for row in withheld if row.metric.kind is not None))
        lines.append(f"no verdict on {kinds}: measure again, or give --even-if-busy")
    return lines


def sentence(row: Row) -> str:
    """B is 1.9% slower (1.7% to 2.1%), or within noise, or undecided."""
    ratio = row.ratio
    if row.verdict is Verdict.busy:
        return f"no verdict, measured on a busy machine: B / A is {signed(ratio.value)}"
    if row.verdict in (Verdict.noise, Verdict.undecided) and ratio.low is not None and ratio.high is not None:
        interval = f"{signed(ratio.value)} ({signed(ratio.low)} to {signed(ratio.high)})"
        if row.verdict is Verdict.noise:
            return f"B is within noise of A: {interval}"
        return f"undecided: B / A is {interval}; up to {in_words(row.possible)} is possible"
    if ratio.low is None or ratio.high is None:
        return f"B / A = {ratio.value:.4f}, one value each"
    low, high = sorted((abs(ratio.low - 1), abs(ratio.high - 1)))
    return f"B is {abs(ratio.value - 1):.2%} {row.verdict.value} ({low:.2%} to {high:.2%})"


def signed(ratio: float) -> str:
    return f"{ratio - 1:+.2%}"
