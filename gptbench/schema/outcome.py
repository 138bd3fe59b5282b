"""The outcome of one job of a sweep, as stored in `outcome.json` in its folder."""

from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Self

from gptbench.base.errors import InputError
from gptbench.base.inputs import read_json
from gptbench.base.outputs import write_json
from gptbench.base.redaction import redacted_message
from gptbench.config.renamed import current_metrics
from gptbench.schema.restore import require, restored

BEGUN = "job.json"
"""File in a job's folder that names the process which began it."""
LOCK = ".job.lock"
"""File in a job's folder that is locked by the process responsible for the job."""


class Status(Enum):
    """Status of a job."""

    recorded = "recorded"
    found = "found"
    """It was recorded by an earlier sweep or run, and not run again."""
    failed = "failed"
    interrupted = "interrupted"
    """Ctrl-C ended it while it ran."""
    not_run = "not run"
    """The sweep ended before it began."""

    @property
    def is_recorded(self) -> bool:
        return self in (Status.recorded, Status.found)


@dataclass(kw_only=True)
class Outcome:
    """Outcome of one job."""

    FILE = "outcome.json"

    status: str
    """Status of the job, a value of `Status`."""
    swept: list[str] = field(default_factory=list)
    """Overrides of the job for the keys that the sweep varies."""
    cause: str | None = None
    """Cause of a failure, a value of `Cause`."""
    reason: str | None = None
    """Reason why the job failed or was not run."""
    identity: str | None = None
    """Hash of what the job measures: see `gptbench.record.identity`."""
    record: str | None = None
    """Path of the job's result, or of the record of its failure."""
    seconds: float = 0.0
    """Seconds that the job took; 0 if it was not run."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the job's record by name."""
    busy: list[str] = field(default_factory=list)
    """Reasons to think that the machine was busy with something else meanwhile, in words."""

    def save(self, folder: Path) -> None:
        reason = None if self.reason is None else redacted_message(self.reason)
        write_json(folder / self.FILE, asdict(self) | {"reason": reason})

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """Return the outcome in a job's folder; None if the job has not ended, or the file cannot be read."""
        try:
            outcome = restored(cls, read_json(folder / cls.FILE))
            outcome.check("")
            return replace(outcome, metrics=current_metrics(outcome.metrics))
        except InputError:
            return None

    def check(self, place: str) -> None:
        """Raise InputError for an unknown status."""
        require(self.status in {status.value for status in Status}, f"{place}.status", "a status of a job")

    @property
    def is_recorded(self) -> bool:
        return Status(self.status).is_recorded
