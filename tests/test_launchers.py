"""Sweeps over several processes at once, on Hydra's launchers for Ray and for Slurm."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.sweeps import (
    LOGGED,
    SECONDS,
    begin,
    check_every_job_is_recorded_once,
    copy_of,
    job_folders,
    measurements,
    runs,
    sweeps,
)
from tests.warm import Warm, wait_for

pytestmark = pytest.mark.slow

RAY = [
    *("hydra/launcher=ray_gpu", "hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.init.num_cpus=2"),
    "hydra.launcher.ray.init.num_gpus=0",
]


@pytest.fixture(scope="module")
def begun(warm: Warm, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(warm, tmp_path_factory.mktemp("begun"), empty_store)


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    return copy_of(begun, tmp_path)


def process_ids(folder: Path) -> list[int]:
    """Of the processes that began jobs."""
    return [json.loads((job / "job.json").read_text())["pid"] for job in job_folders(folder)]


def test_ray_runs_jobs_side_by_side_and_one_that_is_killed_costs_no_other(warm: Warm, folder: Path) -> None:
    pytest.importorskip("ray")
    arguments = [*LOGGED, *SECONDS, "sampling.top_k=2,3"]
    call = warm.start(folder, *arguments, *RAY)
    victim = wait_for(lambda: process_ids(folder), 120)[0]
    assert victim != call.pid
    wait_for(lambda: list((folder / "outputs" / "jobs").glob("*.jsonl")))
    os.kill(victim, signal.SIGKILL)
    assert warm.end(call) == 1, call.err
    (record,) = sweeps(folder)
    assert Counter(job.status for job in record.jobs) == {"recorded": 1, "failed": 1}
    (failed,) = (job for job in record.jobs if job.status == "failed")
    assert (failed.cause, failed.reason) == ("killed", "its process ended without a record")
    assert len(set(process_ids(folder))) == 2, "each job had a process of its own"
    (parent,), children = runs(folder)
    assert parent.info.status == "FAILED"
    assert Counter(run.info.status for run in children) == {"FINISHED": 1, "FAILED": 1}
    assert len([line for line in call.out.splitlines() if line.startswith("{")]) == 1, (
        "nothing of the workers' is mixed in"
    )

    code, call = warm.run(folder, *arguments, "sweep.resume=true")
    assert code == 0, call.err
    assert (call.lines[-1]["found"], call.lines[-1]["recorded"]) == (1, 1)
    assert set(measurements(folder).values()) == {1}


def test_submitit_runs_jobs_through_its_local_executor(warm: Warm, folder: Path) -> None:
    pytest.importorskip("submitit")
    local = ["hydra/launcher=slurm_local", "hydra.launcher.gpus_per_node=0", "isolation=process"]
    code, call = warm.run(folder, *LOGGED, "sampling.top_k=2,3", *local)
    assert code == 0, call.err
    check_every_job_is_recorded_once(folder, 2)
    assert len({*process_ids(folder), call.pid}) == 3
    (record,) = sweeps(folder)
    assert record.status == "FINISHED"
    assert all((folder / "outputs").glob("2*/*/.submitit/*/*_log.out"))
