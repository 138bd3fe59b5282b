"""Thousands of records: each is read once, its numbers are computed once, and work grows as their number does."""

import copy
import datetime
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gptbench.commands import sync as command
from gptbench.compare import Baseline
from gptbench.compare.baseline import read_baseline
from gptbench.compare.comparison import compare
from gptbench.compare.rows import experiments
from gptbench.compare.select import SelectedRecord, select
from gptbench.present import report
from gptbench.present.export import Export
from gptbench.present.formats import rendered
from gptbench.record import sync
from gptbench.schema import Recorded, Result, files
from gptbench.schema import result as results
from gptbench.schema.outcome import Outcome, Status
from gptbench.schema.sweep import SweepRecord
from tests.results import made_result, made_state

COUNT = 1500


def plain_runs(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Records of runs of one sweep, a second after each other: copies of one with other settings and speeds."""
    base = replace(made_result(compiles=(0,), tracking={}, perplexity=4.0), compilations=[], **changes).plain()
    start = datetime.datetime.fromisoformat(base["started"])
    made = []
    for number in range(count):
        plain = base | {
            "started": (start + datetime.timedelta(seconds=number)).isoformat(),
            "identity": f"{number:016x}",
            "swept": [f"sampling.top_k={number // 40 + 1}", f"sampling.temperature={number % 40 / 20}"],
            "config": base["config"]
            | {"sampling": base["config"]["sampling"] | {"top_k": number // 40 + 1, "temperature": number % 40 / 20}},
        }
        step_s = 0.01 * (1 + number / COUNT)
        sample = base["samples"][0]
        plain["samples"] = [sample | {"step_s": [step_s] * len(sample["step_s"]), "call_s": sample["call_s"] + step_s}]
        made.append(plain)
    return made


def found_runs(count: int, **changes: Any) -> list[SelectedRecord]:
    """The same, as if they had been selected."""
    path = Path("result.json")
    return [SelectedRecord(path.with_name(f"{n}.json"), Result.of(copy.deepcopy(raw), path)) for n, raw in
            enumerate(plain_runs(count, **changes))]  # fmt: skip


def counting(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> Counter[Any]:
    """Counts calls of a function by their first argument, as text."""
    counts: Counter[Any] = Counter()
    function = getattr(place, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        counts[id(arguments[0]) if isinstance(arguments[0], Recorded) else str(arguments[0])] += 1
        return function(*arguments, **named)

    monkeypatch.setattr(place, name, counted)
    return counts


def test_1500_records_are_read_and_summarised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = []
    for number, plain in enumerate(plain_runs(COUNT)):
        folder = tmp_path / "sweep" / str(number)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(plain))
        jobs.append(Outcome(status=Status.recorded.value, swept=plain["swept"], record=str(folder / "result.json")))
    first = made_result()
    SweepRecord(
        started=first.started, command=[], sweep=None, config=first.config, ended=first.started, status="FINISHED",
        jobs=jobs,
    ).save(tmp_path / "sweep")  # fmt: skip

    reads = counting(monkeypatch, files, "read_record")
    summaries = counting(monkeypatch, results, "summary")
    loads = counting(monkeypatch, OmegaConf, "load")
    found = select(str(tmp_path), tmp_path)
    assert len(found) == COUNT and len(reads) == COUNT + 1 and set(reads.values()) == {1}
    assert [each.record.started for each in found] == sorted(each.record.started for each in found)

    baselines = [Baseline(read_baseline("a100_40gb"))]
    assert len(experiments(found, baselines[0], "kernel")) >= COUNT
    assert len(rendered([Export.of(found).table()], "csv").splitlines()) == COUNT + 1
    monkeypatch.setattr(report, "CHARTS", ())
    page = report.html(found, baselines, "many", [str(tmp_path)], "now")
    assert f"{COUNT} of {COUNT} runs are valid" in page
    assert len(summaries) == COUNT and set(summaries.values()) == {1}
    assert set(loads.values()) <= {1}, "what is shipped is read once"

    logged: list[Path] = []

    class Fake:
        def log(self, result: Recorded, path: Path) -> str:
            logged.append(path)
            return "there"

    monkeypatch.setattr(sync, "instantiate", lambda *_: Fake())
    known = {each.path: each.record for each in found}
    monkeypatch.setattr(command, "load_record", lambda path: known.get(path) or files.load_record(path))
    again = counting(monkeypatch, command, "load_record")
    assert command.sync_command(["--outputs", str(tmp_path)]) == 0
    assert len(set(logged)) == len(logged) == COUNT, "the sweep itself is not tracked"
    assert len(again) == COUNT + 1 and set(again.values()) == {1}
    assert "all records are logged" in capsys.readouterr().out


def steps(work: Callable[[list[SelectedRecord]], Any], found: list[SelectedRecord]) -> int:
    """How many of the interpreter's steps are within gptbench."""
    count, before = 0, sys.gettrace()
    ours = str(Path(report.__file__).parents[1])

    def within(*_: Any) -> Any:
        nonlocal count
        count += 1
        return within

    def called(frame: Any, *_: Any) -> Any:
        frame.f_trace_opcodes = frame.f_code.co_filename.startswith(ours)
        return within if frame.f_trace_opcodes else None

    sys.settrace(called)
    try:
        work(found)
    finally:
        sys.settrace(before)
    return count


def test_work_grows_as_the_number_of_records_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "CHARTS", ())
    baseline = Baseline(read_baseline("a100_40gb"))
    few, many = found_runs(25), found_runs(100)
    kinds: dict[str, Callable[[list[SelectedRecord]], Any]] = {
        "report": lambda found: report.html(found, [baseline], "many", [], "now"),
        "rows": lambda found: experiments(found, baseline, "kernel"),
        "export": lambda found: [rendered([Export.of(found).table()], kind) for kind in ("csv", "md", "json")],
        "compare": lambda found: compare(found, [SelectedRecord(each.path, each.record) for each in found]),
    }
    for name, work in kinds.items():
        for found in (few, many):  # so that all is imported, and every summary kept
            work(found)
        growth = steps(work, many) / steps(work, few)
        assert growth < 4.6, f"{name}: four times as many records are {growth:.1f} times the work"


def test_a_chart_of_many_runs_shows_no_more_than_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    state = made_state()
    long = replace(state, **{name: values * 300 for name, values in vars(state).items() if isinstance(values, list)})
    long.at_s = [index / 100 for index in range(len(long.at_s))]
    samples = [replace(made_result().samples[0], state=long)]
    found = found_runs(240, samples=samples)
    for index, each in enumerate(found):
        each.record.config["quant"]["name"] = "none" if index % 2 else "int8"
    names = ("tokens_per_s", "heat_map", "pareto", "device_state")
    monkeypatch.setattr(report, "CHARTS", [chart for chart in report.CHARTS if chart.name in names])
    svg = report.html(found, [], "many", [], "now")
    charts = {part.split('"', 1)[0]: part.split("</svg>")[0] for part in svg.split('aria-label="')[1:]}
    assert {"top_k × temperature", "Speed against quality", "Clocks, power and temperature"} <= set(charts)
    longest = {name: len(chart) for name, chart in charts.items() if len(chart) > 250_000}
    assert not longest
    assert "the fastest 12 of 20" in charts["top_k × temperature"]
    assert "means of neighbouring readings" in charts["Clocks, power and temperature"]
    assert "the fastest 24 of 240" in charts["Decode speed"]
