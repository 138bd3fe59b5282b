"""Process-to-process variance: by how much processes that measure the very same thing differ, estimated from recorded
runs on the same device where there are enough of them.

The samples within one process do not show it: it comes from where in memory the weights were placed, and from what else
the machine did that day. Runs of one identity measure the same thing with the same code on the same kind of device, so
they differ by nothing else. Variances within identities are pooled over runs whose steps take about as long as those
being compared, because the placement of memory matters more to a small model.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptbench.base.errors import UserError
from gptbench.record.ledger import FOLDER, Ledger
from gptbench.schema import Result
from gptbench.schema.busy import busy
from gptbench.schema.files import records_in
from gptbench.schema.metrics import STEP
from gptbench.schema.place import Place
from gptbench.schema.sample import throttling
from gptbench.schema.statistics import valid_samples

DEFAULT_SPREAD = {"cuda": 0.006, "cpu": 0.11}
"""Standard deviation of the logarithm of a run's times between processes, by device: of a small model on an H100, and
on a part of a shared CPU (docs/log)."""
MIN_FREEDOM = 5
"""Degrees of freedom needed for an estimate from recorded runs: runs beyond the first of each identity."""
MAX_IDENTITIES = 500
"""Number of identities looked at by one command, the newest first."""
MAX_PER_IDENTITY = 12
"""Number of records read of each identity, the newest first."""
MAX_RECORDS = 48
"""Number of records read by one command."""
MAX_STEP_RATIO = 4
"""Factor between the steps of two runs within which these take about as long."""


@dataclass(frozen=True)
class ProcessSpread:
    """Process-to-process variance of one metric."""

    value: float
    """Standard deviation of the metric's logarithm between processes."""
    freedom: float
    """Degrees of freedom of the estimate; infinite for a built-in value."""
    source: str
    """Origin of the estimate: `8 recorded runs of 3 configurations on this device`, or `built in for a GPU: …`."""

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.source})"


@dataclass(frozen=True)
class RecordedProcess:
    """A recorded run that was measured in a process which built its own model."""

    place: dict[str, Any]
    """Device that it ran on, as in `Place.kind`."""
    metrics: dict[str, float]
    """Summary of the run."""


class History:
    """Repeated runs in an outputs folder, read on first use.

    Args:
        outputs: the outputs folder; None for no history.
    """

    def __init__(self, outputs: Path | None = None) -> None:
        self.outputs = outputs

    @functools.cached_property
    def groups(self) -> list[list[RecordedProcess]]:
        """Runs of each identity that has several, the newest identity first."""
        return [] if self.outputs is None else list(recorded_processes(self.outputs))

    def spread(self, metric: str, results: Sequence[Result]) -> ProcessSpread:
        """Return the process-to-process variance of a metric: the largest of those of the results' devices."""
        return max((self.spread_for(metric, result) for result in results), key=lambda spread: spread.value)

    def spread_for(self, metric: str, result: Result) -> ProcessSpread:
        """Return the process-to-process variance of a metric on a result's device; the built-in value where too few
        runs are recorded."""
        here, step_s = Place.of(result.environment).kind, result.summary[STEP]
        logarithms = []
        for group in self.groups:
            values = [
                run.metrics[metric]
                for run in group
                if run.place == here and 1 / MAX_STEP_RATIO < run.metrics[STEP] / step_s < MAX_STEP_RATIO
            ]
            if len(values) > 1:
                logarithms.append(np.log(values))
        runs = sum(len(values) for values in logarithms)
        freedom = runs - len(logarithms)
        if freedom < MIN_FREEDOM:
            kind = "GPU" if result.environment.on_gpu else "CPU"
            source = f"built in for a {kind}: {freedom} recorded repeats of such runs here, {MIN_FREEDOM} needed"
            return ProcessSpread(DEFAULT_SPREAD["cuda" if result.environment.on_gpu else "cpu"], math.inf, source)
        squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logarithms)
        several = "s" * (len(logarithms) > 1)
        source = f"{runs} recorded runs of {len(logarithms)} configuration{several} on this device"
        return ProcessSpread((squares / freedom) ** 0.5, float(freedom), source)


NO_HISTORY = History()


def recorded_processes(outputs: Path) -> Iterator[list[RecordedProcess]]:
    """Yield the runs of each identity that has several, within the limits on the records that are read."""
    left = MAX_RECORDS
    for identity in newest_identities(outputs / FOLDER):
        folders = Ledger(outputs).attempts(identity)
        if len(folders) < 2:
            continue
        paths = [path for folder in reversed(folders) for path in records_in(folder, Result)]
        paths = paths[: min(MAX_PER_IDENTITY, left)]
        left -= len(paths)
        processes = list(processes_in(paths, identity))
        if len(processes) > 1:
            yield processes
        if left < 2:
            return


def newest_identities(folder: Path) -> list[str]:
    """Return the identities that were run last, the newest first."""
    times = []
    for path in folder.glob("*.jsonl"):
        try:
            times.append((path.stat().st_mtime_ns, path.stem))
        except OSError:  # gone, or a link that leads nowhere
            continue
    return [identity for _, identity in sorted(times, reverse=True)[:MAX_IDENTITIES]]


def processes_in(paths: Iterable[Path], identity: str) -> Iterator[RecordedProcess]:
    """Yield the representative runs of an identity among some files."""
    for path in paths:
        try:
            record = Result.load(path)
        except UserError:  # no record, or a damaged one
            continue
        if record.identity == identity and is_representative(record):
            yield RecordedProcess(Place.of(record.environment).kind, record.summary)


def is_representative(result: Result) -> bool:
    """Return whether a run is valid, neither throttled nor measured on a busy machine, and built its own model: a run
    that took over the model of an earlier one is not an independent process."""
    slowed_down = throttling(valid_samples(result)) is not None or bool(busy(result))
    return result.problem() is None and result.reused is None and not slowed_down
