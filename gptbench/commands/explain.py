"""`gptbench explain`: where a run's step time goes against the limit, and what would help."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError
from gptbench.base.numbers import micro
from gptbench.commands import parsers
from gptbench.commands.compare import warn_unread
from gptbench.compare.advice import Advice
from gptbench.compare.explain import Explanation, explain
from gptbench.compare.select import select
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Column, Table, scaled, show, write
from gptbench.schema import Result


def explain_command(arguments: list[str]) -> int:
    """`gptbench explain`: explains a run, or the latest of several. Returns the exit code.

    Raises:
        UserError: there is no valid run of a model.
    """
    options = parsers.explain().parse_args(arguments)
    runs = [
        (found.path, found.record)
        for found in select(options.run, options.outputs, options.uri, (Result,), warn_unread)
        if isinstance(found.record, Result)
    ]
    if not runs:
        raise UserError(f"{options.run}: expected a run of a model")
    path, result = runs[-1]
    if (wrong := result.problem()) is not None:
        raise UserError(f"{path}: not a valid measurement: {wrong}")
    if len(runs) > 1:
        console.print(f"{path}, the latest of {len(runs)} runs", markup=False, style="dim")
    explanation = explain(result)
    if options.format != TEXT:
        write([parts_table(explanation)], options.format)
        return 0
    show_explanation(explanation)
    write_line(line_of(explanation, path))
    return 0


def parts_table(explanation: Explanation) -> Table:
    """Return a table of the parts that add up to a decode step; without a breakdown, only of the step."""
    columns = [
        Column("part", "part"),
        Column("seconds", "µs", True),
        Column("share_of_step", "% of the step", True),
        Column("what", "what"),
    ]
    parts = [(part.name, part.seconds, part.description) for part in explanation.parts]
    parts.append(("step", explanation.step_s, f"at the read roof {micro(explanation.least_s)}"))
    rows = [
        [name, scaled(seconds, 1e6), scaled(seconds / explanation.step_s, 100), what] for name, seconds, what in parts
    ]
    return Table(
        "parts", columns, rows, "where a decode step's time goes", [explanation.limit, explanation.binding], totals=1
    )


def show_explanation(explanation: Explanation) -> None:
    """Prints the limit, the parts of a step as a table, and what would help."""
    console.print(explanation.title, markup=False, style="bold")
    console.print(explanation.limit, markup=False)
    console.print(explanation.binding, markup=False, style="bold")
    if explanation.parts:
        show(replace(parts_table(explanation), notes=()))
    for note in explanation.notes:
        console.print(note, markup=False)
    if explanation.advice:
        console.print("What would help:", style="bold")
    for advice in explanation.advice:
        console.print(f"  {sentence(advice, explanation)}", markup=False)
    if explanation.more is not None:
        console.print(f"To see more: {explanation.more}", markup=False)


def sentence(advice: Advice, explanation: Explanation) -> str:
    """Return a piece of advice in words: the change, its expected effect, and why."""
    if advice.tokens_per_s is None:
        return f"{advice.change}: {advice.why}"
    gain = f"{advice.tokens_per_s / explanation.tokens_per_s - 1:+.1%}"
    bound = "at most" if advice.at_most else "about"
    return f"{advice.change}: {bound} {advice.tokens_per_s:.4g} tokens/s ({gain}): {advice.why}"


def line_of(explanation: Explanation, path: Path) -> dict[str, Any]:
    """Return the line of JSON for programs."""
    return {
        "step_s": explanation.step_s,
        "least_s": explanation.least_s,
        "mbu": explanation.mbu,
        "tokens_per_s": explanation.tokens_per_s,
        "most_tokens_per_s": explanation.most_tokens_per_s,
        "binding": explanation.binding,
        "profiled_step_s": explanation.profiled_s,
        "parts": {part.name: part.seconds for part in explanation.parts} or None,
        "beyond_steps_s": explanation.host_overhead_s,
        "advice": [
            {
                "change": advice.change,
                "tokens_per_s": advice.tokens_per_s,
                "at_most": advice.at_most,
                "why": advice.why,
            }
            for advice in explanation.advice
        ],
        "more": explanation.more,
        "result": str(path),
    }
