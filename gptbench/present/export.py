"""Recorded runs as one table, with a row for each: what was varied, what was measured, and its origin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptbench.compare.select import SelectedRecord
from gptbench.present.formats import Column, Table
from gptbench.schema.busy import busy
from gptbench.schema.metrics import in_order, metric_of

NAMES = ("model", "weights", "engine", "batch")
"""Columns that every row has, before those that a sweep varied."""
ORIGIN = ("device", "commit", "busy", "identity", "started", "record")
"""Columns that every row has, after the metrics."""
BEGINNINGS = {"csv": ",".join(NAMES), "md": "|", "json": "["}
"""Text that a table in each format begins with: a file that begins so may be an earlier table, and is no record."""


@dataclass(frozen=True)
class Row:
    """Row of one record."""

    names: dict[str, str]
    """Values of `NAMES`."""
    overrides: dict[str, str]
    """Overrides that its sweep varied, with their values."""
    status: str
    """The word recorded, or the reason in one line why the record is not valid."""
    metrics: dict[str, float]
    """Values of the metrics, in the units of the record; empty if the record is not valid."""
    origin: dict[str, str]
    """Values of `ORIGIN`."""


def row(selected: SelectedRecord) -> Row:
    """Return the row of one record."""
    record = selected.record
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
            "record": str(selected.path),
        },
    )


@dataclass(frozen=True)
class Export:
    """Rows with common columns."""

    rows: list[Row]
    metrics: list[str]
    """Names of the metrics that have columns, in order."""

    @classmethod
    def of(cls, selected: Sequence[SelectedRecord], metrics: Sequence[str] = ()) -> "Export":
        """Return the export of some records.

        Args:
            metrics: names of the metrics to have columns, in this order; empty for all that any record has.
        """
        rows = [row(entry) for entry in selected]
        known = in_order(name for entry in rows for name in entry.metrics)
        return cls(rows, list(metrics) or known)

    @property
    def overrides(self) -> list[str]:
        """Overrides that any row has, in order of appearance."""
        return list(dict.fromkeys(key for entry in self.rows for key in entry.overrides))

    @property
    def known(self) -> set[str]:
        """Metrics that any row has."""
        return {name for entry in self.rows for name in entry.metrics}

    def table(self) -> Table:
        """Return the table. Programs get every column, in the units of the record. People get readable units, and only
        those names and origins that differ; what all rows share is noted below the table."""
        keys = self.overrides  # computed once, as it iterates over all rows
        metrics = [metric_of(name) for name in self.metrics]
        known = self.known
        seen = [metric for metric in metrics if metric.name in known]
        named = {key: [entry.names[key] for entry in self.rows] for key in NAMES}
        named |= {key: [entry.overrides.get(key, "") for entry in self.rows] for key in keys}
        named |= {key: [entry.origin[key] for entry in self.rows] for key in ("device", "commit")}
        reasons = {number: entry.origin["busy"] for number, entry in enumerate(self.rows, 1) if entry.origin["busy"]}
        shared = {key: values[0] for key, values in named.items() if len(set(values)) == 1 and values[0]}
        differing = {key: values for key, values in named.items() if len(set(values)) > 1}
        if reasons:
            numbers = range(1, len(self.rows) + 1)
            differing["busy"] = [f"busy ({number})" if number in reasons else "" for number in numbers]
        if any(entry.status != "recorded" for entry in self.rows):
            differing["status"] = [entry.status for entry in self.rows]
        if not differing and not seen:
            differing["run"] = [str(number) for number in range(1, len(self.rows) + 1)]
        status = [differing.pop("status")] if "status" in differing else []
        columns = [
            *(Column(head=key) for key in differing),
            *(replace(Column.of(metric), key="") for metric in seen),
            *(Column(head="status") for _ in status),
            *(Column(key) for key in NAMES),
            *(Column(key, under="overrides") for key in keys),
            Column("status"),
            *(replace(Column.of(metric, under="metrics"), head="") for metric in metrics),
            *(Column(key) for key in ORIGIN),
        ]
        rows = [
            [
                *(values[index] for values in differing.values()),
                *(entry.metrics.get(metric.name) for metric in seen),
                *(values[index] for values in status),
                *entry.names.values(),
                *(entry.overrides.get(key) for key in keys),
                entry.status,
                *(entry.metrics.get(metric.name) for metric in metrics),
                *(entry.origin[key] for key in ORIGIN),
            ]
            for index, entry in enumerate(self.rows)
        ]
        common = ", ".join(f"{key} {value}" for key, value in shared.items())
        notes = [*([common] if common else []), *(f"busy ({number}): {why}" for number, why in reasons.items())]
        return Table("runs", columns, rows, notes=notes, objects=("overrides", "metrics"))
