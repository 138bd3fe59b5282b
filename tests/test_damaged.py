"""Damaged records: each is refused by the name of its field, or can be shown; none hinders the others."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gptbench.__main__ import run
from gptbench.base.errors import UserError
from gptbench.compare.baseline import Baseline, read_baseline
from gptbench.compare.comparison import compare
from gptbench.compare.explain import explain
from gptbench.compare.interleaved import rows as interleaved
from gptbench.compare.rows import experiments
from gptbench.compare.select import MAX_UNREAD_LISTED, SelectedRecord
from gptbench.present.console import in_line
from gptbench.record.ledger import Ledger
from gptbench.record.payload import make_record
from gptbench.schema import KernelResult, Recorded, Result, SweepRecord
from gptbench.schema.ab import AbResult
from gptbench.schema.labels import labels
from gptbench.schema.machine import Load
from gptbench.schema.outcome import Outcome, Status
from tests.results import (
    made_breakdown,
    made_energy,
    made_failure,
    made_kernels,
    made_result,
    made_state,
)
from tests.test_ab import made_ab, made_round

MISSING = object()
BASELINE = Baseline(read_baseline("a100_40gb"))
DAMAGES: tuple[Any, ...] = (MISSING, None, "text", True, [], {}, 0, -1, math.nan, math.inf, 1e300, 10**25)
SHARED = {"config", "environment", "roof"}
"""Fields that several kinds have."""


def whole_result() -> Result:
    """Return a result with every optional part."""
    result = replace(made_result(perplexity=3.0), breakdown=made_breakdown(), energy=made_energy())
    result.samples[0].state = made_state()
    result.samples[0].load = Load(seconds=1.0, cores=2, own_s=1.5, other_s=0.1, stolen_s=0.0, pressure_s=0.01)
    result.config["task"] = {"_target_": "gptbench.task.Speed", "name": "speed", "breakdown": True, "energy": False}
    return result


def made_sweep() -> SweepRecord:
    run = made_result()
    jobs = [Outcome(status=Status.recorded.value, swept=["sampling.top_k=1"], metrics={"ttft_s": 1.0}, record="r.json")]
    return SweepRecord(
        started=run.started, ended=run.started, command=[], sweep="s", config={}, status="FINISHED", jobs=jobs
    )


RECORDS: dict[str, Recorded] = {
    "result": whole_result(),
    "kernels": made_kernels(),
    "failure": made_failure(),
    "ab": made_ab([made_round(0, 1, lambda side, at_s: 0.01)]),
    "sweep": made_sweep(),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value below; of lists only the first."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def damages(raw: dict[str, Any], places: list[tuple[Any, ...]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A record with each of the values at those places damaged in each way: what it is, and the whole."""
    for path in places:
        inner: Any = raw
        for key in path[:-1]:
            inner = inner[key]
        before = inner[path[-1]]
        for damage in DAMAGES if path[0] != "config" else (MISSING, None, [], 0):
            if damage is not MISSING:
                inner[path[-1]] = damage
            elif isinstance(inner, dict):
                del inner[path[-1]]
            yield f"{path}: {damage}", raw
            inner[path[-1]] = before


@pytest.mark.parametrize("kind", RECORDS)
def test_each_damage_is_refused_by_name_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    good, path = RECORDS[kind], tmp_path / "record.json"
    path.write_text("{}")
    refused, harmless = 0, 0
    whole = json.loads(json.dumps(asdict(good)))  # type: ignore[call-overload]
    shared = SHARED if kind != "result" else set()
    for what, raw in damages(whole, [place for place in places(whole) if not shared & set(place[:-1])]):
        try:
            record = type(good).of(raw, path)
        except UserError as error:
            refused += str(error).startswith(f"{path}: not a result of gptbench: ")
            continue
        try:
            use(record, good, path)
        except Exception as error:
            raise AssertionError(what) from error
        harmless += 1
    assert refused > harmless > 0


def use(record: Recorded, good: Recorded, path: Path) -> None:
    """Everything that commands do with a record, but drawing."""
    found = SelectedRecord(path, record)
    wrong = record.problem()
    labels([record, good] if not isinstance(record, SweepRecord) else [])
    written = make_record(record, path, None)
    assert wrong is not None or all(math.isfinite(value) for _, value, _ in written.metrics)
    if isinstance(record, Result) and wrong is None:
        explain(record)
        with contextlib.suppress(UserError):  # they are not alike
            for pair in compare([found], [SelectedRecord(path, good)]).pairs:
                assert all(math.isfinite(row.ratio.value) for row in pair.rows)
    if isinstance(record, Result | KernelResult) and wrong is None:
        with contextlib.suppress(UserError):  # nothing that the benchmark has
            assert all(math.isfinite(row.actual) for row in experiments([found], BASELINE, "kernel"))
    if isinstance(record, AbResult) and wrong is None:
        assert all(math.isfinite(row.ratio.value) for row in interleaved(record))
    if isinstance(record, SweepRecord):
        record.markdown()


def break_files(folder: Path) -> int:
    """Files that are called as records are, and are none; how many."""
    raw = asdict(made_result())
    contents: list[bytes] = [
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"schema_version": 1, "load_s": ' + b"9" * 5000 + b"}",
        b"",
        b"null",
        json.dumps(raw | {"roof": None}).encode(),
        json.dumps(raw | {"load_s": math.inf}).encode(),
        json.dumps(raw | {"samples": []} | {"traffic": raw["traffic"] | {"positions_read": []}}).encode(),
    ]
    for number, content in enumerate(contents):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "result.json").write_bytes(content)
    for name in ("fifo", "link", "folder"):
        (folder / name).mkdir()
    os.mkfifo(folder / "fifo" / "result.json")
    (folder / "link" / "sweep.json").symlink_to("nowhere")
    (folder / "folder" / "failure.json").mkdir()
    return len(contents) + 3


def test_every_command_leaves_out_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs"
    broken = break_files(outputs / "b")
    for name in ("jobs", "sweeps"):
        (outputs / name).mkdir()
    (outputs / "jobs" / "aaaa000011112222.jsonl").write_bytes(b'\xff\n{"folder": 5}\n')
    (outputs / "sweeps" / "bbbb000011112222.json").write_bytes(b"\xff")
    made_result().save(outputs / "a")
    good = made_result(step_s=0.02, started="2026-11-23T12:00:00+00:00").save(outputs / "b" / "good")
    a, b = str(outputs / "a"), str(outputs / "b")
    commands = [["compare", a, b], ["explain", b], ["rows", b], ["report", b], ["export", b, "--format", "csv"]]
    for arguments in commands:
        assert run([*arguments, "--outputs", str(outputs)]) == 0
        told = capsys.readouterr()
        left_out = told.err.count("left out: ")
        assert left_out == min(broken, MAX_UNREAD_LISTED + 1), f"{arguments}: {told.err}"
        assert f"1 more files, of {broken} that cannot be read" in told.err
        assert arguments[0] == "export" or str(good) in told.out or arguments[0] in ("rows", "report")
    assert run(["sync", "--outputs", str(outputs)]) == 0
    assert f"left out: {broken} files that cannot be read" in capsys.readouterr().err
    assert Ledger(outputs).attempts("aaaa000011112222") == []
    baseline = str(tmp_path / "base.yaml")
    assert run(["gate", "--record", baseline, a]) == 0
    with pytest.raises(UserError, match="no record there"):  # an infinite time is none that passes
        run(["gate", "--baseline", baseline, str(outputs / "b" / "6")])
    assert in_line({"a": [math.nan, {"b": math.inf}], "c": 1.5}) == '{"a": [null, {"b": null}], "c": 1.5}\n'
