"""`gptbench compare`: like is compared with like, of whole sweeps too, and each metric gets what it allows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptbench.base.errors import UserError
from gptbench.commands.compare import compare_command, sentence
from gptbench.compare.comparison import Comparison, compare
from gptbench.compare.ratio import Ratio, Verdict
from gptbench.compare.row import Row
from gptbench.compare.select import SelectedRecord
from gptbench.schema import Result
from gptbench.schema.energy import Energy, Spent
from gptbench.schema.machine import DeviceState
from gptbench.schema.metrics import HEADLINE, METRICS
from gptbench.schema.quality import Predictions
from tests.results import made_result, on_cpu

VALID = (0, 0, 0, 0, 0)


def run(step_s: float = 0.01, noise: float = 0.002, seed: int = 0, **config: object) -> SelectedRecord:
    """A run of five samples, whose configuration has these values (`sampling_top_k=5`)."""
    result = made_result(compiles=VALID)
    random = np.random.default_rng(seed)
    result.samples = [
        replace(sample, step_s=[step_s * float(np.exp(random.normal(0, noise)))] * 4, peak_memory_bytes=10**8)
        for sample in result.samples
    ]
    for key, value in config.items():
        group, _, name = key.partition("_")
        result.config[group][name] = value
    return SelectedRecord(Path("result.json"), result)


def rows(comparison: Comparison, pair: int = 0) -> dict[str, Row]:
    return {row.name: row for row in comparison.pairs[pair].rows}


def test_one_run_is_compared_with_another_by_its_samples() -> None:
    found = rows(compare([run(0.01, seed=1)], [run(0.02, seed=2)]))
    speed = found["decode_tokens_per_s"]
    assert speed.a == pytest.approx(100, rel=0.01)
    assert speed.b == pytest.approx(50, rel=0.01)
    assert speed.ratio.value == pytest.approx(0.5, rel=0.01)
    assert speed.verdict is Verdict.slower
    assert speed.basis == "5 and 5 samples, one process each"
    assert found["tpot_p50_s"].verdict is Verdict.slower
    assert found["tpot_p50_s"].ratio.value == pytest.approx(2, rel=0.01)
    assert found["peak_memory_bytes"].verdict is Verdict.noise
    assert found["peak_memory_bytes"].basis == "1 and 1 run, exact"
    assert found["compile_cold_s"].verdict is Verdict.unknown
    assert found["compile_cold_s"].basis == "1 and 1 run"
    assert not {"gptfast_tokens_per_s", "mbu", "perplexity", "decode_joules_per_token"} & set(found)


def test_the_same_is_never_faster_or_slower() -> None:
    one = run()
    for row in compare([one], [one]).pairs[0].rows:
        assert row.ratio.value == 1.0
        assert row.verdict in (Verdict.noise, Verdict.unknown, Verdict.undecided)
        if row.basis.endswith("one process each") and row.name != "ttft_s":
            assert row.verdict is Verdict.undecided, "two starts may differ by 1.7%"
            assert row.possible == {
                Verdict(row.metric.words[0]): pytest.approx(0.0165, rel=0.05),
                Verdict(row.metric.words[1]): pytest.approx(0.0168, rel=0.05),
            }
    several = [run(noise=1e-6, seed=seed) for seed in range(3)]
    assert rows(compare(several, several))["tpot_p99_s"].verdict is Verdict.noise


def test_a_small_difference_is_within_the_margin_however_sure() -> None:
    a, b = run(0.01, noise=1e-6), run(0.01005, noise=1e-6)
    assert rows(compare([a] * 2, [b] * 2))["decode_tokens_per_s"].verdict is Verdict.noise
    assert rows(compare([a] * 2, [b] * 2, margin=0.001))["decode_tokens_per_s"].verdict is Verdict.slower
    single = rows(compare([a], [b], margin=0.001))["decode_tokens_per_s"]
    assert single.verdict is Verdict.undecided, "so much, two starts of the same thing may differ"
    assert single.ratio.half_width == pytest.approx(1.96 * 2**0.5 * 0.006, rel=0.02)


def test_devices_are_compared_each_with_its_like() -> None:
    gpu, cpu = run(), run(0.02)
    assert isinstance(cpu.record, Result)
    cpu = replace(cpu, record=on_cpu(cpu.record))
    comparison = compare([gpu, cpu], [cpu])
    assert [pair.key["environment.device"] for pair in comparison.pairs] == ["Processor Y"]
    assert comparison.left_out == [(gpu, "B has no such run")]
    assert compare([gpu], [cpu]).differences["environment.device"] == ("Processor X", "Processor Y")


def test_a_side_of_several_commits_and_different_work_are_told() -> None:
    other = run(workload_new_tokens=3)
    assert isinstance(other.record, Result)
    other.record.environment = replace(other.record.environment, commit="b" * 40)
    alike = replace(other, record=replace(other.record, config=run().record.config))
    assert any(
        "A has runs with different versions of commit: " in told for told in compare([run(), alike], [run()]).remarks
    )
    (remark,) = (told for told in compare([run()], [other]).remarks if "same work" in told)
    assert remark == "A and B do not do the same work: they differ in workload.new_tokens"


def test_several_runs_count_once_each() -> None:
    a = [run(0.01 * level, noise=1e-6) for level in (1.0, 1.05, 1.1)]
    b = [run(0.0103 * level, noise=1e-6) for level in (1.0, 1.05, 1.1)]
    row = rows(compare(a, b))["decode_tokens_per_s"]
    assert row.basis == "3 and 3 runs"
    assert row.verdict is Verdict.undecided, "runs differ by more, though their samples do not"
    assert set(row.possible) == {Verdict.slower, Verdict.faster}
    assert row.ratio.low is not None
    assert row.ratio.low < 0.9


def test_jobs_of_sweeps_are_compared_with_their_like() -> None:
    a = [run(0.01 * k, sampling_top_k=k) for k in (1, 2, 3)]
    b = [run(0.02 * k, sampling_top_k=k, engine_name="fused") for k in (3, 1, 4)]
    comparison = compare(a, b)
    assert [pair.key for pair in comparison.pairs] == [{"sampling.top_k": "1"}, {"sampling.top_k": "3"}]
    for number in range(2):
        assert rows(comparison, number)["decode_tokens_per_s"].ratio.value == pytest.approx(0.5, rel=0.01)
    assert comparison.differences["engine"] == ("inductor", "fused")
    assert "sampling.top_k" not in comparison.differences
    assert [(found.record, why) for found, why in comparison.left_out] == [
        (a[1].record, "B has no such run"),
        (b[2].record, "A has no such run"),
    ]
    assert comparison.overall is not None
    assert comparison.overall.ratio.value == pytest.approx(0.5, rel=0.01)
    assert comparison.overall.basis == "2 pairs"


def test_one_side_may_vary_what_the_other_has_once() -> None:
    a = [run(0.01, sampling_top_k=k) for k in (1, 2)]
    comparison = compare(a, [run(0.01, sampling_top_k=2)])
    assert [pair.key for pair in comparison.pairs] == [{"sampling.top_k": "2"}]


def test_what_is_varied_is_told_by_the_name_of_its_section() -> None:
    sides = [
        [run(step_s, model_name=name, model_dim=dim) for name, dim in (("small", 128), ("large", 256))]
        for step_s in (0.01, 0.02)
    ]
    assert [pair.key for pair in compare(*sides).pairs] == [{"model": "small"}, {"model": "large"}]


def test_what_changes_no_number_keeps_nothing_apart() -> None:
    a = [run(workload_samples=3), run(workload_samples=4)]
    assert len(compare(a, [run(workload_samples=5, model_checkpoint="/elsewhere")]).pairs) == 1


def test_throttled_samples_and_clocks_are_told() -> None:
    a, b = run(), run()
    for found, clock, reasons in ((a, 1980.0, []), (b, 1500.0, ["thermal slowdown"])):
        assert isinstance(found.record, Result)
        for sample in found.record.samples:
            sample.state = DeviceState([0.0, 0.1, 0.2], [500.0, clock, 500.0], throttled=reasons)
    assert compare([a], [a]).remarks == []
    assert compare([a], [b]).remarks == [
        "B: 5 of 5 samples were throttled: thermal slowdown",
        "the clock averaged 1980 MHz for A and 1500 MHz for B, which may explain part of the difference",
    ]


def test_peak_memory_is_one_value_of_a_run() -> None:
    def with_memory(count: int) -> SelectedRecord:
        found = run()
        assert isinstance(found.record, Result)
        found.record.samples = [replace(sample, peak_memory_bytes=count) for sample in found.record.samples]
        return found

    on_gpu = rows(compare([with_memory(100)], [with_memory(147)]))["peak_memory_bytes"]
    assert (on_gpu.verdict, on_gpu.ratio.low, on_gpu.ratio.high) == (
        Verdict.more,
        pytest.approx(1.47),
        pytest.approx(1.47),
    )
    a, b = (SelectedRecord(found.path, on_cpu(found.record)) for found in (with_memory(100), with_memory(147)))
    assert rows(compare([a], [b]))["peak_memory_bytes"].verdict is Verdict.unknown, (
        "a process's peak has its history in it"
    )


def test_nothing_alike_is_an_error() -> None:
    a = [run(sampling_top_k=k) for k in (1, 2)]
    with pytest.raises(UserError, match=r"no run of A has a counterpart in B: they differ in sampling\.top_k"):
        compare(a, [run(sampling_top_k=7)])


def test_what_means_nothing_is_left_out() -> None:
    bad = SelectedRecord(Path("bad.json"), made_result(finite=False))
    comparison = compare([run(), bad], [run()])
    assert comparison.left_out == [(bad, "logits or cached values are not finite")]
    with pytest.raises(UserError, match=r"A has no valid measurement \(bad\.json: logits"):
        compare([bad], [run()])


def test_the_environment_is_told_where_it_differs() -> None:
    other = run()
    assert isinstance(other.record, Result)
    other.record.environment = replace(other.record.environment, driver="580.1")
    other.record.roof = replace(other.record.roof, gb_per_s=5000.0)
    found = compare([run()], [other]).differences
    assert found == {
        "environment.driver": ("570.1", "580.1"),
        "environment.read_roof_gb_per_s": ("4000", "5000"),
    }


def predictions(worse: float, seed: int, kl: float = 0.001) -> Predictions:
    random = np.random.default_rng(7)
    hard = random.exponential(2.0, 2000)
    noise = np.random.default_rng(seed).normal(0, 0.01, 2000)
    return Predictions(
        text="text",
        text_sha256="abc",
        scored_bytes=8000,
        context=[1, 5],
        nll=list(hard + worse + noise),
        kl=list(random.exponential(kl, 2000)),
        same_top=list(random.random(2000) < 0.98),
    )


def test_quality_is_compared_token_by_token() -> None:
    a, b, c = run(), run(), run()
    for found, quality in ((a, predictions(0.0, 1)), (b, predictions(0.0, 2)), (c, predictions(0.05, 3, kl=0.01))):
        assert isinstance(found.record, Result)
        found.record.quality = quality
    same, worse = rows(compare([a], [b])), rows(compare([a], [c]))
    assert same["perplexity"].verdict is Verdict.noise
    assert same["perplexity"].ratio.half_width < 0.001, "pairs leave out how hard each token is"
    assert worse["perplexity"].ratio.value == pytest.approx(np.exp(0.05), rel=0.001)
    assert worse["perplexity"].verdict is Verdict.worse
    assert worse["perplexity"].basis == "2000 tokens"
    assert worse["kl_divergence"].verdict is Verdict.worse
    assert worse["kl_divergence"].ratio.value == pytest.approx(10, rel=0.2)
    assert worse["top1_agreement"].verdict is Verdict.noise


def test_predictions_of_another_text_are_not_compared() -> None:
    a, b = run(), run()
    assert isinstance(a.record, Result)
    assert isinstance(b.record, Result)
    a.record.quality, b.record.quality = predictions(0.0, 1), replace(predictions(0.0, 1), text_sha256="other")
    assert "perplexity" not in rows(compare([a], [b]))


def test_energy_is_compared() -> None:
    def with_energy(joules: float) -> SelectedRecord:
        found = run()
        assert isinstance(found.record, Result)
        found.record.energy = Energy("counter", 100.0, Spent(500.0, 1.0, 100), Spent(joules, 1.0, 1000))
        return found

    row = rows(compare([with_energy(600.0)], [with_energy(1100.0)]))["decode_joules_per_token"]
    assert row.ratio.value == pytest.approx(2.0)
    assert row.verdict is Verdict.unknown
    several = [[with_energy(joules + extra) for extra in (0.0, 1.0, 2.0)] for joules in (600.0, 1100.0)]
    assert rows(compare(*several))["decode_joules_per_token"].verdict is Verdict.more


def test_the_command_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for step_s in (0.01, 0.02):
        record = run(step_s, seed=int(step_s * 100)).record
        paths.append(str(record.save(tmp_path / str(step_s))))
    assert compare_command(paths) == 0
    captured = capsys.readouterr()
    line = json.loads(captured.out)
    assert line["pairs"][0]["metrics"]["decode_tokens_per_s"]["verdict"] == "slower"
    assert line["pairs"][0]["a"] == paths[:1]
    assert "slower" in captured.err
    assert "one run per side" in captured.err
    with pytest.raises(UserError, match="in both A and B"):
        compare_command([paths[0], str(tmp_path)])
    assert compare_command([*paths, "--margin", "60%"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["metrics"]["tpot_p50_s"]["verdict"] == "slower"


def test_many_pairs_are_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, step_s in (("a", 0.01), ("b", 0.005)):
        for k in range(1, 8):
            run(step_s, sampling_top_k=k).record.save(tmp_path / side / str(k))
    assert compare_command([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("top_k=") == 7
    assert "all 7 pairs: B is 100.00% faster" in captured.err
    assert json.loads(captured.out)["overall"]["ratio"] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("ratio", "verdict", "text"),
    [
        (Ratio(0.98, 0.97, 0.985), Verdict.slower, "B is 2.00% slower (1.50% to 3.00%)"),
        (Ratio(1.5, 1.4, 1.6), Verdict.faster, "B is 50.00% faster (40.00% to 60.00%)"),
        (Ratio(1.0, 0.995, 1.006), Verdict.noise, "B is within noise of A: +0.00% (-0.50% to +0.60%)"),
        (
            Ratio(0.78, 0.61, 1.001),
            Verdict.undecided,
            "undecided: B / A is -22.00% (-39.00% to +0.10%); up to 39% slower is possible",
        ),
        (Ratio(2.0, None, None), Verdict.unknown, "B / A = 2.0000, one value each"),
    ],
)
def test_sentences(ratio: Ratio, verdict: Verdict, text: str) -> None:
    row = Row.from_ratio(METRICS[HEADLINE], 1.0, 1.0, ratio, "")
    assert (row.verdict, sentence(row)) == (verdict, text)
