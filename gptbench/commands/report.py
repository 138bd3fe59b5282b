"""`gptbench report`: recorded runs as one HTML page."""

import datetime
from pathlib import Path

from gptbench import parsers
from gptbench.commands.compare import tell_unread, write_line
from gptbench.compare import Baseline
from gptbench.compare.baseline import read_baseline
from gptbench.compare.report import html, is_report
from gptbench.compare.select import select
from gptbench.compare.starts import History
from gptbench.errors import UserError
from gptbench.outputs import write_whole
from gptbench.terminal import console


def report_command(arguments: list[str]) -> int:
    """`gptbench report`: writes a page of recorded runs. Returns the exit code.

    Raises:
        UserError: there is no such record or baseline, or the file is there and is no report.
    """
    options = parsers.report().parse_args(arguments)
    path: Path = options.output or options.outputs / "report.html"
    if path.exists() and not (path.is_file() and is_report(path)):
        raise UserError(f"--output={path}: expected a new file, or an earlier report, and this is neither")
    baselines = [Baseline(read_baseline(name)) for name in options.baseline]
    found = [each for run in options.runs for each in select(run, options.outputs, options.uri, unread=tell_unread)]
    now = datetime.datetime.now(datetime.UTC).astimezone().isoformat(" ", "minutes")
    write_whole(path, html(found, baselines, options.title, options.runs, now, History(options.outputs)))
    console.print(f"report: {path}", markup=False)
    write_line({"report": str(path), "runs": len({each.path for each in found})})
    return 0
