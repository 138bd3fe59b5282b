"""The record of a sweep, as stored in `sweep.json` in its folder."""

import datetime
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptbench.base.errors import counted
from gptbench.schema.metrics import METRICS, View, shown_in
from gptbench.schema.outcome import BEGUN, Outcome, Status
from gptbench.schema.plan import Plan
from gptbench.schema.publication import Publication, write_table
from gptbench.schema.record import Recorded
from gptbench.schema.restore import is_time, require

ENDED_TAG = "gptbench.sweep_ended"
"""Tag of a publication with the end of the sweep: of two records of one sweep, it identifies the newer."""
GAP = "&ensp;"
"""Space behind each cell of a Markdown table: MLflow's pages leave none between columns."""
MAX_CHARACTERS = 5500
"""Maximum characters of the table as text; MLflow takes few more in a tag."""


@dataclass(kw_only=True)
class SweepRecord(Recorded):
    """Record of a sweep, complete or interrupted."""

    FILE: ClassVar[str] = "sweep"
    PATH_KEY: ClassVar[str] = "sweep"

    ended: str
    """End of the sweep, ISO 8601."""
    status: str
    """FINISHED: every job is recorded; FAILED: some job could not be recorded; KILLED: the sweep was interrupted."""
    jobs: list[Outcome]
    """Outcomes of the jobs in the order in which they were planned."""

    def check(self) -> None:
        for name in ("started", "ended"):
            require(is_time(getattr(self, name)), name, "a time, ISO 8601")
        for number, job in enumerate(self.jobs):
            job.check(f"jobs[{number}]")

    @property
    def counts(self) -> dict[str, int]:
        """Number of jobs by status, with an entry for every status."""
        counted = Counter(job.status for job in self.jobs)
        return {status.value: counted[status.value] for status in Status}

    @property
    def counts_text(self) -> str:
        """Number of jobs by status, in words: 5 recorded, 1 failed."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)

    def members(self, folder: Path) -> list[Path]:
        """Return the files of the jobs' records, each once. The folder may have been moved with the jobs in it."""
        paths = dict.fromkeys(Path(job.record) for job in self.jobs if job.record is not None)
        return [path if path.exists() else folder / path.parent.name / path.name for path in paths]

    def line(self) -> dict[str, Any]:
        """Return the number of jobs by status; the outcome of each job is in the record."""
        counts = {name.replace(" ", "_"): count for name, count in self.counts.items()}
        return {"jobs": len(self.jobs), **counts, "status": self.status}

    def publication(self) -> Publication:
        """Return what a tracker receives: the parent run of the jobs."""
        counts = {f"jobs_{name.replace(' ', '_')}": count for name, count in self.counts.items()}
        begin, end = (datetime.datetime.fromisoformat(iso).timestamp() for iso in (self.started, self.ended))
        return Publication(
            name="",
            seconds=end - begin,
            status=self.status,
            tags={ENDED_TAG: self.ended, "task": self.config.get("task", {}).get("name")},
            note=self.markdown(),
            metrics=[(name, float(value), 0) for name, value in ({"jobs": len(self.jobs)} | counts).items()],
            sweep=self.sweep,
            varied=self.swept_keys,
            is_sweep=True,
        )

    def write_files(self, folder: Path) -> None:
        write_table(folder / "jobs.csv", *self.table())

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return head and rows: the varied overrides, the status, and the metrics; None where a job has no value."""
        keys = self.swept_keys
        shown = [metric.name for metric in shown_in(View.sweep)]
        metrics = [name for name in shown if any(name in job.metrics for job in self.jobs)]
        rows = []
        for number, job in enumerate(self.jobs):
            values = dict(override.split("=", 1) for override in job.swept if "=" in override)
            numbers = [job.metrics.get(name) for name in metrics]
            status = f"{job.status}, busy" if job.busy else job.status
            rows.append([number, *(values.get(key) for key in keys), status, *numbers, job.reason])
        return ["job", *keys, "status", *metrics, "reason"], rows

    @property
    def swept_keys(self) -> list[str]:
        """Keys that the sweep varies."""
        return list(dict.fromkeys(override.partition("=")[0] for job in self.jobs for override in job.swept))

    def markdown(self) -> str:
        """Return the number of jobs by status, and the table."""
        head, rows = self.table()
        shown = [[cell(value) for value in row] for row in in_display_units(head, rows)]
        lines = [[METRICS[name].heading if name in METRICS else name for name in head], ["---"] * len(head), *shown]
        text = f"{counted(len(self.jobs), 'job')}: {self.counts_text}\n"
        for number, line in enumerate(lines):
            gap = GAP if number != 1 else ""  # none in the rule below the head
            row = f"\n| {f'{gap} | '.join(line)} |"
            if len(text) + len(row) > MAX_CHARACTERS:
                return f"{text}\n\n{len(lines) - number} more in jobs.csv"
            text += row
        return text


def in_display_units(head: list[str], rows: list[list[Any]]) -> Iterator[list[str]]:
    """Yield the rows of a sweep's table as text in display units."""
    for row in rows:
        cells = zip(head, row, strict=True)
        yield [
            METRICS[name].text(value) if name in METRICS else "" if value is None else str(value)
            for name, value in cells
        ]


def cell(text: str) -> str:
    """Return a text escaped for a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def cut_short(folder: Path) -> Status:
    """Return the status of a job without an outcome."""
    return Status.interrupted if (folder / BEGUN).exists() else Status.not_run


def record_of(
    folder: Path, plan: Plan, interrupted: bool, reason: str | None = None, ended: float | None = None
) -> SweepRecord:
    """Return the record of one call of a sweep.

    Args:
        folder: folder that Hydra made for the call.
        interrupted: whether the sweep was interrupted.
        reason: reason why some jobs were not run.
        ended: end of the call in seconds since 1970; None for now.
    """
    end = datetime.datetime.now(datetime.UTC) if ended is None else datetime.datetime.fromtimestamp(ended, datetime.UTC)
    jobs = [
        Outcome.of(folder / name) or Outcome(status=cut_short(folder / name).value, swept=swept, reason=reason)
        for name, swept in plan.jobs.items()
    ]
    unfinished = "KILLED" if interrupted else "FAILED"
    return SweepRecord(
        started=plan.started,
        command=plan.command,
        sweep=plan.sweep,
        config=plan.config,
        identity=plan.identity,
        ended=end.isoformat(timespec="seconds"),
        status="FINISHED" if all(job.is_recorded for job in jobs) else unfinished,
        jobs=jobs,
    )
