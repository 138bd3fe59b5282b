"""The record: nothing lost between memory and file, and statistics that can be worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from gptbench.base.errors import UserError
from gptbench.base.numbers import number
from gptbench.compare import Baseline
from gptbench.config import BaselineConfig, shipped
from gptbench.present.tables import show_result
from gptbench.schema import Result
from gptbench.schema.compilation import Compilation
from gptbench.schema.energy import Energy, Spent
from gptbench.schema.identity import measurement_of
from gptbench.schema.machine import DeviceState
from gptbench.schema.metrics import HEADLINE, METRICS, STEP
from gptbench.schema.quality import Predictions
from gptbench.schema.record import SCHEMA_VERSION
from gptbench.schema.sample import Sample, Traffic
from gptbench.schema.statistics import steps_interval, steps_jackknife, steps_percentile, valid_samples
from gptbench.schema.summary import part_metrics, sample_metrics, summary
from tests.results import made_result


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    result = made_result()
    assert Result.load(result.save(tmp_path / "new" / "folder")) == result


def test_quality_is_saved_and_loaded(tmp_path: Path) -> None:
    quality = Predictions("text.txt", "abc", 40, [4, 10], [1.5, 2.5], [1.0, 2.0], [0.1, 0.0], [True, False])
    result = replace(made_result(), quality=quality)
    assert Result.load(result.save(tmp_path)) == result


def test_a_result_from_before_checkpoints_and_quality_is_read(tmp_path: Path) -> None:
    path = made_result().save(tmp_path)
    raw = json.loads(path.read_text())
    for name in ("prompt", "prompt_text", "checkpoint", "quality"):
        del raw[name]
    for sample in raw["samples"]:
        del sample["text"]
    raw["config"]["workload"]["prompt"] = [5, 6]
    path.write_text(json.dumps(raw))
    result = Result.load(path)
    assert (result.prompt, result.checkpoint, result.quality) == ([5, 6], None, None)
    assert result.samples[0].text == []


def test_what_was_generated_is_shown_and_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    result = made_result()
    result.samples[0].text = ["\x1b[31m there was\na [bold]cat[/bold]"]
    show_result(result, BASELINE)
    shown = capsys.readouterr().err
    assert "Once�[31m there was" in shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "a [bold]cat[/bold]" in shown


def test_no_result_is_ever_overwritten(tmp_path: Path) -> None:
    first, second = made_result(), made_result(device="another")
    paths = [first.save(tmp_path), second.save(tmp_path), first.save(tmp_path)]
    assert [path.name for path in paths] == ["result.json", "result-2.json", "result-3.json"]
    assert Result.load(paths[0]) == first
    assert Result.load(paths[1]) == second


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "3", '{"schema_version": 1}', '{"schema_version": 1, "samples": 3}']
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"result\.json: not a result of gptbench"):
        Result.load(path)


def test_missing_file_and_other_schema_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        Result.load(tmp_path / "absent.json")
    path = made_result().save(tmp_path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema_version=99: this gptbench reads 1"):
        Result.load(path)


def test_no_credentials_are_recorded(tmp_path: Path) -> None:
    uri = "postgresql://bob:hunt@er2@db.example/x"
    result = made_result(tracking={"uri": uri})
    result = replace(result, command=["python", "-m", "gptbench", f"tracking.uri={uri}"])
    text = result.save(tmp_path).read_text()
    assert "hunt" not in text
    assert "postgresql://***@db.example/x" in text


SAMPLED = [name for name, metric in METRICS.items() if metric.of_sample is not None]
PERCENTILES = {name: metric.share for name, metric in METRICS.items() if metric.share is not None}


def by_hand() -> Result:
    """Two rows, three new tokens: two decode steps of 10 and 30 ms after a prefill of 50 ms."""
    sample = Sample(
        ttft_s=0.05,
        step_s=[0.01, 0.03],
        call_s=0.1,
        compiles=0,
        allocations=None,
        peak_memory_bytes=7,
        finite=True,
        tokens=[[1, 2, 3], [4, 5, 6]],
    )
    traffic = Traffic(weights=1_000_000_000, kv_per_position=1_000_000, positions_read=[9, 19], kv_len=[4, 5])
    result = made_result()
    return replace(result, samples=[sample], traffic=traffic, roof=replace(result.roof, gb_per_s=100.0))


def test_metrics_of_a_sample_by_hand() -> None:
    result = by_hand()
    assert result.traffic.needed() == [1_004_000_000, 1_005_000_000]
    assert result.traffic.moved() == [1_010_000_000, 1_020_000_000]
    metrics = sample_metrics(result, result.samples[0])
    assert metrics == pytest.approx(
        {
            "decode_tokens_per_s": 2 * 2 / 0.04,
            "tpot_p50_s": 0.02,
            "tpot_p90_s": 0.028,
            "tpot_p99_s": 0.0298,
            "ttft_s": 0.05,
            "decode_gb_per_s": 2.009 / 0.04,
            "mbu": 2.009 / 0.04 / 100,
            "moved_gb_per_s": 2.03 / 0.04,
            "gptfast_tokens_per_s": 2 * 3 / 0.1,
            "gptfast_gb_per_s": 1.0 * 3 / 0.1,
            "peak_memory_bytes": 7.0,
        }
    )
    assert list(metrics) == SAMPLED


def test_bytes_of_a_mixture_follow_from_the_experts_that_each_sample_read() -> None:
    """Of 4 experts in the weights of a step, 3 to 8 more or less are read; of old records they are as they were."""
    result = by_hand()
    experts = {"expert_bytes": 10**8, "experts_least": 4, "positions_moved": [9, 19]}
    result = replace(result, traffic=replace(result.traffic, **experts))
    (old,) = result.samples
    counted = replace(old, experts_chosen=10, experts_read=16)  # in two steps: 5 and 8
    twice = replace(result, samples=[counted, replace(counted, experts_chosen=14)])
    assert result.traffic.needed(10) == [1_104_000_000, 1_105_000_000]
    assert result.traffic.moved(16) == [1_409_000_000, 1_419_000_000]
    metrics = sample_metrics(twice, counted)
    assert metrics["mbu"] == pytest.approx(2.209 / 0.04 / 100)
    assert metrics["moved_gb_per_s"] == pytest.approx(2.828 / 0.04)
    assert metrics["gptfast_gb_per_s"] == pytest.approx(1.1 * 30)
    told = summary(twice)
    assert told["gb_per_step"] == pytest.approx(1.2045)
    assert told["weight_gb_per_step"] == pytest.approx(1.2)
    assert told["moved_gb_per_step"] == pytest.approx(1.414)
    assert sample_metrics(result, old)["mbu"] == pytest.approx(2.009 / 0.04 / 100)


def test_what_a_record_of_an_earlier_version_lacks_is_taken_from_what_it_has(tmp_path: Path) -> None:
    path = by_hand().save(tmp_path)
    raw = json.loads(path.read_text())
    for name in ("positions_attended", "positions_moved", "expert_bytes", "experts_least"):
        del raw["traffic"][name]
    for sample in raw["samples"]:
        del sample["experts_chosen"], sample["experts_read"]
    path.write_text(json.dumps(raw))
    assert summary(Result.load(path)) == summary(by_hand())


def test_rows_experts_and_positions_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = by_hand().save(tmp_path)
    text = path.read_text()
    for told, change in {
        "traffic.positions_moved": lambda raw: raw["traffic"].update(positions_moved=[1]),
        "traffic.positions_attended": lambda raw: raw["traffic"].update(positions_attended=[1, 2, 3]),
        "prompts: expected": lambda raw: raw.update(prompts=[[1]]),
        "prompt_texts: expected": lambda raw: raw.update(prompt_texts=["a", "b", "c"]),
        "prompts[0][0]": lambda raw: raw.update(prompts=[["a"], [1]]),
        "samples[0].experts_chosen": lambda raw: raw["samples"][0].update(experts_chosen=-1),
        "samples[0].experts_read": lambda raw: (
            raw["traffic"].update(experts_least=4),
            raw["samples"][0].update(experts_read=7),
        ),
    }.items():
        raw = json.loads(text)
        change(raw)
        path.write_text(json.dumps(raw))
        with pytest.raises(UserError) as raised:
            Result.load(path)
        assert told in str(raised.value)


def test_samples_that_compiled_are_kept_but_not_counted() -> None:
    result = by_hand()
    slow = replace(result.samples[0], step_s=[5.0, 5.0], compiles=2)
    mixed = replace(result, samples=[slow, *result.samples])
    assert valid_samples(mixed) == result.samples
    assert summary(mixed)["decode_tokens_per_s"] == summary(result)["decode_tokens_per_s"]
    assert (summary(mixed)["samples_valid"], summary(mixed)["samples_all"]) == (1, 2)
    none_left = summary(replace(result, samples=[slow]))
    assert "decode_tokens_per_s" not in none_left
    assert none_left["samples_valid"] == 0


def test_summary_takes_the_median_over_samples() -> None:
    result = by_hand()
    samples = [replace(result.samples[0], ttft_s=ttft) for ttft in (0.5, 0.1, 0.2)]
    assert summary(replace(result, samples=samples))["ttft_s"] == 0.2


def with_steps(*samples: list[float]) -> Result:
    result = by_hand()
    return replace(result, samples=[replace(result.samples[0], step_s=list(steps)) for steps in samples])


def test_percentiles_are_of_all_steps_of_all_valid_samples() -> None:
    """Five samples of 199 steps, of which one has a tail: the median of their own 99th percentiles hides it."""
    steps = [[0.018 + 1e-6 * step for step in range(199)] for _ in range(5)]
    steps[2][-12:] = [0.037] * 12
    result = with_steps(*steps)
    pooled = [step for each in steps for step in each]
    numbers = summary(result)
    for metric, share in PERCENTILES.items():
        assert numbers[metric] == pytest.approx(np.quantile(pooled, share))
    assert numbers["tpot_p99_s"] == pytest.approx(0.037)
    assert np.median([sample_metrics(result, sample)["tpot_p99_s"] for sample in result.samples]) < 0.0183
    compiled = replace(result.samples[0], step_s=[5.0] * 199, compiles=1)
    assert summary(replace(result, samples=[*result.samples, compiled]))["tpot_p99_s"] == numbers["tpot_p99_s"]
    # One of five samples had a tail, so nothing bounds it from above.
    assert "tpot_p99_high_s" not in numbers
    assert numbers["tpot_p99_low_s"] < 0.0183
    assert numbers["tpot_p50_low_s"] < numbers["tpot_p50_s"] < numbers["tpot_p50_high_s"]


def test_few_samples_give_no_interval_and_many_a_narrow_one() -> None:
    random = np.random.default_rng(0)
    one = with_steps(list(random.exponential(1.0, 500)))
    assert steps_interval(one.samples, 0.5) == (None, None)
    assert steps_jackknife(one.samples, 0.5)[1] == []
    constant = with_steps(*([1.0 + number] * 100 for number in range(5)))
    assert steps_interval(constant.samples, 0.5) == (None, None), "five values, however often they are repeated"
    many = with_steps(*(random.exponential(1.0, 200) for _ in range(20)))
    low, high = steps_interval(many.samples, 0.99)
    assert low is not None and high is not None
    assert 3.5 < low < np.log(100) < high < 6.0


def test_an_interval_of_a_percentile_holds_the_percentile() -> None:
    """Also of few samples, which are worth a single step or two."""
    random = np.random.default_rng(4)
    for count in (2, 3, 5):
        for length in (1, 4, 60):
            made = with_steps(*(list(random.exponential(1.0, length) + number) for number in range(count)))
            for share in PERCENTILES.values():
                value, (low, high) = steps_percentile(made.samples, share), steps_interval(made.samples, share)
                assert low is None or low <= value, (share, count, length)
                assert high is None or value <= high, (share, count, length)


@pytest.mark.parametrize("share", PERCENTILES.values())
def test_an_interval_of_a_percentile_holds_the_truth(share: float) -> None:
    """Also where samples differ by more than their steps do; one that has no end holds it, too."""
    random = np.random.default_rng(1)
    for apart in (0.0, 1.0):
        truth, held, trials = float(norm.ppf(share)) * (1 + apart**2) ** 0.5, 0, 100
        for _ in range(trials):
            levels = random.normal(0, apart, 8)
            made = with_steps(*(level + random.normal(0, 1, 50) for level in levels))
            low, high = steps_interval(made.samples, share)
            held += (low is None or low <= truth) and (high is None or truth <= high)
        assert held >= 0.88 * trials, apart


def test_a_percentile_without_each_sample_is_that_of_the_others() -> None:
    random = np.random.default_rng(2)
    steps = [list(np.round(random.exponential(1.0, count), 1)) for count in (5, 1, 7, 3, 20)]
    for share in PERCENTILES.values():
        whole, without = steps_jackknife(with_steps(*steps).samples, share)
        assert whole == pytest.approx(np.quantile(np.concatenate(steps), share))
        for index, value in enumerate(without):
            assert value == pytest.approx(np.quantile(np.concatenate(steps[:index] + steps[index + 1 :]), share))


def test_ranks_are_those_of_the_binomial_distribution() -> None:
    """Of independent steps, the interval's ends are order statistics as they are usually chosen."""
    steps = np.arange(1.0, 2001.0)
    made = with_steps(*(steps[number::200] for number in range(200)))
    worth = int(2000 * (t.ppf(0.975, 1999) / t.ppf(0.975, 199)) ** 2)
    for share in PERCENTILES.values():
        low, high = steps_interval(made.samples, share)
        assert low == pytest.approx(binom.ppf(0.025, worth, share) / worth * 2000, abs=1)
        assert high == pytest.approx((binom.ppf(0.975, worth, share) + 1) / worth * 2000, abs=1)


def test_records_of_version_1_are_read_and_get_todays_statistics(tmp_path: Path) -> None:
    result = with_steps([0.01, 0.02], [0.01, 0.01], [0.01, 0.03])
    path = result.save(tmp_path)
    assert json.loads(path.read_text())["schema_version"] == 2
    for version, known in ((1, True), (2, True), (3, False)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
        if known:
            assert summary(Result.load(path)) == summary(result)
        else:
            with pytest.raises(UserError, match="schema_version=3: this gptbench reads 1 and 2"):
                Result.load(path)


def test_the_terminal_shows_percentiles_with_their_interval(capsys: pytest.CaptureFixture[str]) -> None:
    result = with_steps(*([0.01 + 1e-5 * step for step in range(100)] for _ in range(8)))
    show_result(result, BASELINE)
    told = capsys.readouterr().err
    row = next(line for line in told.splitlines() if "TPOT p50" in line)
    low, high = (1e3 * end for end in steps_interval(result.samples, 0.5) if end is not None)
    assert f"{number(low)} … {number(high)}" in row
    assert f"{number(1e3 * summary(result)['tpot_p50_s'])} │" in row
    show_result(replace(result, samples=result.samples[:1]), BASELINE)
    assert "too few samples" in capsys.readouterr().err


def test_the_table_begins_with_what_matters_and_has_gpt_fasts_figures_only_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = made_result()
    own = {one.label for one in METRICS.values() if one.gpt_fast is not None}
    for group, name, asked in (
        ("workload", "default", False),
        ("workload", "gpt_fast", True),
        ("engine", "gpt_fast", True),
    ):
        show_result(with_config(result, **{group: {"name": name}}), BASELINE)
        told = capsys.readouterr().err
        rows = [line.split("│")[1].strip() for line in told.splitlines() if line.startswith("│")]
        first = ["decode", "TPOT p50", "TPOT p99", "TTFT", "MBU", "decode bandwidth", "read roof", "peak memory"]
        assert rows[: len(first)] == first
        assert own & set(rows) == (own if asked else set())
        assert f"TPOT p99: {METRICS['tpot_p99_s'].meaning}" in told
        assert "0.1% of the memory limit (90.31 of at most" in told


def test_compile_times_stand_under_the_state_of_the_cache() -> None:
    first = Compilation(cache="cold", process="first", prepare_s=20.0, later_s=1.0, first_generation_s=2.0)
    second = Compilation(cache="warm", process="second", prepare_s=4.0)
    result = replace(made_result(), compilations=[first, second])
    assert part_metrics(result, "compilations") == {
        "compile_cold_s": 21.0,
        "gptfast_compile_s": 22.0,
        "compile_warm_s": 4.0,
    }
    later = Compilation(cache="cold", process="later", prepare_s=9.0, first_generation_s=2.0)
    assert part_metrics(replace(result, compilations=[later]), "compilations") == {}, "a single run would pay more"
    warm = Compilation(cache="warm", process="first", prepare_s=5.0, first_generation_s=2.0)
    assert part_metrics(replace(result, compilations=[warm, second]), "compilations") == {"compile_warm_s": 5.0}, (
        "no seed's figure"
    )
    mixed = Compilation(cache="mixed", process="first", prepare_s=5.0)
    assert part_metrics(replace(result, compilations=[mixed]), "compilations") == {}, "something was found"
    nothing = Compilation(cache="none", process="first", prepare_s=0.0, first_generation_s=2.0)
    assert part_metrics(replace(result, compilations=[nothing]), "compilations") == {}


BASELINE = Baseline(
    BaselineConfig(
        _target_="gptbench.compare.Baseline",
        name="test",
        device="an A100",
        targets={
            "llama2_7b/bfloat16": {"gptfast_tokens_per_s": 94.0},
            "llama2_7b/int8": {"gptfast_tokens_per_s": 144.0},
        },
    )
)


def with_config(result: Result, **groups: dict) -> Result:
    config = {
        name: values | groups.get(name, {}) if isinstance(values, dict) else values
        for name, values in result.config.items()
    }
    return replace(result, config=config)


def test_baseline_holds_for_its_model_weights_and_workload_only(capsys: pytest.CaptureFixture[str]) -> None:
    seed = dict(shipped("workload", "gpt_fast"))
    result = with_config(
        replace(made_result(), dtype="bfloat16", prompt=seed["prompt"]),
        model=shipped("model", "llama2_7b"),
        quant={"name": "none"},
        workload=seed,
    )
    assert BASELINE.targets(result) == {"gptfast_tokens_per_s": 94}
    assert BASELINE.targets(with_config(result, quant={"name": "int8"})) == {"gptfast_tokens_per_s": 144}
    assert BASELINE.targets(replace(result, dtype="float32")) == {}
    assert BASELINE.targets(with_config(result, workload=seed | {"samples": 9, "seed": 8})) != {}
    for model in ({"name": "other"}, {"n_layers": 2}):
        assert BASELINE.targets(with_config(result, model=model)) == {}
    for workload in ({"batch_size": 2}, {"new_tokens": 8}):
        assert BASELINE.targets(with_config(result, workload=workload)) == {}
    assert BASELINE.targets(replace(result, prompt=[1])) == {}
    show_result(result, BASELINE)
    table = capsys.readouterr().err
    row = next(line for line in table.splitlines() if "gpt_fast tokens/s" in line)
    assert row.split("│")[-2].strip() == "94"
    assert "an A100" in table


def test_numbers_are_shown_without_exponents() -> None:
    assert [number(value) for value in (12345.6, 999.96, 1.23456, 0.00012345)] == [
        "12346",
        "1000",
        "1.235",
        "0.0001234",
    ]


def test_state_and_energy_are_read_as_they_were_written(tmp_path: Path) -> None:
    result = made_result()
    result.samples[0].state = DeviceState([0.0, 0.1], [1980.0, 1900.0], [], [600.0, 650.0], [50.0], ["power cap"], 0.01)
    result.energy = Energy("counter", 100.0, Spent(10.0, 0.05, 100), Spent(500.0, 1.0, 1000))
    read = Result.load(result.save(tmp_path))
    assert read == result
    numbers = summary(read)
    assert numbers["samples_throttled"] == 1
    assert numbers["clock_mhz"] == 1940
    assert numbers["decode_joules_per_token"] == pytest.approx(0.4)


def test_what_the_device_tells_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = made_result()
    result.config["task"] = {"energy": True}
    result.samples[2].state = DeviceState(
        [0.0, 0.16, 0.2], [1200.0, 1980.0, 1300.0], [], [100.0, 600.0, 610.0], [40.0, 50.0, 52.0], ["power cap"], 0.01
    )
    show_result(result, Baseline(BaselineConfig(**result.config["baseline"])))
    told = capsys.readouterr().err
    assert "during the samples 1980 MHz, 600 W, 50 °C (median)" in told
    assert "1 of 3 samples were throttled: power cap, 0.01 s" in told
    assert "energy not measured" in told
    result = replace(result, energy=Energy("counter", 100.0, Spent(10.0, 0.05, 100), Spent(500.0, 1.0, 1000)))
    show_result(result, Baseline(BaselineConfig(**result.config["baseline"])))
    told = capsys.readouterr().err
    assert "decode energy" in told
    assert "energy not measured" not in told


def test_the_readme_shows_what_is_recorded_and_printed() -> None:
    root = Path(__file__).parents[1]
    assert f"`schema_version` is {SCHEMA_VERSION}," in (root / "docs" / "records.md").read_text()
    text = (root / "README.md").read_text()
    example = text.partition("## What it looks like")[2].partition("\n## ")[0]
    rows = [line.split("│")[1].strip() for line in example.splitlines() if line.startswith("│")]
    assert rows[:2] == [METRICS[name].label for name in (HEADLINE, STEP)]
    assert "a decode step needs " in example


def test_the_width_of_heads_that_an_older_record_lacks_follows_from_the_model(tmp_path: Path) -> None:
    new = made_result()
    for older in ({}, {"head_dim": 0}):
        raw = new.plain()
        raw["config"]["model"] = {key: v for key, v in raw["config"]["model"].items() if key != "head_dim"} | older
        read = Result.of(raw, tmp_path)
        assert read.config["model"] == new.config["model"] and measurement_of(read) == measurement_of(new)
