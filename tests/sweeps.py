"""Shared by tests of sweeps: command lines, and what is in the outputs folder."""

import shutil
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from gptbench.schema import SweepRecord
from gptbench.schema.files import load_record
from tests.warm import Warm

SHORT = ["model=mixtral_tiny", "workload.prompt=[1,2,3]", "workload.new_tokens=4", "workload.samples=1"]
PLAIN = ["engine=eager", "device=cpu", "device.threads=1"]
SWEEP = ["-m", *SHORT, *PLAIN]
LOGGED = [*SWEEP, "tracking.figures=false"]
"""Sweep logged to MLflow without charts, which take longer to draw than such a job, and have separate tests."""
SIX = ["sampling.top_k=1,5,50", "sampling.temperature=0.5,1"]
LONG = ["workload.new_tokens=500", "workload.samples=200"]
"""Overrides of a job that takes minutes."""
SECONDS = ["workload.new_tokens=200", "workload.samples=1"]
"""Overrides of a job that takes a few seconds."""


def begin(warm: Warm, folder: Path, empty_store: Path) -> Path:
    """Return an outputs folder with a measured read roof and an empty store, so that these are made only once."""
    code, call = warm.run(folder, *SHORT, *PLAIN, "tracking=none")
    assert code == 0, call.err
    shutil.copy(empty_store, folder / "outputs" / "mlflow.db")
    return folder / "outputs"


def copy_of(begun: Path, folder: Path) -> Path:
    """Return a folder to work in, with a copy of what `begin` made."""
    shutil.copytree(begun / "roofs", folder / "outputs" / "roofs")
    shutil.copy(begun / "mlflow.db", folder / "outputs")
    return folder


def runs(folder: Path) -> tuple[list[Run], list[Run]]:
    """Return the parent and child runs in MLflow's store."""
    client = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("gptbench")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    return [run for run in found if run not in children], children


def measurements(folder: Path) -> Counter[str | None]:
    """Return how often each identity is recorded."""
    counted: Counter[str | None] = Counter()
    for path in (folder / "outputs").glob("2*/*/*/result*.json"):
        record = load_record(path)
        assert record.problem() is None
        counted[record.identity] += 1
    return counted


def sweeps(folder: Path) -> list[SweepRecord]:
    """Return the records of all sweeps, in order."""
    return [SweepRecord.load(path) for path in sorted((folder / "outputs").glob("2*/*/sweep.json"))]


def job_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "outputs").glob("2*/*/*/job.json"))


def check_every_job_is_recorded_once(folder: Path, jobs: int) -> None:
    counted = measurements(folder)
    assert len(counted) == jobs
    assert set(counted.values()) == {1}
    parents, children = runs(folder)
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert Counter(run.info.status for run in children) == {"FINISHED": jobs}
    assert {run.data.tags["identity"] for run in children} == set(counted)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert all("decode_tokens_per_s" in run.data.metrics for run in children)
