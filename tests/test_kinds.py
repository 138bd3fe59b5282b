"""A kind of record is one class and one row of `KINDS`: whatever handles records handles it, too."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from results import made_failure, made_kernels, made_result

from gptbench.base.errors import UserError
from gptbench.compare.select import select
from gptbench.present.export import Export
from gptbench.present.report import html
from gptbench.present.terminal import line_of
from gptbench.record.ledger import Ledger
from gptbench.record.payload import make_record, write_artifacts
from gptbench.record.sync import all_records
from gptbench.schema import Recorded
from gptbench.schema.files import KINDS, kind_of, load_record
from gptbench.schema.labels import labels


@dataclass(kw_only=True)
class Served(Recorded):
    """Record of a server's answers."""

    FILE: ClassVar[str] = "serve"
    IS_RUN: ClassVar[bool] = True

    answered: int
    seconds: float

    def problem(self) -> str | None:
        return None if self.answered else "it answered nothing"

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        return {"requests_per_s": self.answered / self.seconds}


def served(answered: int = 6) -> Served:
    run = made_result()
    return Served(
        started=run.started,
        command=run.command,
        sweep=None,
        config=run.config,
        identity="ab" * 8,
        answered=answered,
        seconds=3.0,
    )


def test_a_further_kind_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "2026-11-22" / "12-00-00"
    folder.mkdir(parents=True)
    path = served().save(folder)
    assert path.name == "serve.json"
    with pytest.raises(UserError, match=r"kind=serve: expected one of result, kernels, ab, failure, sweep$"):
        load_record(path)
    monkeypatch.setitem(KINDS, Served.FILE, Served)
    record = load_record(path)
    assert isinstance(record, Served) and record == served()

    assert labels([record]) == ["stories15m auto inductor"]
    Ledger(tmp_path).folder.mkdir()
    Ledger(tmp_path).note("ab" * 8, folder, record.started)
    assert Ledger(tmp_path).recorded("ab" * 8) == (path, record), "a job that is resumed has it"
    assert list(all_records(tmp_path)) == [path], "sync sends it"
    (found,) = select("abab", tmp_path)
    assert select("latest", tmp_path) == [found]

    assert line_of(record, path, None)["result"] == str(path)
    row = Export.of([found]).table().records()[0]
    assert (row["status"], row["metrics"]) == ("recorded", {"requests_per_s": 2.0})
    assert "not a record of one run" in html([found], [], "title", [], "now")
    sent = make_record(record, path, None)
    assert (sent.name, sent.metrics) == ("serve stories15m-auto-inductor-b1", [("requests_per_s", 2.0, 0)])
    assert (sent.tags["model"], sent.tags["identity"]) == ("stories15m", "ab" * 8)
    (tmp_path / "sent").mkdir()
    write_artifacts(record, path, tmp_path / "sent", figures=True)
    assert sorted(each.name for each in (tmp_path / "sent").iterdir()) == ["config.yaml", "serve.json"]

    failed = served(answered=0)
    failed.save(folder)
    assert Export.of(select(str(folder / "serve-2.json"), tmp_path)).rows[0].status == "it answered nothing"


def test_files_that_do_not_say_their_kind_are_known_by_a_field() -> None:
    for record in (made_result(), made_kernels(), made_failure()):
        raw = record.plain()
        assert raw.pop("kind") == record.FILE == kind_of(raw)
    for name, kind in (("rounds", "ab"), ("jobs", "sweep")):
        assert kind_of({name: []}) == kind


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = made_kernels().save(tmp_path)
    with pytest.raises(UserError, match=r"kind=kernels: expected result"):
        KINDS["result"].load(path)
    path.write_text(json.dumps(made_result().plain() | {"kind": ["result"]}))
    with pytest.raises(UserError, match=r"kind=\['result'\]: expected one of result, kernels"):
        load_record(path)
