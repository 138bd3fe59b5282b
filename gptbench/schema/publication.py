"""What a tracker receives from a record, in terms of no particular tracker; and tables beside it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""How a run ended; killed is a run that was stopped from outside."""


@dataclass(kw_only=True)
class Publication:
    """Published content of one record, without what all records have, such as the command."""

    name: str
    """Name of the run; empty if the tracker is to make one."""
    seconds: float
    """Seconds that the run took, counted from `started`."""
    status: str = FINISHED
    tags: dict[str, str | None] = field(default_factory=dict)
    """Tags to filter by, the most important first; tags that are None are left out."""
    note: str = ""
    """Markdown to show first."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of the measurement, nested as a configuration is."""
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    """Name, value and sample number of each metric, in display order."""
    sweep: str | None = None
    """Folder of the sweep that the record belongs to, or that it is the record of."""
    varied: Sequence[str] = ()
    """Keys or overrides that the sweep varies."""
    is_sweep: bool = False
    """Whether this is the sweep's own run, the parent of the runs of its jobs."""


def write_table(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
