"""`--dry-run` of a sweep: what each of its jobs needs, and the limit, without measuring anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbench.base.errors import UserError
from gptbench.execute.dry_run import forecast
from gptbench.execute.job import RaisedError, from_folder

if TYPE_CHECKING:
    from gptbench.sweep.sweeper import Planned


def dry_sweep(jobs: Sequence["Planned"], folder: Path) -> None:
    """Print a table with a row for each job of a sweep.

    Args:
        folder: folder in which the command was typed.

    Raises:
        RaisedError: the first job that would be refused.
    """
    from gptbench.present.console import console, write_line
    from gptbench.present.formats import TEXT, Cell, Column, Table, write

    console.quiet = jobs[0].config.quiet
    keys = list(dict.fromkeys(override.partition("=")[0] for job in jobs for override in job.swept))
    rows: list[list[Any]] = []
    lines = []
    for number, job in enumerate(jobs):
        try:
            line = forecast(from_folder(job.config, folder)).line()
        except UserError as error:
            raise RaisedError(UserError(f"job {number} ({' '.join(job.swept)}): {error}")) from error
        except Exception as error:
            raise RaisedError(error) from error
        values = dict(override.partition("=")[::2] for override in job.swept)
        rate, gigabytes = line["max_tokens_per_s"], [line["needs_bytes"], line["step_bytes"]]
        shown = [Cell("" if count is None else f"{count / 1e9:.4g}", count) for count in gigabytes]
        rows.append([number, *(values.get(key) for key in keys), line["engine"], *shown, rate])
        lines.append(line)
    columns = [
        Column("job", "job", True),
        *(Column(key, key) for key in keys),
        Column("engine", "engine"),
        Column("needs_bytes", "needs (GB)", True),
        Column("step_bytes", "bytes per step (GB)", True),
        Column("max_tokens_per_s", "limit (tokens/s)", True),
    ]
    write([Table("jobs", columns, rows)], console.format)
    console.print("dry run: nothing was measured", style="dim")
    if not all(line["read_roof_gb_per_s"] for line in lines):
        console.print("limit: known once a run has measured the read roof", style="dim")
    if console.format == TEXT:
        write_line({"dry_run": True, "jobs": len(jobs), "needs_bytes": max(line["needs_bytes"] or 0 for line in lines)})
