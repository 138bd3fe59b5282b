"""The gate: what is worse than a baseline fails; baselines are recorded, read again, and composed."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from results import PROMPT, made_result, on_cpu

from gptbench.__main__ import main
from gptbench.base.errors import ConfigError, UserError
from gptbench.base.paths import conf_folder
from gptbench.commands.gate import gate_command
from gptbench.compare import Baseline
from gptbench.compare.baseline import parse_baseline, read_baseline
from gptbench.compare.gate import Check, Gate, check, gate
from gptbench.compare.ratio import Moments, ratio_of_groups
from gptbench.compare.recording import overrides_of, recorded_text
from gptbench.compare.select import SelectedRecord
from gptbench.compare.starts import ProcessSpread
from gptbench.config import BaselineConfig, BaselineMetric, load, register
from gptbench.config.guard import install
from gptbench.execute import baseline_runs
from gptbench.present.tables import show_result
from gptbench.schema import Result
from gptbench.schema.machine import DeviceState
from gptbench.schema.metrics import METRICS, SPEED
from gptbench.schema.quality import Predictions
from tests.sweeps import PLAIN, SHORT

Save = Callable[[str, Result], str]


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, Result], str]:
    def saved(name: str, result: Result) -> str:
        return str(result.save(tmp_path / name))

    return saved


@pytest.fixture(autouse=True)
def device_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_runs, "gpu_names", lambda: ["Processor X"])


def found(*results: Result) -> list[SelectedRecord]:
    return [SelectedRecord(Path(f"run-{number}.json"), result) for number, result in enumerate(results)]


def with_config(result: Result, **groups: dict[str, Any]) -> Result:
    config = {name: result.config[name] | values for name, values in groups.items()}
    return replace(result, config=result.config | config)


def with_task(result: Result) -> Result:
    task = {"_target_": "gptbench.task.Speed", "name": "speed", "breakdown": False, "energy": False}
    return replace(result, config=result.config | {"task": task})


def steady(factor: float = 1.0, **more: Any) -> Result:
    """A run whose samples differ by a thousandth."""
    result = with_task(made_result(compiles=(0, 0, 0, 0), **more))
    steps = [0.01 * factor * (1 + step / 100) for step in range(4)]
    samples = [
        replace(sample, step_s=[step * (1 + number / 1000) for step in steps], ttft_s=0.05 * (1 + number / 1000))
        for number, sample in enumerate(result.samples)
    ]
    return replace(result, samples=samples)


def baseline_of(*results: Result) -> BaselineConfig:
    return parse_baseline(recorded_text("made", found(*results), "gptbench gate --record made.yaml"))


def failed(held: Gate) -> list[str | None]:
    return [check.metric for check in held.failed]


def test_a_row_of_one_prompt_says_why_no_run_is_its_own() -> None:
    """Baselines used to be recorded with one prompt for all rows of a batch."""
    apart = replace(steady(), prompts=[PROMPT, PROMPT[::-1]])
    held = gate(baseline_of(steady()), found(apart))
    (check,), ((_, why),) = held.failed, held.left_out
    assert "one prompt for all rows of the batch, and now each row has its own: record it again" in check.reason
    assert why == check.reason.replace("it", "stories15m-bfloat16-inductor-b1", 1)
    other = replace(apart, prompts=[[2], [3]], prompt=[2])
    (check,) = gate(baseline_of(steady()), found(other)).failed
    assert check.reason == "it was not measured"
    assert not gate(baseline_of(apart), found(apart)).failed


def test_the_same_passes() -> None:
    config = baseline_of(steady())
    assert not gate(config, found(steady())).failed
    assert config.device == "Processor X" and config.power_limit_w == 700 and config.versions["torch"] == "2.13.0"
    row = config.rows["stories15m-bfloat16-inductor-b1"]
    assert row.overrides == ["model=stories15m", "quant=none"]
    speed = row.metrics["decode_tokens_per_s"]
    assert (speed.count, speed.of, row.metrics["compile_cold_s"].count) == (4, "samples", 1)
    assert 0 < speed.spread < 0.002


@pytest.mark.parametrize(
    ("factor", "lost"),
    [(1.005, []), (1.03, ["decode_tokens_per_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s"]), (0.9, [])],
)
def test_only_what_is_slower_beyond_the_margin_fails(factor: float, lost: list[str]) -> None:
    held = gate(baseline_of(steady()), found(steady(factor)))
    assert failed(held) == lost
    assert all("slower" in check.reason and "95% interval" in check.reason for check in held.failed)


def test_what_lies_within_the_noise_of_the_runs_passes() -> None:
    noisy = baseline_of(*(steady(factor) for factor in (0.9, 1.0, 1.1)))
    assert noisy.rows["stories15m-bfloat16-inductor-b1"].metrics["tpot_p50_s"].of == "runs"
    assert not gate(noisy, found(steady(1.05))).failed, "a single run beside several counts as one value"
    assert "tpot_p50_s" in failed(gate(noisy, found(steady(2.0))))


def test_compile_time_and_memory_of_one_value_each_fail_by_the_margin() -> None:
    before = steady()
    config = baseline_of(before)
    first, second = before.compilations
    for seconds, lost in ((21.0, []), (23.0, ["compile_cold_s"]), (10.0, [])):
        now = replace(before, compilations=[replace(first, prepare_s=seconds), second])
        held = gate(config, found(now))
        assert failed(held) == lost
    cold = next(check for check in held.checks if check.metric == "compile_cold_s")
    assert cold.reason == "one value each, judged by the margin of 10% alone" and cold.basis == "1 run and 1 run"
    heavy = [replace(sample, peak_memory_bytes=sample.peak_memory_bytes * 102 // 100) for sample in before.samples]
    held = gate(config, found(replace(before, samples=heavy)))
    assert failed(held) == ["peak_memory_bytes"] and "more: 2.0" in held.failed[0].reason


def test_margins_of_the_file_count() -> None:
    config = baseline_of(steady())
    assert not gate(replace(config, margins={"speed": 0.05}), found(steady(1.03))).failed
    with pytest.raises(ConfigError, match=r"baseline.margins.sped=0.1: expected one of speed, compile"):
        gate(replace(config, margins={"sped": 0.1}), found(steady()))
    with pytest.raises(ConfigError, match=r"margins\.speed=nan"):
        replace(config, margins={"speed": float("nan")})


def test_margins_are_recorded(tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = save("a", steady()), tmp_path / "b.yaml"
    assert gate_command(["--record", str(file), run, "--margin", "speed=3%", "--margin", "energy=0.2"]) == 0
    assert read_baseline(str(file)).margins == {"speed": 0.03, "energy": 0.2}
    with pytest.raises(SystemExit):
        gate_command(["--record", str(tmp_path / "c.yaml"), run, "--margin", "x=10%"])
    assert "--margin=x: expected one of speed, compile, memory, quality, energy" in capsys.readouterr().err
    assert not (tmp_path / "c.yaml").exists()


def test_a_baseline_from_a_cpu_has_a_wider_margin_for_memory() -> None:
    result = steady()
    assert baseline_of(on_cpu(result)).margins == {"memory": 0.1}
    assert baseline_of(result).margins == {}


def with_quality(shift: float = 0.0, kl: float = 0.01) -> Result:
    nll = [1.0 + shift + token % 7 for token in range(200)]
    predictions = Predictions(
        text="text.txt",
        text_sha256="abc",
        scored_bytes=800,
        context=[3, 4],
        nll=nll,
        reference_nll=nll,
        kl=[kl * (1 + token % 3) for token in range(200)],
        same_top=[token % 50 > 0 for token in range(200)],
    )
    return replace(with_config(steady(), task={"_target_": "x", "name": "quality"}), quality=predictions)


def test_quality_that_is_lost_fails() -> None:
    config = baseline_of(with_quality())
    metrics = config.rows["stories15m-bfloat16-inductor-b1"].metrics
    assert (metrics["kl_divergence"].of, metrics["kl_divergence"].count) == ("tokens", 200)
    assert metrics["perplexity"].count == 1
    assert not gate(config, found(with_quality(0.001, kl=0.0101))).failed
    assert failed(gate(config, found(with_quality(0.01, kl=0.02)))) == ["perplexity", "kl_divergence"]


def test_what_the_baseline_has_and_the_run_has_not_fails() -> None:
    before = steady()
    config = baseline_of(before)
    held = gate(config, found(replace(before, compilations=before.compilations[:1])))
    assert failed(held) == ["compile_warm_s"] and "the run does not" in held.failed[0].reason
    shared = baseline_of(with_config(before, engine={"fresh_cache": False}))
    now = replace(with_config(before, engine={"fresh_cache": False}), compilations=before.compilations[1:])
    assert not gate(shared, found(now)).failed, "what a usual cache holds is nobody's doing"


def test_rows_without_a_run_fail_unless_only_part_is_asked_for() -> None:
    config = baseline_of(steady(), steady(quant="int8"))
    assert list(config.rows) == ["stories15m-bfloat16-inductor-b1", "stories15m-int8-inductor-b1"]
    held = gate(config, found(steady()))
    assert [(check.row, check.metric) for check in held.failed] == [("stories15m-int8-inductor-b1", None)]
    assert not gate(config, found(steady()), partial=True).failed
    other = with_config(steady(), model={"n_layers": 5})
    held = gate(config, found(steady(), steady(quant="int8"), other))
    assert not held.failed and [why for _, why in held.left_out] == ["the baseline has no row for what it measured"]


def test_a_run_that_means_nothing_fails_its_row() -> None:
    held = gate(baseline_of(steady()), found(steady(finite=False)))
    assert [check.reason for check in held.failed] == ["run-0.json: logits or cached values are not finite"]


def test_a_row_that_could_not_be_measured_fails_and_the_others_are_held() -> None:
    config = baseline_of(steady(), steady(quant="int8"))
    held = gate(config, found(steady()), [("stories15m-int8-inductor-b1", "exit code 1")])
    assert [check.reason for check in held.failed] == ["exit code 1"]
    assert len(held.checks) > 5


def test_another_device_or_power_limit_is_refused() -> None:
    config = baseline_of(steady())
    with pytest.raises(UserError, match="recorded on Processor X, and this is Processor Z"):
        gate(config, found(steady(device="Processor Z")))
    weaker = steady()
    weaker.environment = replace(weaker.environment, power_limit_w=500.0)
    with pytest.raises(UserError, match="at 700 W, and this is at 500 W"):
        gate(config, found(weaker))
    weaker.environment = replace(weaker.environment, power_limit_w=None)
    with pytest.raises(UserError, match="no known power limit"):
        gate(config, found(weaker))


def test_other_cores_of_a_cpu_are_another_device() -> None:
    config = baseline_of(on_cpu(steady()))
    assert config.cores == 2 and baseline_of(steady()).cores is None
    assert not gate(config, found(on_cpu(steady()))).failed
    with pytest.raises(UserError, match="on 2 cores of Processor Y, and this is 64: numbers are never compared"):
        gate(config, found(on_cpu(steady(), cores=64, threads=64)))
    with pytest.raises(UserError, match="expected runs on 2 cores, but it ran on 64"):
        baseline_of(on_cpu(steady()), on_cpu(steady(), cores=64))


def test_a_machine_without_the_device_measures_nothing(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "mine.yaml")
    assert gate_command(["--record", file, save("a", steady(device="Processor Z"))]) == 0
    left = measures(monkeypatch)
    with pytest.raises(UserError, match=r"is of Processor Z, and this machine has .*Processor X: never compared"):
        gate_command(["--baseline", file])
    assert left == []


def test_single_starts_differ_by_more_than_their_samples() -> None:
    """Two starts of the same thing at the spread that is known; and a slowdown beyond it."""
    generator = np.random.default_rng(1)
    for spread, make in ((0.006, steady), (0.11, lambda factor: on_cpu(steady(factor)))):
        starts = list(np.exp(generator.normal(0, spread, 40)))
        worse = [
            gate(baseline_of(make(a)), found(make(b))).worse for a, b in zip(starts[::2], starts[1::2], strict=True)
        ]
        assert sum(map(bool, worse)) <= 2
        assert gate(baseline_of(make(1.0)), found(make(1 + 5 * spread))).worse


def test_throttled_samples_are_told_of_a_baseline_and_of_what_passes(tmp_path: Path, save: Save) -> None:
    slow = steady()
    slow.samples[1].state = DeviceState([0.0], [1980.0], [], [], [], ["power cap"], 0.3)
    config = baseline_of(slow)
    (row,) = config.rows
    assert config.rows[row].throttled == "1 of 4 samples were throttled: power cap, 0.3 s by the device's counters"
    assert gate(config, found(steady())).remarks == [f"{row}: baseline, {config.rows[row].throttled}"]
    assert gate(baseline_of(steady()), found(slow)).remarks == [f"{row}: now, {config.rows[row].throttled}"]


def test_other_versions_are_told() -> None:
    newer = steady(commit="7654321")
    newer.environment = replace(newer.environment, driver="580.2", libraries={"torch": "2.14.0", "gptbench": "0.1.0"})
    told = gate(baseline_of(steady()), found(newer)).differences
    assert told["commit"] == ("1234567", "7654321") and told["torch"] == ("2.13.0", "2.14.0")
    assert told["driver"] == ("570.1", "580.2") and "gptbench" not in told


def test_percentiles_by_the_old_definition_are_held_against_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recorded_text("made", found(steady()), "gptbench gate --record made.yaml")
    assert "\nschema_version: 2\n" in text
    old = parse_baseline(text.replace("schema_version: 2\n", ""))
    assert old.schema_version == 1
    held = gate(old, found(steady(2.0)))
    assert failed(held) == ["decode_tokens_per_s"], "and not the percentiles, which are of something else"
    left_out = [check.metric for check in held.checks if "record the baseline again" in check.reason]
    assert left_out == ["tpot_p50_s", "tpot_p90_s", "tpot_p99_s"]
    assert not [target for target in Baseline(old).targets(steady()) if target.startswith("tpot")]
    (tmp_path / "old.yaml").write_text(text.replace("schema_version: 2\n", ""))
    assert gate_command(["--baseline", str(tmp_path / "old.yaml"), str(steady().save(tmp_path / "run"))]) == 0
    assert f"{ROW}, TPOT p99: not compared: recorded as the median" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="schema_version=3: expected 1 or 2"):
        parse_baseline(text.replace("schema_version: 2\n", "schema_version: 3\n"))
    assert read_baseline("h100").schema_version == 1


def test_a_single_run_is_held_by_the_percentiles_of_all_its_steps() -> None:
    def with_tail(slow: int) -> Result:
        """Return a run of 4 samples of 100 steps, in each of which some are slow."""
        result = steady()
        steps = [[0.01] * (100 - slow) + [0.03] * slow] * 4
        samples = [replace(sample, step_s=each) for sample, each in zip(result.samples, steps, strict=True)]
        return replace(result, samples=samples)

    config = baseline_of(with_tail(0))
    p99 = config.rows[ROW].metrics["tpot_p99_s"]
    assert (p99.value, p99.count, p99.of) == (0.01, 4, "samples")
    held = gate(config, found(with_tail(3)))
    assert "tpot_p99_s" in failed(held) and "tpot_p50_s" not in failed(held)
    result = with_tail(0)
    result.samples[0] = replace(result.samples[0], step_s=[0.01] * 90 + [0.03] * 10)
    held = gate(config, found(result))
    p99_check = next(check for check in held.checks if check.metric == "tpot_p99_s")
    assert p99_check.now == pytest.approx(0.03) and p99_check.undecided, "one sample of four has it"


# Which row a run belongs to


def test_a_run_belongs_to_the_row_of_what_it_measured() -> None:
    baseline = Baseline(baseline_of(steady()))
    result, row = steady(), "stories15m-bfloat16-inductor-b1"
    shuffled = replace(
        result,
        config={
            key: dict(reversed(value.items())) if isinstance(value, dict) else value
            for key, value in reversed(result.config.items())
        },
    )
    assert baseline.row_of(shuffled) == row
    alike: tuple[dict[str, dict[str, Any]], ...] = (
        {"workload": {"samples": 9, "prompt": [], "prompt_text": "Hello", "name": "mine"}},
        {"model": {"name": "other", "checkpoint": "/elsewhere"}},
        {"engine": {"measure_warm_start": False}, "tracking": {"uri": "x"}, "task": {"breakdown": True}},
        {"model": {"qk_norm": False, "sliding_window": 0}},  # a field that the row does not know, at its default
        {"sampling": {"stop_tokens": []}},
    )
    for same in alike:
        assert baseline.row_of(with_config(result, **same)) == row, same
    others: tuple[dict[str, dict[str, Any]], ...] = (
        {"model": {"qk_norm": True}},
        {"model": {"rope_scaling": {"factor": 8.0}}},
        {"sampling": {"top_k": None}},
        {"sampling": {"stop_tokens": [2]}},
        {"workload": {"batch_size": 2}},
        {"engine": {"scope": "model"}},
        {"engine": {"_target_": "gptbench.engine.Eager"}},
        {"quant": {"_target_": "gptbench.quant.Int8"}},
    )
    for other in others:
        assert baseline.row_of(with_config(result, **other)) is None, other
    assert Baseline(baseline_of(on_cpu(result))).row_of(on_cpu(result, threads=7)) is None
    assert baseline.row_of(replace(result, prompt=[1, 2])) is None
    assert baseline.row_of(replace(result, dtype="float32")) is None
    assert baseline.row_of(replace(result, checkpoint=None)) is None


def test_a_row_of_a_later_version_takes_runs_of_an_older_one() -> None:
    later = with_config(steady(), model={"qkv_bias": False, "head_dim": 0})
    assert Baseline(baseline_of(later)).row_of(steady()) is not None


def test_a_row_of_an_earlier_version_takes_runs_of_this_one() -> None:
    """Earlier versions had other names of tasks, and recorded a derived head width as 0."""
    text = recorded_text(
        "made", found(with_config(steady(), model={"head_dim": 0})), "gptbench gate --record made.yaml"
    )
    earlier = parse_baseline(text.replace("gptbench.task.Speed", "gptbench.measure.Speed"))
    (row,) = earlier.rows.values()
    assert (row.config["task"], row.config["model.head_dim"]) == ("gptbench.measure.Speed", 0)
    model = steady().config["model"]
    assert Baseline(earlier).row_of(with_config(steady(), model={"head_dim": model["dim"] // model["n_heads"]}))
    assert Baseline(earlier).row_of(with_config(steady(), model={"head_dim": 2 * model["dim"]})) is None


def test_targets_of_a_row_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    baseline = Baseline(baseline_of(steady()))
    result = steady(1.5)
    assert baseline.targets(result)["tpot_p50_s"] == pytest.approx(0.01017, rel=1e-3)
    show_result(result, baseline)
    row = next(line for line in capsys.readouterr().err.splitlines() if "TPOT p50" in line)
    assert row.split("│")[-2].strip() == "10.17", "in the unit in which the median is shown"
    assert baseline.targets(steady(quant="int8")) == {}


# Recording


def test_runs_that_are_not_of_one_place_make_no_baseline() -> None:
    for other, told in (
        (steady(device="Processor Z"), "expected runs on one device, but it ran on Processor Z, not Processor X"),
        (steady(commit="7654321"), "expected runs with one version of commit, but it has 7654321, not 1234567"),
        (steady(finite=False), "not a valid measurement: logits"),
    ):
        with pytest.raises(UserError, match=told):
            baseline_of(steady(), other)
    weaker = steady()
    weaker.environment = replace(weaker.environment, power_limit_w=500.0)
    with pytest.raises(UserError, match="it ran at 500 W, not 700 W"):
        baseline_of(steady(), weaker)


def test_the_first_line_says_what_made_it() -> None:
    text = recorded_text("made", found(steady()), "gptbench gate --record made.yaml a\nb")
    assert text.splitlines()[0] == "# gptbench gate --record made.yaml a b"


def test_no_password_gets_into_a_baseline(tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    run = save("run", replace(steady(), command=["python", "-m", "gptbench", "tracking.uri=http://me:5ecret@host"]))
    assert gate_command(["--record", str(file), run, "--uri", "postgresql://me:5ecret@host/db"]) == 0
    assert "5ecret" not in file.read_text() + capsys.readouterr().err


def test_only_what_says_what_is_measured_is_measured_again() -> None:
    command = ["python", "-m", "gptbench", "--config-dir", "mine", "model=demo", "tracking.uri=x", "outputs=o"]
    command += ["+hydra.run.dir=x", "hydra/launcher=ray", "engine.fresh_cache=true", "sweep.timeout_s=1", "baseline=b"]
    assert overrides_of(command) == ["--config-dir", "mine", "model=demo", "engine.fresh_cache=true"]


ODD = ["a/b", "quo\"ted 'twice'", "${outputs}", "$HOME: [1, {2}]", "\\${x}", "ünï", "-", "yes", "1e3", "#"]


def odd(name: str) -> Result:
    """A run that was asked for with odd words, and is called so."""
    result = steady()
    return replace(result, command=[*result.command, f"experiment={name}", f"workload.prompt_text='{name}'"])


@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_overrides_come_back_as_they_were(name: str) -> None:
    config = baseline_of(odd(name))
    assert list(config.rows) == [f"{name}-inductor"]
    assert config.rows[f"{name}-inductor"].overrides == [*odd(name).command[3:]]


HOSTILE = {
    "target": ("_target_: os.system", "baseline._target_=os.system"),
    "of a row": ("rows: {a: {_target_: os.system}}", "baseline.rows.a._target_=os.system"),
    "a row": ("rows: {_target_: {overrides: []}}", "baseline.rows._target_"),
    "in a config": ("rows: {a: {config: {x: {_partial_: true}}}}", "baseline.rows.a.config.x._partial_"),
    "environment": ("driver: ${oc.env:AWS_SECRET}", "baseline.driver=${oc.env:AWS_SECRET}"),
    "command": (
        "rows: {a: {overrides: [cache, load, evil.tar]}}",
        "baseline.rows.a.overrides=cache: expected overrides",
    ),
    "sweep": ("rows: {a: {overrides: [-m, model=demo]}}", "overrides=-m"),
    "option": ("rows: {a: {overrides: [--experimental-rerun=x]}}", "overrides=--experimental-rerun=x"),
    "unknown": ("colour: red", "colour: no such field"),
    "number": ("rows: {a: {metrics: {ttft_s: {value: -1}}}}", "metrics.ttft_s.value=-1.0: expected a number over 0"),
    "python": ("driver: !!python/object/apply:os.system [ls]", "not a baseline"),
    "no mapping": ("[1, 2]", "not a baseline"),
    "broken": ("rows: {", "not a baseline"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str) -> None:
    text, told = HOSTILE[case]
    start = "" if case in ("target", "no mapping") else "_target_: gptbench.compare.Baseline\n"
    start += "" if case == "no mapping" else "name: x\ndevice: y\n"
    with pytest.raises(UserError) as error:
        parse_baseline(start + text)
    assert told in str(error.value)


def test_a_baseline_is_found_by_file_and_by_name(tmp_path: Path) -> None:
    assert read_baseline("a100_40gb").targets["llama2_7b/int8"]["gptfast_tokens_per_s"] == 144
    with pytest.raises(UserError, match="no such file; expected a baseline's file, or one of a100_40gb"):
        read_baseline("h900")
    (tmp_path / "bad.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"bad\.yaml: not a baseline"):
        read_baseline(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="it has no rows"):
        gate(read_baseline("a100_40gb"), [])


@pytest.mark.parametrize(
    "text",
    [
        "root:x:0:0:root\n" * 100,
        f"_target_: {'os' * 1000}",
        f"name: x\ndevice: y\ndriver: [{'os, ' * 1000}]",
        f"name: ['\n{'secret ' * 300}",
    ],
)
def test_a_file_that_is_no_baseline_is_not_echoed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gptbench", "gate", "--baseline", "secrets"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    Path("secrets").write_text(text)
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith("gptbench: secrets: ") and len(told) < 230


def test_what_was_recorded_composes(tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    text = recorded_text("mine", found(*(odd(name) for name in ("a/b 'c' ${d} $e",)), steady(quant="int8")), "made")
    (tmp_path / "baseline" / "mine.yaml").write_text(text)
    GlobalHydra.instance().clear()
    register()
    install()
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        composed = compose("config", ["baseline=mine", f"hydra.searchpath=[{tmp_path}]"], return_hydra_config=False)
        config = load(composed)
        for hostile in ("{a: {config: {x: {_target_: os.system}}}}", "{_target_: {overrides: []}}"):
            (tmp_path / "baseline" / "evil.yaml").write_text(f"name: evil\ndevice: X\nrows: {hostile}")
            with pytest.raises(ConfigError, match=r"baseline\.rows\..*_target_"):
                compose("config", ["baseline=evil", f"hydra.searchpath=[{tmp_path}]"])
    assert config.baseline == parse_baseline(text)
    assert Baseline(config.baseline).row_of(steady(quant="int8")) == "stories15m-int8-inductor-b1"


# The command


def line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return printed


def test_command_on_recorded_runs(tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "base" / "mine.yaml")
    runs = [save(f"run-{number}", steady(1 + number / 2000)) for number in range(3)]
    assert gate_command(["--record", file, *runs]) == 0
    printed = capsys.readouterr()
    assert "mine.yaml: 1 row of 3 runs on Processor X" in " ".join(printed.err.split())
    assert json.loads(printed.out) | {"runs": 0} == {
        "gate": "recorded", "baseline": file, "device": "Processor X", "rows": 1, "runs": 0
    }  # fmt: skip
    assert gate_command(["--baseline", file, *runs]) == 0
    assert line(capsys)["gate"] == "passed"
    assert gate_command(["--baseline", file, save("slow", steady(1.2))]) == 1
    printed = capsys.readouterr()
    assert "TPOT p50: slower: 19.9" in printed.err
    told = json.loads(printed.out.splitlines()[-1])
    assert told["gate"] == "failed" and [one["metric"] for one in told["failed"]][:2] == [
        "decode_tokens_per_s",
        "tpot_p50_s",
    ]
    assert told["failed"][1]["low"] > 1.1 and told["failed"][1]["row"] == "stories15m-bfloat16-inductor-b1"
    with pytest.raises(UserError, match="this file already exists; --force replaces it"):
        gate_command(["--record", file, *runs])
    assert gate_command(["--record", file, "--force", runs[0]]) == 0
    with pytest.raises(UserError, match="never compared across devices"):
        gate_command(["--baseline", file, save("elsewhere", steady(device="Processor Z"))])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--baseline", "a", "--record", "b"],
        ["--record", "b"],
        ["--record", "b", "--run", "x=1", "RUN"],
        ["--baseline", "a", "--run", "x=1"],
        ["--baseline", "a", "--force"],
        ["--record", "b", "--run", "x=1", "--repeats", "0"],
        ["--record", "b", "--run", "x=1", "--strict"],
        ["--baseline", "a", "RUN", "--repeats", "2"],
    ],
)
def test_wrong_arguments(arguments: list[str], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [save("run", steady()) if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        gate_command(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("override", ["cache", "-m", "--info"])
def test_what_is_no_override_is_not_run(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected overrides"):
        gate_command(["--record", str(tmp_path / "x.yaml"), "--run", f"{override} model=demo"])
    with pytest.raises(ConfigError, match="--set"):
        gate_command(["--baseline", "a100_40gb", f"--set={override}"])


def test_repeats_are_measured_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def stand_in(overrides: list[str], _: object) -> SelectedRecord:
        asked.append(overrides)
        quant = next(override for override in overrides if override.startswith("quant="))
        return found(steady(quant=quant.partition("=")[2]))[0]

    monkeypatch.setattr(baseline_runs, "measure", stand_in)
    file = tmp_path / "mine.yaml"
    arguments = ["--record", str(file), "--run", "quant=none", "--run", "quant=int8", "--repeats", "2"]
    assert gate_command([*arguments, "--set", "tracking=none", "--outputs", "elsewhere"]) == 0
    assert [one[0] for one in asked] == ["quant=none", "quant=int8"] * 2
    assert asked[0][1:] == ["tracking=none", "outputs='elsewhere'"]
    assert file.read_text().startswith(f"# gptbench gate --record {file} --run quant=none")
    assert {row.metrics["ttft_s"].count for row in read_baseline(str(file)).rows.values()} == {2}
    rows = [row.overrides for row in read_baseline(str(file)).rows.values()]
    asked.clear()
    assert gate_command(["--baseline", str(file), "--repeats", "3"]) == 0
    assert len(rows) == 2 and asked == rows * 3


def test_what_cannot_be_measured_fails_its_row(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "mine.yaml")
    assert gate_command(["--record", file, save("a", steady()), save("b", steady(quant="int8"))]) == 0

    def stand_in(overrides: list[str], _: object) -> SelectedRecord:
        if "quant=int8" in overrides:
            raise baseline_runs.NotMeasuredError("exit code 1")
        return found(steady())[0]

    monkeypatch.setattr(baseline_runs, "measure", stand_in)
    assert gate_command(["--baseline", file]) == 1
    assert [(one["row"], one["reason"]) for one in line(capsys)["failed"]] == [
        ("stories15m-int8-inductor-b1", "exit code 1")
    ]
    monkeypatch.setattr(baseline_runs, "measure", lambda *_: found(steady(device="Processor Z"))[0])
    with pytest.raises(UserError, match="never compared across devices"):
        gate_command(["--baseline", file])


ROW = "stories15m-bfloat16-inductor-b1"


def measures(monkeypatch: pytest.MonkeyPatch, *outcomes: float | Exception) -> list[float | Exception]:
    """Measures what is asked for in these outcomes, by factor of the time; gives those that are left."""
    left = list(outcomes)

    def stand_in(overrides: list[str], _: object) -> SelectedRecord:
        if "quant=int8" in overrides:
            return found(steady(quant="int8"))[0]
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return found(steady(outcome))[0]

    monkeypatch.setattr(baseline_runs, "measure", stand_in)
    return left


LOST = baseline_runs.NotMeasuredError("exit code 1")


@pytest.mark.parametrize(
    ("recorded", "arguments", "outcomes", "worse"),
    [
        (3, [], (1.2, 1.0), False),
        (3, [], (1.2, 1.2), True),
        (3, [], (1.2, LOST), True),
        (3, ["--repeats", "2"], (1.2, 1.21, 1.0, 1.0), False),
        (3, ["--repeats", "2"], (1.2, 1.21, 1.2, LOST), True),
        (1, [], (1.2, 1.19, 1.2), True),
        (1, [], (1.2, 1.0, 1.0), False),
    ],
)
def test_what_is_worse_is_measured_again_and_all_its_runs_count(
    recorded: int,
    arguments: list[str],
    outcomes: tuple[float | Exception, ...],
    worse: bool,
    tmp_path: Path,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(tmp_path / "mine.yaml")
    runs = [save(f"run-{number}", steady(1 + number / 1000)) for number in range(recorded)]
    assert gate_command(["--record", file, *runs, save("other", steady(quant="int8"))]) == 0
    left = measures(monkeypatch, *outcomes)
    assert gate_command(["--baseline", file, *arguments]) == worse
    printed = capsys.readouterr()
    assert not left and "measuring rows again that are worse" in printed.err
    cleared = f"{ROW} tpot_p50_s: not worse with the runs of both times; at first slower"
    assert (cleared in printed.err) != worse
    told = json.loads(printed.out.splitlines()[-1])
    assert {one["row"] for one in told["failed"]} == ({ROW} if worse else set())
    assert ((ROW, "tpot_p50_s") in [(one["row"], one["metric"]) for one in told["undecided"]]) != worse


def test_what_too_few_runs_cannot_tell_is_told(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "mine.yaml")
    assert gate_command(["--record", file, *(save(f"{factor}", steady(factor)) for factor in (0.98, 1.0, 1.02))]) == 0
    for arguments, code in (([], 0), (["--strict"], 1)):
        measures(monkeypatch, 1.0)
        assert gate_command(["--baseline", file, *arguments]) == code
        printed = capsys.readouterr()
        assert f"{ROW}, TPOT p50: undecided: up to 9.45% faster or 10.5% slower is possible" in printed.err
        assert f"{ROW}, decode: undecided: up to 9.47% slower or 10.4% faster is possible" in printed.err
        assert printed.err.endswith("nothing is worse beyond noise; 4 metrics undecided\n")
        told = json.loads(printed.out.splitlines()[-1])
        assert told["gate"] == ("failed" if code else "passed") and told["failed"] == []
        assert [one["metric"] for one in told["undecided"]][:2] == ["decode_tokens_per_s", "tpot_p50_s"]


def test_throttling_is_told_beside_what_fails() -> None:
    def throttled(result: Result) -> Result:
        states = [DeviceState(throttled=["power cap"]), DeviceState(throttled=["heat"]), DeviceState(), None]
        samples = [replace(sample, state=state) for sample, state in zip(result.samples, states, strict=True)]
        return replace(result, samples=samples)

    config = baseline_of(steady())
    held = gate(config, found(throttled(steady(1.2))))
    assert held.failed
    assert all(check.reason.endswith("; 2 of 4 samples were throttled: heat, power cap") for check in held.failed)
    assert not gate(config, found(throttled(steady()))).failed


def test_samples_of_a_run_beside_runs_count_as_one() -> None:
    for before, now, of in (
        ([1.0], [1.0, 1.04], "1 run and 2 runs"),
        ([1.0, 1.04], [1.0], "2 runs and 1 run"),
    ):
        held = gate(baseline_of(*map(steady, before)), found(*map(steady, now)))
        speed = next(check for check in held.checks if check.metric == "tpot_p50_s")
        assert speed.basis == of and speed.ratio is not None and speed.ratio.high is not None
        expected = ratio_of_groups(Moments.of(before), Moments.of(now))
        assert speed.ratio.high / speed.ratio.value == pytest.approx(expected.high / expected.value, rel=1e-3)  # type: ignore[operator]
    one_sample = steady()
    one_sample = replace(one_sample, samples=one_sample.samples[:1])
    held = gate(baseline_of(steady()), found(one_sample))
    speed = next(check for check in held.checks if check.metric == "tpot_p50_s")
    assert speed.basis == "4 samples and 1 sample"


def test_peak_memory_is_one_value_of_a_run() -> None:
    result = steady()
    samples = [
        replace(sample, peak_memory_bytes=sample.peak_memory_bytes + number)
        for number, sample in enumerate(result.samples)
    ]
    memory = baseline_of(replace(result, samples=samples)).rows[ROW].metrics["peak_memory_bytes"]
    assert (memory.count, memory.of, memory.spread) == (1, "runs", 0.0)


def test_three_runs_a_side_find_a_slowdown_of_five_percent() -> None:
    """At a spread of 0.5% between runs. One new run finds fewer, but none passes as if it were none."""
    generator = np.random.default_rng(0)

    def outcomes(slowdown: float, runs: int) -> list[Check]:
        """Return the checks of many trials."""
        checks = []
        for _ in range(1000):
            sides = [Moments.of(np.exp(generator.normal(np.log(1 + way), 0.005, count)).tolist())
                     for way, count in ((0.0, 3), (slowdown, runs))]  # fmt: skip
            before, now = (
                BaselineMetric(value=float(np.exp(side.mean)), spread=side.variance**0.5, count=side.count)
                for side in sides
            )
            checks.append(check("row", METRICS["ttft_s"], before, now, SPEED.margin, ProcessSpread(0.006, np.inf, "")))
        return checks

    def share(checks: list[Check], name: str) -> float:
        return float(np.mean([getattr(one, name) for one in checks]))

    slower, same = outcomes(0.05, 3), outcomes(0.0, 3)
    assert share(slower, "failed") >= 0.95
    assert share(same, "failed") <= 0.05
    possible = [max((part for word, part in one.possible.items() if word.is_worse), default=0.0) for one in same]
    assert np.quantile(possible, 0.9) < 0.03, "and little is possible of what is the same"
    alone = outcomes(0.05, 1)
    assert share(alone, "failed") < share(slower, "failed")
    assert all(one.failed or one.undecided for one in alone)


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = tmp_path / "stand_in"
    for code, told in (
        ("print('{}'); exit(3)", "exit code 3"),
        ("print('x'); print('{\"reason\": \"no memory\"}'); exit(1)", "no memory"),
        ("print('[1]')", "its output names no record"),
    ):
        stand_in.write_text(f"#!{sys.executable}\n{code}\n")
        stand_in.chmod(0o700)
        with monkeypatch.context() as context:
            context.setattr(sys, "executable", str(stand_in))
            with pytest.raises(baseline_runs.NotMeasuredError, match=told):
                baseline_runs.measure(["model=demo"], print)


def test_what_the_user_can_put_right_ends_the_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    file, stand_in = str(tmp_path / "mine.yaml"), tmp_path / "stand_in"
    assert gate_command(["--record", file, save("a", steady()), save("b", steady(quant="int8"))]) == 0
    assert "2 rows of 2 runs" in " ".join(capsys.readouterr().err.split())
    stand_in.write_text(f"#!{sys.executable}\nexit(2)\n")
    stand_in.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(UserError, match=f"{ROW}: .*: it cannot be measured; the message above says why"):
        gate_command(["--baseline", file])
    assert capsys.readouterr().err.count("measuring") == 1


def test_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A run is measured in a process of its own and recorded, and held against itself, then against planted values."""
    monkeypatch.chdir(tmp_path)

    def gptbench(*arguments: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["gptbench", *arguments, "--even-if-busy"])  # as other tests keep it
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        code = main()
        printed = capfd.readouterr()
        return code, json.loads(printed.out) if printed.out else {}, printed.err

    run = [*SHORT, *PLAIN, "workload.samples=2"]
    code, told, shown = gptbench("gate", "--record", "mine.yaml", "--run", shlex.join(run), "--set", "tracking=none")
    assert code == 0, shown
    assert "measuring model=mixtral_tiny" in shown and "│ decode " in shown
    record, file = told["runs"][0], Path("mine.yaml")
    code, told, shown = gptbench("gate", "--baseline", "mine.yaml", record)
    assert code == 0 and told["gate"] == "passed" and told["rows"] == 1, shown
    text = file.read_text()
    row = read_baseline("mine.yaml").rows["mixtral_tiny-float32-eager-b1"]
    assert row.overrides == run
    file.write_text(text.replace(f"value: {row.metrics['peak_memory_bytes'].value}", "value: 1.0"))
    code, told, shown = gptbench("gate", "--baseline", "mine.yaml", record)
    assert code == 1 and [one["metric"] for one in told["failed"]] == ["peak_memory_bytes"], shown
    file.write_text(text.replace("device: ", "device: Not ", 1))
    code, _, shown = gptbench("gate", "--baseline", "mine.yaml", record)
    assert code == 2 and "never compared across devices" in shown
    file.write_text(text.replace("- workload.new_tokens=4\n", "- workload.new_tokens=1\n", 1))
    code, _, shown = gptbench("gate", "--baseline", "mine.yaml")
    assert code == 2 and "workload.new_tokens=1: expected a number" in shown, shown
    assert "it cannot be measured; the message above says why" in shown and "Traceback" not in shown
