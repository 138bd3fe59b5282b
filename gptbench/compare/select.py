"""Which recorded runs someone means: by file, folder, identity, or MLflow."""

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
"""Or the beginning of one."""
RUN_ID = re.compile(r"[0-9a-f]{32}")
"""MLflow's."""
QUIET: dict[str, str | None] = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
"""Or it draws one for each record."""


@dataclass(frozen=True)
class SelectedRecord:
    """A record, and where it is; what comes from MLflow is in `mlflow:/RUN_ID`, and in no file."""

    path: Path
    record: Recorded


def select(
    selector: str,
    outputs: Path,
    uri: str | None = None,
    kinds: tuple[type[Recorded], ...] = (Recorded,),
    unread: Callable[[str], None] = lambda _: None,
) -> list[SelectedRecord]:
    """Records that a selector means, the oldest first; of a sweep, those of its jobs.

    Args:
        selector: see `SELECTOR_HELP`.
        outputs: outputs folder, of which identities are looked up, and the latest record.
        uri: MLflow's store or server; None is the one in the outputs folder.
        kinds: of which the latest is meant, where that is asked for.
        unread: is told of each file that should be a record and cannot be read, which leaves the others as they are;
            one that is itself asked for is an error.

    Raises:
        UserError: it means none, or several identities.
    """
    left_out: dict[str, None] = {}  # each once: a folder and a sweep in it may both lead to a job
    found = meant(selector, outputs, uri, kinds, left_out.setdefault)
    for why in list(left_out)[:MAX_TOLD]:
        unread(why)
    if len(left_out) > MAX_TOLD:
        unread(f"{len(left_out) - MAX_TOLD} more files, of {len(left_out)} that cannot be read")
    if not found:
        raise UserError(f"{selector}: no record there (outputs folder: {outputs}); expected {SELECTOR_HELP}")
    return found


MAX_TOLD = 10
"""Files that cannot be read, which are named; of more it is said how many there are."""


def meant(
    selector: str, outputs: Path, uri: str | None, kinds: tuple[type[Recorded], ...], unread: Callable[[str], Any]
) -> list[SelectedRecord]:
    """As `select`, where there may be none."""
    path = Path(selector)
    if selector.startswith(MLFLOW):
        config = MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow")
        found = from_mlflow(selector.removeprefix(MLFLOW), config, uri or embedded_store(outputs), unread)
    elif path.exists() and not path.is_dir():
        found = from_file(path, unread)
    elif path.is_dir():
        found = from_folder(path, unread)
    elif selector == LATEST:
        of_kinds = (each for each in below(outputs, unread) if isinstance(each.record, kinds))
        found = [] if (newest := max(of_kinds, key=age, default=None)) is None else [newest]
    elif IDENTITY.fullmatch(selector):
        found = of_identity(selector, outputs, unread)
    elif RUN_ID.fullmatch(selector):
        return meant(f"{MLFLOW}{selector}", outputs, uri, kinds, unread)
    else:
        raise UserError(f"{selector}: no such file or folder; expected {SELECTOR_HELP}")
    return found


def from_file(path: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """A record; of a sweep's, those of its jobs."""
    return parts_of(SelectedRecord(path, load_record(path)), unread)


def parts_of(found: SelectedRecord, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """A record itself, or those that it is made of."""
    members = found.record.members(found.path.parent)
    return [found] if members is None else list(readable(members, unread))


def readable(paths: Iterable[Path], unread: Callable[[str], Any]) -> Iterator[SelectedRecord]:
    """Those that can be read."""
    for path in paths:
        try:
            yield SelectedRecord(path, load_record(path))
        except UserError as error:
            unread(str(error))


def from_folder(folder: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Every record below it, the oldest first."""
    return sorted(below(folder, unread), key=age)


def below(folder: Path, unread: Callable[[str], Any]) -> Iterator[SelectedRecord]:
    """Every record below a folder, each read once, but those of sweeps, whose jobs are there; a sweep that found jobs
    elsewhere has those."""
    inner = sorted(path for path in folder.rglob("*") if path.is_dir() and not is_hidden(path, folder))
    here = {path.resolve(): path for each in [folder, *inner] for path in records_in(each)}
    elsewhere: dict[Path, Path] = {}
    for found in readable(here.values(), unread):
        if (members := found.record.members(found.path.parent)) is None:
            yield found
        else:
            elsewhere |= {real: path for path in members if (real := path.resolve()) not in here}
    yield from readable(elsewhere.values(), unread)


def age(found: SelectedRecord) -> tuple[str, int]:
    """By which records are in order, the oldest first."""
    return found.record.started, found.path.stat().st_mtime_ns


def is_hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") or part == "mlartifacts" for part in path.relative_to(below).parts)


def of_identity(digits: str, outputs: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Every record of the identity that begins so, a run's or a sweep's."""
    runs = {path.stem for path in (outputs / FOLDER).glob(f"{digits}*.jsonl")}
    sweeps = {path.stem for path in (outputs / SWEEPS).glob(f"{digits}*.json")}
    if len(names := sorted(runs | sweeps)) > 1:
        raise UserError(f"{digits}: expected one identity, and there are {', '.join(names)}")
    found = [job for name in sweeps for job in of_sweep(name, outputs, unread)]
    for name in runs:
        for folder in Ledger(outputs).attempts(name):
            found += [each for each in readable(records_in(folder), unread) if each.record.identity == name]
    return found


def of_sweep(identity: str, outputs: Path, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Records of the jobs of the last sweep of that identity, whether it has ended or not."""
    where = read_object(outputs / SWEEPS / f"{identity}.json").get("call")
    if not is_name(where):  # cut off, or nothing of ours
        return []
    call = outputs / where
    if records := records_in(call, SweepRecord):
        return from_file(records[-1], unread)
    if not (call / PLAN).exists():
        return []
    return list(readable(record_of(call, Plan.load(call), interrupted=True).members(call), unread))


def from_mlflow(condition: str, config: MLflowConfig, uri: str, unread: Callable[[str], Any]) -> list[SelectedRecord]:
    """Records of the runs that a filter of MLflow's finds, or a run id names: as they were logged."""
    if (file := file_of(uri)) is not None and not file.exists():
        return []  # or it would be made
    from mlflow import MlflowClient

    try:
        with environment_variables(mlflow_settings(config) | QUIET):
            if file is not None:
                with lock_of(file):
                    make_whole(file)
            client = MlflowClient(uri)
            return [found for run in runs_of(client, condition) if (found := logged(client, run, unread)) is not None]
    except UserError:
        raise
    except Exception as error:  # stores, servers and plugins raise whatever they like
        raise UserError(f"{MLFLOW}{condition}: {redacted(uri)}: {redacted(reason(error))}") from error


def runs_of(client: Any, condition: str) -> list[Any]:
    """The oldest first, each once; in place of a sweep's own run, which is their parent, those of its jobs."""
    if RUN_ID.fullmatch(condition):
        found = [client.get_run(condition)]
    else:
        found = searched(client, [each.experiment_id for each in client.search_experiments()], condition)
    runs: dict[str, Any] = {}
    for run in found:
        jobs = [run]
        if SWEEP_TAG in run.data.tags:
            jobs = searched(client, [run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'")
        runs |= {job.info.run_id: job for job in jobs}
    return sorted(runs.values(), key=lambda run: run.info.start_time)


def searched(client: Any, experiments: list[str], condition: str) -> list[Any]:
    """All runs for which it holds, page after page."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, page_token=token)
        runs, token = runs + list(page), page.token
        if not token:
            return runs


def logged(client: Any, run: Any, unread: Callable[[str], Any]) -> SelectedRecord | None:
    """The record among a run's artifacts; None where there is none that can be read."""
    names = {f"{kind.FILE}.json" for kind in KINDS.values() if kind is not SweepRecord}
    name = next((entry.path for entry in client.list_artifacts(run.info.run_id) if entry.path in names), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory(prefix="gptbench-") as folder:
        found = list(readable([Path(client.download_artifacts(run.info.run_id, name, folder))], unread))
    return SelectedRecord(Path(MLFLOW, run.info.run_id, name), found[0].record) if found else None
