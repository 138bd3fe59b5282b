"""The `baseline` group: recorded results that later runs are compared with."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from gptbench.base.errors import ConfigError
from gptbench.config.renamed import current_metrics
from gptbench.config.section import Section


@dataclass(kw_only=True)
class BaselineMetric:
    """The recorded values of one metric in a row of a baseline."""

    value: float = MISSING
    """Geometric mean of the recorded values, in the metric's unit; for a quality metric, the value of the first run."""
    spread: float = 0.0
    """Standard deviation of the logarithms of the recorded values (no unit); 0 also if there is only one value."""
    count: int = 1
    """Number of recorded values."""
    of: str = "runs"
    """What `count` counts: runs, samples (of one run) or tokens (of a text)."""


@dataclass(kw_only=True)
class BaselineRow:
    """One configuration that the baseline recorded, with its metrics."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of the command line that measures this configuration."""
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted field names mapped to the values that were measured; a run with the same values belongs to this row (see
    `gptbench.compare.baseline`)."""
    metrics: dict[str, BaselineMetric] = field(default_factory=dict)
    """Metric names mapped to the recorded values."""
    throttled: str | None = None
    """A sentence saying how many samples were power- or thermal-throttled; null if none was."""
    busy: str | None = None
    """A sentence saying why the machine counted as busy with other work while this row was recorded; null if it did
    not."""
    busy_kinds: list[str] = field(default_factory=list)
    """Kinds of metric that the other work affects: speed, compile, energy; an empty list means all of them."""


@dataclass(kw_only=True)
class BaselineConfig(Section):
    """Recorded results that are shown beside those of a run, and that `gptbench gate` compares new runs with.

    `gptbench gate --record` writes a baseline with rows. A baseline of published figures has only targets, which are
    shown as a reference from another device and never tested against.
    """

    GROUP: ClassVar[str] = "baseline"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.compare.Baseline",)

    device: str = MISSING
    """Name of the device on which the baseline was recorded."""
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    """Published figures: `model/weights` (such as `llama2_7b/int8`) mapped to metric names and their values, each in
    the metric's unit."""
    power_limit_w: float | None = None
    """Power limit, in watts, of the device on which the baseline was recorded; null if it has none or it is unknown."""
    cores: int | None = None
    """Number of CPU cores that the recorded runs could use; null if they ran on a GPU."""
    driver: str | None = None
    """Driver version of the GPU on which the baseline was recorded; null if it was recorded on a CPU."""
    commit: str | None = None
    """Commit of gptbench with which the baseline was recorded."""
    versions: dict[str, str] = field(default_factory=dict)
    """Names of the libraries that the recorded runs used, mapped to their versions."""
    recorded: str | None = None
    """Date of the last recorded run, as YYYY-MM-DD."""
    schema_version: int = 1
    """Version of the metric definitions that the baseline uses. In version 1 a percentile of decode step times is the
    median of the percentiles of single samples; in version 2 it is taken over the steps of all samples together.
    Percentiles of version 1 are not compared with new runs."""
    read_roof_gb_per_s: float | None = None
    """Measured peak read bandwidth, in GB/s, of the device on which the baseline was recorded."""
    margins: dict[str, float] = field(default_factory=dict)
    """Kinds of metric (speed, compile, memory, quality, energy) mapped to the fraction by which they may get worse
    before the gate fails, such as 0.02; kinds that are missing keep gptbench's defaults."""
    rows: dict[str, BaselineRow] = field(default_factory=dict)
    """Names of rows mapped to the configuration and the metrics that were recorded for each."""

    def check(self) -> None:
        self.targets = {name: current_metrics(metrics) for name, metrics in self.targets.items()}
        for row in self.rows.values():
            row.metrics = current_metrics(row.metrics)
        for kind, margin in self.margins.items():
            if not 0 <= margin < math.inf:  # nor NaN
                raise ConfigError(f"baseline.margins.{kind}", margin, "a share of at least 0, such as 0.01")
        if self.schema_version not in (1, 2):
            raise ConfigError("baseline.schema_version", self.schema_version, "1 or 2")
        for name, row in self.rows.items():
            for metric, recorded in row.metrics.items():
                place = f"baseline.rows.{name}.metrics.{metric}"
                if not 0 < recorded.value < math.inf:
                    raise ConfigError(f"{place}.value", recorded.value, "a number over 0")
                if not 0 <= recorded.spread < math.inf:
                    raise ConfigError(f"{place}.spread", recorded.spread, "a number of at least 0")
                if recorded.count < 1:
                    raise ConfigError(f"{place}.count", recorded.count, "a number of at least 1")
