"""Ratios and verdicts: an interval holds the truth as often as it says, and nothing is said that it does not allow."""

import numpy as np
import pytest
from scipy import stats

from gptbench.compare.ratio import (
    Moments,
    Ratio,
    Verdict,
    in_words,
    possible_changes,
    ratio_of_groups,
    ratio_of_paired_means,
    ratio_of_pairs,
    verdict,
)
from gptbench.schema.metrics import HEADLINE, METRICS, compared

TRIALS = 2000


def test_groups_are_compared_as_scipy_does() -> None:
    random = np.random.default_rng(0)
    a, b = np.exp(random.normal(3, 0.1, 7)), np.exp(random.normal(3.2, 0.4, 12))
    ratio = ratio_of_groups(Moments.of(list(a)), Moments.of(list(b)))
    ends = stats.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.95)
    assert ratio.value == pytest.approx(stats.gmean(b) / stats.gmean(a))
    assert (ratio.low, ratio.high) == (pytest.approx(np.exp(ends.low)), pytest.approx(np.exp(ends.high)))


def test_pairs_are_compared_as_scipy_does() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(3, 0.5, 9), random.normal(3.1, 0.5, 9)
    ratio = ratio_of_pairs(list(b - a))
    ends = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (ratio.low, ratio.high) == (pytest.approx(np.exp(ends.low)), pytest.approx(np.exp(ends.high)))


@pytest.mark.parametrize(("count_a", "count_b"), [(5, 5), (3, 20), (2, 2), (1, 6), (6, 1)])
def test_an_interval_holds_the_truth_in_95_of_100_cases(count_a: int, count_b: int) -> None:
    random = np.random.default_rng(2)
    held = 0
    for _ in range(TRIALS):
        a = np.exp(random.normal(0, 0.02, count_a))
        b = np.exp(random.normal(np.log(1.3), 0.02, count_b))
        ratio = ratio_of_groups(Moments.of(list(a)), Moments.of(list(b)))
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.3 <= ratio.high
    # Welch's is a little careful with few values. Four standard errors of a share of 2000 are 2%.
    assert 0.93 <= held / TRIALS <= 0.995


def test_paired_means_hold_the_truth_too() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(TRIALS):
        base = random.exponential(1.0, 400)
        b = 1.1 * base * np.exp(random.normal(-0.005, 0.1, 400))
        ratio = ratio_of_paired_means(list(base), list(b))
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.1 <= ratio.high
    assert 0.93 <= held / TRIALS <= 0.97


def test_means_that_are_not_positive_have_no_ratio() -> None:
    assert ratio_of_paired_means([0.0, 0.0], [1.0, 2.0]) is None


def test_one_value_each_says_nothing_of_noise() -> None:
    ratio = ratio_of_groups(Moments.of([2.0]), Moments.of([3.0]))
    assert ratio == Ratio(pytest.approx(1.5), None, None)
    assert ratio.half_width == float("inf")
    assert verdict(ratio, METRICS[HEADLINE]) is Verdict.unknown
    assert ratio_of_pairs([0.5]).low is None


def test_the_same_values_are_the_same() -> None:
    ratio = ratio_of_groups(Moments.of([3.0, 3.0]), Moments.of([3.0, 3.0, 3.0]))
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert verdict(ratio, METRICS["peak_memory_bytes"]) is Verdict.noise


@pytest.mark.parametrize(
    ("metric", "on_less", "on_more"),
    [
        ("decode_tokens_per_s", Verdict.slower, Verdict.faster),
        ("ttft_s", Verdict.faster, Verdict.slower),
        ("compile_cold_s", Verdict.faster, Verdict.slower),
        ("peak_memory_bytes", Verdict.less, Verdict.more),
        ("perplexity", Verdict.better, Verdict.worse),
        ("top1_agreement", Verdict.worse, Verdict.better),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_margin(metric: str, on_less: Verdict, on_more: Verdict) -> None:
    def told(low: float, high: float, margin: float = 0.01) -> Verdict:
        return verdict(Ratio((low * high) ** 0.5, low, high), METRICS[metric], margin)

    assert told(1.02, 1.03) is on_more
    assert told(0.97, 0.98) is on_less
    assert told(0.995, 1.009) is Verdict.noise
    assert told(0.9, 1.1) is Verdict.undecided
    assert told(1.005, 1.03) is Verdict.undecided, "a part of it is within the margin"
    assert told(0.97, 0.995) is Verdict.undecided
    assert told(0.97, 1.04, margin=0.05) is Verdict.noise
    assert told(0.997, 1.008, margin=0.001) is Verdict.noise, "less than 1%, and on both sides of 1"
    assert told(1.005, 1.03, margin=0.0) is on_more


def test_what_is_undecided_says_what_is_possible() -> None:
    wide = Ratio(0.78, 0.61, 1.001)
    assert verdict(wide, METRICS[HEADLINE]) is Verdict.undecided
    assert possible_changes(wide, METRICS[HEADLINE]) == {Verdict.slower: pytest.approx(0.39)}
    assert in_words(possible_changes(wide, METRICS[HEADLINE])) == "39% slower"
    assert in_words(possible_changes(Ratio(1.0, 0.9, 2.5), METRICS["ttft_s"])) == "10% faster or 150% slower"
    for clear in (Ratio(1.0, 0.999, 1.001), Ratio(1.1, 1.05, 1.15), Ratio(1.3, None, None)):
        assert possible_changes(clear, METRICS[HEADLINE]) == {}
    for metric in compared():
        for low, high in ((0.5, 1.5), (0.98, 1.2), (0.9, 1.001)):
            told = verdict(Ratio(1.0, low, high), metric)
            assert (told is Verdict.undecided) == bool(possible_changes(Ratio(1.0, low, high), metric)), (
                metric.name,
                low,
                high,
            )


def test_a_percentile_of_a_whole_has_the_spread_of_its_members() -> None:
    """Of a mean, the jackknife's variance is the usual one, so a median's of many equal members must be near."""
    random = np.random.default_rng(5)
    values = np.exp(random.normal(0, 0.01, 8))
    whole = float(np.exp(np.log(values).mean()))
    without = [float(np.exp(np.log(np.delete(values, number)).mean())) for number in range(8)]
    found, expected = Moments.of_jackknife(whole, without), Moments.of(list(values))
    assert (found.mean, found.count) == (pytest.approx(expected.mean), 8)
    # The variance is of one member, and that of the whole is it over their number.
    assert found.variance == pytest.approx(expected.variance)
    assert Moments.of_jackknife(3.0, []) == Moments.of([3.0])


def test_what_is_worse() -> None:
    assert {each for each in Verdict if each.is_worse} == {Verdict.slower, Verdict.worse, Verdict.more}
    for metric in compared():
        assert sum(Verdict(word).is_worse for word in metric.words) == 1, metric.name


def test_half_width_is_of_the_ratio() -> None:
    assert Ratio(2.0, 2.0 / 1.01, 2.0 * 1.01).half_width == pytest.approx(0.01)
