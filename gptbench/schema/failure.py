"""The record of a job that came to no measurement, as `failure.json` holds it."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from gptbench.base.redaction import redacted_message
from gptbench.schema.result import Recorded


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
