"""What is sent to MLflow for a record: its publication in MLflow's terms, and its files."""

import datetime
import hashlib
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbench.base.redaction import redacted
from gptbench.charts import draw_compile_stages, write_figures
from gptbench.record.runs import NOTE_TAG, RESULT_TAG
from gptbench.schema.files import load_record
from gptbench.schema.labels import flat, short_keys
from gptbench.schema.record import Recorded, of_kind
from gptbench.schema.result import Result

MAX_CHARACTERS = 6000
"""Maximum characters of a param; MLflow takes little more in a tag."""


@dataclass
class Record:
    """What is logged for one result, in MLflow's terms."""

    name: str
    """Name of the run."""
    start_ms: int
    """Start in milliseconds since 1970."""
    end_ms: int
    """End in milliseconds since 1970."""
    status: str
    """FINISHED, FAILED or KILLED."""
    params: list[tuple[str, str]]
    """Key and value of each param."""
    metrics: list[tuple[str, float, int]]
    """Name, value and step of each metric."""
    tags: dict[str, str]
    """Tags in display order."""
    sweep: str | None
    """Folder of the sweep that it belongs to, or that it is the record of."""
    varied: Sequence[str]
    """Keys or overrides that the sweep varies."""
    is_sweep: bool
    """Whether it is the sweep's own run, the parent of the runs of its jobs."""


def make_record(result: Recorded, result_path: Path, name: str | None) -> Record:
    """Return what is logged for a result; `name` is the name of the run, or None for one made from what was run."""
    start = datetime.datetime.fromisoformat(result.started).timestamp()
    published = result.publication()
    command = shlex.join(result.command)
    tags: dict[str, str | None] = {  # MLflow keeps this order: those to filter by come first
        **published.tags,
        "baseline": result.config.get("baseline", {}).get("name"),
        "sweep": published.sweep,
        "identity": result.identity,
        RESULT_TAG: hashlib.sha256(result_path.read_bytes()).hexdigest(),
        "gptbench.command": command,
        "mlflow.source.name": "gptbench",
        NOTE_TAG: f"{published.note}\n\n`` {command} ``".lstrip(),
    }
    return Record(
        name=redacted(" ".join([*swept_name(result.swept), name or published.name])),
        start_ms=round(start * 1000),
        end_ms=round((start + published.seconds) * 1000),
        status=published.status,
        params=[
            (clean(redacted(key)), redacted(value)[:MAX_CHARACTERS])
            for key, value in flat(logged_params(published.params))
        ],
        metrics=published.metrics,
        tags={key: redacted(value)[:MAX_CHARACTERS] for key, value in tags.items() if value is not None},
        sweep=published.sweep,
        varied=published.varied,
        is_sweep=published.is_sweep,
    )


NO_PARAMS = ("baseline", "sweep", "tracking", "outputs", "commit")
"""Sections and fields that are not logged as params: what a run is compared with, belongs to, or is written to. They
are in config.yaml among the artifacts, and the baseline's name is a tag."""


def logged_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return the params that are logged: with too many of them, MLflow's table of runs opens without any metric."""

    def without_targets(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: without_targets(value) if isinstance(value, dict) else value
            for key, value in values.items()
            if key != "_target_"
        }

    return without_targets({key: value for key, value in params.items() if key not in NO_PARAMS})


def swept_name(swept: list[str]) -> list[str]:
    """Return what distinguishes a job of a sweep from the others, for the beginning of its name: `top_k=5`; with
    several overrides all values first, `5/0.8 top_k/temperature`, because MLflow's list of runs shows about fifteen
    characters."""
    values = dict(override.split("=", 1) for override in swept if "=" in override)
    short = short_keys(list(values))
    if len(values) < 2:
        return [f"{short[key]}={value}" for key, value in values.items()]
    return ["/".join(values.values()), "/".join(short[key] for key in values)]


def clean(key: str) -> str:
    """Return a key with only characters that MLflow allows in a name. It allows a slash, too, but reads it as a
    path."""
    return re.sub(r"[^\w.\- ]", "_", key)


def write_artifacts(result: Recorded, result_path: Path, folder: Path, figures: bool) -> None:
    """Write the record, its files, compile time as a picture, and, if `figures`, all other figures."""
    shutil.copyfile(result_path, folder / f"{result.FILE}.json")
    result.write_files(folder)
    for run in of_kind(Result, [result]):
        draw_compile_stages(run, folder / "compile.png")
    if figures:
        for name, error in write_figures(drawn(result, result_path), folder / "figures").items():
            print(f"Not drawn: {name}: {error!r}", file=sys.stderr)


def drawn(result: Recorded, result_path: Path) -> list[Recorded]:
    """Return the records to draw: the record, or those valid ones that it summarises."""
    if (members := result.members(result_path.parent)) is None:
        return [result]
    records = []
    for path in members:
        try:
            record = load_record(path)
            if record.problem() is None:
                records.append(record)
        except Exception as error:  # one unreadable member does not prevent the figures
            print(f"Not drawn: {path}: {error!r}", file=sys.stderr)
    return records
