"""`gptbench gate`: fails if runs are worse than a baseline, and records baselines."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError, counted
from gptbench.base.outputs import check_output, write_output
from gptbench.base.redaction import redacted
from gptbench.commands import parsers
from gptbench.commands.compare import (
    COLOUR,
    spread_text,
    warn_unread,
    words,
)
from gptbench.compare.baseline import check_overrides, read_baseline
from gptbench.compare.gate import Check, Gate, gate, is_of_single_run
from gptbench.compare.recording import recorded_text
from gptbench.compare.select import SelectedRecord, select
from gptbench.compare.starts import History
from gptbench.config import BaselineConfig, load, plugins
from gptbench.config.commandline import prepared
from gptbench.config.grammar import quoted
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Cell, Column, Table, show, write
from gptbench.schema.metrics import KINDS, metric_of


def gate_command(arguments: list[str]) -> int:
    """`gptbench gate`: compares runs with a baseline, or records one. Returns the exit code: see `EXIT_CODES`.

    Raises:
        UserError: the baseline is invalid or from another device, the runs cannot make a baseline, or nothing can be
            measured here.
        NotMeasuredError: a run that was to be recorded failed.
    """
    parser = parsers.gate()
    options = parser.parse_intermixed_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats}: expected a number of at least 1")
    if options.repeats > 1 and options.runs:
        parser.error("--repeats applies to runs that are measured, not to recorded runs")
    if unknown := [kind for kind, _ in options.margin if kind not in KINDS]:
        parser.error(f"--margin={unknown[0]}: expected one of {', '.join(KINDS)} before the share")
    check_overrides("--set", options.set)
    more = list(options.set)
    if options.outputs != parser.get_default("outputs"):
        more.append(f"outputs={quoted(str(options.outputs))}")
    if console.quiet:
        more.append("quiet=true")
    found = [
        selected for run in options.runs for selected in select(run, options.outputs, options.uri, unread=warn_unread)
    ]
    if options.record is None:
        if options.run or options.force or options.margin:
            parser.error("--run, --margin and --force need --record")
        return run_gate(options, found, more)
    if options.strict:
        parser.error("--strict needs --baseline")
    if bool(options.run) == bool(found):
        parser.error("--record takes either RUNs or --run")
    command = shlex.join(["gptbench", "gate", *plugins.options(), *redacted(arguments)])
    return record(options.record, found, [words(run) + more for run in options.run], options, command)


def tell(what: str) -> None:
    """Announces a measurement, before its process writes to the terminal."""
    console.print(what, style="bold", markup=False)
    console.file.flush()


def run_gate(options: argparse.Namespace, found: list[SelectedRecord], more: list[str]) -> int:
    """Compares runs with a baseline; measures them if none are given. Returns the exit code."""
    config, history = read_baseline(options.baseline), History(options.outputs)
    if options.runs:
        result = gate(config, found, partial=options.partial, history=history, even_if_busy=options.even_if_busy)
    else:
        from gptbench.execute.baseline_runs import measured_gate  # needs torch

        result = measured_gate(config, options.repeats, more, tell, history, options.even_if_busy)
    outcome = outcome_of(result, options.strict)
    if options.format == TEXT:
        show_gate(config, result, outcome)
        write_line(line_of(config, options.baseline, result, outcome))
    else:
        write([gate_table(config, result)], options.format)
    return EXIT_CODES[outcome]


PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"
EXIT_CODES = {PASSED: 0, FAILED: 1, UNDECIDED: 3}
"""Outcomes of a gate, mapped to exit codes. Undecided: some row has no verdict, because the machine was busy."""


def outcome_of(result: Gate, strict: bool) -> str:
    """Return the outcome of a gate; with `strict`, undecided metrics fail, too."""
    if result.failed or (strict and result.undecided):
        return FAILED
    return UNDECIDED if result.busy else PASSED


def record(
    file: Path, found: list[SelectedRecord], to_measure: list[list[str]], options: argparse.Namespace, command: str
) -> int:
    """Writes a baseline of recorded runs, or of runs that are measured for it. Returns the exit code.

    Args:
        to_measure: overrides of each run to measure.
        command: the command line, for the head of the file.
    """
    check_output("--record", file, lambda _: True)  # whether it may be replaced is checked below
    if file.exists() and not file.is_file():
        raise UserError(f"--record={file}: expected a regular file, as it is read back")
    if file.exists() and not options.force:
        raise UserError(f"{file}: this file already exists; --force replaces it")
    if to_measure:
        found += measure_runs(to_measure, options.repeats)
    text = recorded_text(file.stem, found, command, dict(options.margin), options.even_if_busy)
    write_output("--record", file, text)
    config = read_baseline(str(file))
    rows, runs = counted(len(config.rows), "row"), counted(len(found), "run")
    for name, row in config.rows.items():
        if row.throttled is not None:
            console.warn(f"{name}: {row.throttled}: these runs were slower than they could be")
        if row.busy is not None:
            console.warn(f"{name}: {row.busy}")
    console.print(f"{file}: {rows} of {runs} on {config.device}", markup=False)
    line = {"gate": "recorded", "baseline": str(file), "device": config.device, "rows": len(config.rows)}
    write_line(line | {"runs": [str(selected.path) for selected in found]})
    return 0


def measure_runs(to_measure: list[list[str]], repeats: int) -> list[SelectedRecord]:
    """Measures the runs of several lists of overrides, interleaved, and returns their records."""
    from gptbench.commands.ab import composed
    from gptbench.execute import baseline_runs  # both need torch

    for overrides in to_measure:  # check all of them before the first one runs for minutes
        check_overrides("--run", overrides)
        folder, rest = (overrides[1], overrides[2:]) if overrides[:1] == ["--config-dir"] else (None, overrides)
        rest = prepared(rest, config_dir=folder)
        load(composed(rest, folder), rest)
    return [baseline_runs.measure(overrides, tell) for _ in range(repeats) for overrides in to_measure]


def line_of(config: BaselineConfig, which: str, result: Gate, outcome: str) -> dict[str, Any]:
    """Return the line of JSON for programs."""
    return {
        "gate": outcome,
        "baseline": which,
        "device": config.device,
        "rows": len(config.rows),
        "failed": [check_line(check) for check in result.failed],
        "undecided": [check_line(check) for check in result.undecided],
        "differences": result.differences,
        "remarks": result.remarks,
        "left_out": [[str(path), why] for path, why in result.left_out],
    }


def check_line(check: Check) -> dict[str, Any]:
    """Return one check of the line of JSON."""
    ratio = check.ratio
    return {
        "row": check.row,
        "metric": check.metric,
        "baseline": check.baseline,
        "now": check.now,
        "ratio": None if ratio is None else ratio.value,
        "low": None if ratio is None else ratio.low,
        "high": None if ratio is None else ratio.high,
        "verdict": None if check.verdict is None else check.verdict.value,
        "possible": {word.value: share for word, share in check.possible.items()},
        "starts": None if check.process_spread is None else str(check.process_spread),
        "reason": check.reason,
    }


def show_gate(config: BaselineConfig, result: Gate, outcome: str) -> None:
    """Prints the table, with failures last, then each failed or undecided check in a sentence."""
    for name, (before, now) in result.differences.items():
        console.print(f"{name}: baseline {before}, now {now}", markup=False, style="dim")
    for path, why in result.left_out:
        console.warn(f"left out: {path}: {why}")
    if single := [name for name, row in config.rows.items() if is_of_single_run(row)]:
        note = "recorded with a single run, so that intervals include process-to-process variance"
        console.print(f"{', '.join(single)}: {note}", markup=False, style="dim")
    show(replace(gate_table(config, result), notes=()))
    for remark in result.remarks:
        console.warn(remark)
    if spread := spread_text((metric_of(check.metric or "").label, check.process_spread) for check in result.checks):
        console.print(f"single runs: intervals include process-to-process variance: {spread}", style="dim")
    for check in result.checks:
        if check.reason and (check.failed or check.undecided or check.verdict is None):
            where = check.row if check.metric is None else f"{check.row}, {metric_of(check.metric).label}"
            console.warn(f"{where}: {check.reason}", "red" if check.failed else "yellow")
    summary = f"{len(result.failed)} failed" if result.failed else "nothing is worse beyond noise"
    if result.undecided:
        summary += f"; {counted(len(result.undecided), 'metric')} undecided"
    if result.busy:
        summary += f"; no verdict on {', '.join(result.busy)}: measure again, or use --even-if-busy"
    if outcome == PASSED:
        console.print(summary, style=OUTCOME_STYLES[outcome], markup=False)
    else:
        console.warn(summary, OUTCOME_STYLES[outcome])


OUTCOME_STYLES = {PASSED: "bold green", FAILED: "bold red", UNDECIDED: "bold yellow"}


def gate_table(config: BaselineConfig, result: Gate) -> Table:
    """Return a table with a row for each metric of each row of the baseline, failures last."""
    columns = [
        Column("row", "row"),
        Column("metric", "metric"),
        Column("baseline", "baseline", True),
        Column("now", "now", True),
        Column("ratio", "ratio", True),
        Column(head="95% interval", right=True),
        Column("low"),
        Column("high"),
        Column("verdict", "verdict"),
        Column("failed"),
        Column("of", "of"),
        Column("reason"),
    ]
    rows = [cells(check) for check in sorted(result.checks, key=lambda check: check.failed)]
    return Table("checks", columns, rows, f"against {config.name}, {config.device}", result.remarks)


def cells(check: Check) -> list[Any]:
    """Return the row of the table for a check."""
    metric, ratio = metric_of(check.metric or ""), check.ratio
    ends = (None, None) if ratio is None else (ratio.low, ratio.high)
    interval = "" if None in ends else " … ".join(f"{end:.4f}" for end in ends)
    outcome = "not compared" if check.verdict is None else check.verdict.value
    colour = "red" if check.failed else None if check.verdict is None else COLOUR.get(check.verdict)
    return [
        Cell(check.row, check.row, "red" if check.failed else None),
        Cell(metric.heading if check.metric else "", check.metric),
        Cell(metric.text(check.baseline), check.baseline),
        Cell(metric.text(check.now), check.now),
        Cell("" if ratio is None else f"{ratio.value:.4f}", None if ratio is None else ratio.value),
        interval,
        *ends,
        Cell(outcome, outcome, colour),
        check.failed,
        check.basis,
        check.reason,
    ]
