"""Recorded runs as one table, a row for each: what was varied, what was measured, and where it comes from."""

import csv
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from gptbench.compare.select import Found
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


def row(found: Found) -> Row:
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
        metrics=record.summary() if record.problem() is None else {},
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
    def of(cls, found: Sequence[Found], metrics: Sequence[str] = ()) -> "Export":
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

    def json(self) -> str:
        """One object for each row; values in the units of the record."""
        rows: list[dict[str, Any]] = []
        for each in self.rows:
            metrics = {name: each.metrics[name] for name in self.metrics if name in each.metrics}
            rows.append(
                {**each.names, "overrides": each.overrides, "status": each.status, "metrics": metrics, **each.origin}
            )
        return json.dumps(rows, indent=1, allow_nan=False) + "\n"

    def csv(self) -> str:
        """Every column, values in the units of the record with all their digits; empty where a row has none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        keys = self.overrides  # once: it goes through all rows
        writer.writerow([*NAMES, *keys, "status", *self.metrics, *ORIGIN])
        for each in self.rows:
            numbers = [repr(each.metrics[name]) if name in each.metrics else "" for name in self.metrics]
            overrides = [each.overrides.get(key, "") for key in keys]
            origin = [each.origin[key] for key in ORIGIN]
            writer.writerow([*each.names.values(), *overrides, each.status, *numbers, *origin])
        return text.getvalue()

    def markdown(self) -> str:
        """A table for a pull request: units as people read them, and of names and origins only those that differ; what
        all rows share stands below."""
        known = self.known
        metrics = [name for name in self.metrics if name in known]
        failed = any(each.status != "recorded" for each in self.rows)
        named = {key: [each.names[key] for each in self.rows] for key in NAMES}
        named |= {key: [each.overrides.get(key, "") for each in self.rows] for key in self.overrides}
        named |= {key: [each.origin[key] for each in self.rows] for key in ("device", "commit")}
        reasons = {number: each.origin["busy"] for number, each in enumerate(self.rows, 1) if each.origin["busy"]}
        shared = {key: values[0] for key, values in named.items() if len(set(values)) == 1 and values[0]}
        columns = {key: values for key, values in named.items() if len(set(values)) > 1}
        if reasons:
            columns["busy"] = [
                f"busy ({number})" if number in reasons else "" for number in range(1, len(self.rows) + 1)
            ]
        head = [*columns, *(metric_of(name).heading for name in metrics), *(["status"] if failed else [])]
        lines = [head or ["run"]]
        for index, each in enumerate(self.rows):
            numbers = [metric_of(name).text(each.metrics.get(name)) for name in metrics]
            cells = [values[index] for values in columns.values()]
            lines.append([*cells, *numbers, *([each.status] if failed else [])] or [str(index + 1)])
        text = markdown_table(lines, right=set(range(len(columns), len(columns) + len(metrics))))
        told = ", ".join(f"{key} {value}" for key, value in shared.items())
        notes = "".join(f"\nbusy ({number}): {' '.join(why.split())}\n" for number, why in reasons.items())
        return text + (f"\n{told}\n" if told else "") + notes


def markdown_table(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table of GitHub's Markdown: the first line is its head, columns in `right` are aligned at the right."""
    rule = ["--:" if column in right else "---" for column in range(len(lines[0]))]
    rows = [lines[0], rule, *lines[1:]]
    return "".join(f"| {' | '.join(cell(value) for value in row)} |\n" for row in rows)


def cell(value: str) -> str:
    """Text that cannot leave its cell."""
    return " ".join(value.split()).replace("\\", "\\\\").replace("|", "\\|")
