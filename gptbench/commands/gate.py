"""`gptbench gate`: fails on what is worse than a baseline, and records baselines."""

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
    starts_told,
    tell_unread,
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
    """`gptbench gate`: holds runs against a baseline, or records one. Returns the exit code: see
    `EXIT_CODES`.

    Raises:
        UserError: the baseline is none or of another device, one cannot be made of the runs, or nothing can be measured
            here.
        NotMeasuredError: a run that was to be recorded did not end well.
    """
    parser = parsers.gate()
    options = parser.parse_intermixed_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats}: expected a number of at least 1")
    if options.repeats > 1 and options.runs:
        parser.error("--repeats is of what is measured, and not of recorded runs")
    if unknown := [kind for kind, _ in options.margin if kind not in KINDS]:
        parser.error(f"--margin={unknown[0]}: expected one of {', '.join(KINDS)} before the share")
    check_overrides("--set", options.set)
    more = list(options.set)
    if options.outputs != parser.get_default("outputs"):
        more.append(f"outputs={quoted(str(options.outputs))}")
    if console.quiet:
        more.append("quiet=true")
    found = [each for run in options.runs for each in select(run, options.outputs, options.uri, unread=tell_unread)]
    if options.record is None:
        if options.run or options.force or options.margin:
            parser.error("--run, --margin and --force are for --record")
        return hold(options, found, more)
    if options.strict:
        parser.error("--strict is for --baseline")
    if bool(options.run) == bool(found):
        parser.error("--record takes RUNs, or --run: one of both")
    command = shlex.join(["gptbench", "gate", *plugins.options(), *redacted(arguments)])
    return record(options.record, found, [words(run) + more for run in options.run], options, command)


def tell(what: str) -> None:
    """Of what is measured, before a process of its own writes below."""
    console.print(what, style="bold", markup=False)
    console.file.flush()


def hold(options: argparse.Namespace, found: list[SelectedRecord], more: list[str]) -> int:
    """Holds runs against a baseline; measures them where none are given."""
    config, history = read_baseline(options.baseline), History(options.outputs)
    if options.runs:
        held = gate(config, found, partial=options.partial, history=history, even_if_busy=options.even_if_busy)
    else:
        from gptbench.execute.baseline_runs import measured_gate  # needs torch

        held = measured_gate(config, options.repeats, more, tell, history, options.even_if_busy)
    outcome = outcome_of(held, options.strict)
    if options.format == TEXT:
        show_gate(config, held, outcome)
        write_line(line_of(config, options.baseline, held, outcome))
    else:
        write([gate_table(config, held)], options.format)
    return EXIT_CODES[outcome]


PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"
EXIT_CODES = {PASSED: 0, FAILED: 1, UNDECIDED: 3}
"""Of a gate. Undecided is one without a verdict on some row, as the machine was busy: neither passed nor worse."""


def outcome_of(held: Gate, strict: bool) -> str:
    if held.failed or (strict and held.undecided):
        return FAILED
    return UNDECIDED if held.busy else PASSED


def record(
    file: Path, found: list[SelectedRecord], asked: list[list[str]], options: argparse.Namespace, command: str
) -> int:
    """Writes a baseline of recorded runs, or of what is measured for it."""
    check_output("--record", file, lambda _: True)  # in another way, below
    if file.exists() and not file.is_file():
        raise UserError(f"--record={file}: expected a regular file, as it is read back")
    if file.exists() and not options.force:
        raise UserError(f"{file}: it is there already; --force replaces it")
    if asked:
        found += measured(asked, options.repeats)
    text = recorded_text(file.stem, found, command, dict(options.margin), options.even_if_busy)
    write_output("--record", file, text)
    config = read_baseline(str(file))
    rows, runs = counted(len(config.rows), "row"), counted(len(found), "run")
    for name, row in config.rows.items():
        if row.throttled is not None:
            console.warn(f"{name}: {row.throttled}: slower than it could be")
        if row.busy is not None:
            console.warn(f"{name}: {row.busy}")
    console.print(f"{file}: {rows} of {runs} on {config.device}", markup=False)
    line = {"gate": "recorded", "baseline": str(file), "device": config.device, "rows": len(config.rows)}
    write_line(line | {"runs": [str(each.path) for each in found]})
    return 0


def measured(asked: list[list[str]], repeats: int) -> list[SelectedRecord]:
    """Runs of some overrides, in turns."""
    from gptbench.commands.ab import composed
    from gptbench.execute import baseline_runs  # both need torch

    for overrides in asked:  # all of them before the first takes its minutes
        check_overrides("--run", overrides)
        folder, own = (overrides[1], overrides[2:]) if overrides[:1] == ["--config-dir"] else (None, overrides)
        own = prepared(own, config_dir=folder)
        load(composed(own, folder), own)
    return [baseline_runs.measure(overrides, tell) for _ in range(repeats) for overrides in asked]


def line_of(config: BaselineConfig, which: str, held: Gate, outcome: str) -> dict[str, Any]:
    return {
        "gate": outcome,
        "baseline": which,
        "device": config.device,
        "rows": len(config.rows),
        "failed": [check_line(check) for check in held.failed],
        "undecided": [check_line(check) for check in held.undecided],
        "differences": held.differences,
        "remarks": held.remarks,
        "left_out": [[str(path), why] for path, why in held.left_out],
    }


def check_line(check: Check) -> dict[str, Any]:
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


def show_gate(config: BaselineConfig, held: Gate, outcome: str) -> None:
    """The table, what fails last; then each failure and what is undecided, in a sentence."""
    for name, (before, now) in held.differences.items():
        console.print(f"{name}: baseline {before}, now {now}", markup=False, style="dim")
    for path, why in held.left_out:
        console.warn(f"left out: {path}: {why}")
    if single := [name for name, row in config.rows.items() if is_of_single_run(row)]:
        told = "of a single run; beside another the interval is widened by what starts of the same thing differ by"
        console.print(f"{', '.join(single)}: {told}", markup=False, style="dim")
    show(replace(gate_table(config, held), notes=()))
    for remark in held.remarks:
        console.warn(remark)
    if told := starts_told((metric_of(check.metric or "").label, check.process_spread) for check in held.checks):
        console.print(f"one start each: intervals are widened by what starts differ by: {told}", style="dim")
    for check in held.checks:
        if check.reason and (check.failed or check.undecided or check.verdict is None):
            where = check.row if check.metric is None else f"{check.row}, {metric_of(check.metric).label}"
            console.warn(f"{where}: {check.reason}", "red" if check.failed else "yellow")
    told = f"{len(held.failed)} failed" if held.failed else "nothing is worse beyond noise"
    if held.undecided:
        told += f"; {counted(len(held.undecided), 'metric')} undecided"
    if held.busy:
        told += f"; no verdict on {', '.join(held.busy)}: measure again, or give --even-if-busy"
    if outcome == PASSED:
        console.print(told, style=OUTCOME_STYLES[outcome], markup=False)
    else:
        console.warn(told, OUTCOME_STYLES[outcome])


OUTCOME_STYLES = {PASSED: "bold green", FAILED: "bold red", UNDECIDED: "bold yellow"}


def gate_table(config: BaselineConfig, held: Gate) -> Table:
    """A row for each metric of each row of the baseline; what fails comes last."""
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
    rows = [cells(check) for check in sorted(held.checks, key=lambda check: check.failed)]
    return Table("checks", columns, rows, f"against {config.name}, {config.device}", held.remarks)


def cells(check: Check) -> list[Any]:
    """A row of the table."""
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
