"""`gptbench rows`: recorded runs as rows of PyTorch's gpt_fast benchmark."""

import sys
from operator import methodcaller

from gptbench.base.errors import UserError, counted
from gptbench.base.outputs import as_json, check_output, write_output
from gptbench.commands import parsers
from gptbench.commands.compare import warn_unread
from gptbench.compare.baseline import Baseline, read_baseline
from gptbench.compare.rows import COLUMNS, Experiment, as_csv, experiments
from gptbench.compare.select import select
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Column, Table, write


def rows_command(arguments: list[str]) -> int:
    """`gptbench rows`: writes CSV, JSON or both to files, or else only CSV to stdout. Returns the exit code.

    Raises:
        UserError: a record has no metric of the benchmark, there is no such baseline, or a file cannot be written.
    """
    options = parsers.rows().parse_args(arguments)
    for option, file, beginning in (("--csv", options.csv, ",".join(COLUMNS)), ("--json", options.json, "[")):
        if file is not None:
            check_output(option, file, methodcaller("startswith", beginning))
    found = [
        selected for run in options.runs for selected in select(run, options.outputs, options.uri, unread=warn_unread)
    ]
    for selected in found:
        if (wrong := selected.record.problem()) is not None:
            warn_unread(f"{selected.path}: not a valid measurement: {wrong}")
    if found and not (found := [selected for selected in found if selected.record.problem() is None]):
        raise UserError("none of these records is a valid measurement")
    rows = experiments(found, Baseline(read_baseline(options.baseline)), options.by)
    if options.csv is None and options.json is None:
        if options.format == "csv":  # with as many digits as the benchmark writes
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
    """Return the rows as a table."""
    columns = [Column(name, name, right=name in ("target", "actual")) for name in COLUMNS]
    cells = [
        [row.name, row.metric, row.target, row.actual, row.dtype, row.device, row.arch, row.is_model] for row in rows
    ]
    return Table("rows", columns, cells)
