"""The record of a job without a measurement, as stored in `failure.json`."""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from gptbench.base.redaction import redacted_message
from gptbench.schema.publication import FAILED, Publication
from gptbench.schema.record import Recorded


class Cause(Enum):
    """Causes of a job's failure."""

    refused = "refused"
    """The job asks for what this machine cannot do: a mistake of the user's."""
    raised = "raised"
    """An error that is not the user's mistake."""
    memory = "out of memory"
    bad_result = "bad result"
    """The job was measured and recorded, but its numbers are invalid."""
    timed_out = "timed out"
    killed = "killed"
    """The process was killed by a signal, or ended without a message."""


@dataclass(kw_only=True)
class Failure(Recorded):
    """Record of one failed job."""

    FILE: ClassVar[str] = "failure"

    cause: str
    """Cause of the failure, a value of `Cause`."""
    reason: str
    """Description of the failure in one line or a few."""
    traceback: str | None = None
    """Traceback of an error that is not the user's mistake."""
    seconds: float
    """Seconds from the start of the job to its end."""
    commit: str | None = None
    """Commit of gptbench; None if it is unknown without a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reason = redacted_message(self.reason)
        if self.traceback is not None:
            self.traceback = redacted_message(self.traceback)

    def problem(self) -> str:
        return self.reason

    def outcome(self) -> str:
        return f"failed ({self.cause}): {self.reason}".splitlines()[0]

    def not_shown(self) -> tuple[str, str]:
        return self.cause, self.reason

    def origin(self) -> dict[str, str | None]:
        return super().origin() | {"commit": self.commit}

    def line(self) -> dict[str, Any]:
        return super().line() | {"failed": self.cause, "reason": self.reason}

    def publication(self) -> Publication:
        return replace(
            super().publication(),
            name=self.run_name,
            seconds=self.seconds,
            status=FAILED,
            tags=self.tags(engine=self.config["engine"]["name"], failure=self.cause, commit=self.commit),
            note=f"**{self.cause}**: {self.reason}",
        )

    def write_files(self, folder: Path) -> None:
        super().write_files(folder)
        if self.traceback is not None:
            (folder / "traceback.txt").write_text(self.traceback, encoding="utf-8")
