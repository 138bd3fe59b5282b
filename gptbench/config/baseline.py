"""The `baseline` group: recorded numbers that others are held against."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from gptbench.base.errors import ConfigError
from gptbench.config.renamed import current_metrics
from gptbench.config.section import Section


@dataclass(kw_only=True)
class BaselineMetric:
    """One metric of a row of a baseline."""

    value: float = MISSING
    """Geometric mean, in the metric's unit; of quality, the first run's own number."""
    spread: float = 0.0
    """Standard deviation of the logarithms; 0 also where there is one value."""
    count: int = 1
    """How many values there were."""
    of: str = "runs"
    """What they were: runs, samples (of one run) or tokens (of a text)."""


@dataclass(kw_only=True)
class BaselineRow:
    """One configuration that a baseline has numbers of."""

    overrides: list[str] = field(default_factory=list)
    """Command line that measures it."""
    config: dict[str, Any] = field(default_factory=dict)
    """What was measured, by dotted field: a run with the same is the row's (see `gptbench.compare.baseline`)."""
    metrics: dict[str, BaselineMetric] = field(default_factory=dict)
    """Metric name to what was measured."""
    throttled: str | None = None
    """How many of its samples were held back by power or heat, in words; null where none was."""
    busy: str | None = None
    """Why the machine was busy with something else when it was measured, in words; null where it was not."""
    busy_kinds: list[str] = field(default_factory=list)
    """Kinds of metrics that this changes: speed, compile, energy; empty is all of them."""


@dataclass(kw_only=True)
class BaselineConfig(Section):
    """Recorded targets, shown beside what is measured. Never compared as if from the same device.

    `gptbench gate --record` writes one with rows; one of published figures has targets alone.
    """

    GROUP: ClassVar[str] = "baseline"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.compare.Baseline",)

    device: str = MISSING
    """Device that the targets were recorded on."""
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    """`model/weights` (``llama2_7b/int8``) to metric name to target, in the metric's unit."""
    power_limit_w: float | None = None
    """Of that device, in watts; null where it has none, or it is not known."""
    cores: int | None = None
    """Of a CPU, those that the runs could use; null for a GPU."""
    driver: str | None = None
    """Of a GPU."""
    commit: str | None = None
    """Of gptbench."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of libraries."""
    recorded: str | None = None
    """Day of the last run."""
    schema_version: int = 1
    """Which definitions its numbers are of: 1, percentiles of decode steps are the median of the samples' own; 2, they
    are of the steps of all samples together. Percentiles of version 1 are held against nothing."""
    read_roof_gb_per_s: float | None = None
    """Of that device, in GB/s."""
    margins: dict[str, float] = field(default_factory=dict)
    """Kind of metric (speed, compile, memory, quality, energy) to the share by which it may be worse, where that is not
    gptbench's own."""
    rows: dict[str, BaselineRow] = field(default_factory=dict)
    """What was recorded, by name."""

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
            for metric, found in row.metrics.items():
                place = f"baseline.rows.{name}.metrics.{metric}"
                if not 0 < found.value < math.inf:
                    raise ConfigError(f"{place}.value", found.value, "a number over 0")
                if not 0 <= found.spread < math.inf:
                    raise ConfigError(f"{place}.spread", found.spread, "a number of at least 0")
                if found.count < 1:
                    raise ConfigError(f"{place}.count", found.count, "a number of at least 1")
