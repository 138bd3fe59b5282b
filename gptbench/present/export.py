"""Recorded runs as one table, a row for each: what was varied, what was measured, and where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptbench.compare.select import SelectedRecord
from gptbench.present.formats import Column, Table
from gptbench.schema.busy import busy
from gptbench.schema.metrics import in_order, metric_of

NAMES = ("model", "weights", "engine", "batch")
"""Columns that every row has, before what a sweep varied."""
ORIGIN = ("device", "commit", "busy", "identity", "started", "record")
"""Columns that every row has, after the metrics."""
BEGINNINGS = {"csv": ",".join(NAMES), "md": "|", "json": "["}
"""Of a table, by format: a file that begins so may be an earlier one, and no record does."""


@dataclass(frozen=True)
class Row:
    """One record."""

    names: dict[str, str]
    """Values of `NAMES`."""
    overrides: dict[str, str]
    """What its sweep varied: override to value."""
    status: str
    """recorded, or why it does not count: one line."""
    metrics: dict[str, float]
    """Metric to value, in the units of the record."""
    origin: dict[str, str]
    """Values of `ORIGIN`."""


def row(found: SelectedRecord) -> Row:
    """The row of one record."""
    record = found.record
    origin = {name: value or "" for name, value in record.origin().items()}
    return Row(
        names={
            "model": record.config["model"]["name"],
            "weights": record.weights,
            "engine": record.config["engine"]["name"],
            "batch": str(record.config["workload"]["batch_size"]),
        },
        overrides=dict(override.partition("=")[::2] for override in record.swept),
        status=record.outcome(),
        metrics=record.summary if record.problem() is None else {},
        origin=origin
        | {
            "busy": "; ".join(busy(record)),
            "identity": record.identity or "",
            "started": record.started,
            "record": str(found.path),
        },
    )


@dataclass(frozen=True)
class Export:
    """Rows under common columns."""

    rows: list[Row]
    metrics: list[str]
    """Columns of metrics, in order."""

    @classmethod
    def of(cls, found: Sequence[SelectedRecord], metrics: Sequence[str] = ()) -> "Export":
        """The table of some records.

        Args:
            metrics: which ones, in this order; all that any record has, where none are named.
        """
        rows = [row(each) for each in found]
        known = in_order(name for each in rows for name in each.metrics)
        return cls(rows, list(metrics) or known)

    @property
    def overrides(self) -> list[str]:
        """Overrides that any row has, in the order in which they come."""
        return list(dict.fromkeys(key for each in self.rows for key in each.overrides))

    @property
    def known(self) -> set[str]:
        """Metrics that any row has."""
        return {name for each in self.rows for name in each.metrics}

    def table(self) -> Table:
        """For programs every column, in the units of the record. For a pull request, or a person: units as people read
        them, and of names and origins only those that differ; what all rows share stands below."""
        keys = self.overrides  # once: it goes through all rows
        metrics = [metric_of(name) for name in self.metrics]
        known = self.known
        seen = [one for one in metrics if one.name in known]
        named = {key: [each.names[key] for each in self.rows] for key in NAMES}
        named |= {key: [each.overrides.get(key, "") for each in self.rows] for key in keys}
        named |= {key: [each.origin[key] for each in self.rows] for key in ("device", "commit")}
        reasons = {number: each.origin["busy"] for number, each in enumerate(self.rows, 1) if each.origin["busy"]}
        shared = {key: values[0] for key, values in named.items() if len(set(values)) == 1 and values[0]}
        differing = {key: values for key, values in named.items() if len(set(values)) > 1}
        if reasons:
            numbers = range(1, len(self.rows) + 1)
            differing["busy"] = [f"busy ({number})" if number in reasons else "" for number in numbers]
        if any(each.status != "recorded" for each in self.rows):
            differing["status"] = [each.status for each in self.rows]
        if not differing and not seen:
            differing["run"] = [str(number) for number in range(1, len(self.rows) + 1)]
        status = [differing.pop("status")] if "status" in differing else []
        columns = [
            *(Column(head=key) for key in differing),
            *(replace(Column.of(one), key="") for one in seen),
            *(Column(head="status") for _ in status),
            *(Column(key) for key in NAMES),
            *(Column(key, under="overrides") for key in keys),
            Column("status"),
            *(replace(Column.of(one, under="metrics"), head="") for one in metrics),
            *(Column(key) for key in ORIGIN),
        ]
        rows = [
            [
                *(values[index] for values in differing.values()),
                *(each.metrics.get(one.name) for one in seen),
                *(values[index] for values in status),
                *each.names.values(),
                *(each.overrides.get(key) for key in keys),
                each.status,
                *(each.metrics.get(one.name) for one in metrics),
                *(each.origin[key] for key in ORIGIN),
            ]
            for index, each in enumerate(self.rows)
        ]
        told = ", ".join(f"{key} {value}" for key, value in shared.items())
        notes = [*([told] if told else []), *(f"busy ({number}): {why}" for number, why in reasons.items())]
        return Table("runs", columns, rows, notes=notes, objects=("overrides", "metrics"))
