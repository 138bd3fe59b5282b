"""Which records someone means: by file, folder, sweep, identity, and MLflow's runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers import hasty_pictures, hasty_sqlite

from gptbench.base.errors import UserError
from gptbench.compare.select import runs_of, select
from gptbench.config import MLflowConfig
from gptbench.record.ledger import Ledger
from gptbench.record.store import embedded_store
from gptbench.record.tracking import MLflowTracker
from gptbench.schema import Result
from gptbench.schema.failure import Cause, Failure
from gptbench.schema.outcome import Outcome, Status
from gptbench.schema.plan import Plan
from gptbench.schema.sweep import SweepRecord
from tests.results import made_result
from tests.test_ab import made_ab, made_round

IDENTITIES = ("aaaa000011112222", "aaaa999911112222", "bbbb000011112222")


def steps(found: list[object]) -> list[float]:
    """By which the results of these tests are told apart."""
    return [each.record.samples[0].step_s[0] for each in found]  # type: ignore[attr-defined]


def record(outputs: Path, number: int, identity: str | None = None) -> Path:
    """A result in a folder of its own, with a line in the ledger."""
    started = f"2026-11-22T12:00:{number:02}+00:00"
    result = replace(made_result(step_s=0.01 + number / 1000, started=started), identity=identity)
    folder = outputs / "2026-11-22" / f"12-00-{number:02}"
    if identity is not None:
        Ledger(outputs).claim(identity, False).__enter__()
        Ledger(outputs).note(identity, folder, started)
    return result.save(folder)


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = record(tmp_path, 1)
    found = select(str(path), tmp_path)
    assert [each.path for each in found] == [path]
    assert isinstance(found[0].record, Result)


def test_a_folder_is_all_below_it_the_oldest_first(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        record(tmp_path, number)
    (tmp_path / "2026-11-22" / "result-of-mine.json").write_text("{}")
    (tmp_path / ".hidden").mkdir()
    made_result().save(tmp_path / ".hidden")
    assert steps(select(str(tmp_path), tmp_path)) == pytest.approx([0.011, 0.012, 0.013])


def test_what_cannot_be_read_in_a_folder_is_told(tmp_path: Path) -> None:
    path = record(tmp_path, 1)
    cut_off = path.with_name("result-2.json")
    cut_off.write_text(path.read_text()[:1000])
    told: list[str] = []
    assert len(select(str(tmp_path), tmp_path, unread=told.append)) == 1
    assert len(told) == 1
    assert str(cut_off) in told[0]


def test_latest_is_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    record(tmp_path, 1)
    failure = sweep(tmp_path / "sweep").parent / "2" / "failure.json"
    failure.write_text(failure.read_text().replace("2026-11-22T12:00:00", "2026-11-22T13:00:00"))
    assert isinstance(select("latest", tmp_path)[0].record, Failure)
    assert steps(select("latest", tmp_path, kinds=(Result,))) == pytest.approx([0.011])


def test_latest_is_the_last_one(tmp_path: Path) -> None:
    for number in (1, 3, 2):
        record(tmp_path, number)
    assert steps(select("latest", tmp_path)) == pytest.approx([0.013])


def test_an_identity_is_every_run_of_it(tmp_path: Path) -> None:
    record(tmp_path, 1, IDENTITIES[0])
    record(tmp_path, 2, IDENTITIES[2])
    record(tmp_path, 3, IDENTITIES[0])
    assert steps(select(IDENTITIES[0], tmp_path)) == pytest.approx([0.011, 0.013])
    assert steps(select("bbbb", tmp_path)) == pytest.approx([0.012])


def test_digits_of_two_identities_are_refused(tmp_path: Path) -> None:
    record(tmp_path, 1, IDENTITIES[0])
    record(tmp_path, 2, IDENTITIES[1])
    with pytest.raises(UserError, match=f"aaaa: expected one identity, and there are {IDENTITIES[0]}, {IDENTITIES[1]}"):
        select("aaaa", tmp_path)


@pytest.mark.parametrize("selector", ["nothing/here", "cccc", "latest", "mlflow:tags.a = 'b'", "0" * 32])
def test_what_is_not_there_is_an_error_that_names_the_ways(selector: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record there|no such file or folder") as error:
        select(selector, tmp_path)
    assert "first digits of the identity of a run or a sweep, mlflow:FILTER" in str(error.value)
    with pytest.raises(UserError):
        select(selector, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing was made"


def test_a_file_that_is_no_record_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"x\.json"):
        select(str(path), tmp_path)


def sweep(folder: Path) -> Path:
    """Of two jobs and a failure."""
    jobs = []
    for number in range(2):
        path = made_result(step_s=0.01 * (number + 1)).save(folder / str(number))
        jobs.append(Outcome(status=Status.recorded.value, swept=[], record=str(path)))
    failure = Failure(
        started="2026-11-22T12:00:00+00:00",
        command=[],
        sweep=str(folder),
        config=made_result().config,
        cause=Cause.raised.value,
        reason="x",
        traceback=None,
        seconds=1.0,
        commit=None,
    )
    jobs.append(Outcome(status=Status.failed.value, swept=[], record=str(failure.save(folder / "2"))))
    jobs.append(Outcome(status=Status.not_run.value, swept=[]))
    started = "2026-11-22T12:00:00+00:00"
    return SweepRecord(
        started=started, command=[], sweep=str(folder), config={}, ended=started, status="FAILED", jobs=jobs
    ).save(folder)


def test_a_sweep_is_its_jobs(tmp_path: Path) -> None:
    path = sweep(tmp_path / "sweep")
    found = select(str(path), tmp_path)
    assert steps(found[:2]) == pytest.approx([0.01, 0.02])
    assert isinstance(found[2].record, Failure)
    assert len(select(str(path.parent), tmp_path)) == 3, "each once"


def test_a_sweep_that_was_moved_has_its_jobs_still(tmp_path: Path) -> None:
    sweep(tmp_path / "sweep")
    (tmp_path / "sweep").rename(tmp_path / "moved")
    assert steps(select(str(tmp_path / "moved" / "sweep.json"), tmp_path)[:2]) == pytest.approx([0.01, 0.02])


def test_a_sweep_whose_job_lies_elsewhere_has_it(tmp_path: Path) -> None:
    path = sweep(tmp_path / "sweep")
    elsewhere = made_result(step_s=0.05).save(tmp_path / "elsewhere")
    raw = json.loads(path.read_text())
    raw["jobs"][0]["record"] = str(elsewhere)
    path.write_text(json.dumps(raw))
    assert elsewhere in [each.path for each in select(str(tmp_path / "sweep"), tmp_path)]


def told_of_sweep(outputs: Path, identity: str, call: str) -> None:
    """What a sweeper leaves of its last call."""
    (outputs / "sweeps").mkdir(exist_ok=True)
    (outputs / "sweeps" / f"{identity}.json").write_text(json.dumps({"sweep": call, "call": call}))


def test_the_identity_of_a_sweep_is_its_jobs(tmp_path: Path) -> None:
    sweep(tmp_path / "sweep")
    told_of_sweep(tmp_path, IDENTITIES[2], "sweep")
    record(tmp_path, 1, IDENTITIES[0])
    for digits in (IDENTITIES[2], "bbbb"):
        found = select(digits, tmp_path)
        assert steps(found[:2]) == pytest.approx([0.01, 0.02])
        assert isinstance(found[2].record, Failure)
    assert steps(select("aaaa", tmp_path)) == pytest.approx([0.011])


def test_the_identity_of_a_sweep_that_has_no_record_yet_is_the_jobs_that_have(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    jobs = {"0": ["a=1"], "1": ["a=2"]}
    started = "2026-11-22T12:00:00+00:00"
    told = {"sweep": str(folder), "identity": IDENTITIES[2], "started": started}
    Plan(**told, resume=False, command=[], config={}, jobs=jobs).save(folder)
    path = made_result().save(folder / "0")
    Outcome(status=Status.recorded.value, record=str(path)).save(folder / "0")
    told_of_sweep(tmp_path, IDENTITIES[2], "sweep")
    assert [each.path for each in select("bbbb", tmp_path)] == [path]


def test_digits_of_a_run_and_a_sweep_are_refused(tmp_path: Path) -> None:
    record(tmp_path, 1, IDENTITIES[0])
    told_of_sweep(tmp_path, IDENTITIES[1], "sweep")
    with pytest.raises(UserError, match=f"aaaa: expected one identity, and there are {IDENTITIES[0]}, {IDENTITIES[1]}"):
        select("aaaa", tmp_path)
    told_of_sweep(tmp_path, IDENTITIES[0][:4] + "0" * 12, "sweep")
    with pytest.raises(UserError, match="aaaa000000000000, "):
        select("aaaa", tmp_path)


@pytest.mark.parametrize("left", ["", "[]", '{"sweep": "gone"}', '{"sweep": "gone", "call": "gone"}'])
def test_a_sweep_of_which_nothing_is_left_is_no_record(left: str, tmp_path: Path) -> None:
    told_of_sweep(tmp_path, IDENTITIES[0], "")
    (tmp_path / "sweeps" / f"{IDENTITIES[0]}.json").write_text(left)
    with pytest.raises(UserError, match="no record there"):
        select(IDENTITIES[0], tmp_path)


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An outputs folder with two runs in its store, one of them int8, and the id of the first. Beside them, a sweep."""
    outputs = tmp_path_factory.mktemp("outputs")
    shutil.copy(empty_store, outputs / "mlflow.db")
    tracker = MLflowTracker(MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow", figures=False), outputs)
    with hasty_sqlite(), hasty_pictures():
        told = [
            tracker.log(result, result.save(outputs / str(number)))
            for number, result in enumerate((made_result(), made_result(quant="int8", step_s=0.02)))
        ]
        folder = outputs / "sweep"
        for number in range(2):
            started = f"2026-11-22T12:00:0{number}+00:00"
            job = replace(made_result(quant="int4", step_s=0.01 * (number + 1), started=started), sweep=str(folder))
            tracker.log(job, job.save(folder / str(number)))
        path = sweep(folder)
        tracker.log(SweepRecord.load(path), path)
    assert told[0] is not None
    return outputs, next(word for word in told[0].split() if len(word) == 32)


def test_a_filter_of_mlflows_is_the_runs_that_it_finds(store: tuple[Path, str]) -> None:
    outputs, _ = store
    found = select("mlflow:tags.quant = 'int8'", outputs)
    assert [each.record for each in found] == [made_result(quant="int8", step_s=0.02)]
    assert found[0].path.name == "result.json"
    assert len(select("mlflow:metrics.decode_tokens_per_s > 0", outputs, embedded_store(outputs))) == 4


def test_a_run_id_of_mlflows_is_that_run(store: tuple[Path, str]) -> None:
    outputs, run_id = store
    assert [each.record for each in select(f"mlflow:{run_id}", outputs)] == [made_result()]
    assert select(run_id, outputs) == select(f"mlflow:{run_id}", outputs)


def test_a_sweep_of_mlflows_is_its_jobs_each_once(store: tuple[Path, str]) -> None:
    outputs, _ = store
    parent = json.loads((outputs / "sweep" / "mlflow_parent.json").read_text())["run_id"]
    by_filter = "mlflow:metrics.jobs >= 0", f"mlflow:tags.sweep = '{outputs / 'sweep'}'"
    for selector in (f"mlflow:{parent}", parent, *by_filter):
        found = select(selector, outputs)
        assert steps(found) == pytest.approx([0.01, 0.02]), selector
        assert all(isinstance(each.record, Result) for each in found)


def test_a_sweep_of_more_jobs_than_a_page_has_all() -> None:
    def run(run_id: str, **tags: str) -> Any:
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, experiment_id="7", start_time=int(run_id, 16)),
            data=SimpleNamespace(tags=tags),
        )

    class Page(list[Any]):
        token: str | None = None

    class Client:
        def get_run(self, run_id: str) -> Any:
            return run(run_id, **{"gptbench.sweep": "/sweep"})

        def search_runs(self, experiments: list[str], condition: str, page_token: str | None) -> Page:
            assert experiments == ["7"]
            assert condition == f"tags.`mlflow.parentRunId` = '{'f' * 32}'"
            page = Page([run("2"), run("1")] if page_token is None else [run("3")])
            page.token = "more" if page_token is None else None
            return page

    assert [each.info.run_id for each in runs_of(Client(), "f" * 32)] == ["1", "2", "3"]


def test_no_progress_bar_is_drawn(store: tuple[Path, str], capfd: pytest.CaptureFixture[str]) -> None:
    outputs, run_id = store
    select(f"mlflow:{run_id}", outputs)
    assert capfd.readouterr().err == ""


def test_what_was_measured_in_turns_is_found(store: tuple[Path, str]) -> None:
    outputs, _ = store
    tracker = MLflowTracker(MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow", figures=False), outputs)
    made = made_ab([made_round(0, 2, lambda *_: 1e-3)])
    told = tracker.log(made, made.save(outputs / "ab"))
    assert told is not None
    found = select(f"mlflow:{next(word for word in told.split() if len(word) == 32)}", outputs)
    assert [each.record for each in found] == [made]


def test_a_server_that_is_away_is_an_error_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLflowConfig, "retries", 0)
    with pytest.raises(UserError, match=r"mlflow:tags.*127\.0\.0\.1:9"):
        select("mlflow:tags.a = 'b'", tmp_path, "http://127.0.0.1:9")


def test_a_filter_that_mlflow_does_not_understand_is_an_error(store: tuple[Path, str]) -> None:
    outputs, _ = store
    with pytest.raises(UserError, match="mlflow:nonsense"):
        select("mlflow:nonsense is this", outputs)
