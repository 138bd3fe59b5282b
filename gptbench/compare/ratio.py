"""Ratios of what was measured, with 95% intervals, and what they allow to be said.

Times and rates are compared by their logarithms, where a ratio is a difference: the intervals are Student's, of two
independent groups with variances of their own (Welch, 1947, https://doi.org/10.1093/biomet/34.1-2.28), or of pairs.
Compare, ab and gate all say what `verdict` says of a ratio.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from gptbench.schema.metrics import Metric
from gptbench.schema.statistics import student

SAME = 0.01
"""Within noise is what the interval keeps nearer to 1 than this, or than the margin where that is wider."""


class Verdict(Enum):
    """Of B beside A. `higher` and `lower` are of a number that is neither better nor worse for it."""

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
    """Measured on a busy machine."""

    @property
    def is_worse(self) -> bool:
        """Of all that gptbench compares, more of what is used is worse."""
        return self in (Verdict.slower, Verdict.worse, Verdict.more)


@dataclass(frozen=True)
class Ratio:
    """B over A."""

    value: float
    low: float | None
    """Ends of the interval; None where one value each leaves none."""
    high: float | None

    @property
    def half_width(self) -> float:
        """Of the interval, as a share of the ratio; infinite where there is none."""
        if self.low is None or self.high is None:
            return float("inf")
        return (self.high / self.low) ** 0.5 - 1

    def beyond(self, margin: float) -> int:
        """1 where the whole interval lies above 1 + margin, -1 where it lies below 1 / (1 + margin), else 0."""
        if self.low is not None and self.low > 1 + margin:
            return 1
        return -1 if self.high is not None and self.high < 1 / (1 + margin) else 0


def verdict(ratio: Ratio, metric: Metric, margin: float | None = None) -> Verdict:
    """What can be said of B; the margin is that of the metric's kind where none is given.

    A word needs the whole interval beyond the margin. Within noise needs the whole interval near 1, by `SAME` or the
    margin. All else is undecided: see `possible`.
    """
    if ratio.low is None:
        return Verdict.unknown
    if side := ratio.beyond(margin_of(metric, margin)):
        return Verdict(metric.words[side > 0])
    return Verdict.undecided if outside(ratio, metric, margin) else Verdict.noise


def margin_of(metric: Metric, margin: float | None) -> float:
    """The margin that was given, or that of the metric's kind."""
    assert metric.kind is not None
    return metric.kind.margin if margin is None else margin


def outside(ratio: Ratio, metric: Metric, margin: float | None = None) -> dict[Verdict, float]:
    """By which share B may be less, and more, by the ends of the interval that are not near 1."""
    same = max(SAME, margin_of(metric, margin))
    less, more = map(Verdict, metric.words)
    found = {}
    if ratio.low is not None and ratio.low < 1 / (1 + same):
        found[less] = 1 - ratio.low
    if ratio.high is not None and ratio.high > 1 + same:
        found[more] = ratio.high - 1
    return found


def possible(ratio: Ratio, metric: Metric, margin: float | None = None) -> dict[Verdict, float]:
    """Of what is undecided: what it may yet be, and by up to which share. Empty of any other verdict."""
    return outside(ratio, metric, margin) if verdict(ratio, metric, margin) is Verdict.undecided else {}


def in_words(shares: Mapping[Verdict, float]) -> str:
    """`39% slower or 4.1% faster`."""
    return " or ".join(f"{percent(share)} {word.value}" for word, share in shares.items())


def percent(share: float) -> str:
    """Three digits: `0.13%`, `1.25%`, `39%`, `1200%`."""
    return f"{100 * share:.3g}%" if share < 1 else f"{100 * share:.0f}%"


FEW = 5
"""Values of a group, below which its own variance is too uncertain for Welch's interval to hold what it promises."""


@dataclass(frozen=True)
class Moments:
    """All that must be kept of a group of positive numbers, for an interval of their ratio to another's.

    Attributes:
        mean: of the logarithms.
        variance: of the logarithms, between them; 0 also where there is one.
    """

    mean: float
    variance: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Moments":
        logarithms = np.log(values)
        variance = float(logarithms.var(ddof=1)) if len(logarithms) > 1 else 0.0
        return cls(float(logarithms.mean()), variance, len(logarithms))

    @classmethod
    def of_jackknife(cls, whole: float, without: Sequence[float]) -> "Moments":
        """Of a number that belongs to a group as a whole, such as a percentile: `without` has what it is without each
        of the group's members, and nothing for a single one. The variance is such that the variance of the whole is it
        over the count (Shao and Wu, 1989, https://doi.org/10.1214/aos/1176347263)."""
        logarithms = np.log(without) if len(without) else np.zeros(1)
        variance = float(((logarithms - logarithms.mean()) ** 2).sum()) * (len(logarithms) - 1)
        return cls(float(np.log(whole)), variance, len(logarithms))


def of_moments(a: Moments, b: Moments) -> Ratio:
    """Ratio of the geometric means of two independent groups. Where one has few values, the wider of Welch's interval
    and that of a variance that both share; where it is a single value, the latter alone; where both are, there is no
    interval."""
    middle = b.mean - a.mean
    sizes = np.array([a.count, b.count])
    freedoms, variances = sizes - 1, np.array([a.variance, b.variance])
    if not freedoms.any():
        return Ratio(float(np.exp(middle)), None, None)
    total = float(freedoms.sum())
    shared = around(middle, float(freedoms @ variances / total * (1 / sizes).sum()), total)
    if not freedoms.all():
        return shared
    parts = variances / sizes
    uncertain = float((parts**2 / freedoms).sum())
    own = around(middle, float(parts.sum()), float(parts.sum()) ** 2 / uncertain if uncertain else total)
    return max(own, shared, key=lambda ratio: ratio.half_width) if sizes.min() < FEW else own


def of_single_starts(ratio: Ratio, spread: float, freedom: float = math.inf) -> Ratio:
    """The same where each side is a single start, and starts of the very same thing differ, by more than is seen within
    one.

    Args:
        spread: standard deviation of the logarithm from start to start.
        freedom: degrees of freedom of its estimate; infinite where it is known.
    """
    if ratio.low is None or ratio.high is None:
        return ratio
    reach = np.hypot(np.log(ratio.high / ratio.low) / 2, student(freedom) * 2**0.5 * spread)
    return Ratio(ratio.value, *(float(ratio.value * np.exp(way * reach)) for way in (-1, 1)))


def of_pairs(logarithms: Sequence[float]) -> Ratio:
    """Of independent pairs, each the logarithm of B over A."""
    values = np.asarray(logarithms)
    if len(values) < 2:
        return Ratio(float(np.exp(values.mean())), None, None)
    return around(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def of_paired_means(a: Sequence[float], b: Sequence[float]) -> Ratio | None:
    """Of the means of two series over the same things, such as tokens of a text, whose terms may be 0. To first order
    in their spread (the delta method); None where a mean is not positive."""
    first, second = np.asarray(a), np.asarray(b)
    if not (first.mean() > 0 and second.mean() > 0):
        return None
    relative = second / second.mean() - first / first.mean()
    middle = float(np.log(second.mean() / first.mean()))
    return around(middle, float(relative.var(ddof=1)) / len(relative), len(relative) - 1)


def around(middle: float, variance: float, freedom: float) -> Ratio:
    """Student's interval around a logarithm."""
    reach = student(freedom) * variance**0.5
    return Ratio(*(float(np.exp(middle + way * reach)) for way in (0, -1, 1)))
