"""The record of a job that came to no measurement, as `failure.json` holds it."""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from gptbench.base.redaction import redacted_message
from gptbench.schema.publication import FAILED, Publication
from gptbench.schema.record import Recorded


class Cause(Enum):
    """Why a job failed."""

    refused = "refused"
    """It asks for what this machine cannot do: a user's mistake."""
    raised = "raised"
    """An error that is none of the user's."""
    memory = "out of memory"
    bad_result = "bad result"
    """It was measured and recorded, but its numbers mean nothing."""
    timed_out = "timed out"
    killed = "killed"
    """By a signal, or its process ended without a word."""


@dataclass(kw_only=True)
class Failure(Recorded):
    """One job that failed."""

    FILE: ClassVar[str] = "failure"

    cause: str
    """A value of `Cause`."""
    reason: str
    """In a line or a few."""
    traceback: str | None = None
    """Of an error that is none of the user's."""
    seconds: float
    """From its start to its end."""
    commit: str | None = None
    """Of the code, as far as it is told without a run."""

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
