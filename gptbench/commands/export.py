"""`gptbench export`: recorded runs as one table, for a spreadsheet, a program or a pull request."""

import argparse
import sys
from pathlib import Path

from gptbench.commands.compare import add_places, tell_unread, write_line
from gptbench.compare.export import MARKDOWN_METRICS, Export
from gptbench.compare.select import HOW, select
from gptbench.errors import UserError
from gptbench.outputs import write_whole
from gptbench.terminal import console

FORMATS = ("csv", "md", "json")


def export_command(arguments: list[str]) -> int:
    """`gptbench export`: one row for each run. Returns the exit code.

    Raises:
        UserError: there is no such record, or no record has a metric that was asked for.
    """
    parser = argparse.ArgumentParser(
        prog="gptbench export",
        description="Writes recorded runs as one table with a row for each: the overrides that its sweep varied, its "
        "metrics, its identity, device and commit. csv and json hold every metric in base units (seconds, bytes); md "
        "holds the main ones as people read them.",
        epilog=f"RUN is {HOW}. Of a sweep, each job is a row, failed ones included.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="csv if not given")
    parser.add_argument("--metrics", metavar="NAME,…", help="only these, in this order: decode_tokens_per_s,mbu")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to a file, and not to stdout")
    add_places(parser)
    options = parser.parse_args(arguments)
    found = [each for run in options.runs for each in select(run, options.outputs, options.uri, unread=tell_unread)]
    asked = [name.strip() for name in (options.metrics or "").split(",") if name.strip()]
    export = Export.of(found, asked or (MARKDOWN_METRICS if options.format == "md" else ()))
    if unknown := [name for name in asked if name not in export.known]:
        raise UserError(f"--metrics={unknown[0]}: expected one of {', '.join(sorted(export.known))}")
    text = {"csv": export.csv, "md": export.markdown, "json": export.json}[options.format]()
    if options.output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return 0
    write_whole(options.output, text)
    console.print(f"{len(export.rows)} row{'s' * (len(export.rows) != 1)}: {options.output}", markup=False)
    write_line({"rows": len(export.rows), "format": options.format, "output": str(options.output)})
    return 0
