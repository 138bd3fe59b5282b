"""What came of one job of a sweep, as `outcome.json` in its folder tells."""

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
"""In a job's folder: which process began it."""
LOCK = ".job.lock"
"""There, locked by the process that answers for the job."""


class Status(Enum):
    """Of a job."""

    recorded = "recorded"
    found = "found"
    """Recorded before, by an earlier sweep or run; not run again."""
    failed = "failed"
    interrupted = "interrupted"
    """By Ctrl-C, while it ran."""
    not_run = "not run"
    """The sweep ended before its turn."""

    @property
    def is_recorded(self) -> bool:
        return self in (Status.recorded, Status.found)


@dataclass(kw_only=True)
class Outcome:
    """Of one job."""

    FILE = "outcome.json"

    status: str
    """A value of `Status`."""
    swept: list[str] = field(default_factory=list)
    """The overrides that the sweep varies."""
    cause: str | None = None
    """Of a failure: a value of `Cause`."""
    reason: str | None = None
    """Why it failed, or was not run."""
    identity: str | None = None
    record: str | None = None
    """Path of its result, or of the record of its failure."""
    seconds: float = 0.0
    """That it took, of those that were run."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The medians of its samples, and what else stands beside them."""
    busy: list[str] = field(default_factory=list)
    """Reasons to think that the machine was busy with something else meanwhile, in words."""

    def save(self, folder: Path) -> None:
        reason = None if self.reason is None else redacted_message(self.reason)
        write_json(folder / self.FILE, asdict(self) | {"reason": reason})

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """What a job's folder tells; None where the job has not ended, or nobody can read what came of it."""
        try:
            outcome = restored(cls, read_json(folder / cls.FILE))
            outcome.check("")
            return replace(outcome, metrics=current_metrics(outcome.metrics))
        except InputError:
            return None

    def check(self, place: str) -> None:
        """Raises InputError for a status that there is not."""
        require(self.status in {status.value for status in Status}, f"{place}.status", "a status of a job")

    @property
    def is_recorded(self) -> bool:
        return Status(self.status).is_recorded
