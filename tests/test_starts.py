"""What starts of the same thing differ by: of this device's recorded runs, where there are enough of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptbench.commands.compare import compare_command
from gptbench.compare import starts
from gptbench.compare.comparison import compare
from gptbench.compare.ratio import Ratio, Verdict, widened_by_process_spread
from gptbench.compare.select import SelectedRecord
from gptbench.compare.starts import DEFAULT_SPREAD, MIN_FREEDOM, History
from gptbench.present.report import html
from gptbench.record.ledger import Ledger
from gptbench.schema import Result
from tests.results import made_result, on_cpu

SPREAD = {"decode_tokens_per_s": 0.002, "ttft_s": 0.03}


def run(level: float = 0.0, ttft: float = 0.0, step_s: float = 0.01, identity: str = "a") -> Result:
    """Four samples that differ by a thousandth, at a level of their own."""
    result = made_result(compiles=(0, 0, 0, 0))
    samples = [
        replace(
            sample,
            step_s=[step_s * math.exp(level) * (1 + number / 1000)] * 4,
            ttft_s=0.05 * math.exp(ttft) * (1 + number / 1000),
        )
        for number, sample in enumerate(result.samples)
    ]
    return replace(result, samples=samples, identity=identity)


def keep(outputs: Path, result: Result, name: str) -> Path:
    """Records a run as a job does."""
    folder = outputs / name
    assert result.identity is not None
    ledger = Ledger(outputs)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    ledger.note(result.identity, folder, result.started)
    return result.save(folder)


def recorded(outputs: Path, counts: dict[str, int], step_s: float = 0.01) -> dict[str, list[float]]:
    """Runs of some identities, and their levels, which differ by more between identities than within."""
    random = np.random.default_rng(3)
    levels: dict[str, list[float]] = {}
    for number, (identity, count) in enumerate(counts.items()):
        for index in range(count):
            level = float(random.normal(0, SPREAD["decode_tokens_per_s"]))
            ttft = float(random.normal(0, SPREAD["ttft_s"]))
            levels.setdefault(identity, []).append(level)
            keep(outputs, run(level + number / 2, ttft, step_s, identity), f"{identity}-{index}")
    return levels


def test_variances_within_identities_are_pooled(tmp_path: Path) -> None:
    levels = recorded(tmp_path, {"a": 4, "b": 3, "c": 1})
    found = History(tmp_path).spread("decode_tokens_per_s", [run()])
    squares = sum(np.var(levels[name], ddof=0) * len(levels[name]) for name in "ab")
    assert found.value == pytest.approx((squares / 5) ** 0.5, rel=1e-6)
    assert (found.freedom, found.source) == (5.0, "7 recorded runs of 2 configurations on this device")
    assert History(tmp_path).spread("ttft_s", [run()]).value > 3 * found.value, "each metric has its own"


def test_too_few_or_other_runs_leave_what_is_built_in(tmp_path: Path) -> None:
    built_in = f"built in for a GPU: 0 recorded repeats of such runs here, {MIN_FREEDOM} needed"
    assert History().spread("ttft_s", [run()]) == starts.ProcessSpread(DEFAULT_SPREAD["cuda"], math.inf, built_in)
    recorded(tmp_path / "few", {"a": 5, "b": 1})
    few = History(tmp_path / "few").spread("ttft_s", [run()])
    assert (few.value, few.freedom) == (DEFAULT_SPREAD["cuda"], math.inf)
    assert few.source.startswith("built in for a GPU: 4 recorded repeats")
    recorded(tmp_path / "long", {"a": 8}, step_s=0.1)
    assert History(tmp_path / "long").spread("ttft_s", [run()]).freedom == math.inf, "a larger model's steps"
    recorded(tmp_path / "enough", {"a": 8})
    history = History(tmp_path / "enough")
    assert history.spread("ttft_s", [run()]).freedom == 7
    cpu = on_cpu(run())
    assert history.spread("ttft_s", [cpu]).value == DEFAULT_SPREAD["cpu"], "another device"
    assert history.spread("ttft_s", [run(), cpu]).value == DEFAULT_SPREAD["cpu"], "the larger of two"
    weaker = run()
    weaker.environment = replace(weaker.environment, power_limit_w=500.0)
    assert history.spread("ttft_s", [weaker]).freedom == math.inf


def test_runs_that_tell_nothing_of_starts_are_left_out(tmp_path: Path) -> None:
    recorded(tmp_path, {"a": 6})
    for number, bad in enumerate(
        (
            replace(run(5.0), reused="2026-11-22T12:00:00+00:00"),
            replace(run(5.0), samples=[replace(run().samples[0], compiles=1)]),
            replace(run(5.0), identity="b"),
            replace(run(5.0), samples=[*run(5.0).samples[:2], *run(6.0).samples[:2]]),  # of a busy machine
        )
    ):
        path = keep(tmp_path, replace(bad, identity="a"), f"bad-{number}")
        if bad.identity == "b":  # of another one than the ledger says
            path.write_text(path.read_text().replace('"identity": "a"', '"identity": "b"'))
    keep(tmp_path, run(), "damaged").write_text("{")
    with (tmp_path / "jobs" / "a.jsonl").open("a") as file:
        file.write('{"folder": "nowhere"}\nnot json\n')
    found = History(tmp_path).spread("decode_tokens_per_s", [run()])
    assert found.source == "6 recorded runs of 1 configuration on this device"
    assert found.value < 0.01


def test_the_newest_are_read_and_no_more_than_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path, {"a": 10, "b": 5, "c": 5})
    read = []
    load = Result.load
    monkeypatch.setattr(Result, "load", lambda path: read.append(path.parent.name) or load(path))
    monkeypatch.setattr(starts, "MAX_RECORDS", 12)
    monkeypatch.setattr(starts, "MAX_PER_IDENTITY", 4)
    history = History(tmp_path)
    assert history.spread("ttft_s", [run()]).freedom == 9
    assert history.spread("tpot_p50_s", [run()]).freedom == 9
    assert len(read) == 12, "and each once"
    assert {name for name in read if name.startswith("a")} == {f"a-{number}" for number in range(6, 10)}


def test_an_estimate_has_a_wider_reach_than_what_is_known() -> None:
    ratio = Ratio(1.0, 1.0, 1.0)
    known, estimated = widened_by_process_spread(ratio, 0.01), widened_by_process_spread(ratio, 0.01, 5)
    assert known.half_width == pytest.approx(math.exp(1.96 * 2**0.5 * 0.01) - 1, rel=1e-3)
    assert estimated.half_width == pytest.approx(math.exp(2.571 * 2**0.5 * 0.01) - 1, rel=1e-3)


def test_an_interval_of_estimated_starts_holds_the_truth() -> None:
    """Two starts of the same thing, whose spread was estimated of six degrees of freedom."""
    random = np.random.default_rng(4)
    held = 0
    for _ in range(2000):
        spread = float((0.01**2 * random.chisquare(6) / 6) ** 0.5)
        middle = float(np.exp(random.normal(0, 0.01 * 2**0.5)))
        ratio = widened_by_process_spread(Ratio(middle, middle, middle), spread, 6)
        held += ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high
    assert 0.93 <= held / 2000 <= 0.97


def test_a_comparison_goes_by_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(identity="x"), run(0.012, identity="y")
    sides = [[SelectedRecord(Path(name), result)] for name, result in (("a.json", a), ("b.json", b))]
    (speed,) = (row for row in compare(*sides).pairs[0].rows if row.name == "decode_tokens_per_s")
    assert (
        speed.verdict is Verdict.undecided and speed.process_spread is not None and speed.process_spread.value == 0.006
    )
    recorded(tmp_path, {"a": 6, "b": 6})
    (speed,) = (
        row for row in compare(*sides, history=History(tmp_path)).pairs[0].rows if row.name == "decode_tokens_per_s"
    )
    assert speed.verdict is Verdict.undecided and speed.ratio.half_width < 0.008
    paths = [str(keep(tmp_path, result, name)) for name, result in (("one", a), ("two", run(0.05, identity="y")))]
    assert compare_command([*paths, "--outputs", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "12 recorded runs of 2 configurations on this device" in " ".join(printed.err.split())
    told = json.loads(printed.out)["pairs"][0]["metrics"]["decode_tokens_per_s"]
    assert told["verdict"] == "slower" and told["starts"].endswith("2 configurations on this device)")
    assert compare_command([*paths, "--outputs", str(tmp_path / "none")]) == 0
    assert "built in for a GPU: 0 recorded repeats" in capsys.readouterr().err


def test_the_report_goes_by_it_too(tmp_path: Path) -> None:
    recorded(tmp_path, {"a": 6})
    pair = [
        SelectedRecord(Path(name), result) for name, result in (("a.json", run()), ("b.json", run(0.05, identity="y")))
    ]
    for history, told in ((History(tmp_path), "6 recorded runs of 1 configuration"), (History(), "0.60% (built in")):
        page = html(pair, [], "", [], "", history)
        assert "one process each; process-to-process spread" in page
        assert told in page
