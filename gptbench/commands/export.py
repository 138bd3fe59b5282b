"""`gptbench export`: recorded runs as one table, for a spreadsheet, a program or a pull request."""

import sys
from operator import methodcaller

from gptbench.base.errors import UserError
from gptbench.base.outputs import check_output, write_output
from gptbench.commands import parsers
from gptbench.commands.compare import tell_unread
from gptbench.compare.select import select
from gptbench.present.console import console, write_line
from gptbench.present.export import BEGINNINGS, Export
from gptbench.schema.metrics import View, shown_in


def export_command(arguments: list[str]) -> int:
    """`gptbench export`: one row for each run. Returns the exit code.

    Raises:
        UserError: there is no such record, or no record has a metric that was asked for, or the file cannot be written.
    """
    options = parsers.export().parse_args(arguments)
    if options.output is not None:
        check_output("--output", options.output, methodcaller("startswith", BEGINNINGS[options.format]))
    found = [each for run in options.runs for each in select(run, options.outputs, options.uri, unread=tell_unread)]
    asked = [name.strip() for name in (options.metrics or "").split(",") if name.strip()]
    of_table = [one.name for one in shown_in(View.markdown)] if options.format == "md" else []
    export = Export.of(found, asked or of_table)
    if unknown := [name for name in asked if name not in export.known]:
        raise UserError(f"--metrics={unknown[0]}: expected one of {', '.join(sorted(export.known))}")
    text = {"csv": export.csv, "md": export.markdown, "json": export.json}[options.format]()
    if options.output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return 0
    write_output("--output", options.output, text)
    console.print(f"{len(export.rows)} row{'s' * (len(export.rows) != 1)}: {options.output}", markup=False)
    write_line({"rows": len(export.rows), "format": options.format, "output": str(options.output)})
    return 0
