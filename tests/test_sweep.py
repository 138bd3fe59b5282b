"""Sweeps that cannot lose a result: whatever fails or is killed, each job is recorded once in the end, and told."""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from gptbench.base.errors import UserError
from gptbench.base.paths import shipped_folder
from gptbench.execute.attempt import is_of_interrupt
from gptbench.private.hydra import BASIC_LAUNCHER
from gptbench.schema import Failure
from gptbench.schema.files import load_record
from gptbench.schema.outcome import Outcome
from gptbench.sweep.sweeper import Sweep, is_in_this_process, stopping
from tests.sweeps import (
    LOGGED,
    LONG,
    PLAIN,
    SIX,
    SWEEP,
    begin,
    check_every_job_is_recorded_once,
    copy_of,
    job_folders,
    measurements,
    runs,
    sweeps,
)
from tests.warm import Call, Warm, wait_for


@pytest.fixture(scope="module")
def begun(warm: Warm, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(warm, tmp_path_factory.mktemp("begun"), empty_store)


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    return copy_of(begun, tmp_path)


def kill_and_resume(warm: Warm, folder: Path, kills: int, seed: int) -> int:
    """Kills a sweep at random points, starts it again each time, and lets it end; how often it was really killed.

    A point is some time after the start, or after one of the next jobs has begun: it may lie in the planning, in a
    measurement, while a record is written, or while it is logged.
    """
    draw = random.Random(seed)
    arguments = [*LOGGED, *SIX, "sweep.resume=true"]
    hit = 0
    while hit < kills:
        before = len(job_folders(folder))
        call = warm.start(folder, *arguments)
        more = draw.choice((0, 1, 2, 2, 3))
        wait_for(lambda until=before + more, of=call: len(job_folders(folder)) >= until or not of.is_running())
        end = time.monotonic() + draw.uniform(0.0, 0.7)
        while time.monotonic() < end and call.is_running():
            time.sleep(0.01)
        if call.is_running():
            os.kill(call.pid, signal.SIGKILL)
        hit += warm.end(call) == -signal.SIGKILL
    code, call = warm.run(folder, *arguments)
    assert code == 0, call.err
    assert call.lines[-1]["recorded"] + call.lines[-1]["found"] == 6
    code, call = warm.run(folder, "sync")
    assert code == 0, call.err
    return hit


def test_a_sweep_of_six_jobs_killed_five_times_has_each_of_them_once(warm: Warm, folder: Path) -> None:
    assert kill_and_resume(warm, folder, kills=5, seed=20261126) == 5
    check_every_job_is_recorded_once(folder, 6)


GAPS = {
    "gptbench.execute.attempt.attempted": "the job has begun",
    "gptbench.execute.run.run_model": "the ledger knows of the attempt",
    "gptbench.present.terminal.show_result": "the result is written",
    "gptbench.execute.attempt.publish": "what came of the job is written",
    "gptbench.record.tracking.log_files": "the run in MLflow is half filled",
    "gptbench.record.sync.read_marks:2": "the run in MLflow is whole, and the mark is not there",
    "gptbench.present.terminal.show_sweep": "the sweep's record is written, and not logged",
}
"""Function that a process is killed in, and what that means."""


def test_a_sweep_killed_between_any_two_steps_has_each_job_once(warm: Warm, folder: Path) -> None:
    arguments = [*LOGGED, "sampling.top_k=2,3", "sweep.resume=true"]
    for gap in GAPS:
        code, call = warm.run(folder, *arguments, faults={"kill in": gap})
        assert code == -signal.SIGKILL, f"{gap}: {call.err}"
    assert attempts(folder) > 2
    code, call = warm.run(folder, *arguments)
    assert code == 0, call.err
    code, call = warm.run(folder, "sync")
    assert code == 0, call.err
    check_every_job_is_recorded_once(folder, 2)


def test_resuming_runs_nothing_twice_and_without_it_all_is_measured_again(warm: Warm, folder: Path) -> None:
    two = ["sampling.top_k=1,5"]
    code, first = warm.run(folder, *LOGGED, *two)
    assert code == 0, first.err
    code, again = warm.run(folder, *LOGGED, *two, "sweep.resume=true")
    assert code == 0, again.err
    assert (again.lines[-1]["found"], again.lines[-1]["recorded"]) == (2, 0)
    assert [job.record for job in sweeps(folder)[1].jobs] == [job.record for job in sweeps(folder)[0].jobs]
    check_every_job_is_recorded_once(folder, 2)
    table = sweeps(folder)[-1]
    assert table.sweep == sweeps(folder)[0].sweep
    assert all(job.metrics["decode_tokens_per_s"] > 0 for job in table.jobs), "the table has what was recorded before"

    code, more = warm.run(folder, *LOGGED, "sampling.top_k=5,9", "sweep.resume=true")
    assert code == 0, more.err
    assert (more.lines[-1]["found"], more.lines[-1]["recorded"]) == (1, 1)

    code, fresh = warm.run(folder, *LOGGED, "sampling.top_k=1")
    assert code == 0, fresh.err
    assert fresh.lines[-1]["recorded"] == 1
    assert sorted(measurements(folder).values()) == [1, 1, 2]
    assert len(runs(folder)[0]) == 3
    records = {path for path in (folder / "outputs").rglob("result*.json") if "mlartifacts" not in path.parts}
    assert len(records) == 4, "nothing was overwritten"


def test_a_single_run_counts_for_a_sweep(warm: Warm, begun: Path, folder: Path) -> None:
    """The run is the one that measured the roof."""
    shutil.copytree(begun, folder / "outputs", dirs_exist_ok=True)
    code, call = warm.run(folder, *SWEEP, "workload.seed=1234,1", "sweep.resume=true", "tracking=none")
    assert code == 0, call.err
    assert (call.lines[-1]["found"], call.lines[-1]["recorded"]) == (1, 1)


def test_jobs_that_fail_are_recorded_with_their_reason_and_the_rest_go_on(warm: Warm, folder: Path) -> None:
    arguments = [*LOGGED, "sampling.top_k=4,5,6", "sweep.resume=true"]
    faults = {"sampling.top_k=4": "RuntimeError", "sampling.top_k=5": "OutOfMemoryError"}
    code, call = warm.run(folder, *arguments, faults=faults)
    assert code == 1
    assert "of 3 jobs 1 recorded, 2 failed; to resume: the same command with sweep.resume=true" in call.err
    (whole,) = call.lines
    assert (whole["recorded"], whole["failed"], whole["status"]) == (1, 2, "FAILED")
    (record,) = sweeps(folder)
    assert [job.status for job in record.jobs] == ["failed", "failed", "recorded"]
    assert [job.cause for job in record.jobs] == ["raised", "out of memory", None]
    failure = load_record(Path(record.jobs[0].record or ""))
    assert isinstance(failure, Failure)
    assert failure.reason == record.jobs[0].reason == "RuntimeError: a planted fault"
    assert "Traceback" in (failure.traceback or "")
    assert failure.identity == record.jobs[0].identity is not None
    (parent,), children = runs(folder)
    assert parent.info.status == "FAILED"
    assert "| failed&ensp; |" in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics["jobs_failed"] == 2
    assert Counter(run.info.status for run in children) == {"FINISHED": 1, "FAILED": 2}
    assert {run.data.tags.get("failure") for run in children} == {None, "raised", "out of memory"}
    assert len({run.info.run_name for run in children}) == 3

    code, call = warm.run(folder, *arguments)
    assert code == 0, call.err
    assert (call.lines[-1]["found"], call.lines[-1]["recorded"]) == (1, 2), "what failed is done again"
    (parent,), children = runs(folder)
    assert parent.info.status == "FINISHED"
    assert Counter(run.info.status for run in children) == {"FINISHED": 3, "FAILED": 2}
    assert set(measurements(folder).values()) == {1}


def sweeps_folder(folder: Path) -> Path:
    """Of the only sweep."""
    (plan,) = (folder / "outputs").glob("2*/*/plan.json")
    return plan.parent


def attempt_process(call: Call) -> psutil.Process | None:
    """The process in which a job runs by itself: a child of the server that the sweep has started."""
    for process in call.process.children(recursive=True):
        if process.parent() != call.process and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def test_a_job_in_its_own_process_may_be_killed_or_take_too_long(warm: Warm, folder: Path) -> None:
    jobs = ["sampling.top_k=2,3,4", "isolation=process", "sweep.timeout_s=6"]
    call = warm.start(folder, *LOGGED, *LONG, *jobs)
    killed = wait_for(lambda: attempt_process(call))
    wait_for(lambda: list((folder / "outputs").glob("jobs/*.jsonl")))
    killed.kill()
    wait_for(lambda: len(job_folders(folder)) == 2)
    seconds_before = sum(call.process.cpu_times()[:2])
    time.sleep(2)
    assert sum(call.process.cpu_times()[:2]) - seconds_before < 1.0, "the parent burns no core"
    os.kill(call.pid, signal.SIGINT)
    assert warm.end(call) == 130, call.err
    (record,) = sweeps(folder)
    assert record.status == "KILLED"
    first, second, third = record.jobs
    assert (first.status, first.cause) == ("failed", "killed")
    assert first.reason == "its process was killed by SIGKILL (kill -9, or the kernel's out-of-memory killer)"
    assert (second.status, second.cause, second.reason) == ("failed", "timed out", "it took more than 6 s"), (
        "the job that ran when Ctrl-C came went on to its end"
    )
    assert third.status == "not run"
    (parent,), children = runs(folder)
    assert parent.info.status == "KILLED"
    assert sorted(run.data.tags["failure"] for run in children) == ["killed", "timed out"]


def test_sweeps_that_are_started_at_once_have_one_parent(warm: Warm, folder: Path) -> None:
    """The second is refused, or comes late enough to go on with the first."""
    arguments = [*LOGGED, "sampling.top_k=5,6", "sweep.resume=true"]
    calls = [warm.start(folder, *arguments) for _ in range(2)]
    codes = [warm.end(call) for call in calls]
    assert 0 in codes and set(codes) <= {0, 2}, [call.err for call in calls]
    check_every_job_is_recorded_once(folder, 2)


def test_ctrl_c_ends_after_the_job_and_twice_at_once(warm: Warm, folder: Path) -> None:
    in_the_second = {"sampling.top_k=3": "SIGINT"}
    code, call = warm.run(folder, *LOGGED, "sampling.top_k=2,3,4,5", faults=in_the_second)
    assert code == 130
    assert "stopping after the job that runs now" in call.err
    told = "of 4 jobs 2 recorded, 2 not run; to resume: the same command with sweep.resume=true"
    assert call.err.splitlines()[-1] == f"gptbench: interrupted; {told}"
    assert "sweep: 1/4 jobs" in call.err
    assert "3/4" not in call.err, "what is left is not walked through"
    assert not [path for path in sweeps_folder(folder).iterdir() if path.name in ("2", "3")]
    assert [job.status for job in sweeps(folder)[-1].jobs] == ["recorded", "recorded", "not run", "not run"]
    (parent,), children = runs(folder)
    assert (parent.info.status, len(children)) == ("KILLED", 2)

    arguments = [*LOGGED, "sampling.top_k=2,3", *LONG]
    call = warm.start(folder, *arguments)
    wait_for(lambda: len(job_folders(folder)) == 3)
    os.kill(call.pid, signal.SIGINT)
    wait_for(lambda: "stopping after the job that runs now" in call.err)
    start = time.monotonic()
    os.kill(call.pid, signal.SIGINT)
    assert warm.end(call) == 130
    assert time.monotonic() - start < 20
    assert [job.status for job in sweeps(folder)[-1].jobs] == ["interrupted", "not run"]
    assert {run.info.status for run in runs(folder)[0]} == {"KILLED"}
    assert sum(measurements(folder).values()) == 2


def test_the_handler_of_a_signal_does_nothing_but_note_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It may come in the middle of an import or of printing: whatever it did beside that could fail there."""
    from gptbench.schema.plan import STOP

    sweep = object.__new__(Sweep)
    sweep.interrupted, sweep.stop_file = False, str(tmp_path / STOP)
    modules = set(sys.modules)
    with stopping(sweep):
        signal.raise_signal(signal.SIGINT)
        assert sweep.interrupted and (tmp_path / STOP).exists()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert set(sys.modules) == modules
    assert "stopping after the job that runs now" in capfd.readouterr().err


def test_hydras_own_launcher_is_known_however_it_was_imported() -> None:
    """Hydra loads its plugins' files anew, so that there are two classes of the name."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.plugins import Plugins

    assert is_in_this_process(BasicLauncher())
    loaded = Plugins.instance().class_name_to_class[BASIC_LAUNCHER]
    assert is_in_this_process(loaded())


def test_sigterm_ends_at_once_with_a_record(warm: Warm, folder: Path) -> None:
    call = warm.start(folder, *SWEEP, "sampling.top_k=2,3", *LONG, "tracking=none")
    wait_for(lambda: job_folders(folder))
    os.kill(call.pid, signal.SIGTERM)
    assert warm.end(call) == 130
    jobs = sweeps(folder)[-1].jobs
    assert [job.status for job in jobs] == ["interrupted", "not run"], f"{jobs[0].reason}\n{call.err}"


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping(cast(Sweep, None)):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_a_library_makes_of_ctrl_c_is_one_still() -> None:
    def raised(error: BaseException) -> BaseException:
        try:
            try:
                raise error
            except BaseException:  # as libraries do that do not name the cause
                raise UserError("cannot be read")  # noqa: B904
        except UserError as other:
            return other

    assert is_of_interrupt(raised(KeyboardInterrupt()))
    assert not is_of_interrupt(raised(ValueError()))
    assert not is_of_interrupt(None)


def test_progress_is_told_with_an_estimate_and_a_folder_of_another_sweep_is_refused(warm: Warm, folder: Path) -> None:
    """What the jobs of the first came to would be taken for that of new ones."""
    arguments = [*SWEEP, "sampling.top_k=2,3,4", "tracking=none", "hydra.sweep.dir=mine"]
    code, call = warm.run(folder, *arguments)
    assert code == 0, call.err
    told = [line for line in call.err.splitlines() if line.startswith("sweep: ") and "jobs" in line]
    assert [line.partition(" jobs")[0] for line in told] == ["sweep: 1/3", "sweep: 2/3", "sweep: 3/3"]
    assert all(" left" in line for line in told[:2]) and " left" not in told[2]
    code, call = warm.run(folder, *arguments)
    assert (code, call.out) == (2, "")
    assert f"hydra.sweep.dir={folder}/mine: expected a folder that holds no other sweep" in call.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sampling.top_k=5,0"], "job 1 (sampling.top_k=0): sampling.top_k=0: expected a number of at least 1"),
        (["sampling.top_k=5,6", "quant=int9"], "quant=int9: no such option"),
        (["sampling.temperature=interval(0,1)"], "sweep=random and sobol sample from intervals"),
        (
            ["sampling.top_k=1,2", "sampling.temperature=1,2,3", "sweep.paired=[sampling.top_k,sampling.temperature]"],
            "sampling.top_k has 2",
        ),
        (["sweep.resume=true,false"], "sweep.resume: expected one value"),
        (["sampling.top_k=5,6", "workload.prompt_text=Hello"], "workload.prompt_text=Hello: expected null"),
    ],
)
def test_a_mistake_in_any_job_is_told_before_any_runs(
    warm: Warm, folder: Path, arguments: list[str], told: str
) -> None:
    short = [argument for argument in SWEEP if "prompt" not in argument or "prompt_text" not in "".join(arguments)]
    code, call = warm.run(folder, *short, *arguments)
    assert (code, call.out) == (2, "")
    assert told in call.err
    assert "Traceback" not in call.err
    assert not list((folder / "outputs").glob("2*/*/plan.json"))


def test_what_only_a_checkpoint_tells_and_groups_can_be_swept(warm: Warm, folder: Path) -> None:
    (folder / "checkpoint").symlink_to(shipped_folder() / "demo")
    auto = ["model=auto", "model.checkpoint=checkpoint", "workload.new_tokens=4", "workload.samples=1", *PLAIN]
    code, call = warm.run(folder, "-m", *auto, "sampling=greedy,default", "tracking=none")
    assert code == 0, call.err
    (record,) = sweeps(folder)
    assert [job.swept for job in record.jobs] == [["sampling=greedy"], ["sampling=default"]]
    assert record.config["model"]["dim"] == 256


def test_drawn_and_paired_sweeps(warm: Warm, folder: Path) -> None:
    space = ["sampling.temperature=interval(0.1,2)", "sampling.top_k=int(tag(log,interval(1,100)))"]
    code, call = warm.run(folder, *SWEEP, *space, "sweep=sobol", "sweep.jobs=2", "tracking=none")
    assert code == 0, call.err
    (record,) = sweeps(folder)
    drawn = [dict(override.split("=") for override in job.swept) for job in record.jobs]
    assert len({tuple(job.items()) for job in drawn}) == 2
    assert all(0.1 <= float(job["sampling.temperature"]) <= 2 for job in drawn)
    paired = ["sampling.top_k=1,2", "sampling.temperature=0.5,1", "sweep.paired=[sampling.top_k,sampling.temperature]"]
    code, call = warm.run(folder, *SWEEP, *paired, "tracking=none")
    assert code == 0, call.err
    assert [job.swept for job in sweeps(folder)[-1].jobs] == [
        ["sampling.top_k=1", "sampling.temperature=0.5"],
        ["sampling.top_k=2", "sampling.temperature=1"],
    ]


def test_sync_ends_a_sweep_that_was_killed_and_sends_what_it_had_not(warm: Warm, folder: Path) -> None:
    arguments = [*LOGGED, "sampling.top_k=2,3,4"]
    code, call = warm.run(folder, *arguments, faults={"kill in": "gptbench.execute.run.run_model:2"})
    assert code == -signal.SIGKILL, call.err
    assert sweeps(folder) == []
    (parent,), _ = runs(folder)
    assert parent.info.status == "RUNNING"
    code, call = warm.run(folder, "sync")
    assert code == 0, call.err
    assert call.out.splitlines()[-1] == "all records are logged"
    (record,) = sweeps(folder)
    assert [job.status for job in record.jobs] == ["recorded", "interrupted", "not run"]
    (parent,), children = runs(folder)
    assert (parent.info.status, len(children)) == ("KILLED", 1)
    assert warm.run(folder, "sync")[1].out == "all records are logged\n"

    code, call = warm.run(folder, *arguments, "sweep.resume=true")
    assert code == 0, call.err
    (dead,) = (path for path in (folder / "outputs").glob("2*/*/sweep.json") if load_record(path).status == "KILLED")
    dead.unlink()
    dead.with_name("tracked-sweep.json").unlink()
    assert warm.run(folder, "sync")[0] == 0
    (parent,), children = runs(folder)
    assert parent.info.status == "FINISHED", "the end of the sweep that went on counts"
    assert len(children) == 3
    (folder / "outputs" / "mlflow.db").unlink()
    code, call = warm.run(folder, "sync", "--all")
    assert code == 0, call.err
    (parent,), children = runs(folder)
    assert (parent.info.status, len(children)) == ("FINISHED", 3)


def test_a_folder_that_holds_no_outcome_is_no_job_that_ended(tmp_path: Path) -> None:
    assert Outcome.of(tmp_path) is None
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="not a result"):
        load_record(tmp_path / "sweep.json")


def attempts(folder: Path) -> int:
    """Jobs that were begun, some of them again."""
    ledgers = (folder / "outputs" / "jobs").glob("*.jsonl")
    return sum(bool(line.strip()) for path in ledgers for line in path.read_text().splitlines())


def figures(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """For docs/log: python -c "from tests.test_sweep import *; print(figures(30, 1, Path(...)))" """
    server = Warm()
    try:
        hit = kill_and_resume(server, folder, kills, seed)
    finally:
        server.close()
    check_every_job_is_recorded_once(folder, 6)
    return {"kills": hit, "attempts": attempts(folder), "lost": 6 - len(measurements(folder))}
