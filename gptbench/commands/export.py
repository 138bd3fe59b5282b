"""`gptbench export`: recorded runs as one table, for a spreadsheet, a program or a pull request."""

from operator import methodcaller

from gptbench.base.errors import UserError, counted
from gptbench.base.outputs import check_output, write_output
from gptbench.commands import parsers
from gptbench.commands.compare import tell_unread
from gptbench.compare.select import select
from gptbench.config.renamed import METRICS
from gptbench.present.console import console, write_line
from gptbench.present.export import BEGINNINGS, Export
from gptbench.present.formats import TEXT, rendered, write
from gptbench.schema.metrics import View, shown_in


def export_command(arguments: list[str]) -> int:
    """`gptbench export`: one row for each run. Returns the exit code.

    Raises:
        UserError: there is no such record, or no record has a metric that was asked for, or the file cannot be written.
    """
    options = parsers.export().parse_args(arguments)
    if options.output is not None:
        if options.format == TEXT:
            raise UserError("--format=text: expected md, csv or json beside --output: text is for the terminal")
        check_output("--output", options.output, methodcaller("startswith", BEGINNINGS[options.format]))
    found = [each for run in options.runs for each in select(run, options.outputs, options.uri, unread=tell_unread)]
    names = (name.strip() for name in (options.metrics or "").split(","))
    asked = [METRICS.get(name, name) for name in names if name]
    for_people = options.format in ("md", TEXT)
    of_table = [one.name for one in shown_in(View.markdown)] if for_people else []
    export = Export.of(found, asked or of_table)
    if unknown := [name for name in asked if name not in export.known]:
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
