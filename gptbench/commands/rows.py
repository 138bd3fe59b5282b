"""`gptbench rows`: recorded runs as rows of PyTorch's gpt_fast benchmark."""

import sys
from operator import methodcaller

from gptbench.base.errors import UserError, counted
from gptbench.base.outputs import as_json, check_output, write_output
from gptbench.commands import parsers
from gptbench.commands.compare import tell_unread
from gptbench.compare.baseline import Baseline, read_baseline
from gptbench.compare.rows import COLUMNS, Experiment, as_csv, experiments
from gptbench.compare.select import select
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Column, Table, write


def rows_command(arguments: list[str]) -> int:
    """`gptbench rows`: writes CSV, or JSON, or both. Without a file, CSV is all that goes to stdout. Returns the exit
    code.

    Raises:
        UserError: a record measured nothing that the benchmark has, there is no such baseline, or a file cannot be
            written.
    """
    options = parsers.rows().parse_args(arguments)
    for option, file, beginning in (("--csv", options.csv, ",".join(COLUMNS)), ("--json", options.json, "[")):
        if file is not None:
            check_output(option, file, methodcaller("startswith", beginning))
    found = [each for run in options.runs for each in select(run, options.outputs, options.uri, unread=tell_unread)]
    for each in found:
        if (wrong := each.record.problem()) is not None:
            tell_unread(f"{each.path}: not a valid measurement: {wrong}")
    if found and not (found := [each for each in found if each.record.problem() is None]):
        raise UserError("none of these records counts")
    rows = experiments(found, Baseline(read_baseline(options.baseline)), options.by)
    if options.csv is None and options.json is None:
        if options.format == "csv":  # the benchmark's own, with its digits
            sys.stdout.write(as_csv(rows))
            sys.stdout.flush()
        else:
            write([rows_table(rows)], options.format)
        if options.format == TEXT:
            write_line({"rows": len(rows)})
        return 0
    if options.csv is not None:
        write_output("--csv", options.csv, as_csv(rows))
    if options.json is not None:
        write_output("--json", options.json, as_json([row.record() for row in rows]))
    files = {"csv": options.csv, "json": options.json}
    written = {name: None if file is None else str(file) for name, file in files.items()}
    console.print(f"{counted(len(rows), 'row')}: {', '.join(file for file in written.values() if file)}", markup=False)
    write_line({"rows": len(rows), **written})
    return 0


def rows_table(rows: list[Experiment]) -> Table:
    """The same as a table."""
    columns = [Column(name, name, right=name in ("target", "actual")) for name in COLUMNS]
    cells = [
        [row.name, row.metric, row.target, row.actual, row.dtype, row.device, row.arch, row.is_model] for row in rows
    ]
    return Table("rows", columns, cells)
