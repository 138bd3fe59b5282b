"""The record of a sweep, as `sweep.json` in its folder holds it."""

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
"""Of a publication: when, by which the newer of two records of one sweep is known."""
GAP = "&ensp;"
"""Behind each cell of a Markdown table: MLflow's pages leave no space between its columns."""
MAX_CHARACTERS = 5500
"""Of the table as text; what MLflow takes in a tag is not much more."""


@dataclass(kw_only=True)
class SweepRecord(Recorded):
    """A sweep, whole or cut short."""

    FILE: ClassVar[str] = "sweep"
    PATH_KEY: ClassVar[str] = "sweep"

    ended: str
    """When, ISO 8601."""
    status: str
    """FINISHED: every job is recorded; FAILED: not every one could be; KILLED: it was interrupted."""
    jobs: list[Outcome]
    """In the order in which they were planned."""

    def check(self) -> None:
        for name in ("started", "ended"):
            require(is_time(getattr(self, name)), name, "a time, ISO 8601")
        for number, job in enumerate(self.jobs):
            job.check(f"jobs[{number}]")

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by status, of every status there is."""
        counted = Counter(job.status for job in self.jobs)
        return {status.value: counted[status.value] for status in Status}

    @property
    def told(self) -> str:
        """How many jobs came to what: 5 recorded, 1 failed."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)

    def members(self, folder: Path) -> list[Path]:
        """Of what the jobs came to, each once. The folder may have been moved, with the jobs in it."""
        paths = dict.fromkeys(Path(job.record) for job in self.jobs if job.record is not None)
        return [path if path.exists() else folder / path.parent.name / path.name for path in paths]

    def line(self) -> dict[str, Any]:
        """What each job came to is in the record."""
        counts = {name.replace(" ", "_"): count for name, count in self.counts.items()}
        return {"jobs": len(self.jobs), **counts, "status": self.status}

    def publication(self) -> Publication:
        """Its parent run."""
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
        """Head and rows: what was varied, what came of it, and the numbers; None where a job has none."""
        keys = self.swept_keys
        metrics = [one.name for one in shown_in(View.sweep) if any(one.name in job.metrics for job in self.jobs)]
        rows = []
        for number, job in enumerate(self.jobs):
            values = dict(override.split("=", 1) for override in job.swept if "=" in override)
            numbers = [job.metrics.get(name) for name in metrics]
            status = f"{job.status}, busy" if job.busy else job.status
            rows.append([number, *(values.get(key) for key in keys), status, *numbers, job.reason])
        return ["job", *keys, "status", *metrics, "reason"], rows

    @property
    def swept_keys(self) -> list[str]:
        """What was varied."""
        return list(dict.fromkeys(override.partition("=")[0] for job in self.jobs for override in job.swept))

    def markdown(self) -> str:
        """How many jobs came to what, and the table."""
        head, rows = self.table()
        shown = [[cell(value) for value in row] for row in in_display_units(head, rows)]
        lines = [[METRICS[name].heading if name in METRICS else name for name in head], ["---"] * len(head), *shown]
        text = f"{counted(len(self.jobs), 'job')}: {self.told}\n"
        for number, line in enumerate(lines):
            gap = GAP if number != 1 else ""  # not of the rule below the head
            row = f"\n| {f'{gap} | '.join(line)} |"
            if len(text) + len(row) > MAX_CHARACTERS:
                return f"{text}\n\n{len(lines) - number} more in jobs.csv"
            text += row
        return text


def in_display_units(head: list[str], rows: list[list[Any]]) -> Iterator[list[str]]:
    """Rows of a sweep's table as people read them."""
    for row in rows:
        cells = zip(head, row, strict=True)
        yield [
            METRICS[name].text(value) if name in METRICS else "" if value is None else str(value)
            for name, value in cells
        ]


def cell(text: str) -> str:
    """As it can stand in a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def cut_short(folder: Path) -> Status:
    """What a job is that has no outcome."""
    return Status.interrupted if (folder / BEGUN).exists() else Status.not_run


def record_of(
    folder: Path, plan: Plan, interrupted: bool, reason: str | None = None, ended: float | None = None
) -> SweepRecord:
    """What one call of a sweep has come to.

    Args:
        folder: that Hydra made for it.
        interrupted: whether it was cut short.
        reason: why jobs were not run that could have been.
        ended: when, in seconds since 1970; None is now.
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
