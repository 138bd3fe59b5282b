"""`gptbench explain`: where a run's step time goes against the limit, and what would help."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError
from gptbench.base.numbers import micro
from gptbench.commands import parsers
from gptbench.commands.compare import tell_unread
from gptbench.compare.advice import Advice
from gptbench.compare.explain import Explanation, explain
from gptbench.compare.select import select
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Column, Table, scaled, show, write
from gptbench.schema import Result


def explain_command(arguments: list[str]) -> int:
    """`gptbench explain`: of several runs, the latest. Returns the exit code.

    Raises:
        UserError: there is no run of a model that counts.
    """
    options = parsers.explain().parse_args(arguments)
    runs = [
        (found.path, found.record)
        for found in select(options.run, options.outputs, options.uri, (Result,), tell_unread)
        if isinstance(found.record, Result)
    ]
    if not runs:
        raise UserError(f"{options.run}: expected a run of a model")
    path, result = runs[-1]
    if (wrong := result.problem()) is not None:
        raise UserError(f"{path}: not a valid measurement: {wrong}")
    if len(runs) > 1:
        console.print(f"{path}, the latest of {len(runs)} runs", markup=False, style="dim")
    told = explain(result)
    if options.format != TEXT:
        write([parts_table(told)], options.format)
        return 0
    show_explanation(told)
    write_line(line_of(told, path))
    return 0


def parts_table(told: Explanation) -> Table:
    """The parts of a step, which add up to it; without a breakdown the step alone."""
    columns = [
        Column("part", "part"),
        Column("seconds", "µs", True),
        Column("share_of_step", "% of the step", True),
        Column("what", "what"),
    ]
    parts = [(part.name, part.seconds, part.description) for part in told.parts]
    parts.append(("step", told.step_s, f"at the read roof {micro(told.least_s)}"))
    rows = [[name, scaled(seconds, 1e6), scaled(seconds / told.step_s, 100), what] for name, seconds, what in parts]
    return Table("parts", columns, rows, "where a decode step's time goes", [told.limit, told.binding], totals=1)


def show_explanation(told: Explanation) -> None:
    """The limit, the parts as a table, and what would help."""
    console.print(told.title, markup=False, style="bold")
    console.print(told.limit, markup=False)
    console.print(told.binding, markup=False, style="bold")
    if told.parts:
        show(replace(parts_table(told), notes=()))
    for note in told.notes:
        console.print(note, markup=False)
    if told.advice:
        console.print("What would help:", style="bold")
    for one in told.advice:
        console.print(f"  {sentence(one, told)}", markup=False)
    if told.more is not None:
        console.print(f"To see more: {told.more}", markup=False)


def sentence(one: Advice, told: Explanation) -> str:
    if one.tokens_per_s is None:
        return f"{one.change}: {one.why}"
    gain = f"{one.tokens_per_s / told.tokens_per_s - 1:+.1%}"
    bound = "at most" if one.at_most else "about"
    return f"{one.change}: {bound} {one.tokens_per_s:.4g} tokens/s ({gain}): {one.why}"


def line_of(told: Explanation, path: Path) -> dict[str, Any]:
    return {
        "step_s": told.step_s,
        "least_s": told.least_s,
        "mbu": told.mbu,
        "tokens_per_s": told.tokens_per_s,
        "most_tokens_per_s": told.most_tokens_per_s,
        "binding": told.binding,
        "profiled_step_s": told.profiled_s,
        "parts": {part.name: part.seconds for part in told.parts} or None,
        "beyond_steps_s": told.host_overhead_s,
        "advice": [
            {"change": one.change, "tokens_per_s": one.tokens_per_s, "at_most": one.at_most, "why": one.why}
            for one in told.advice
        ],
        "more": told.more,
        "result": str(path),
    }
