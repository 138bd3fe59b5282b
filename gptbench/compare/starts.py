"""What starts of the very same thing differ by: of this device's own recorded runs, where there are enough of them.

A single run's samples do not show it: where its weights came to lie, what else the machine did that day. Runs of one
identity measure the same by the same code on the same kind of device, so what they differ by is that. The variances
within identities are pooled, of runs whose steps take about as long as those that are compared: a start's chances
matter more to a small model.
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

BUILT_IN = {"cuda": 0.006, "cpu": 0.11}
"""Standard deviation of the logarithm of a run's times from start to start, by where it ran: of a small model on an
H100, and of one on a part of a shared CPU (docs/log)."""
MIN_FREEDOM = 5
"""Recorded runs beside the first of each identity, from which on they say what starts differ by."""
MAX_IDENTITIES = 500
MAX_PER_IDENTITY = 12
MAX_RECORDS = 48
"""Looked at for one command, the newest first."""
ABOUT_AS_LONG = 4
"""Factor within which steps of runs take about as long."""


@dataclass(frozen=True)
class ProcessSpread:
    """Of one metric."""

    value: float
    """Standard deviation of the logarithm from start to start."""
    freedom: float
    """Degrees of freedom of the estimate; infinite of what is known."""
    source: str
    """`8 recorded starts of 3 configurations on this device`, or `built in: …`."""

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.source})"


@dataclass(frozen=True)
class Start:
    """One recorded run."""

    place: dict[str, Any]
    """Where, as `Place.kind` has it."""
    metrics: dict[str, float]
    """Its summary."""


class History:
    """Starts of the same thing in an outputs folder, which is read when they are first asked for.

    Args:
        outputs: the folder; None is one without any.
    """

    def __init__(self, outputs: Path | None = None) -> None:
        self.outputs = outputs

    @functools.cached_property
    def groups(self) -> list[list[Start]]:
        """Of each identity with several, the newest first."""
        return [] if self.outputs is None else list(recorded_starts(self.outputs))

    def spread(self, metric: str, results: Sequence[Result]) -> ProcessSpread:
        """What single starts of such results differ by in a metric: the largest of their devices'."""
        return max((self.of_one(metric, result) for result in results), key=lambda found: found.value)

    def of_one(self, metric: str, result: Result) -> ProcessSpread:
        """From what is recorded of its device; built in where that is too little."""
        here, step_s = Place.of(result.environment).kind, result.summary[STEP]
        logarithms = []
        for group in self.groups:
            values = [
                start.metrics[metric]
                for start in group
                if start.place == here and 1 / ABOUT_AS_LONG < start.metrics[STEP] / step_s < ABOUT_AS_LONG
            ]
            if len(values) > 1:
                logarithms.append(np.log(values))
        runs = sum(len(values) for values in logarithms)
        freedom = runs - len(logarithms)
        if freedom < MIN_FREEDOM:
            kind = "GPU" if result.environment.on_gpu else "CPU"
            needed = f"for a {kind}: {freedom} recorded repeats of such runs here, {MIN_FREEDOM} are needed"
            return ProcessSpread(
                BUILT_IN["cuda" if result.environment.on_gpu else "cpu"], math.inf, f"built in {needed}"
            )
        squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logarithms)
        several = "s" * (len(logarithms) > 1)
        source = f"{runs} recorded starts of {len(logarithms)} configuration{several} on this device"
        return ProcessSpread((squares / freedom) ** 0.5, float(freedom), source)


NO_HISTORY = History()


def recorded_starts(outputs: Path) -> Iterator[list[Start]]:
    """Starts of each identity that has several, of so many records as may be read."""
    left = MAX_RECORDS
    for identity in newest(outputs / FOLDER):
        folders = Ledger(outputs).attempts(identity)
        if len(folders) < 2:
            continue
        paths = [path for folder in reversed(folders) for path in records_in(folder, Result)]
        paths = paths[: min(MAX_PER_IDENTITY, left)]
        left -= len(paths)
        starts = list(starts_in(paths, identity))
        if len(starts) > 1:
            yield starts
        if left < 2:
            return


def newest(folder: Path) -> list[str]:
    """Identities that were tried last."""
    found = []
    for path in folder.glob("*.jsonl"):
        try:
            found.append((path.stat().st_mtime_ns, path.stem))
        except OSError:  # gone, or a link that leads nowhere
            continue
    return [identity for _, identity in sorted(found, reverse=True)[:MAX_IDENTITIES]]


def starts_in(paths: Iterable[Path], identity: str) -> Iterator[Start]:
    """Of the files that hold a run of that identity which tells what starts differ by."""
    for path in paths:
        try:
            record = Result.load(path)
        except UserError:  # no record, or a damaged one
            continue
        if record.identity == identity and is_plain(record):
            yield Start(Place.of(record.environment).kind, record.summary)


def is_plain(result: Result) -> bool:
    """Whether a run counts, was not held back, nor on a busy machine, and made its weights itself: one that took them
    over is no start."""
    held_back = throttling(valid_samples(result)) is not None or bool(busy(result))
    return result.problem() is None and result.reused is None and not held_back
