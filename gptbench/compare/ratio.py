"""Ratios of measurements with 95% confidence intervals, and the verdicts that these support.

Times and rates are compared on a logarithmic scale, where a ratio is a difference. Intervals are Student's t: for two
independent groups with unequal variances (Welch, 1947, https://doi.org/10.1093/biomet/34.1-2.28), or for pairs.
`compare`, `ab` and `gate` all take their verdicts from `verdict`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from gptbench.schema.metrics import Metric
from gptbench.schema.statistics import student

SAME = 0.01
"""Distance from 1, as a share, within which the whole interval must lie for the verdict "within noise"; a margin that
is wider takes its place."""


class Verdict(Enum):
    """What can be said of B compared with A."""

    faster = "faster"
    slower = "slower"
    better = "better"
    worse = "worse"
    more = "more"
    less = "less"
    noise = "within noise"
    undecided = "undecided"
    unknown = "one value each"
    busy = "no verdict: busy"
    """The machine was busy while a side was measured."""

    @property
    def is_worse(self) -> bool:
        """Whether B is the worse one. `more` counts: of every resource that gptbench compares, using more is worse."""
        return self in (Verdict.slower, Verdict.worse, Verdict.more)


@dataclass(frozen=True)
class Ratio:
    """The ratio B / A with its 95% confidence interval."""

    value: float
    """Point estimate of B / A."""
    low: float | None
    """Lower end of the interval; None where both sides are a single value, so that there is no interval."""
    high: float | None
    """Upper end of the interval; None where there is no interval."""

    @property
    def half_width(self) -> float:
        """Half-width of the interval as a share of the ratio; infinite without an interval."""
        if self.low is None or self.high is None:
            return float("inf")
        return (self.high / self.low) ** 0.5 - 1

    def beyond(self, margin: float) -> int:
        """Return 1 if the whole interval lies above 1 + margin, -1 if it lies below 1 / (1 + margin), else 0."""
        if self.low is not None and self.low > 1 + margin:
            return 1
        return -1 if self.high is not None and self.high < 1 / (1 + margin) else 0


def verdict(ratio: Ratio, metric: Metric, margin: float | None = None) -> Verdict:
    """Return the verdict on B.

    "Faster", "slower" and the like require the whole interval to lie beyond the margin. "Within noise" requires the
    whole interval to lie near 1, within `SAME` or the margin, whichever is wider. Everything else is undecided: see
    `possible_changes`.

    Args:
        margin: smallest relative difference that counts; None takes the margin of the metric's kind.
    """
    if ratio.low is None:
        return Verdict.unknown
    if side := ratio.beyond(margin_of(metric, margin)):
        return Verdict(metric.words[side > 0])
    return Verdict.undecided if shares_beyond_noise(ratio, metric, margin) else Verdict.noise


def margin_of(metric: Metric, margin: float | None) -> float:
    """Return the given margin, or by default that of the metric's kind."""
    assert metric.kind is not None
    return metric.kind.margin if margin is None else margin


def shares_beyond_noise(ratio: Ratio, metric: Metric, margin: float | None = None) -> dict[Verdict, float]:
    """Return by how much B may be less, and more, as shares: from each end of the interval that is not near 1."""
    same = max(SAME, margin_of(metric, margin))
    less, more = map(Verdict, metric.words)
    shares = {}
    if ratio.low is not None and ratio.low < 1 / (1 + same):
        shares[less] = 1 - ratio.low
    if ratio.high is not None and ratio.high > 1 + same:
        shares[more] = ratio.high - 1
    return shares


def possible_changes(ratio: Ratio, metric: Metric, margin: float | None = None) -> dict[Verdict, float]:
    """Return the changes that an undecided ratio leaves possible, each with the largest share it may amount to; empty
    for any other verdict."""
    return shares_beyond_noise(ratio, metric, margin) if verdict(ratio, metric, margin) is Verdict.undecided else {}


def in_words(shares: Mapping[Verdict, float]) -> str:
    """Return shares in words, such as `39% slower or 4.1% faster`."""
    return " or ".join(f"{percent(share)} {word.value}" for word, share in shares.items())


def percent(share: float) -> str:
    """Return a share as a percentage with three digits: `0.13%`, `1.25%`, `39%`, `1200%`."""
    return f"{100 * share:.3g}%" if share < 1 else f"{100 * share:.0f}%"


MIN_VALUES_FOR_WELCH = 5
"""Number of values below which a group's variance is too uncertain for Welch's interval to reach its nominal
coverage."""


@dataclass(frozen=True)
class Moments:
    """Summary of a group of positive numbers: all that an interval for the ratio of two groups needs."""

    mean: float
    """Mean of the logarithms."""
    variance: float
    """Sample variance of the logarithms; 0 for a single value."""
    count: int
    """Number of values."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Moments":
        """Return the moments of some values."""
        logarithms = np.log(values)
        variance = float(logarithms.var(ddof=1)) if len(logarithms) > 1 else 0.0
        return cls(float(logarithms.mean()), variance, len(logarithms))

    @classmethod
    def of_jackknife(cls, whole: float, without: Sequence[float]) -> "Moments":
        """Return jackknife moments of a statistic of a whole group, such as a percentile (Shao and Wu, 1989,
        https://doi.org/10.1214/aos/1176347263). Its variance over its count is the variance of the statistic.

        Args:
            whole: the statistic of all members.
            without: the statistic with each member left out in turn; empty for a group of one.
        """
        logarithms = np.log(without) if len(without) else np.zeros(1)
        variance = float(((logarithms - logarithms.mean()) ** 2).sum()) * (len(logarithms) - 1)
        return cls(float(np.log(whole)), variance, len(logarithms))


def ratio_of_groups(a: Moments, b: Moments) -> Ratio:
    """Return the ratio of the geometric means of two independent groups.

    The interval is Welch's. With few values in a group, it is the wider of Welch's and that of a pooled variance; with
    a single value in one group, that of the pooled variance; with a single value in each, there is none.
    """
    middle = b.mean - a.mean
    sizes = np.array([a.count, b.count])
    freedoms, variances = sizes - 1, np.array([a.variance, b.variance])
    if not freedoms.any():
        return Ratio(float(np.exp(middle)), None, None)
    total = float(freedoms.sum())
    pooled = student_interval(middle, float(freedoms @ variances / total * (1 / sizes).sum()), total)
    if not freedoms.all():
        return pooled
    parts = variances / sizes
    uncertain = float((parts**2 / freedoms).sum())
    welch = student_interval(middle, float(parts.sum()), float(parts.sum()) ** 2 / uncertain if uncertain else total)
    return max(welch, pooled, key=lambda ratio: ratio.half_width) if sizes.min() < MIN_VALUES_FOR_WELCH else welch


def widened_by_process_spread(ratio: Ratio, spread: float, freedom: float = math.inf) -> Ratio:
    """Return the ratio with its interval widened by process-to-process variance, for sides that are a single process
    each: processes that run the very same thing differ by more than the samples within one.

    Args:
        spread: standard deviation of the logarithm between processes.
        freedom: degrees of freedom of that estimate; infinite where it is taken as known.
    """
    if ratio.low is None or ratio.high is None:
        return ratio
    reach = np.hypot(np.log(ratio.high / ratio.low) / 2, student(freedom) * 2**0.5 * spread)
    return Ratio(ratio.value, *(float(ratio.value * np.exp(way * reach)) for way in (-1, 1)))


def ratio_of_pairs(logarithms: Sequence[float]) -> Ratio:
    """Return the geometric mean of the ratios of independent pairs.

    Args:
        logarithms: logarithm of B / A for each pair.
    """
    values = np.asarray(logarithms)
    if len(values) < 2:
        return Ratio(float(np.exp(values.mean())), None, None)
    return student_interval(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def ratio_of_paired_means(a: Sequence[float], b: Sequence[float]) -> Ratio | None:
    """Return the ratio of the means of two series over the same items, such as the tokens of a text, whose terms may be
    0. The interval is of first order in their spread (the delta method). None if a mean is not positive."""
    first, second = np.asarray(a), np.asarray(b)
    if not (first.mean() > 0 and second.mean() > 0):
        return None
    relative = second / second.mean() - first / first.mean()
    middle = float(np.log(second.mean() / first.mean()))
    return student_interval(middle, float(relative.var(ddof=1)) / len(relative), len(relative) - 1)


def student_interval(middle: float, variance: float, freedom: float) -> Ratio:
    """Return a ratio with Student's interval.

    Args:
        middle: logarithm of the ratio.
        variance: variance of that logarithm.
        freedom: degrees of freedom.
    """
    reach = student(freedom) * variance**0.5
    return Ratio(*(float(np.exp(middle + way * reach)) for way in (0, -1, 1)))
