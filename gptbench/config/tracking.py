"""The `tracking` group: where results are logged."""

from dataclasses import dataclass
from typing import ClassVar

from gptbench.base.address import unusable_address
from gptbench.base.errors import ConfigError
from gptbench.base.redaction import HIDDEN, remember
from gptbench.config.section import Section
from gptbench.config.sizes import MAX_SECONDS


@dataclass(kw_only=True)
class TrackingConfig(Section):
    """Where results are logged in addition to result.json. With the option `none` they are logged nowhere else."""

    GROUP: ClassVar[str] = "tracking"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.record.NoTracker",)


@dataclass(kw_only=True)
class MLflowConfig(TrackingConfig):
    """Logs results to MLflow: to a local SQLite store, or to any tracking server."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.record.MLflowTracker",)

    uri: str | None = None
    """Address of the tracking server or store; null is a SQLite file in the outputs folder."""
    experiment: str = "gptbench"
    """Name of the MLflow experiment that the run belongs to."""
    run_name: str | None = None
    """Name of the run in MLflow; null is a name made of model, quantisation and engine."""
    timeout_s: float = 10.0
    """Time limit of a request to a tracking server, in seconds."""
    retries: int = 2
    """Number of times that a failed request is retried."""
    figures: bool = True
    """Whether the report's charts of a run, or of all jobs of a sweep, are drawn and logged with it."""

    def check(self) -> None:
        remember(self.uri)
        if self.uri and (expected := unusable_address(self.uri)) is not None:
            raise ConfigError("tracking.uri", HIDDEN, expected)
        if not self.experiment:
            raise self.error("experiment", "a name")
        if not 0 < self.timeout_s <= MAX_SECONDS:
            raise self.error("timeout_s", f"a number of seconds over 0, up to {MAX_SECONDS}")
        if not 0 <= self.retries <= 10:
            raise self.error("retries", "a number from 0 to 10")
