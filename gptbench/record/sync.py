"""Which records are logged, and `gptbench log` and `gptbench sync`, which log those that are not.

Every record is a file before it is sent. A mark beside it, once it is logged, tells where; `sync` sends what has none.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gptbench import parsers
from gptbench.config import MLflowConfig, TrackingConfig
from gptbench.errors import TrackingError, UserError, counted
from gptbench.inputs import read_object
from gptbench.outputs import write_json, write_whole
from gptbench.record.files import load_record, records_in
from gptbench.record.ledger import folders_told, is_held
from gptbench.record.outcome import LOCK as JOB_LOCK
from gptbench.record.plan import LOCK as SWEEP_LOCK
from gptbench.record.plan import PLAN, Plan
from gptbench.record.result import Recorded
from gptbench.record.store import embedded_store, file_of, is_lost
from gptbench.record.sweep import SweepRecord, record_of
from gptbench.record.tracking import AwayError, MLflowTracker, Tracker, place_of
from gptbench.redaction import HIDDEN, redacted, redacted_message
from gptbench.targets import instantiate

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
            write_whole(trace, redacted_message("".join(traceback.format_exception(error))))
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


def sync_command(arguments: list[str]) -> int:
    """`gptbench sync`: logs all records that could not be logged before. Returns the exit code: 1 if some still cannot.

    Raises:
        UserError: there is no such folder.
    """
    options = parsers.sync().parse_args(arguments)
    outputs: Path = options.outputs.absolute()
    if not outputs.is_dir():
        raise UserError(f"{options.outputs}: expected an outputs folder (--outputs)")
    failed, unread = 0, 0
    away: set[tuple[str | None, str]] = set()  # where nothing more is tried
    lost: dict[Path | None, bool] = {}  # whether a store was, before it is made anew for the first record
    for path in all_records(outputs):
        try:
            result = load_record(path)
            if (section := tracking_of(path, result, default=False)) is None:
                continue
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            unread += 1
            continue
        if options.uri is not None and section.uri and place_of(section.uri) == place_of(options.uri):
            section = replace(section, uri=options.uri)
        if (file := file_of(section.uri or embedded_store(outputs))) not in lost:
            lost[file] = file is not None and is_lost(file)
        if options.all or lost[file]:
            path.with_name(f"{MARK}{path.name}").unlink(missing_ok=True)
        elif marked(path, section, outputs) is not None:
            continue
        to = (section.uri, section.experiment)
        if to in away:
            failed += 1
            continue
        try:
            print(log_marked(result, path, usable(section), outputs))
        except TrackingError as error:
            print(f"Not tracked: {error}")
            failed += 1
            if isinstance(error, AwayError):
                away.add(to)
    if unread:
        print(f"left out: {unread} files that cannot be read", file=sys.stderr)
    print(f"still not logged: {counted(failed, 'record')}" if failed else "all records are logged")
    return 1 if failed else 0


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


def log_command(arguments: list[str]) -> int:
    """`gptbench log`: logs recorded results. Returns the exit code.

    Raises:
        UserError: a file is not a result (the others are logged), or the store refuses one.
    """
    options = parsers.log().parse_args(arguments)
    given = {"uri": options.uri, "experiment": options.experiment}
    changes = {key: value for key, value in given.items() if value is not None}
    unread = []
    for path in options.results:
        try:
            result = load_record(path)
            config = tracking_of(path, result, True, changes)
        except UserError as error:  # the others are logged all the same
            unread.append(str(error))
            continue
        assert config is not None
        outputs = options.outputs or Path(result.config.get("outputs", "outputs"))
        print(MLflowTracker(usable(config), outputs).log(result, path))
    if unread:
        raise UserError("\n".join(unread))
    return 0
