"""`gptbench compare`: whether recorded runs are faster than others, by how much, and whether that is noise."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptbench.base.errors import UserError
from gptbench.commands import parsers
from gptbench.compare.comparison import Comparison, compare
from gptbench.compare.ratio import Verdict, in_words
from gptbench.compare.row import Row
from gptbench.compare.select import select
from gptbench.compare.starts import History, ProcessSpread
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Cell, Column, Table, show, write
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
    """`gptbench compare`: compares recorded runs A with recorded runs B. Returns the exit code.

    Raises:
        UserError: a side selects no record, or no run of A can be compared with a run of B.
    """
    options = parsers.compare().parse_args(arguments)
    sides = [select(side, options.outputs, options.uri, unread=warn_unread) for side in (options.a, options.b)]
    if both := {run.path.resolve() for run in sides[0]} & {run.path.resolve() for run in sides[1]}:
        raise UserError(f"{min(both)}: this record is in both A and B; a run cannot be compared with itself")
    comparison = compare(sides[0], sides[1], options.margin, History(options.outputs), options.even_if_busy)
    if options.format != TEXT:
        write(tables_of(comparison), options.format)
        return 0
    show_comparison(comparison)
    write_line(line_of(comparison))
    return 0


def warn_unread(why: str) -> None:
    """Warns of a file that was left out because it is not a readable record."""
    console.warn(f"left out: {why}")


def words(text: str) -> list[str]:
    """Return the overrides in one argument, split as a shell does."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text}: {error}") from error


def line_of(comparison: Comparison) -> dict[str, Any]:
    """Return the line of JSON for programs."""
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
    """Return one metric of the line of JSON."""
    return {
        "a": row.a,
        "b": row.b,
        "ratio": row.ratio.value,
        "low": row.ratio.low,
        "high": row.ratio.high,
        "verdict": row.verdict.value,
        "possible": {word.value: share for word, share in row.possible.items()},
        "of": row.basis,
        "starts": None if row.process_spread is None else str(row.process_spread),
    }


def show_comparison(comparison: Comparison) -> None:
    """Prints a table for each pair; for many pairs, a single one with the headline metric."""
    for key, (a, b) in comparison.differences.items():
        console.print(f"{key}: A {shortened(a)}, B {shortened(b)}", markup=False, style="dim")
    if len(comparison.pairs) <= MAX_TABLES:
        for pair in comparison.pairs:
            title = ", ".join(f"{key}={value}" for key, value in pair.key.items()) or "B beside A"
            show(table_of(title, [(row.heading, row) for row in pair.rows]))
    else:
        rows = [
            (" ".join(f"{key.rpartition('.')[2]}={value}" for key, value in pair.key.items()), row)
            for pair in comparison.pairs
            for row in pair.rows
            if row.name == HEADLINE
        ]
        show(table_of("decode tokens/s, B beside A", rows))
    if spread := spread_text((row.label, row.process_spread) for pair in comparison.pairs for row in pair.rows):
        note = f"one run per side: intervals include process-to-process variance: {spread}; more runs narrow them"
        console.print(note, markup=False, style="dim")
    if (row := comparison.overall) is not None:
        console.print(f"all {row.basis}: {sentence(row)}", markup=False, style="bold")
    for remark in comparison.remarks:
        console.warn(remark)
    for line in busy_lines(comparison):
        console.warn(line, "bold yellow")
    for found, why in comparison.left_out:
        console.warn(f"left out: {found.path}: {why}")


def spread_text(spreads: Iterable[tuple[str, ProcessSpread | None]]) -> str:
    """Return the process-to-process variance by metric, or once if it is the same for all: `decode 0.21%, TTFT 1.2% (8
    recorded starts …)`; empty if no interval was widened by it.

    Args:
        spreads: label and spread of each metric.
    """
    by_source: dict[str, dict[str, str]] = {}
    for label, spread in spreads:
        if spread is not None:
            by_source.setdefault(spread.source, {}).setdefault(label, f"{spread.value:.2%}")
    texts = []
    for source, values in by_source.items():
        same = set(values.values())
        shown = same.pop() if len(same) == 1 else ", ".join(f"{label} {value}" for label, value in values.items())
        texts.append(f"{shown} ({source})")
    return "; ".join(texts)


MAX_TABLES = 4
"""Largest number of pairs with a table each; more pairs share one table with a row for each."""
MAX_VALUE_CHARACTERS = 80
"""Number of characters of a configuration's value that are shown."""


def shortened(text: str) -> str:
    """Return the text, cut to `MAX_VALUE_CHARACTERS`."""
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}…"


def table_of(title: str, rows: Sequence[tuple[str, Row]], key: Mapping[str, str] | None = None) -> Table:
    """Return a table of a comparison, with one row per metric.

    Args:
        rows: heading and content of each row.
        key: fields that distinguish the pair from others, as columns for programs.
    """
    key = key or {}
    columns = [
        *(Column(name) for name in key),
        Column("metric", "metric"),
        Column("a", "A", True),
        Column("b", "B", True),
        Column("ratio", "B / A", True),
        Column(head="95% interval", right=True),
        Column("low"),
        Column("high"),
        Column("verdict", "verdict"),
        Column("of", "of"),
        Column("starts"),
    ]
    cells = [
        [
            *key.values(),
            Cell(name, row.name),
            Cell(row.metric.text(row.a), row.a),
            Cell(row.metric.text(row.b), row.b),
            Cell(f"{row.ratio.value:.4f}", row.ratio.value),
            interval(row),
            row.ratio.low,
            row.ratio.high,
            Cell(row.verdict_text, row.verdict.value, COLOUR.get(row.verdict)),
            row.basis,
            None if row.process_spread is None else str(row.process_spread),
        ]
        for name, row in rows
    ]
    return Table("metrics", columns, cells, title)


def tables_of(comparison: Comparison) -> list[Table]:
    """Return a table for each pair; the last one has the differences between the sides and all remarks as notes."""
    keys = list(dict.fromkeys(name for pair in comparison.pairs for name in pair.key))
    tables = [
        table_of(
            ", ".join(f"{name}={value}" for name, value in pair.key.items()),
            [(row.heading, row) for row in pair.rows],
            {name: pair.key.get(name, "") for name in keys},
        )
        for pair in comparison.pairs
    ]
    notes = [f"{key}: A {shortened(a)}, B {shortened(b)}" for key, (a, b) in comparison.differences.items()]
    if comparison.overall is not None:
        notes.insert(0, f"all {comparison.overall.basis}: {sentence(comparison.overall)}")
    notes += [*comparison.remarks, *busy_lines(comparison)]
    notes += [*(f"left out: {found.path}: {why}" for found, why in comparison.left_out)]
    return [*tables[:-1], replace(tables[-1], notes=notes)]


def interval(row: Row) -> str:
    """Return the confidence interval of a ratio as text; empty if there is none."""
    if row.ratio.low is None or row.ratio.high is None:
        return ""
    return f"{row.ratio.low:.4f} … {row.ratio.high:.4f}"


def busy_lines(comparison: Comparison) -> list[str]:
    """Return a line for each run that was measured on a busy machine, and one for the verdicts withheld because of
    it."""
    lines = [f"{found.path}: {why}" for found, why in comparison.busy]
    withheld = [row for pair in comparison.pairs for row in pair.rows if row.verdict is Verdict.busy]
    if withheld:
        kinds = " and ".join(dict.fromkeys(row.metric.kind.noun for row in withheld if row.metric.kind is not None))
        lines.append(f"no verdict on {kinds}: measure again, or use --even-if-busy")
    return lines


def sentence(row: Row) -> str:
    """Return the verdict in words: B is 1.9% slower (1.7% to 2.1%), or within noise, or undecided."""
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
    """Return a ratio as a signed change in percent."""
    return f"{ratio - 1:+.2%}"
