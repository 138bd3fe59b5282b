"""Which records are logged, and where.

Every record is a file before it is sent. Once it is logged, a mark beside it says where; `gptbench sync` sends records
without a mark.
"""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gptbench.base.errors import TrackingError, UserError
from gptbench.base.inputs import read_object
from gptbench.base.outputs import atomic_write, write_json
from gptbench.base.redaction import HIDDEN, redacted, redacted_message
from gptbench.config import MLflowConfig, TrackingConfig
from gptbench.config.targets import instantiate
from gptbench.record.ledger import folders_in, is_held
from gptbench.record.settings import place_of
from gptbench.record.store import embedded_store, file_of, is_lost
from gptbench.record.tracking import AwayError, Tracker
from gptbench.schema.files import records_in
from gptbench.schema.outcome import LOCK as JOB_LOCK
from gptbench.schema.plan import LOCK as SWEEP_LOCK
from gptbench.schema.plan import PLAN, Plan
from gptbench.schema.record import Recorded
from gptbench.schema.sweep import SweepRecord, record_of

MARK = "tracked-"
"""Prefix of the file beside a record that says where it is logged."""
TRACE = "untracked-"
"""Prefix of the file beside a record that could not be logged, with the traceback of the error, which may be a fault in
gptbench."""


def log_recorded(
    result: Recorded, path: Path, section: TrackingConfig, outputs: Path, warn: Callable[[str], None]
) -> str | None:
    """Call `log_marked`, and pass its errors to `warn`: nothing is lost by them.

    Returns:
        Where it is logged; None if it is not.
    """
    try:
        return log_marked(result, path, section, outputs)
    except TrackingError as error:
        warn(f"Not tracked: {error}")
        return None


def log_marked(result: Recorded, path: Path, section: TrackingConfig, outputs: Path) -> str | None:
    """Log a saved record, and leave a mark beside it so that `gptbench sync` skips it.

    Returns:
        Where it is logged; None if the tracker logs nothing.

    Raises:
        TrackingError: it could not be logged. The traceback is left beside the record.
    """
    if (before := marked(path, section, outputs)) is not None:
        return before
    tracker: Tracker = instantiate(section, outputs)
    trace = path.with_name(f"{TRACE}{path.stem}.txt")
    try:
        logged = tracker.log(result, path)
    except TrackingError as error:
        with contextlib.suppress(OSError):  # such as a full disk
            atomic_write(trace, redacted_message("".join(traceback.format_exception(error))))
        raise
    trace.unlink(missing_ok=True)
    if logged is not None:
        marks = read_marks(path) | {destination(section, outputs): logged}
        with contextlib.suppress(OSError):  # `sync` then asks the store, which knows it
            write_json(path.with_name(f"{MARK}{path.name}"), marks)
    return logged


def marked(path: Path, section: TrackingConfig, outputs: Path) -> str | None:
    """Return where a record is logged, by its mark, in the store of the section; None if it is not."""
    file = file_of(section.uri or embedded_store(outputs)) if isinstance(section, MLflowConfig) else None
    if file is not None and is_lost(file):
        return None  # such as after moving the outputs without it
    return read_marks(path).get(destination(section, outputs))


def read_marks(path: Path) -> dict[str, str]:
    """Return the marks of a record: destination to description of the run."""
    return {to: str(run) for to, run in read_object(path.with_name(f"{MARK}{path.name}")).items()}


def destination(section: TrackingConfig, outputs: Path) -> str:
    """Return the key of a mark: store and experiment."""
    if not isinstance(section, MLflowConfig):
        return ""
    return f"{place_of(section.uri or embedded_store(outputs))} {redacted(section.experiment)}"


def tracking_of(
    path: Path, result: Recorded, default: bool, instead: Mapping[str, str] = MappingProxyType({})
) -> MLflowConfig | None:
    """Return the tracking section of a record's configuration; if it names no store and there is a `default`, the
    section of the store in the outputs folder. Values of `instead` take precedence.

    Raises:
        UserError: the configuration has no usable tracking section.
    """
    try:
        section = result.config["tracking"]
        if section["_target_"] not in MLflowConfig.TARGETS:
            if not default:
                return None
            section = {"_target_": MLflowConfig.TARGETS[0], "name": "mlflow"}
        return MLflowConfig(**section | instead)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: its configuration has no usable tracking section: {error!r}") from error


def usable(section: MLflowConfig) -> MLflowConfig:
    """Return the section with an address that can be used. If a record has `***` for user and password, MLflow may find
    these in its environment variables (MLFLOW_TRACKING_USERNAME).

    Raises:
        AwayError: another part of the address is not recorded.
    """
    if section.uri is None or HIDDEN not in section.uri:
        return section
    if HIDDEN in (uri := place_of(section.uri)):
        raise AwayError(
            f"tracking.uri={section.uri}: records do not hold what {HIDDEN} stands for; pass all of it with --uri"
        )
    return replace(section, uri=uri)


def all_records(outputs: Path) -> Iterator[Path]:
    """Yield the files of all records, jobs before their sweeps, after writing the record of each sweep whose process is
    gone."""
    sweeps = []
    for folder in record_folders(outputs):
        if (folder / PLAN).exists():
            end_dead_sweep(folder)
        for path in records_in(folder):
            if path.name.startswith(SweepRecord.FILE):
                sweeps.append(path)
            else:
                yield path
    yield from sweeps


def record_folders(outputs: Path) -> Iterator[Path]:
    """Yield all folders below the outputs folder, and those elsewhere that it refers to (`hydra.run.dir`,
    `hydra.sweep.dir`)."""
    for top, inner, _ in os.walk(outputs):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "mlartifacts")
        yield Path(top)
    yield from sorted(folder for folder in folders_in(outputs) if not folder.is_relative_to(outputs.resolve()))


def end_dead_sweep(folder: Path) -> None:
    """Write the record of a sweep whose process was killed before it could, once none of its jobs runs any more."""
    if records_in(folder, SweepRecord):
        return
    with contextlib.suppress(UserError):
        plan = Plan.load(folder)
        if is_held(folder / SWEEP_LOCK) or any(is_held(folder / name / JOB_LOCK) for name in plan.jobs):
            return
        # Not the present time: the sweep may have been resumed since.
        ended = max(path.lstat().st_mtime for path in [folder / PLAN, *folder.glob("*/*.json")])
        reason = "the sweep's process ended before it began"
        record_of(folder, plan, interrupted=True, reason=reason, ended=ended).save(folder)
