"""`gptbench report`: recorded runs as one HTML page."""

import datetime
from pathlib import Path

from gptbench.base.outputs import check_output, write_output
from gptbench.commands import parsers
from gptbench.commands.compare import warn_unread
from gptbench.compare import Baseline
from gptbench.compare.baseline import read_baseline
from gptbench.compare.select import select
from gptbench.compare.starts import History
from gptbench.present.console import console, write_line
from gptbench.present.report import html, is_report


def report_command(arguments: list[str]) -> int:
    """`gptbench report`: writes an HTML page of recorded runs. Returns the exit code.

    Raises:
        UserError: there is no such record or baseline, or the file exists and is not a report, or cannot be written.
    """
    options = parsers.report().parse_args(arguments)
    path: Path = options.output or options.outputs / "report.html"
    check_output("--output", path, is_report)
    baselines = [Baseline(read_baseline(name)) for name in options.baseline]
    found = [
        selected for run in options.runs for selected in select(run, options.outputs, options.uri, unread=warn_unread)
    ]
    now = datetime.datetime.now(datetime.UTC).astimezone().isoformat(" ", "minutes")
    write_output("--output", path, html(found, baselines, options.title, options.runs, now, History(options.outputs)))
    console.print(f"report: {path}", markup=False)
    write_line({"report": str(path), "runs": len({selected.path for selected in found})})
    return 0
