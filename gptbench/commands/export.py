"""`gptbench export`: recorded runs as one table, for a spreadsheet, a program or a pull request."""

from operator import methodcaller

from gptbench.base.errors import UserError, counted
from gptbench.base.outputs import check_output, write_output
from gptbench.commands import parsers
from gptbench.commands.compare import warn_unread
from gptbench.compare.select import select
from gptbench.config.renamed import METRICS
from gptbench.present.console import console, write_line
from gptbench.present.export import BEGINNINGS, Export
from gptbench.present.formats import TEXT, rendered, write
from gptbench.schema.metrics import View, shown_in


def export_command(arguments: list[str]) -> int:
    """`gptbench export`: writes a table with one row for each run. Returns the exit code.

    Raises:
        UserError: there is no such record, no record has a requested metric, or the file cannot be written.
    """
    options = parsers.export().parse_args(arguments)
    if options.output is not None:
        if options.format == TEXT:
            raise UserError("--format=text: expected md, csv or json with --output, as text is for the terminal")
        check_output("--output", options.output, methodcaller("startswith", BEGINNINGS[options.format]))
    found = [
        selected for run in options.runs for selected in select(run, options.outputs, options.uri, unread=warn_unread)
    ]
    names = (name.strip() for name in (options.metrics or "").split(","))
    requested = [METRICS.get(name, name) for name in names if name]
    for_people = options.format in ("md", TEXT)
    default = [metric.name for metric in shown_in(View.markdown)] if for_people else []
    export = Export.of(found, requested or default)
    if unknown := [name for name in requested if name not in export.known]:
        raise UserError(f"--metrics={unknown[0]}: expected one of {', '.join(sorted(export.known))}")
    table = export.table()
    if options.output is None:
        write([table], options.format)
        if options.format == TEXT:
            write_line({"rows": len(export.rows)})
        return 0
    write_output("--output", options.output, rendered([table], options.format))
    console.print(f"{counted(len(export.rows), 'row')}: {options.output}", markup=False)
    write_line({"rows": len(export.rows), "format": options.format, "output": str(options.output)})
    return 0
