"""Which records are logged, and where.

Every record is a file before it is sent. A mark beside it, once it is logged, tells where; `sync` sends what has none.
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
from gptbench.record.ledger import folders_told, is_held
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
"""Begins the name of a file beside a record: where that is logged."""
TRACE = "untracked-"
"""Begins the name of a file beside a record that could not be logged: the traceback of what went wrong, which may be a
fault of gptbench's own."""


def log_recorded(
    result: Recorded, path: Path, section: TrackingConfig, outputs: Path, warn: Callable[[str], None]
) -> str | None:
    """`log_marked`, but what goes wrong, which loses nothing, is passed to `warn`.

    Returns:
        Where it is logged; None where it is not.
    """
    try:
        return log_marked(result, path, section, outputs)
    except TrackingError as error:
        warn(f"Not tracked: {error}")
        return None


def log_marked(result: Recorded, path: Path, section: TrackingConfig, outputs: Path) -> str | None:
    """Logs a record that was saved, and leaves a mark beside it, by which `sync` knows that it need not.

    Returns:
        Where it is logged; None where there is nothing to say.

    Raises:
        TrackingError: it is not. Its traceback is left beside the record.
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
    """Where a record's mark says that it is logged, in the store that the section names; None where it does not."""
    file = file_of(section.uri or embedded_store(outputs)) if isinstance(section, MLflowConfig) else None
    if file is not None and is_lost(file):
        return None  # or the outputs were moved without it
    return read_marks(path).get(destination(section, outputs))


def read_marks(path: Path) -> dict[str, str]:
    """Of a record: destination to what was said of it there."""
    return {to: str(told) for to, told in read_object(path.with_name(f"{MARK}{path.name}")).items()}


def destination(section: TrackingConfig, outputs: Path) -> str:
    """Store and experiment."""
    if not isinstance(section, MLflowConfig):
        return ""
    return f"{place_of(section.uri or embedded_store(outputs))} {redacted(section.experiment)}"


def tracking_of(
    path: Path, result: Recorded, default: bool, instead: Mapping[str, str] = MappingProxyType({})
) -> MLflowConfig | None:
    """Where a record's own configuration says that it goes; where it says nowhere, and there is a `default`, to the
    store in the outputs folder. What is given `instead` goes before what it says.

    Raises:
        UserError: it does not say.
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
    """The same with an address that can be asked. Where a record holds `***` for user and password, MLflow may find
    these in its own variables of the environment (MLFLOW_TRACKING_USERNAME).

    Raises:
        AwayError: something else of it is not recorded.
    """
    if section.uri is None or HIDDEN not in section.uri:
        return section
    if HIDDEN in (uri := place_of(section.uri)):
        raise AwayError(f"tracking.uri={section.uri}: no record holds what {HIDDEN} stands for: give it all in --uri")
    return replace(section, uri=uri)


def all_records(outputs: Path) -> Iterator[Path]:
    """Jobs before their sweeps. Sweeps that nobody runs any more get a record first."""
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
    """All below the outputs folder, and those elsewhere that it refers to (`hydra.run.dir`, `hydra.sweep.dir`)."""
    for top, inner, _ in os.walk(outputs):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "mlartifacts")
        yield Path(top)
    yield from sorted(folder for folder in folders_told(outputs) if not folder.is_relative_to(outputs.resolve()))


def end_dead_sweep(folder: Path) -> None:
    """Writes the record of a sweep whose process was killed before it could, once none of its jobs runs any more."""
    if records_in(folder, SweepRecord):
        return
    with contextlib.suppress(UserError):
        plan = Plan.load(folder)
        if is_held(folder / SWEEP_LOCK) or any(is_held(folder / name / JOB_LOCK) for name in plan.jobs):
            return
        # Not now: it may have been gone on with since.
        ended = max(path.lstat().st_mtime for path in [folder / PLAN, *folder.glob("*/*.json")])
        reason = "the sweep's process ended before"
        record_of(folder, plan, interrupted=True, reason=reason, ended=ended).save(folder)
