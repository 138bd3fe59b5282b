"""Which recorded runs someone means: by file, folder, identity, or MLflow."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbench.config import MLflowConfig
from gptbench.errors import UserError
from gptbench.record import Recorded, SweepRecord
from gptbench.record.files import KINDS, load_record, records_in
from gptbench.record.ledger import FOLDER, Ledger
from gptbench.record.result import redacted
from gptbench.record.tracking import embedded_store, environment_variables, mlflow_settings, reason

LATEST = "latest"
MLFLOW = "mlflow:"
SQLITE = "sqlite:///"
IDENTITY = re.compile(r"[0-9a-f]{4,16}")
"""Or the beginning of one."""
RUN_ID = re.compile(r"[0-9a-f]{32}")
"""MLflow's."""
HOW = (
    "a record or a folder with some, the first digits of a run's identity, "
    f"{MLFLOW}FILTER with a filter or a run id of MLflow's, or {LATEST}"
)


@dataclass(frozen=True)
class Found:
    """A record, and where it is; what comes from MLflow is in `mlflow:/RUN_ID`, and in no file."""

    path: Path
    record: Recorded


def select(
    selector: str,
    outputs: Path,
    uri: str | None = None,
    kinds: tuple[type[Recorded], ...] = KINDS,
    unread: Callable[[str], None] = lambda _: None,
) -> list[Found]:
    """Records that a selector means, the oldest first; of a sweep, those of its jobs.

    Args:
        selector: see `HOW`.
        outputs: outputs folder, of which identities are looked up, and the latest record.
        uri: MLflow's store or server; None is the one in the outputs folder.
        kinds: of which the latest is meant, where that is asked for.
        unread: is told of each file in a folder that should be a record and cannot be read.

    Raises:
        UserError: it means none, or several identities.
    """
    path = Path(selector)
    if selector.startswith(MLFLOW):
        config = MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow")
        found = from_mlflow(selector.removeprefix(MLFLOW), config, uri or embedded_store(outputs))
    elif path.is_file():
        found = from_file(path)
    elif path.is_dir():
        found = from_folder(path, unread)
    elif selector == LATEST:
        found = from_folder(outputs, unread) if outputs.is_dir() else []
        found = [each for each in found if isinstance(each.record, kinds)][-1:]
    elif IDENTITY.fullmatch(selector):
        found = of_identity(selector, outputs)
    else:
        raise UserError(f"{selector}: no such file or folder; expected {HOW}")
    if not found:
        raise UserError(f"{selector}: no record there (outputs folder: {outputs}); expected {HOW}")
    return found


def from_file(path: Path) -> list[Found]:
    """A record; of a sweep's, those of its jobs."""
    record = load_record(path)
    if not isinstance(record, SweepRecord):
        return [Found(path, record)]
    jobs = [Path(job.record) for job in record.jobs if job.record is not None]
    # A sweep's folder may have been moved, with its jobs in it.
    paths = [job if job.exists() else path.parent / job.parent.name / job.name for job in jobs]
    return [Found(job, load_record(job)) for job in dict.fromkeys(paths)]


def from_folder(folder: Path, unread: Callable[[str], None]) -> list[Found]:
    """Every record below it, but those of sweeps, whose jobs are there; a sweep that found jobs elsewhere has those."""
    found: dict[Path, Found] = {}
    for inner in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and not is_hidden(path, folder))]:
        for path in records_in(inner):
            try:
                found |= {each.path.resolve(): each for each in from_file(path)}
            except UserError as error:
                unread(str(error))
    return sorted(found.values(), key=lambda each: (each.record.started, each.path.stat().st_mtime_ns))


def is_hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") or part == "mlartifacts" for part in path.relative_to(below).parts)


def of_identity(digits: str, outputs: Path) -> list[Found]:
    """Every record of the identity that begins so."""
    names = sorted({path.stem for path in (outputs / FOLDER).glob(f"{digits}*.jsonl")})
    if len(names) > 1:
        raise UserError(f"{digits}: expected one identity, and there are {', '.join(names)}")
    found = []
    for name in names:
        for folder in Ledger(outputs).attempts(name):
            for path in records_in(folder):
                record = load_record(path)
                if record.identity == name:
                    found.append(Found(path, record))
    return found


def from_mlflow(condition: str, config: MLflowConfig, uri: str) -> list[Found]:
    """Records of the runs that a filter of MLflow's finds, or a run id names: as they were logged."""
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return []  # or it would be made
    from mlflow import MlflowClient

    try:
        with environment_variables(mlflow_settings(config)):
            client = MlflowClient(uri)
            return [found for run in runs_of(client, condition) if (found := logged(client, run)) is not None]
    except UserError:
        raise
    except Exception as error:  # stores, servers and plugins raise whatever they like
        raise UserError(f"{MLFLOW}{condition}: {redacted(uri)}: {redacted(reason(error))}") from error


def runs_of(client: Any, condition: str) -> list[Any]:
    """The oldest first."""
    if RUN_ID.fullmatch(condition):
        return [client.get_run(condition)]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, page_token=token)
        runs, token = runs + list(page), page.token
        if not token:
            return sorted(runs, key=lambda run: run.info.start_time)


def logged(client: Any, run: Any) -> Found | None:
    """The record among a run's artifacts; None where there is none, or a sweep's, whose jobs are runs of their own."""
    names = {f"{kind.FILE}.json" for kind in KINDS if kind is not SweepRecord}
    name = next((entry.path for entry in client.list_artifacts(run.info.run_id) if entry.path in names), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory(prefix="gptbench-") as folder:
        record = load_record(Path(client.download_artifacts(run.info.run_id, name, folder)))
    return Found(Path(MLFLOW, run.info.run_id, name), record)
