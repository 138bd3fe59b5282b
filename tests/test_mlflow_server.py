"""MLflow servers on SQLite and on PostgreSQL: whatever becomes of them, in the end everything is there, and once.

Each test logs to an experiment of its own, through a proxy that makes the trouble.
"""

import contextlib
import dataclasses
import multiprocessing
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from results import made_result
from servers import (
    Proxy,
    Store,
    Trouble,
    check_artifacts,
    config,
    hasty_pictures,
    hasty_sqlite,
    mlflow_server,
    no_postgresql,
    postgresql,
    sweep_job,
)

from gptbench.base.errors import TrackingError
from gptbench.commands.sync import sync_command
from gptbench.config import MLflowConfig
from gptbench.record import MLflowTracker
from gptbench.record.sync import log_marked, log_recorded
from gptbench.schema import Result
from gptbench.schema.failure import Cause, Failure
from gptbench.schema.files import load_record
from gptbench.schema.outcome import BEGUN, Outcome, Status
from gptbench.schema.plan import LOCK, Plan
from gptbench.schema.record import Recorded
from gptbench.schema.summary import summary
from gptbench.schema.sweep import SweepRecord, record_of
from tests.sweeps import LOGGED
from tests.warm import Warm

pytestmark = pytest.mark.slow

CREATE, BATCH, ARTIFACT, END = "runs/create", "runs/log-batch", "mlflow-artifacts", "runs/update"
"""In the paths of requests."""
PROCESSES = 8


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    with hasty_pictures():
        yield


@dataclass
class Backend:
    """A server, and a look inside."""

    url: str
    store: str
    """URI of its database."""

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.url)

    def runs(self, experiment: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        """Return the runs in order of their start."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return list(self.client.search_runs([found.experiment_id], "", view, order_by=["attributes.start_time"]))

    def family(self, experiment: str) -> tuple[Run, list[Run]]:
        """A parent, and its children."""
        return family(self.runs(experiment))

    def check(self, run: Run, result: Result, path: Path) -> None:
        """Check that a run holds every part of a result exactly once."""
        assert run.info.status == "FINISHED"
        assert run.data.params["model.dim"] == "288"
        assert {name: run.data.metrics[name] for name in summary(result)} == pytest.approx(summary(result))
        history = self.client.get_metric_history(run.info.run_id, "sample/ttft_s")
        assert [(metric.step, metric.value) for metric in history] == [(0, 0.05), (2, 0.07)]
        with tempfile.TemporaryDirectory() as folder:
            self.client.download_artifacts(run.info.run_id, "", folder)
            check_artifacts(Path(folder), result, path)


def family(runs: list[Run]) -> tuple[Run, list[Run]]:
    """The parent, and its children, where there is nothing else."""
    (parent,) = [run for run in runs if "gptbench.sweep" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, children


ON_BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgresql"], indirect=True)
"""For tests of what depends on a server's database: many processes at once, each kind of request and of search, deleted
runs, the longest histories. The others are of what we do when no answer comes, whichever database the server has."""


@pytest.fixture(scope="module", params=["sqlite"])
def backend(
    request: pytest.FixtureRequest, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """One for all tests of the file, since a server takes long to start."""
    folder = tmp_path_factory.mktemp("server")
    with contextlib.ExitStack() as stack:
        if request.param == "postgresql":
            if (reason := no_postgresql()) is not None:
                pytest.skip(reason)
            store = stack.enter_context(postgresql())
        else:
            shutil.copy(empty_store, folder / "mlflow.db")
            store = f"sqlite:///{folder}/mlflow.db"
            with hasty_sqlite():
                MlflowClient(store).search_experiments()
        yield Backend(stack.enter_context(mlflow_server(folder, store)), store)


@dataclass
class Outputs:
    """An outputs folder whose records go to one server, through a proxy."""

    folder: Path
    proxy: Proxy
    experiment: str

    def result(self) -> tuple[Result, Path]:
        """As a run leaves it."""
        made = made_result(tracking=self.tracking, outputs=str(self.folder))
        return made, made.save(self.folder / "2026-11-22" / "12-00-00")

    @property
    def tracking(self) -> dict[str, Any]:
        """What a configuration says. The time is for a machine that is busy with other tests."""
        return {"uri": self.proxy.url, "experiment": self.experiment, "timeout_s": 60.0, "retries": 0}

    def section(self, **changes: Any) -> MLflowConfig:
        return config(**(self.tracking | changes))

    def log(self, result: Recorded, path: Path, **changes: Any) -> tuple[str | None, list[str]]:
        """As a run does it: where it is logged, and what is told. `changes` is what differs in the tracking section."""
        told: list[str] = []
        logged = log_recorded(result, path, self.section(**changes), self.folder, lambda text, **_: told.append(text))
        return logged, told

    def sync(self, *arguments: str) -> int:
        return sync_command(["--outputs", str(self.folder), *arguments])


@pytest.fixture
def outputs(backend: Backend, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Outputs]:
    """For the server, and an experiment that is named as the test."""
    with contextlib.closing(Proxy(backend.url)) as proxy:
        yield Outputs(tmp_path / "out puts", proxy, re.sub(r"\W+", " ", request.node.name))


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[Outputs]:
    """The same, without a server behind the proxy."""
    with contextlib.closing(Proxy(None)) as proxy:
        yield Outputs(tmp_path / "out puts", proxy, "nowhere")


# Many at once


def log_at_once(barrier: Barrier, path: Path, section: MLflowConfig, outputs: Path) -> None:
    result = load_record(path)
    barrier.wait()
    with hasty_sqlite():
        log_marked(result, path, section, outputs)


def at_once(target: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
    """Calls it in as many processes, with a barrier before the other arguments, and sees that each does well."""
    context = multiprocessing.get_context("forkserver")  # imports once, so that they really are there at once
    context.set_forkserver_preload(["gptbench.record.tracking", "mlflow.store.tracking.sqlalchemy_store", "pytest"])
    barrier = context.Barrier(len(calls))
    processes = [context.Process(target=target, args=(barrier, *call)) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(calls)


def planned(folder: Path, tracking: dict[str, Any], jobs: int, sweep: Path | None = None) -> Plan:
    """Makes the folder of a sweep as the sweeper does."""
    plan = Plan(
        sweep=str(sweep or folder),
        identity="1234",
        resume=sweep is not None,
        started="2026-11-22T12:00:00+00:00",
        command=["python", "-m", "gptbench", "-m", "sampling.top_k=2,5"],
        config=made_result(tracking=tracking).config,
        jobs={str(number): [f"sampling.top_k={number}"] for number in range(jobs)},
    )
    plan.save(folder)
    return plan


def run_job(folder: Path, plan: Plan, number: int, hour: int = 12) -> tuple[Result, Path]:
    """Leaves what a job does that was measured."""
    job = made_result(started=f"2026-11-22T{hour}:{number:02}:00+00:00", sweep=plan.sweep, step_s=0.01 + number / 1000)
    job.config, job.swept = plan.config, plan.jobs[str(number)]
    job.compilations = []  # else a picture is drawn of them
    path = job.save(folder / str(number))
    metrics = job.summary
    Outcome(status=Status.recorded.value, swept=job.swept, record=str(path), metrics=metrics).save(path.parent)
    return job, path


def log_many(folder: Path, tracking: dict[str, Any], outputs: Path) -> list[Result]:
    """Logs a sweep whose jobs all end at once."""
    plan = planned(folder, tracking, PROCESSES)
    jobs = [run_job(folder, plan, number) for number in range(PROCESSES)]
    section = config(**tracking)
    at_once(log_at_once, [(path, section, outputs) for _, path in jobs])
    record = record_of(folder, plan, interrupted=False)
    log_marked(record, record.save(folder), section, outputs)
    return [job for job, _ in jobs]


def check_many(parent: Run, children: list[Run], jobs: list[Result]) -> None:
    """Check that all runs are complete, and logged once."""
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * PROCESSES
    assert parent.data.metrics["jobs_recorded"] == PROCESSES
    for run, job in zip(children, jobs, strict=True):
        assert f"top_k={job.swept[0].partition('=')[2]}" in run.info.run_name.split()
        assert {name: run.data.metrics[name] for name in summary(job)} == pytest.approx(summary(job))
        assert run.data.metrics["sample/ttft_s"] == 0.07


def test_first_use_by_many_processes_at_once_loses_nothing(tmp_path: Path) -> None:
    jobs = log_many(tmp_path / "outputs" / "sweep", {}, tmp_path / "outputs")
    check_many(*family(Store(tmp_path / "outputs").runs("gptbench")), jobs)


@ON_BOTH
def test_many_processes_at_once_through_a_server_lose_nothing(backend: Backend, tmp_path: Path) -> None:
    jobs = log_many(tmp_path / "outputs" / "sweep", {"uri": backend.url, "experiment": "many"}, tmp_path / "outputs")
    parent, children = backend.family("many")
    check_many(parent, children, jobs)
    for run in children:
        listed = [entry.path for entry in backend.client.list_artifacts(run.info.run_id)]
        assert listed == ["config.yaml", "result.json", "steps.csv", "text.txt"]


# All is well


@ON_BOTH
def test_server(backend: Backend, outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    job, path = sweep_job(outputs.folder / "sweep", 12)
    line, told = outputs.log(job, path)
    parent, (child,) = backend.family(outputs.experiment)
    assert line == f"MLflow run stories15m-bfloat16-inductor-b1 {child.info.run_id} in {outputs.proxy.url}"
    assert told == []
    assert capsys.readouterr().out == ""
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert child.info.artifact_uri.startswith("mlflow-artifacts:")
    backend.check(child, job, path)
    assert MLflowTracker(outputs.section(), outputs.folder).log(job, path) == f"already logged: {line}"


def test_all_of_a_record_goes_in_one_batch(outputs: Outputs, tmp_path: Path) -> None:
    outputs.log(*outputs.result())
    requests = [request.partition("?")[0].rpartition("/2.0/")[2] for request in outputs.proxy.requests]
    assert [request for request in requests if not request.startswith(ARTIFACT)] == [
        "mlflow/experiments/get-by-name",
        "mlflow/experiments/create",
        "mlflow/runs/search",
        "mlflow/runs/create",
        "mlflow/runs/search",
        "mlflow/runs/log-batch",
        "mlflow/runs/get",
        "mlflow/runs/update",
    ]
    outputs.proxy.requests.clear()
    plan = planned(outputs.folder / "sweep", outputs.tracking, 1)
    record = record_of(outputs.folder / "sweep", plan, interrupted=False)
    outputs.log(record, record.save(outputs.folder / "sweep"))
    assert outputs.proxy.count(BATCH) == 1


@ON_BOTH
def test_database_without_a_server(backend: Backend, outputs: Outputs) -> None:
    result, path = outputs.result()
    assert outputs.log(result, path, uri=backend.store)[0] is not None
    (run,) = backend.runs(outputs.experiment)
    assert run.info.status == "FINISHED"
    folder = Path(run.info.artifact_uri)
    assert folder.is_relative_to(outputs.folder / "mlartifacts")
    check_artifacts(folder, result, path)


def test_sync_knows_what_is_in_the_embedded_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "out puts"
    made_result(tracking={}, outputs=str(outputs)).save(outputs / "2026-11-22" / "12-00-00")
    with hasty_sqlite():
        assert sync_command(["--outputs", str(outputs)]) == 0
    capsys.readouterr()
    assert sync_command(["--outputs", str(outputs)]) == 0
    assert capsys.readouterr().out == "all records are logged\n"


# The server is away


def test_away_and_back(backend: Backend, outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    result, path = outputs.result()
    before = path.read_bytes()
    outputs.proxy.make(Trouble.refuse)
    logged, told = outputs.log(result, path)
    assert logged is None
    kept = f"The result is saved. To log it later: gptbench log '{path}'"
    assert told == [f"Not tracked: tracking.uri={outputs.proxy.url}: Connection refused\n{kept}"]
    assert outputs.sync() == 1
    assert capsys.readouterr().out.splitlines() == [*told[0].splitlines(), "still not logged: 1 record"]
    assert {entry.name for entry in path.parent.iterdir()} == {"result.json", "untracked-result.txt"}
    assert path.read_bytes() == before

    outputs.proxy.work()
    assert outputs.sync() == 0
    (run,) = backend.runs(outputs.experiment)
    backend.check(run, result, path)
    line = f"MLflow run stories15m-bfloat16-inductor-b1 {run.info.run_id} in {outputs.proxy.url}"
    assert capsys.readouterr().out.splitlines() == [line, "all records are logged"]

    outputs.proxy.requests.clear()
    assert outputs.sync() == 0
    assert outputs.proxy.requests == []
    assert outputs.log(result, path) == (line, [])
    assert outputs.proxy.requests == []
    assert len(backend.runs(outputs.experiment)) == 1


@pytest.mark.parametrize("at", [BATCH, ARTIFACT, END])
def test_away_in_the_middle(backend: Backend, outputs: Outputs, at: str) -> None:
    result, path = outputs.result()
    outputs.proxy.make(Trouble.refuse, at)
    assert outputs.log(result, path)[0] is None
    (half,) = backend.runs(outputs.experiment)
    assert half.info.status == "RUNNING"
    outputs.proxy.work()
    assert outputs.sync() == 0
    (run,) = backend.runs(outputs.experiment)
    assert run.info.run_id == half.info.run_id
    backend.check(run, result, path)


# It does what it is asked, and does not say so: too late, or not at all


@pytest.mark.parametrize(
    ("trouble", "at"),
    [
        (Trouble.delay, CREATE),  # each takes seconds
        *((Trouble.cut, at) for at in ("experiments/create", CREATE, BATCH, ARTIFACT, END)),
    ],
    ids=lambda value: value.name if isinstance(value, Trouble) else value,
)
def test_lost_answer_makes_nothing_twice(backend: Backend, outputs: Outputs, trouble: Trouble, at: str) -> None:
    result, path = outputs.result()
    outputs.proxy.make(trouble, at, times=1)
    timeout_s = 2.0 if trouble is Trouble.delay else 60.0
    assert outputs.log(result, path, timeout_s=timeout_s)[0] is None
    assert outputs.sync() == 0
    (run,) = backend.runs(outputs.experiment)
    backend.check(run, result, path)


@pytest.mark.parametrize("trouble", [Trouble.delay, Trouble.cut], ids=lambda trouble: trouble.name)
def test_of_runs_that_were_made_twice_one_remains(backend: Backend, outputs: Outputs, trouble: Trouble) -> None:
    result, path = outputs.result()
    outputs.proxy.make(trouble, CREATE, times=1)
    timeout_s = 2.0 if trouble is Trouble.delay else 60.0
    assert outputs.log(result, path, retries=1, timeout_s=timeout_s)[0] is not None
    assert outputs.proxy.count(CREATE) == 2
    (run,) = backend.runs(outputs.experiment)
    backend.check(run, result, path)
    (other,) = backend.runs(outputs.experiment, ViewType.DELETED_ONLY)
    assert other.data.metrics == {}


@ON_BOTH
def test_of_parents_that_were_made_twice_one_remains(backend: Backend, outputs: Outputs) -> None:
    sweep = outputs.folder / "sweep"
    plan = planned(sweep, outputs.tracking, 3)
    jobs = [run_job(sweep, plan, number) for number in range(3)]
    outputs.proxy.make(Trouble.cut, CREATE, times=1)
    assert outputs.log(*jobs[0], retries=1)[0] is not None
    parent, _ = backend.family(outputs.experiment)
    assert len(backend.runs(outputs.experiment, ViewType.DELETED_ONLY)) == 1

    backend.client.delete_run(parent.info.run_id)
    outputs.proxy.make(Trouble.cut, CREATE)
    assert outputs.log(*jobs[1], retries=1)[0] is None
    assert len(backend.runs(outputs.experiment)) == 3  # two of them empty parents
    outputs.proxy.work()
    outputs.log(*jobs[1])
    outputs.log(*jobs[2])
    (parent,) = [run for run in backend.runs(outputs.experiment) if "gptbench.sweep" in run.data.tags]
    children = [run for run in backend.runs(outputs.experiment) if run.info.run_id != parent.info.run_id]
    assert [run.info.status for run in children] == ["FINISHED"] * 3
    assert [run.data.tags["mlflow.parentRunId"] for run in children[1:]] == [parent.info.run_id] * 2


@ON_BOTH
def test_experiment_that_another_makes_meanwhile(backend: Backend, outputs: Outputs) -> None:
    outputs.proxy.make(Trouble.cut, "experiments/create", times=1)  # so it is there when MLflow's client asks again
    assert outputs.log(*outputs.result(), retries=1)[0] is not None
    assert len(backend.runs(outputs.experiment)) == 1


# How long all that can take


def test_server_that_hangs_is_waited_for_once(nowhere: Outputs) -> None:
    result, path = nowhere.result()
    nowhere.proxy.make(Trouble.hang)
    start = time.perf_counter()
    logged, (told,) = nowhere.log(result, path, timeout_s=1.0)
    assert logged is None
    assert told.startswith(f"Not tracked: tracking.uri={nowhere.proxy.url}: timed out\n")
    assert time.perf_counter() - start < 5
    assert len(nowhere.proxy.requests) == 1

    nowhere.proxy.requests.clear()
    start = time.perf_counter()
    assert nowhere.log(result, path, timeout_s=0.5, retries=1)[0] is None  # MLflow takes whole seconds
    assert 2 < time.perf_counter() - start < 6
    assert len(nowhere.proxy.requests) == 2


def test_sync_waits_once_for_all_records(nowhere: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = nowhere.folder / "sweep"
    plan = planned(sweep, nowhere.tracking | {"timeout_s": 1.0}, 5)
    for number in range(5):
        run_job(sweep, plan, number)
    nowhere.proxy.make(Trouble.hang)
    assert nowhere.sync() == 1
    assert len(nowhere.proxy.requests) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "still not logged: 6 records"


def test_sync_goes_on_after_a_record_that_is_refused(
    backend: Backend, outputs: Outputs, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = outputs.folder / "sweep"
    plan = planned(sweep, outputs.tracking, 3)
    for number in range(3):
        run_job(sweep, plan, number)
    outputs.proxy.make(Trouble.cut, BATCH, times=1)
    assert outputs.sync() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "still not logged: 1 record"
    assert [run.info.status for run in backend.family(outputs.experiment)[1]] == ["RUNNING", "FINISHED", "FINISHED"]


def fail_at_once(barrier: Barrier, path: Path, section: MLflowConfig, outputs: Path) -> None:
    result = load_record(path)
    barrier.wait()
    with pytest.raises(TrackingError):
        log_marked(result, path, section, outputs)


def test_processes_do_not_wait_for_it_one_after_the_other(nowhere: Outputs) -> None:
    plan = planned(nowhere.folder / "sweep", nowhere.tracking, 6)
    paths = [run_job(nowhere.folder / "sweep", plan, number)[1] for number in range(6)]
    nowhere.proxy.make(Trouble.hang)
    at_once(fail_at_once, [(path, nowhere.section(timeout_s=3.0), nowhere.folder) for path in paths])
    assert len(nowhere.proxy.requests) < 4  # on an idle machine it is one: who comes later asks for himself


def test_server_cannot_ask_for_patience(nowhere: Outputs) -> None:
    result, path = nowhere.result()
    nowhere.proxy.make(Trouble.busy)
    start = time.perf_counter()
    assert nowhere.log(result, path, retries=1)[0] is None
    assert time.perf_counter() - start < 10
    assert len(nowhere.proxy.requests) == 2


def test_database_that_hangs(nowhere: Outputs) -> None:
    pytest.importorskip("psycopg2")
    uri = f"postgresql+psycopg2://me:secret@127.0.0.1:{nowhere.proxy.port}/mlflow"
    start = time.perf_counter()
    _, (told,) = nowhere.log(*nowhere.result(), uri=uri, timeout_s=1.0)
    assert "timeout" in told
    assert "secret" not in told
    assert time.perf_counter() - start < 6


# Passwords


@pytest.mark.parametrize(
    "trouble", [Trouble.hang, Trouble.cut, Trouble.busy, Trouble.refuse], ids=lambda trouble: trouble.name
)
def test_errors_do_not_show_passwords(nowhere: Outputs, trouble: Trouble) -> None:
    nowhere.proxy.make(trouble)
    uri = nowhere.proxy.url.replace("://", "://me:secret@")
    _, (told,) = nowhere.log(*nowhere.result(), uri=uri, timeout_s=1.0)
    hidden = nowhere.proxy.url.replace("://", "://***@")
    assert told.startswith(f"Not tracked: tracking.uri={hidden}: ")
    assert "secret" not in told


def test_error_about_an_address_does_not_show_its_password(nowhere: Outputs) -> None:
    _, (told,) = nowhere.log(*nowhere.result(), uri="http://me:secret@127.0.0.1:99999")
    assert told.startswith("Not tracked: tracking.uri=http://***@127.0.0.1:99999: ")
    assert "secret" not in told


def test_sync_can_be_told_a_password(backend: Backend, outputs: Outputs) -> None:
    result, path = outputs.result()
    outputs.proxy.make(Trouble.locked)
    assert outputs.sync() == 1
    assert outputs.sync("--uri", outputs.proxy.url.replace("://", "://me:wrong@")) == 1
    assert outputs.sync("--uri", outputs.proxy.url.replace("://", "://me:secret@")) == 0
    (run,) = backend.runs(outputs.experiment)
    backend.check(run, result, path)
    assert not [file for file in outputs.folder.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]


# Sweeps


def fail_job(folder: Path, plan: Plan, number: int) -> tuple[Failure, Path]:
    """Leaves what a job does that failed."""
    failure = Failure(
        started=f"2026-11-22T12:{number:02}:00+00:00",
        command=["python", "-m", "gptbench", *plan.jobs[str(number)]],
        sweep=plan.sweep,
        config=plan.config,
        swept=plan.jobs[str(number)],
        cause=Cause.memory.value,
        reason="needs 12 GiB",
        traceback="Traceback: ...",
        seconds=1.5,
    )
    path = failure.save(folder / str(number))
    told = {"cause": failure.cause, "reason": failure.reason}
    Outcome(status=Status.failed.value, swept=failure.swept, record=str(path), **told).save(path.parent)
    return failure, path


@ON_BOTH
def test_sweep_whose_process_died(backend: Backend, outputs: Outputs) -> None:
    folder = outputs.folder / "2026-11-22" / "12-00-00"
    plan = planned(folder, outputs.tracking, 4)
    with FileLock(folder / LOCK):  # as long as it lives
        tracker = MLflowTracker(outputs.section(), outputs.folder)
        tracker.begin_sweep(plan.sweep, plan.started, ["sampling.top_k"])
        parent, _ = backend.family(outputs.experiment)
        assert (parent.info.status, parent.info.run_name) == ("RUNNING", "sweep top_k 2026-11-22/12-00-00")
        run_job(folder, plan, 0)
        outputs.proxy.make(Trouble.refuse)
        fail_job(folder, plan, 1)
        (folder / "2").mkdir()
        (folder / "2" / BEGUN).touch()
        assert outputs.sync() == 1
        assert not (folder / "sweep.json").exists()
    outputs.proxy.work()
    assert outputs.sync() == 0

    record = load_record(folder / "sweep.json")
    assert isinstance(record, SweepRecord)
    assert record.status == "KILLED"
    assert [job.status for job in record.jobs] == ["recorded", "failed", "interrupted", "not run"]
    before = parent
    parent, (good, bad) = backend.family(outputs.experiment)
    assert parent.info.run_id == before.info.run_id
    assert parent.info.status == "KILLED"
    assert parent.data.metrics == {
        "jobs": 4.0,
        "jobs_recorded": 1.0,
        "jobs_found": 0.0,
        "jobs_failed": 1.0,
        "jobs_interrupted": 1.0,
        "jobs_not_run": 1.0,
    }
    note = parent.data.tags["mlflow.note.content"]
    assert record.markdown() in note
    assert "| 1 | 1 | failed |" in note.replace("&ensp;", "")
    assert "needs 12 GiB" in note
    assert "the sweep's process ended before" in note
    assert sorted(entry.path for entry in backend.client.list_artifacts(parent.info.run_id)) == [
        "jobs.csv",
        "sweep.json",
    ]
    assert good.info.status == "FINISHED"
    assert (bad.info.status, bad.data.tags["failure"]) == ("FAILED", "out of memory")
    assert bad.data.tags["mlflow.note.content"].startswith("**out of memory**: needs 12 GiB")
    assert bad.info.end_time - bad.info.start_time == 1500
    assert bad.data.params["model.dim"] == "288"


@ON_BOTH
def test_sweep_that_was_gone_on_with(backend: Backend, outputs: Outputs) -> None:
    def end(folder: Path, plan: Plan, hour: int) -> tuple[SweepRecord, Path]:
        record = record_of(folder, plan, interrupted=True)
        record = dataclasses.replace(record, ended=f"2026-11-22T{hour}:00:00+00:00")
        return record, record.save(folder)

    first, second = outputs.folder / "12-00-00", outputs.folder / "13-00-00"
    plan = planned(first, outputs.tracking, 2)
    outputs.log(*run_job(first, plan, 0))
    killed = end(first, plan, 13)
    outputs.log(*killed)
    assert backend.family(outputs.experiment)[0].info.status == "KILLED"

    plan = planned(second, outputs.tracking, 2, sweep=first)
    again = [run_job(second, plan, number, 13) for number in range(2)]
    finished = end(second, plan, 14)
    outputs.proxy.make(Trouble.refuse, ARTIFACT)  # in the middle of the parent
    outputs.log(*finished)
    outputs.proxy.work()
    assert outputs.sync() == 0
    parent, children = backend.family(outputs.experiment)
    assert len(children) == 1 + len(again)
    assert (parent.info.status, parent.data.metrics["jobs_recorded"]) == ("FINISHED", 2.0)
    ended = parent.info.end_time

    (first / "tracked-sweep.json").unlink()
    assert outputs.sync() == 0
    parent, _ = backend.family(outputs.experiment)
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", ended)
    assert parent.data.metrics["jobs_recorded"] == 2.0
    assert finished[0].markdown() in parent.data.tags["mlflow.note.content"]


# All of it


def test_sweep_while_the_server_is_away(backend: Backend, outputs: Outputs, tmp_path: Path, warm: Warm) -> None:
    outputs.proxy.make(Trouble.refuse)
    tracking = [f"tracking.uri={outputs.proxy.url}", f"tracking.experiment='{outputs.experiment}'"]
    tracking += ["tracking.timeout_s=60", "tracking.retries=0"]
    code, call = warm.run(tmp_path, *LOGGED, "sampling.top_k=2,5,9", *tracking)
    assert code == 0, call.err
    assert call.err.count("Connection refused") == 1 + 3 + 1
    assert [line["tracking"] for line in call.lines] == [None]

    outputs.proxy.work()
    code, call = warm.run(tmp_path, "sync")
    assert code == 0, call.err
    assert len(call.out.splitlines()) == 4 + 1
    parent, children = backend.family(outputs.experiment)
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 4
    assert sorted(run.data.params["sampling.top_k"] for run in children) == ["2", "5", "9"]
    assert all(run.data.metrics["decode_tokens_per_s"] > 0 for run in children)
    assert parent.data.metrics["jobs_recorded"] == 3

    outputs.proxy.requests.clear()
    assert warm.run(tmp_path, "sync")[0] == 0
    assert outputs.proxy.requests == []
