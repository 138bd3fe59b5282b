"""What is sent to MLflow of a record: its publication in MLflow's terms, and files."""

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
"""Of a param; MLflow takes more of a tag, but not much."""


@dataclass
class Record:
    """What is logged of one result, in MLflow's terms."""

    name: str
    """Of the run."""
    start_ms: int
    end_ms: int
    """Milliseconds since 1970."""
    status: str
    """FINISHED, or FAILED where something was not finite."""
    params: list[tuple[str, str]]
    metrics: list[tuple[str, float, int]]
    """Name, value and step."""
    tags: dict[str, str]
    sweep: str | None
    """Folder of the sweep that it belongs to, or is of."""
    varied: Sequence[str]
    """What that sweep varies: keys, or overrides."""
    is_sweep: bool
    """Whether it is of the sweep itself, whose run is the parent of those of its jobs."""


def make_record(result: Recorded, result_path: Path, name: str | None) -> Record:
    """What is logged of a result; `name` is the run's, or None for one made of what was run."""
    start = datetime.datetime.fromisoformat(result.started).timestamp()
    own = result.publication()
    command = shlex.join(result.command)
    tags: dict[str, str | None] = {  # MLflow shows them in this order: first what one filters by
        **own.tags,
        "baseline": result.config.get("baseline", {}).get("name"),
        "sweep": own.sweep,
        "identity": result.identity,
        RESULT_TAG: hashlib.sha256(result_path.read_bytes()).hexdigest(),
        "gptbench.command": command,
        "mlflow.source.name": "gptbench",
        NOTE_TAG: f"{own.note}\n\n`` {command} ``".lstrip(),
    }
    return Record(
        name=redacted(" ".join([*swept_name(result.swept), name or own.name])),
        start_ms=round(start * 1000),
        end_ms=round((start + own.seconds) * 1000),
        status=own.status,
        params=[
            (clean(redacted(key)), redacted(value)[:MAX_CHARACTERS]) for key, value in flat(without_places(own.params))
        ],
        metrics=own.metrics,
        tags={key: redacted(value)[:MAX_CHARACTERS] for key, value in tags.items() if value is not None},
        sweep=own.sweep,
        varied=own.varied,
        is_sweep=own.is_sweep,
    )


NO_PARAMS = ("baseline", "sweep", "tracking", "outputs", "commit")
"""Sections and fields that are not logged as params: what a run is compared with, belongs to, or is written to. They
are in config.yaml among the artifacts, and the baseline's name is a tag."""


def without_places(params: dict[str, Any]) -> dict[str, Any]:
    """What of them is logged: MLflow's table of runs opens without any metric where there are too many of them."""

    def without_targets(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: without_targets(value) if isinstance(value, dict) else value
            for key, value in values.items()
            if key != "_target_"
        }

    return without_targets({key: value for key, value in params.items() if key not in NO_PARAMS})


def swept_name(swept: list[str]) -> list[str]:
    """What distinguishes a job of a sweep from the others, for the beginning of its name: `top_k=5`; of several
    overrides first all values, `5/0.8 top_k/temperature`, as MLflow's list of runs shows some fifteen characters."""
    values = dict(override.split("=", 1) for override in swept if "=" in override)
    short = short_keys(list(values))
    if len(values) < 2:
        return [f"{short[key]}={value}" for key, value in values.items()]
    return ["/".join(values.values()), "/".join(short[key] for key in values)]


def clean(key: str) -> str:
    """The key with only such characters as MLflow takes in a name. It takes a slash, too, but reads it as a path."""
    return re.sub(r"[^\w.\- ]", "_", key)


def write_artifacts(result: Recorded, result_path: Path, folder: Path, figures: bool) -> None:
    """The record itself, what it writes beside it, compile time as a picture, and, if `figures`, all others."""
    shutil.copyfile(result_path, folder / f"{result.FILE}.json")
    result.write_files(folder)
    for run in of_kind(Result, [result]):
        draw_compile_stages(run, folder / "compile.png")
    if figures:
        for name, error in write_figures(drawn(result, result_path), folder / "figures").items():
            print(f"Not drawn: {name}: {error!r}", file=sys.stderr)


def drawn(result: Recorded, result_path: Path) -> list[Recorded]:
    """A record, or those that it is made of and that mean something."""
    if (members := result.members(result_path.parent)) is None:
        return [result]
    records = []
    for path in members:
        try:
            record = load_record(path)
            if record.problem() is None:
                records.append(record)
        except Exception as error:  # the whole is worth more than one part in its pictures
            print(f"Not drawn: {path}: {error!r}", file=sys.stderr)
    return records
