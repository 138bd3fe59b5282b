"""`gptbench ab`: what is the same is within noise, what is slower is found, and nothing that drifts fools it."""

import gc
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbench.base.errors import ConfigError, UserError
from gptbench.commands.ab import ab_command, composed, too_few
from gptbench.commands.compare import sentence
from gptbench.compare.interleaved import HEADLINE, drifts, headline, remarks, rows
from gptbench.compare.ratio import Verdict
from gptbench.compare.work import different_work
from gptbench.execute import ab
from gptbench.execute.ab import ENDING_ROUNDS, StoppingRule, block, budget_that_can_suffice, cut_to_blocks, is_enough
from gptbench.present.terminal import Terminal
from gptbench.record.payload import make_record
from gptbench.schema.ab import AbResult, Round, Side
from gptbench.schema.files import load_record
from gptbench.schema.machine import DeviceState
from tests.results import made_result

ENDING = StoppingRule(half_width=0.005, budget_s=300.0, margin=0.005)
SMALL = (
    *("model=stories15m", "model.n_layers=1", "model.dim=32", "model.n_heads=2", "model.n_kv_heads=2"),
    *("model.ffn_dim=32", "model.vocab_size=64", "engine=eager", "device=cpu", "device.threads=1"),
    *("workload.prompt=[1,2]", "workload.new_tokens=4", "sampling.top_k=5", "sampling.temperature=100"),
    *("tracking=none",),
)


def made_ab(rounds: list[Round] | None = None, ending: StoppingRule = ENDING) -> AbResult:
    """Return a result of two sides that do not differ, not yet measured if no rounds are given."""
    run = made_result()
    side = Side(overrides=["model=stories15m"], config=run.config, dtype=run.dtype, traffic=run.traffic)
    return AbResult(
        started=run.started,
        command=run.command,
        sweep=None,
        config=run.config,
        environment=run.environment,
        dtype=run.dtype,
        roof=run.roof,
        sides={"A": side, "B": side},
        half_width=ending.half_width,
        margin=ending.margin,
        budget_s=ending.budget_s,
        rounds=rounds or [],
    )


def made_round(
    number: int,
    blocks: int,
    step_s: Callable[[str, float], float],
    begin: float = 0.0,
    every_s: float = 0.2,
    state: DeviceState | None = None,
) -> Round:
    """Samples of four equal steps, of the duration that a side has at a time."""
    like = made_result(compiles=(0,)).samples[0]
    one = Round(built="AB" if number % 2 == 0 else "BA")
    for index in range(blocks):
        for name in block(index + number):
            at = begin + len(one.order) * every_s
            one.samples[name].append(replace(like, step_s=[step_s(name, at)] * 4, ttft_s=0.01, state=state))
            one.order += name
            one.at_s.append(at)
    return one


def trial(random: np.random.Generator, slower: float, instance: float, noise: float, drifts: float) -> AbResult:
    """A measurement that ends as real ones do, of steps of 1 ms that differ as real ones do: from engine to engine,
    from sample to sample, and over time."""
    result = made_ab()
    while not is_enough(result, ENDING):
        level = {"A": random.normal(0, instance), "B": random.normal(np.log1p(slower), instance)}

        def step_s(name: str, at: float, level: dict[str, float] = level) -> float:
            return 1e-3 * float(np.exp(level[name] + random.normal(0, noise) + drifts * at / 60))

        result.rounds.append(made_round(len(result.rounds), 2, step_s, begin=result.seconds))
        result.seconds += 4.0
    return result


def told(result: AbResult) -> Verdict:
    row = headline(result)
    assert row is not None
    return row.verdict


@pytest.mark.parametrize("instance", [0.0, 0.002, 0.005])
def test_the_same_is_within_noise_and_two_percent_are_found(instance: float) -> None:
    """At the spread that engines of the same configuration have on a GPU: docs/log has the real trials."""
    random = np.random.default_rng(4)
    same = [told(trial(random, 0.0, instance, 0.003, drifts=-0.05)) for _ in range(40)]
    assert same.count(Verdict.noise) >= 38
    slower = [told(trial(random, 0.02, instance, 0.003, drifts=0.05)) for _ in range(20)]
    assert slower.count(Verdict.slower) >= 19


def test_a_steady_drift_cancels_in_each_block() -> None:
    result = made_ab([made_round(n, 2, lambda _, at: 1e-3 * float(np.exp(0.1 * at)), begin=10.0 * n) for n in range(3)])
    for row in rows(result):
        if row.name == HEADLINE:
            assert row.ratio.value == pytest.approx(1.0, abs=1e-12)
        elif row.name != "ttft_s":  # percentiles, of a round's steps together: up to what drifts within a block
            assert row.ratio.value == pytest.approx(1.0, abs=0.01)


def test_turns_are_balanced() -> None:
    assert [block(number) for number in range(4)] == ["ABBA", "BAAB", "BAAB", "ABBA"]
    for number in range(20):
        assert sorted(block(number)) == ["A", "A", "B", "B"]
        places = [place for place, name in enumerate(block(number)) if name == "A"]
        assert sum(places) == 3, "the middle of both sides' times is the same"


def test_it_ends_when_it_is_narrow_enough_twice_and_of_six_rounds_at_least() -> None:
    result = made_ab()
    while not is_enough(result, ENDING):
        result.rounds.append(made_round(len(result.rounds), 2, lambda *_: 1e-3))
        result.seconds += 1.0
    assert (len(result.rounds), result.ended) == (7, "narrow")


def test_the_time_that_can_suffice_does() -> None:
    """Engines take 3 s to build and samples 0.1 s, and rounds are as `take_round` would make them."""

    def ended(budget_s: float) -> AbResult:
        result, ending = made_ab(), replace(ENDING, budget_s=budget_s)
        while not is_enough(result, ending):
            blocks = math.ceil(max(0.8, min(3.0, budget_s / ENDING_ROUNDS / 2)) / 0.4 - 1e-9)
            one = made_round(len(result.rounds), blocks, lambda *_: 1e-3, begin=result.seconds + 3.0, every_s=0.1)
            one.seconds = 3.0 + 0.4 * blocks
            result.rounds.append(one)
            result.seconds += one.seconds
        return result

    short = ended(10.0)
    assert (len(short.rounds), short.ended) == (2, "budget")
    needed = budget_that_can_suffice(short)
    assert needed == pytest.approx(7 * 6.0)
    enough = ended(needed * 1.05)  # a round ends with a whole block
    assert (len(enough.rounds), enough.ended) == (7, "narrow")
    assert budget_that_can_suffice(ended(7 * 3.8)) < needed * 1.05


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        (1, "1 round is too few: 7, which can be enough, need about --budget-s 71"),
        (6, "6 rounds are too few: 7, which can be enough, need about --budget-s 71"),
        (7, ""),
    ],
)
def test_few_rounds_are_told_with_a_time_that_can_suffice(rounds: int, told: str) -> None:
    made = [made_round(n, 2, lambda *_: 1e-3, begin=n * 10.1) for n in range(rounds)]
    result = replace(made_ab([replace(one, seconds=10.1) for one in made]), seconds=rounds * 10.1, ended="budget")
    assert too_few(result) == told
    assert too_few(replace(result, ended="narrow")) == ""


@pytest.mark.parametrize(
    ("ratios", "margin", "possible"),
    [
        ((0.9, 1.1, 1.0), 0.005, {"slower", "faster"}),
        ((1.0, 1.1, 1.05), 0.1, {"faster"}),
        ((0.9, 1.0, 0.95), 0.1, {"slower"}),
        ((0.9, 1.1, 1.0), 0.5, set()),  # the margin covers it
        ((1.0, 1.001, 0.999), 0.005, set()),
        ((0.5, 0.6, 0.55), 0.005, set()),  # a verdict
        ((1.2,), 0.005, set()),  # one value each
    ],
)
def test_what_is_undecided_says_what_is_possible(ratios: tuple[float, ...], margin: float, possible: set[str]) -> None:
    rounds = [
        made_round(n, 2, lambda name, _, ratio=ratio: 1e-3 / {"A": 1.0, "B": ratio}[name])
        for n, ratio in enumerate(ratios)
    ]
    row = headline(made_ab(rounds, replace(ENDING, margin=margin)))
    assert row is not None
    found = {word.value: share for word, share in row.possible.items()}
    assert set(found) == possible
    assert (row.verdict is Verdict.undecided) is bool(possible)
    if possible:
        assert row.ratio.low is not None
        assert row.ratio.high is not None
        ends = {"slower": 1 - row.ratio.low, "faster": row.ratio.high - 1}
        assert found == {way: pytest.approx(ends[way]) for way in possible}
        assert sentence(row).endswith(f"% {list(found)[-1]} is possible")


def test_a_tail_of_one_sample_is_in_the_percentiles_of_its_round(tmp_path: Path) -> None:
    """One sample of four with slow steps: its own p99 says so, their median and mean of p99 hardly."""
    rounds = [made_round(n, 2, lambda *_: 1e-3) for n in range(4)]
    for one in rounds:
        one.samples["B"][3] = replace(one.samples["B"][3], step_s=[1e-3, 1e-3, 1e-3, 9e-3])
    result = made_ab(rounds)
    found = {row.name: row for row in rows(result)}
    pooled = np.quantile([1e-3] * 15 + [9e-3], [0.5, 0.9, 0.99])
    for metric, expected in zip(("tpot_p50_s", "tpot_p90_s", "tpot_p99_s"), pooled, strict=True):
        assert found[metric].a == pytest.approx(1e-3)
        assert found[metric].b == pytest.approx(expected)
    assert found["tpot_p99_s"].b > 7e-3
    values = {name: value for name, value, _ in make_record(result, result.save(tmp_path), None).metrics}
    assert values["brief/B_tpot_p99_s"] == pytest.approx(found["tpot_p99_s"].b)


def test_it_ends_when_another_round_would_take_too_long() -> None:
    result = made_ab()
    random = np.random.default_rng(0)
    while not is_enough(result, replace(ENDING, budget_s=35.0)):
        result.rounds.append(made_round(len(result.rounds), 2, lambda *_: float(random.uniform(1e-3, 2e-3))))
        result.rounds[-1].seconds = 10.0
        result.seconds += 10.0
    assert (len(result.rounds), result.ended) == (3, "budget")


def test_ratios_are_of_rates_and_times() -> None:
    result = made_ab([made_round(n, 2, lambda name, _: {"A": 1e-3, "B": 2e-3}[name]) for n in range(3)])
    found = {row.name: row for row in rows(result)}
    assert found[HEADLINE].a == pytest.approx(1000)
    assert found[HEADLINE].ratio.value == pytest.approx(0.5)
    assert found[HEADLINE].verdict is Verdict.slower
    assert found["tpot_p99_s"].ratio.value == pytest.approx(2.0)
    assert found["tpot_p99_s"].verdict is Verdict.slower
    assert found["ttft_s"].verdict is Verdict.noise
    assert found[HEADLINE].basis == "3 rounds"


def test_the_mean_of_a_side_is_that_of_rounds() -> None:
    steps = {0: (1e-3, 2e-3), 1: (4e-3, 4e-3)}
    rounds = [made_round(n, blocks, lambda name, _, n=n: steps[n]["AB".index(name)]) for n, blocks in ((0, 2), (1, 10))]
    row = headline(made_ab(rounds))
    assert row is not None
    assert row.b / row.a == pytest.approx(row.ratio.value) == pytest.approx(0.5**0.5)


def test_a_block_that_compiled_something_is_left_out() -> None:
    one = made_round(0, 3, lambda name, at: 1e-3 if at > 0.7 else 5e-3)
    one.samples["A"][0] = replace(one.samples["A"][0], compiles=1)
    result = made_ab([one])
    assert len(one.blocks()) == 2
    assert rows(result)[0].a == pytest.approx(1000)
    assert any("A: 1 sample compiled something" in remark for remark in remarks(result))
    for samples in one.samples.values():
        samples[:] = [replace(sample, compiles=1) for sample in samples]
    assert rows(result) == []
    assert result.problem() == "no whole block was measured without compiling"


@pytest.mark.parametrize(("drifting", "slope"), [("AB", 0.002), ("A", 0.003), ("B", -0.003)])
def test_drift_is_told_of_the_side_that_drifts(drifting: str, slope: float) -> None:
    random = np.random.default_rng(1)

    def step_s(name: str, at: float) -> float:
        return 1e-3 * float(np.exp(slope * at * (name in drifting) + random.normal(0, 1e-3)))

    result = made_ab([made_round(n, 2, step_s, begin=5.0 * n) for n in range(8)])
    found = {drift.side: drift for drift in drifts(result)}
    for name in drifting:
        assert found[name].change == pytest.approx(np.exp(-slope * 35) - 1, abs=0.005)
    way = "slower" if slope > 0 else "faster"
    told = [remark.partition(" by ")[0] for remark in remarks(result)]
    assert told == [f"{name} got {way}" for name in drifting]


def test_what_starts_anew_with_each_round_is_no_drift() -> None:
    result = made_ab([made_round(n, 2, lambda _, at: 1e-3 * float(np.exp(0.01 * (at % 5))), 5.0 * n) for n in range(8)])
    assert remarks(result) == []


def test_noise_is_no_drift() -> None:
    random = np.random.default_rng(2)
    told = 0
    for _ in range(50):
        result = made_ab(
            [made_round(n, 2, lambda *_: float(random.uniform(0.9e-3, 1.1e-3)), 5.0 * n) for n in range(8)]
        )
        told += bool([remark for remark in remarks(result) if "from the first round" in remark])
    assert told <= 3, "2% of them, by SURE"


def test_other_work_is_told() -> None:
    result = made_ab([made_round(0, 2, lambda *_: 1e-3)])
    config = result.sides["B"].config | {"workload": result.sides["B"].config["workload"] | {"batch_size": 4}}
    result.sides["B"] = replace(result.sides["B"], config=config)
    assert remarks(result) == ["A and B do not do the same work: they differ in workload.batch_size"]


def test_work_that_no_field_tells_apart_is_the_same() -> None:
    one = {"batch_size": 1, "new_tokens": 4, "prompt": [1, 2], "seed": 0}
    assert different_work([one, one | {"seed": 1}, one | {"prompt_file": None}]) is None
    assert different_work([one, one, one | {"prompt": [1], "new_tokens": 5}]) == (
        "A and B do not do the same work: they differ in workload.new_tokens, workload.prompt"
    )


def test_the_memory_clock_is_told_as_the_processors_is() -> None:
    fast, slow = (DeviceState(clock_mhz=[1980.0], memory_clock_mhz=[clock]) for clock in (2619.0, 1593.0))
    one = made_round(0, 2, lambda *_: 1e-3, state=fast)
    one.samples["B"] = [replace(sample, state=slow) for sample in one.samples["B"]]
    said = remarks(made_ab([one]))
    assert len(said) == 2
    assert said[0].startswith("the memory clock averaged 2619 MHz for A and 1593 MHz for B")
    assert said[1].startswith("the memory clock varied from 1593 to 2619 MHz")


def test_clocks_and_throttling_are_told() -> None:
    fast, slow = DeviceState(clock_mhz=[1980.0]), DeviceState(clock_mhz=[1800.0], throttled=["power cap"])
    one = made_round(0, 2, lambda *_: 1e-3, state=fast)
    one.samples["B"] = [replace(sample, state=slow) for sample in one.samples["B"]]
    said = remarks(made_ab([one]))
    assert any("1980 MHz for A and 1800 MHz for B" in remark for remark in said)
    assert any("from 1800 to 1980 MHz" in remark for remark in said)
    assert any("B: 4 of 4 samples were throttled: power cap" in remark for remark in said)
    assert remarks(made_ab([made_round(0, 2, lambda *_: 1e-3, state=fast)])) == []


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = DeviceState([0.0], [1980.0], [3201.0], [600.0], [50.0], ["power cap"], 0.5)
    result = made_ab([made_round(n, 2, lambda *_: 1e-3, state=state) for n in range(2)])
    path = result.save(tmp_path)
    assert path.name == "ab.json"
    assert load_record(path) == result
    record = make_record(replace(result, ended="narrow"), path, None)
    values = {name: value for name, value, _ in record.metrics}
    assert values[f"brief/A_{HEADLINE}"] == values[f"sample_B/{HEADLINE}"] == pytest.approx(1000)
    assert values[f"brief/B_over_A_{HEADLINE}"] == pytest.approx(1)
    assert (record.tags["rounds"], record.status) == ("2", "FINISHED")
    assert make_record(replace(result, ended="failed"), path, None).status == "FAILED"
    assert make_record(result, path, None).status == "KILLED", "as it stands in the file until it ends"


def test_an_interrupted_block_is_left_out() -> None:
    one, two = made_round(0, 2, lambda *_: 1e-3), made_round(1, 1, lambda *_: 1e-3)
    one.samples["B"].append(one.samples["B"][0])  # taken, not yet noted
    two.order, two.at_s = two.order[:3], two.at_s[:3]
    result = made_ab([one, two])
    cut_to_blocks(result)
    assert [len(each.order) for each in result.rounds] == [8]
    assert [len(samples) for samples in result.rounds[0].samples.values()] == [4, 4]


@pytest.fixture
def outputs(tmp_path: Path, small_roof: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is measured goes. What was set apart from the search for garbage before the test remains so."""
    monkeypatch.setattr(gc, "unfreeze", lambda: None)
    return tmp_path


def measured(outputs: Path, ending: StoppingRule, **more: Any) -> AbResult:
    overrides = [*SMALL, f"outputs={outputs}"]
    asked = ab.read(overrides, composed(overrides, None))
    return ab.measure((asked, asked), ending, ["ab"], Terminal(quiet=False), **more)


def test_both_are_made_anew_in_turns_and_draw_the_same(outputs: Path) -> None:
    made: list[ab.PreparedSide] = []

    def ready(sides: dict[str, ab.PreparedSide]) -> None:
        made.extend(sides.values())

    assert len(measured(outputs, StoppingRule(1e-9, 1e-9, 0.0), on_prepared=ready).rounds) == 1, "one in any case"
    taken = measured(outputs, StoppingRule(10.0, 300.0, 0.0), on_prepared=ready)
    built = [one.built for one in taken.rounds]
    made = made[2:]
    assert [{first, second} for first, second in zip(built[::2], built[1::2], strict=False)] == [{"AB", "BA"}] * 3
    assert len({each.shift.nbytes for each in made}) == len(made), "memory before each is left to chance"
    assert len({id(each.engine) for each in made}) == len(made) == 14
    for one in taken.rounds:
        assert [sample.tokens for sample in one.samples["A"]] == [sample.tokens for sample in one.samples["B"]]
        assert len(one.order) >= 8
        assert one.at_s == sorted(one.at_s)
        assert set(one.load_s) == set(one.compilations) == {"A", "B"}
        assert [probe.when for probe in one.probes] == ["before", "after"]
    assert taken.samples("A")[0].tokens != taken.samples("A")[1].tokens
    assert taken.problem() is None


def test_a_planted_slowdown_is_found_by_the_whole_of_it(outputs: Path) -> None:
    def plant(sides: dict[str, ab.PreparedSide]) -> None:
        engine = sides["B"].engine
        run = engine.run_decode

        def slowed() -> None:
            run()
            time.sleep(0.01)

        engine.run_decode = slowed  # type: ignore[method-assign]

    result = measured(outputs, StoppingRule(10.0, 300.0, 0.005), on_prepared=plant)
    assert told(result) is Verdict.slower


def test_ctrl_c_keeps_whole_blocks(outputs: Path) -> None:
    calls = 0

    def interrupt(result: AbResult) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        assert result.ended == ("interrupted" if calls == 3 else "killed")

    result = measured(outputs, StoppingRule(1e-9, 300.0, 0.0), keep=interrupt)
    assert result.ended == "interrupted"
    assert len(result.rounds) == 2
    assert result.seconds > 0
    assert calls == 3, "it is kept once more in the end"


def test_the_command_shows_and_records(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [*SMALL, f"outputs={outputs}"]
    assert ab_command(["", "sampling.temperature=0", *shared, "--budget-s", "0.1", "--half-width", "1%"]) == 0
    captured = capsys.readouterr()
    line = json.loads(captured.out.splitlines()[-1])
    assert line["b"] == [*shared, "sampling.temperature=0"]
    assert set(line["metrics"]) == {HEADLINE, "tpot_p50_s", "tpot_p90_s", "tpot_p99_s", "ttft_s"}
    assert line["rounds"] >= 1
    assert all(isinstance(each["possible"], dict) for each in line["metrics"].values())
    record = load_record(Path(line["result"]))
    assert isinstance(record, AbResult)
    assert record.sides["B"].config["sampling"]["temperature"] == 0.0
    assert record.half_width == 0.01
    assert record.ended == line["ended"] != "killed", "the end is in the file, too"


def test_what_was_measured_before_a_failure_is_kept(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take, taken = ab.Rounds.take, 0

    def failing(*args: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise RuntimeError("a planted fault")
        take(*args)

    monkeypatch.setattr(ab.Rounds, "take", failing)
    with pytest.raises(RuntimeError, match="planted"):
        ab_command(["", "", *SMALL, f"outputs={outputs}", "--half-width", "0.0001%"])
    told = capsys.readouterr().err
    path = Path(told.partition("measured so far: ")[2].split()[0])
    record = load_record(path)
    assert isinstance(record, AbResult)
    assert (len(record.rounds), record.ended, record.reason) == (2, "failed", "RuntimeError: a planted fault")


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ("nope", "nope: expected a command"),
        ("task=quality", "task=quality: expected speed"),
        ("task.breakdown=true", "task=speed: expected speed, without"),
        ("task=kernels", "task=kernels: expected speed"),
        ("sampling.top_k=0", "sampling.top_k=0"),
        ("engine=nope", "engine=nope: no such option"),
        ("engine.nope=1", "engine.nope=1: no such field"),
        ("sampling.top_k=1,2", "top_k"),
        ("sampling.top_k='1", "No closing quotation"),
        ("hydra/launcher=ray_gpu", "none of Hydra's own"),
        ("+hydra.searchpath=[file:///tmp]", "none of Hydra's own"),
    ],
)
def test_what_cannot_be_is_refused(b: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ab_command(["", b, *SMALL])


@pytest.mark.parametrize("value", ["-1%", "x", "200%"])
def test_a_share_is_one(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ab_command(["", "", f"--half-width={value}"])
    assert f"{value}: expected a share" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("half_width", 0.0), ("budget_s", -1.0), ("margin", -0.1)])
def test_an_ending_must_come(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        replace(ENDING, **{name: value})


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_numbers_that_json_has_no_word_for_are_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("half_width", "budget_s", "margin"):
        with pytest.raises(ConfigError, match=rf"^--{name.replace('_', '-')}={float(value)}: expected a finite number"):
            replace(ENDING, **{name: float(value)})
    with pytest.raises(UserError, match=rf"^--budget-s={float(value)}: expected a finite number over 0"):
        ab_command(["", "", *SMALL, f"--budget-s={value}"])
    for option in ("--half-width", "--margin"):
        with pytest.raises(SystemExit):
            ab_command(["", "", *SMALL, f"{option}={value}"])
        assert f"argument {option}: {value}: expected a share" in capsys.readouterr().err
