"""Selection of recorded runs by file, folder, identity, or MLflow."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError
from gptbench.base.inputs import read_object
from gptbench.base.paths import SELECTOR_HELP
from gptbench.base.redaction import redacted
from gptbench.config import MLflowConfig
from gptbench.record.ledger import FOLDER, SWEEPS, Ledger, is_name
from gptbench.record.runs import PARENT_TAG, SWEEP_TAG
from gptbench.record.settings import environment_variables, mlflow_settings, reason
from gptbench.record.store import embedded_store, file_of, lock_of, make_whole
from gptbench.schema import Recorded, SweepRecord
from gptbench.schema.files import KINDS, load_record, records_in
from gptbench.schema.plan import PLAN, Plan
from gptbench.schema.sweep import record_of

LATEST = "latest"
MLFLOW = "mlflow:"
IDENTITY = re.compile(r"[0-9a-f]{4,16}")
"""Pattern of an identity, or of its first digits."""
RUN_ID = re.compile(r"[0-9a-f]{32}")
"""Pattern of a run id of MLflow."""
QUIET: dict[str, str | None] = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
"""Environment that keeps MLflow from printing a progress bar for each record."""


@dataclass(frozen=True)
class SelectedRecord:
    """A record and its path."""

    path: Path
    """Path of the record's file; `mlflow:/RUN_ID` and the artifact's name for a record from MLflow."""
    record: Recorded
    """The record."""


def select(
    selector: str,
    outputs: Path,
    uri: str | None = None,
    kinds: tuple[type[Recorded], ...] = (Recorded,),
    unread: Callable[[str], None] = lambda _: None,
) -> list[SelectedRecord]:
    """Return the records that a selector denotes, the oldest first; for a sweep, those of its jobs.

    Args:
        selector: see `SELECTOR_HELP`.
        outputs: outputs folder in which identities and the latest record are looked up.
        uri: MLflow's store or server; None takes the store in the outputs folder.
        kinds: kinds of records among which `latest` chooses.
        unread: called with a message for each record's file that cannot be read and is left out; if the selector is
        that
            file, an error is raised instead.

    Raises:
        UserError: the selector denotes no record, or several identities.
    """
    left_out: dict[str, None] = {}  # a dict drops repeats: a folder and a sweep in it may both lead to a job
    selected = matching(selector, outputs, uri, kinds, left_out.setdefault)
    for why in list(left_out)[:MAX_UNREAD_LISTED]:
        unread(why)
    if len(left_out) > MAX_UNREAD_LISTED:
        unread(f"{len(left_out) - MAX_UNREAD_LISTED} more files, of {len(left_out)} that cannot be read")
    if not selected:
        raise UserError(f"{selector}: no record there (outputs folder: {outputs}); expected {SELECTOR_HELP}")
    return selected


MAX_UNREAD_LISTED = 10
"""Number of unreadable files that are listed by name; of more, only the number is given."""


def matching(
    selector: str, outputs: Path, uri: str | None, kinds: tuple[type[Recorded], ...], unread: Callable[[str], Any]
) -> list[SelectedRecord]:
    """Return the records that a selector denotes, as `select` does, but possibly none."""
    path = Path(selector)
    if selector.startswith(MLFLOW):
        config = MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow")
        selected = from_mlflow(selector.removeprefix(MLFLOW), config, uri or embedded_store(outputs), unread)
    elif path.exists() and not path.is_dir():
        selected = from_file(path, unread)
    elif path.is_dir():
        selected = from_folder(path, unread)
    elif selector == LATEST:
        of_kinds = (entry for entry in below(outputs, unread) if isinstance(entry.record, kinds))
        selected = [] if (newest := max(of_kinds, key=age, default=None)) is None else [newest]
    elif IDENTITY.fullmatch(selector):
        selected = of_identity(selector, outputs, unread)
    elif RUN_ID.fullmatch(selector):
        return matching(f"{MLFLOW}{selector}", outputs, uri, kinds, unread)
    else:
        raise UserError(f"{selector}: no such file or folder; expected {SELECTOR_HELP}")
    return selected


def from_file(path: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Return the record in a file; for a sweep's, those of its jobs."""
    return parts_of(SelectedRecord(path, load_record(path)), unread)


def parts_of(selected: SelectedRecord, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Return the records that a record consists of, or the record itself."""
    members = selected.record.members(selected.path.parent)
    return [selected] if members is None else list(readable(members, unread))


def readable(paths: Iterable[Path], unread: Callable[[str], Any]) -> Iterator[SelectedRecord]:
    """Yield the records in some files, except those that cannot be read."""
    for path in paths:
        try:
            yield SelectedRecord(path, load_record(path))
        except UserError as error:
            unread(str(error))


def from_folder(folder: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Return every record below a folder, the oldest first."""
    return sorted(below(folder, unread), key=age)


def below(folder: Path, unread: Callable[[str], Any]) -> Iterator[SelectedRecord]:
    """Yield every record below a folder once. In place of a sweep's record come those of its jobs, also of jobs
    outside of the folder that the sweep reused."""
    inner = sorted(path for path in folder.rglob("*") if path.is_dir() and not is_hidden(path, folder))
    here = {path.resolve(): path for parent in [folder, *inner] for path in records_in(parent)}
    elsewhere: dict[Path, Path] = {}
    for entry in readable(here.values(), unread):
        if (members := entry.record.members(entry.path.parent)) is None:
            yield entry
        else:
            elsewhere |= {real: path for path in members if (real := path.resolve()) not in here}
    yield from readable(elsewhere.values(), unread)


def age(selected: SelectedRecord) -> tuple[str, int]:
    """Return the key by which records are sorted, the oldest first."""
    return selected.record.started, selected.path.stat().st_mtime_ns


def is_hidden(path: Path, below: Path) -> bool:
    """Return whether a folder is hidden, or holds MLflow's copies of records."""
    return any(part.startswith(".") or part == "mlartifacts" for part in path.relative_to(below).parts)


def of_identity(digits: str, outputs: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Return every record of the identity with these first digits, a run's or a sweep's."""
    runs = {path.stem for path in (outputs / FOLDER).glob(f"{digits}*.jsonl")}
    sweeps = {path.stem for path in (outputs / SWEEPS).glob(f"{digits}*.json")}
    if len(names := sorted(runs | sweeps)) > 1:
        raise UserError(f"{digits}: expected one identity, and there are {', '.join(names)}")
    selected = [job for name in sweeps for job in of_sweep(name, outputs, unread)]
    for name in runs:
        for folder in Ledger(outputs).attempts(name):
            selected += [entry for entry in readable(records_in(folder), unread) if entry.record.identity == name]
    return selected


def of_sweep(identity: str, outputs: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Return the records of the jobs of the last sweep of an identity, finished or not."""
    where = read_object(outputs / SWEEPS / f"{identity}.json").get("call")
    if not is_name(where):  # truncated, or not written by gptbench
        return []
    call = outputs / where
    if records := records_in(call, SweepRecord):
        return from_file(records[-1], unread)
    if not (call / PLAN).exists():
        return []
    return list(readable(record_of(call, Plan.load(call), interrupted=True).members(call), unread))


def from_mlflow(condition: str, config: MLflowConfig, uri: str, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Return the records, as they were logged, of the runs that a filter of MLflow matches or a run id names."""
    if (file := file_of(uri)) is not None and not file.exists():
        return []  # MLflow would create the store
    from mlflow import MlflowClient

    try:
        with environment_variables(mlflow_settings(config) | QUIET):
            if file is not None:
                with lock_of(file):
                    make_whole(file)
            client = MlflowClient(uri)
            records = (logged(client, run, unread) for run in runs_of(client, condition))
            return [record for record in records if record is not None]
    except UserError:
        raise
    except Exception as error:  # stores, servers and plugins may raise anything
        raise UserError(f"{MLFLOW}{condition}: {redacted(uri)}: {redacted(reason(error))}") from error


def runs_of(client: Any, condition: str) -> list[Any]:
    """Return the runs that a condition matches, each once, the oldest first; in place of a sweep's parent run, the
    runs of its jobs."""
    if RUN_ID.fullmatch(condition):
        matches = [client.get_run(condition)]
    else:
        matches = searched(client, [entry.experiment_id for entry in client.search_experiments()], condition)
    runs: dict[str, Any] = {}
    for run in matches:
        jobs = [run]
        if SWEEP_TAG in run.data.tags:
            jobs = searched(client, [run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'")
        runs |= {job.info.run_id: job for job in jobs}
    return sorted(runs.values(), key=lambda run: run.info.start_time)


def searched(client: Any, experiments: list[str], condition: str) -> list[Any]:
    """Return all runs of some experiments that match a condition, page after page."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, page_token=token)
        runs, token = runs + list(page), page.token
        if not token:
            return runs


def logged(client: Any, run: Any, unread: Callable[[str], Any]) -> SelectedRecord | None:
    """Return the record among a run's artifacts; None if there is none that can be read."""
    names = {f"{kind.FILE}.json" for kind in KINDS.values() if kind is not SweepRecord}
    name = next((entry.path for entry in client.list_artifacts(run.info.run_id) if entry.path in names), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory(prefix="gptbench-") as folder:
        records = list(readable([Path(client.download_artifacts(run.info.run_id, name, folder))], unread))
    return SelectedRecord(Path(MLFLOW, run.info.run_id, name), records[0].record) if records else None
