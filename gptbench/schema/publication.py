"""What a tracker gets of a record, in no tracker's own words; and tables beside it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""How a run ended: killed is one that somebody or something stopped."""


@dataclass(kw_only=True)
class Publication:
    """One record; what all records have, such as their command, is not in it."""

    name: str
    """Of the run; empty where the tracker makes one."""
    seconds: float
    """That it took, from `started` on."""
    status: str = FINISHED
    tags: dict[str, str | None] = field(default_factory=dict)
    """What one filters by, the most important first; without those that are None."""
    note: str = ""
    """What is to be read first, as Markdown."""
    params: dict[str, Any] = field(default_factory=dict)
    """What says how it was measured, nested as a configuration is."""
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    """Name, value, and number of the sample; in the order in which they are shown."""
    sweep: str | None = None
    """Folder of the sweep that it belongs to, or is the record of."""
    varied: Sequence[str] = ()
    """What that sweep varies: keys, or overrides."""
    is_sweep: bool = False
    """Whether it is of the sweep itself, of which the runs of its jobs are parts."""


def write_table(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """As CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
