"""Logging into a real SQLite store; what breaks on the way loses nothing. Servers: `test_mlflow_server.py`."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from results import made_result
from servers import Store, check_artifacts, config, hasty_pictures, hasty_sqlite, sweep_job

from gptbench.base.errors import TrackingError, UserError
from gptbench.charts import CHARTS
from gptbench.commands.sync import log_command
from gptbench.config import TrackingConfig
from gptbench.record import MLflowTracker, NoTracker
from gptbench.record.sync import log_recorded
from gptbench.schema import Result, SweepRecord
from gptbench.schema.compilation import STAGES
from gptbench.schema.machine import DeviceState
from gptbench.schema.metrics import METRICS
from gptbench.schema.outcome import Outcome, Status
from gptbench.schema.summary import sample_metrics, summary

START_MS = 1795348800000  # 2026-11-22T12:00:00+00:00
DEAD = "http://127.0.0.1:1"
NOTE = """decode 90.31 tokens/s, TPOT p50 11.15 ms, TPOT p99 12.35 ms, TTFT 60 ms, MBU 0.06782 %, peak memory 0.1 GB

`` python -m gptbench model=stories15m quant=none ``"""

SAMPLED = [name for name, metric in METRICS.items() if metric.of_sample is not None]


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """For each test, but not for what `run` logs."""
    with hasty_pictures():
        yield


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for the whole file; each test has an experiment of its own."""
    made = Store(tmp_path_factory.mktemp("out puts"))
    shutil.copy(empty_store, made.outputs / "mlflow.db")
    with hasty_sqlite():
        made.client.search_experiments()
    return made


@pytest.fixture(scope="module")
def result() -> Result:
    return made_result()


@pytest.fixture(scope="module")
def path(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result.save(tmp_path_factory.mktemp("result"))


@pytest.fixture(scope="module")
def run(store: Store, result: Result, path: Path) -> Run:
    """What `result` looks like in the store."""
    line = store.log(result, path)
    (logged,) = store.runs("gptbench")
    assert line == f"MLflow run stories15m-bfloat16-inductor-b1 {logged.info.run_id} in {store.uri}"
    return logged


def test_run_has_name_times_and_status(run: Run, result: Result) -> None:
    assert run.info.run_name == "stories15m-bfloat16-inductor-b1"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == START_MS
    samples_s = sum(sample.call_s for sample in result.samples)
    loading_compiling_and_warm_up_s = 0.5 + 20.0 + 3.0 + 0.12
    assert run.info.end_time == START_MS + round(1000 * (loading_compiling_and_warm_up_s + samples_s))


def test_params_are_the_configuration_without_nulls(run: Run) -> None:
    params = run.data.params
    assert params["model.dim"] == "288"
    assert params["model.name"] == "stories15m"
    assert params["model.norm_eps"] == "1e-05"
    assert params["workload.prompt"] == "[1, 15043, 29892]"
    assert params["engine.graph_prefill"] == "true"
    assert not {"sampling.top_p", "model.rope_scaling", "device.threads", "commit", "outputs"} & params.keys()
    assert not [key for key in params if key.startswith(("baseline", "sweep", "tracking")) or key.endswith("_target_")]


def test_series_has_each_valid_sample_at_its_own_step(store: Store, run: Run, result: Result) -> None:
    for name in SAMPLED:
        expected = [(step, sample_metrics(result, result.samples[step])[name]) for step in (0, 2)]
        assert store.series(run, f"sample/{name}") == expected, name


def test_invalid_sample_is_only_seen_in_its_compiles(store: Store, run: Run) -> None:
    assert store.series(run, "sample/compiles") == [(0, 0.0), (1, 1.0), (2, 0.0)]


def test_scalars_are_the_summary(run: Run, result: Result) -> None:
    expected = summary(result)
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    assert run.data.metrics["compile_cold_s"] == 20.0
    assert run.data.metrics["compile_warm_s"] == 3.0
    assert run.data.metrics["samples_valid"] == 2.0


def test_what_is_compared_is_logged_first_in_units_with_digits_before_the_point(run: Run, result: Result) -> None:
    assert result.publication().metrics[0][0] == "brief/decode_tokens_per_s"
    prefix, expected = "brief/", summary(result)
    shown = {name.removeprefix(prefix): value for name, value in run.data.metrics.items() if name.startswith(prefix)}
    assert shown == pytest.approx(
        {
            "decode_tokens_per_s": expected["decode_tokens_per_s"],
            "tpot_p50_ms": expected["tpot_p50_s"] * 1000,
            "tpot_p99_ms": expected["tpot_p99_s"] * 1000,
            "ttft_ms": expected["ttft_s"] * 1000,
            "mbu_percent": expected["mbu"] * 100,
            "peak_memory_gb": expected["peak_memory_bytes"] / 1e9,
        }
    )


def test_stages_of_compiling_are_logged_cold_and_warm(run: Run) -> None:
    prefix = "compile_stage/"
    stages = {key.removeprefix(prefix): value for key, value in run.data.metrics.items() if key.startswith(prefix)}
    assert {name: value for name, value in stages.items() if name.startswith("warm/")} == {
        "warm/tracing": 1.0,
        "warm/loading": 2.0,
    }
    cold = {name.removeprefix("cold/"): value for name, value in stages.items() if name.startswith("cold/")}
    assert list(cold) and set(cold) == set(STAGES)
    assert sum(cold.values()) == run.data.metrics["compile_cold_s"]


def test_of_two_starts_that_met_the_same_the_first_is_logged(store: Store, tmp_path: Path) -> None:
    made = made_result()
    first, second = made.compilations
    result = dataclasses.replace(made, compilations=[dataclasses.replace(first, cache="warm"), second])
    store.log(result, result.save(tmp_path), experiment="twice warm")
    (logged,) = store.runs("twice warm")
    assert store.series(logged, "compile_stage/warm/tracing") == [(0, 2.0)]
    assert logged.data.metrics["compile_warm_s"] == 20.0


def test_what_an_earlier_job_paid_is_no_time_of_this_one(store: Store, tmp_path: Path) -> None:
    made = made_result()
    first, second = made.compilations
    own = [dataclasses.replace(second, process="later", cache="none")]
    result = dataclasses.replace(made, compilations=own, reused=made.started, shared_compile_s=first.total_s)
    store.log(result, result.save(tmp_path), experiment="shared")
    (logged,) = store.runs("shared")
    samples_s = sum(sample.call_s for sample in result.samples)
    assert logged.info.end_time == logged.info.start_time + round(1000 * (3.0 + 0.12 + samples_s))
    assert not [name for name in logged.data.metrics if "compile_" in name and not name.startswith("sample/")]


def test_tags(run: Run, path: Path) -> None:
    expected = {
        "gptbench.result": hashlib.sha256(path.read_bytes()).hexdigest(),
        "gptbench.command": "python -m gptbench model=stories15m quant=none",
        "mlflow.source.name": "gptbench",
        "mlflow.runName": "stories15m-bfloat16-inductor-b1",
        "mlflow.note.content": NOTE,
        "model": "stories15m",
        "quant": "none",
        "engine": "inductor",
        "sampling": "default",
        "baseline": "processor_z",
        "dtype": "bfloat16",
        "weights": "/checkpoints/stories",
        "compile_cache": "cold",
        "commit": "1234567",
        "device": "Processor X",
        "driver": "570.1",
        "power_limit_w": "700",
        "torch": "2.13.0",
        "triton": "3.7.0",
    }
    assert run.data.tags == expected


def test_artifacts_lie_in_the_outputs_folder(store: Store, run: Run, result: Result, path: Path) -> None:
    assert Path(run.info.artifact_uri).is_relative_to(store.outputs / "mlartifacts")
    check_artifacts(Path(run.info.artifact_uri), result, path)
    assert (Path(run.info.artifact_uri) / "compile.png").read_bytes().startswith(b"\x89PNG")


def test_more_than_mlflow_takes_at_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # then it refuses them
    big = made_result(compiles=(0,) * 120)
    big.config["model"] |= {f"extra_{number}": number for number in range(250)}
    big.config["workload"]["prompt"] = list(range(3000))
    big.command += [str(list(range(3000)))]
    store.log(big, big.save(tmp_path), experiment="big")
    (logged,) = store.runs("big")
    assert {logged.data.params[f"model.extra_{number}"] for number in range(250)} == {str(n) for n in range(250)}
    assert logged.data.params["workload.prompt"] == json.dumps(list(range(3000)))[:6000]
    assert logged.data.tags["gptbench.command"].startswith("python -m gptbench")
    for name in SAMPLED:
        assert [step for step, _ in store.series(logged, f"sample/{name}")] == list(range(120))


def test_quantised_and_named(store: Store, tmp_path: Path) -> None:
    results = [made_result(quant="int8"), made_result(started="2026-11-22T13:00:00+00:00")]
    paths = [entry.save(tmp_path) for entry in results]
    store.log(results[0], paths[0], experiment="names")
    store.log(results[1], paths[1], experiment="names", run_name="mine")
    assert [entry.info.run_name for entry in store.runs("names")] == ["stories15m-int8-inductor-b1", "mine"]
    assert paths[1].name == "result-2.json"
    assert (Path(store.runs("names")[1].info.artifact_uri) / "result.json").read_bytes() == paths[1].read_bytes()


def test_not_finite_is_failed_and_without_valid_samples_there_are_no_medians(store: Store, tmp_path: Path) -> None:
    broken = made_result(finite=False, compiles=(2, 1))
    store.log(broken, broken.save(tmp_path), experiment="broken")
    (logged,) = store.runs("broken")
    assert logged.info.status == "FAILED"
    assert logged.data.metrics["finite"] == 0.0
    assert "decode_tokens_per_s" not in logged.data.metrics
    assert {key for key in logged.data.metrics if "/" in key and "compile_stage" not in key} == {"sample/compiles"}
    assert logged.data.tags["mlflow.note.content"].startswith("`` python -m gptbench")


def test_name_of_a_job_begins_with_what_tells_it_from_the_others(store: Store, tmp_path: Path) -> None:
    swept = [["engine=inductor", "sampling.top_k=5"], ["a.top_k=1", "b.top_k=2", "+workload.seed=3"], []]
    for number, overrides in enumerate(swept):
        job = dataclasses.replace(made_result(started=f"2026-11-22T1{number}:00:00+00:00"), swept=overrides)
        store.log(job, job.save(tmp_path), experiment="swept")
    assert [entry.info.run_name for entry in store.runs("swept")] == [
        "inductor/5 engine/top_k stories15m-bfloat16-inductor-b1",
        "1/2/3 a.top_k/b.top_k/seed stories15m-bfloat16-inductor-b1",
        "stories15m-bfloat16-inductor-b1",
    ]


def test_the_same_result_is_logged_once(store: Store, run: Run, result: Result, path: Path) -> None:
    line = store.log(result, path)
    assert line == f"already logged: MLflow run {run.info.run_name} {run.info.run_id} in {store.uri}"
    assert len(store.runs("gptbench")) == 1


def test_half_logged_run_is_completed(
    store: Store, result: Result, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", fail)
        with pytest.raises(TrackingError, match="No space left on device"):
            store.log(result, path, experiment="half")
    (half,) = store.runs("half")
    assert half.info.status == "RUNNING"
    store.log(result, path, experiment="half")
    (whole,) = store.runs("half")
    assert whole.info.run_id == half.info.run_id
    assert whole.info.status == "FINISHED"
    assert [step for step, _ in store.series(whole, "sample/ttft_s")] == [0, 2]
    assert store.series(whole, "ttft_s") == [(0, summary(result)["ttft_s"])]
    check_artifacts(Path(whole.info.artifact_uri), result, path)


def test_jobs_of_a_sweep_share_a_parent(store: Store, tmp_path: Path) -> None:
    sweep = tmp_path / "2026-11-22" / "12-00-00"
    store.log(*sweep_job(sweep, 12), experiment="sweep")
    parent, child = sorted(store.runs("sweep"), key=lambda entry: "mlflow.parentRunId" in entry.data.tags)
    assert parent.info.run_name == "sweep 2026-11-22/12-00-00"
    assert parent.data.tags["gptbench.sweep"] == str(sweep)
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", child.info.end_time)
    kept = json.loads((sweep / "mlflow_parent.json").read_text())
    assert kept == {
        "uri": store.uri,
        "experiment_id": parent.info.experiment_id,
        "run_id": parent.info.run_id,
    }

    store.log(*sweep_job(sweep, 13, finite=False), experiment="sweep")
    (sweep / "mlflow_parent.json").unlink()  # as where the results were moved to another machine
    store.log(*sweep_job(sweep, 14), experiment="sweep")
    store.log(*sweep_job(sweep, 11), experiment="sweep")
    runs = {entry.info.run_id: entry for entry in store.runs("sweep")}
    parent = runs.pop(parent.info.run_id)
    assert [entry.data.tags["mlflow.parentRunId"] for entry in runs.values()] == [parent.info.run_id] * 4
    assert [entry.data.tags["sweep"] for entry in runs.values()] == [str(sweep)] * 4
    assert parent.info.status == "FAILED"
    assert parent.info.end_time == max(entry.info.end_time for entry in runs.values())


@pytest.mark.parametrize("figures", [True, False])
def test_parent_of_a_sweep_has_the_pictures_of_its_jobs_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gptbench.charts.CHARTS", [chart for chart in CHARTS if chart.name == "heat_map"])
    jobs = [
        Outcome(status=Status.recorded.value, record=str(made_result(top_k=top_k).save(tmp_path / str(top_k))))
        for top_k in (1, 5, 50)
    ]
    started, experiment = "2026-11-22T12:00:00+00:00", f"pictures {figures}"
    tracking = {"_target_": "gptbench.record.MLflowTracker", "name": "mlflow", "figures": figures}
    path = SweepRecord(
        started=started,
        command=[],
        sweep=str(tmp_path),
        config={"tracking": tracking, "outputs": str(store.outputs)},
        ended=started,
        status="FINISHED",
        jobs=jobs,
    ).save(tmp_path)
    assert log_command([str(path), "--experiment", experiment]) == 0
    (parent,) = store.runs(experiment)
    names = [each.path for each in store.client.list_artifacts(parent.info.run_id, "figures")]
    assert names == (["figures/heat_map.png"] if figures else [])
    assert capsys.readouterr().err == ""


def test_deleted_parent_is_made_again(store: Store, tmp_path: Path) -> None:
    store.log(*sweep_job(tmp_path, 12), experiment="deleted")
    first = json.loads((tmp_path / "mlflow_parent.json").read_text())["run_id"]
    store.client.delete_run(first)
    store.log(*sweep_job(tmp_path, 13), experiment="deleted")
    second = json.loads((tmp_path / "mlflow_parent.json").read_text())["run_id"]
    assert second != first
    assert store.client.get_run(second).info.status == "FINISHED"


def test_dead_server_is_a_tracking_error_and_the_result_is_logged_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    tracking = {"uri": DEAD, "experiment": "later", "run_name": "late"}
    lost = made_result(tracking=tracking, outputs=str(store.outputs))
    path = lost.save(tmp_path / "a folder")
    start = time.perf_counter()
    with pytest.raises(TrackingError) as caught:
        store.log(lost, path, **tracking)
    assert time.perf_counter() - start < 15
    first, second = str(caught.value).splitlines()
    assert first == f"tracking.uri={DEAD}: Connection refused"
    assert second.endswith(f"gptbench log '{path}'")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ

    assert log_command([str(path), "--uri", store.uri]) == 0
    (logged,) = store.runs("later")
    assert logged.info.run_name == "late"
    assert Path(logged.info.artifact_uri).is_relative_to(store.outputs / "mlartifacts")
    assert capsys.readouterr().out == f"MLflow run late {logged.info.run_id} in {store.uri}\n"


def test_errors_do_not_show_passwords(tmp_path: Path, result: Result, path: Path) -> None:
    with pytest.raises(TrackingError) as caught:
        MLflowTracker(config(uri="http://me:secret@127.0.0.1:1", retries=0), tmp_path).log(result, path)
    assert str(caught.value).startswith("tracking.uri=http://***@127.0.0.1:1: ")
    assert "secret" not in str(caught.value)


def test_database_that_cannot_be_opened_fails_soon(tmp_path: Path, result: Result, path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    start = time.perf_counter()
    with pytest.raises(TrackingError, match="expected a regular file, or no file yet"):
        MLflowTracker(config(), tmp_path).log(result, path)
    assert time.perf_counter() - start < 5


def test_log_command_without_options_uses_the_outputs_folder(
    store: Store, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untracked = made_result(outputs=str(store.outputs), commit="7654321")
    path = untracked.save(tmp_path)
    assert log_command([str(path), str(path), "--experiment", "untracked"]) == 0
    (logged,) = store.runs("untracked")
    assert logged.data.tags["commit"] == "7654321"
    line = f"MLflow run {run.info.run_name} {logged.info.run_id} in {store.uri}\n"
    assert capsys.readouterr().out == f"{line}already logged: {line}"


def test_log_command_leaves_out_what_it_cannot_read(
    store: Store, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"missing\.json: not a result"):
        log_command([str(tmp_path / "missing.json"), str(path), "--outputs", str(store.outputs)])
    assert "MLflow run" in capsys.readouterr().out


def test_variables_of_mlflow_do_not_interfere(
    store: Store, run: Run, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.client.get_run(run.info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    other = dataclasses.replace(result, load_s=77.0)
    store.log(other, other.save(tmp_path), experiment="variables")
    (logged,) = store.runs("variables")
    assert logged.info.run_id != run.info.run_id
    assert logged.data.metrics["load_s"] == 77.0
    assert store.client.get_run(run.info.run_id).to_dictionary() == before.to_dictionary()


def test_nothing_of_mlflow_runs_before_or_after_logging(tmp_path: Path, path: Path) -> None:
    script = f"""
import json, sys, threading
from pathlib import Path
from gptbench.config import MLflowConfig
from gptbench.record import MLflowTracker
from gptbench.schema import Result
result = Result.load(Path({str(path)!r}))
config = MLflowConfig(_target_="gptbench.record.MLflowTracker", name="mlflow", experiment="threads")
tracker = MLflowTracker(config, Path({str(tmp_path)!r}))
before = [name for name in sys.modules if name.split(".")[0] in ("mlflow", "sqlalchemy")]
started, start = [], threading.Thread.start
threading.Thread.start = lambda thread: (started.append(thread.name), start(thread))
tracker.log(result, Path({str(path)!r}))
print(json.dumps([before, started]))
"""
    # MLflow would switch its telemetry off by itself where it sees a test or CI.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "CI")}
    environment |= {"MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_ACTIVE_MODEL_ID": "m-123"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [[], []]
    (logged,) = Store(tmp_path).runs("threads")
    assert logged.data.metrics["load_s"] == 0.5


def test_no_tracker_does_nothing(tmp_path: Path, result: Result, path: Path) -> None:
    tracker = NoTracker(TrackingConfig(_target_="gptbench.record.NoTracker", name="none"), tmp_path)
    assert tracker.log(result, path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_throttled_sample_is_marked() -> None:
    result = made_result()
    for sample, reasons in zip(result.samples, ([], [], ["power cap"]), strict=True):
        sample.state = DeviceState([0.0], [1980.0], throttled=reasons)
    logged = [(value, step) for name, value, step in result.publication().metrics if name == "sample/throttled"]
    assert logged == [(0.0, 0), (0.0, 1), (1.0, 2)]
    assert ("samples_throttled", 1.0, 0) in result.publication().metrics
    assert "sample/throttled" not in {name for name, _, _ in made_result().publication().metrics}


def test_a_fault_of_ours_leaves_its_traceback(
    store: Store, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result.save(tmp_path)
    told: list[str] = []

    def tell(text: str, **_: Any) -> None:
        told.append(text)

    def broken(*_: object) -> None:
        raise KeyError("tpot")

    section = config(experiment="faults")
    with monkeypatch.context() as patched:
        patched.setattr(MLflowTracker, "send", broken)
        assert log_recorded(result, path, section, store.outputs, tell) is None
    assert f": KeyError('tpot') ({__file__}:{broken.__code__.co_firstlineno + 1}, in broken)" in told[0]
    trace = tmp_path / "untracked-result.txt"
    assert "Traceback" in trace.read_text() and "in broken" in trace.read_text()
    assert log_recorded(result, path, section, store.outputs, tell) is not None
    assert not trace.exists()
