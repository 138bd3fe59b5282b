"""One metric of A and B: the ratio, what its interval is of, and a verdict."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from gptbench.compare.ratio import (
    Moments,
    Ratio,
    Verdict,
    in_words,
    of_moments,
    of_paired_means,
    of_pairs,
    of_single_starts,
    possible,
    verdict,
)
from gptbench.compare.starts import NO_HISTORY, History, ProcessSpread
from gptbench.schema import Result
from gptbench.schema.metrics import KERNEL_TIME, METRICS, Metric, PerToken
from gptbench.schema.statistics import steps_jackknife, valid_samples


@dataclass(frozen=True)
class Row:
    """One metric of A and B."""

    metric: Metric
    """By whose kind it is judged, and whose unit it has."""
    a: float
    """Geometric mean of A's values, in the metric's unit; of a single run, the percentile of its steps; of quality, the
    first run's own number."""
    b: float
    ratio: Ratio
    verdict: Verdict
    of: str
    """What the interval is of: `5 and 5 samples, one start each`, `3 and 3 runs`, `2000 tokens`."""
    possible: dict[Verdict, float] = field(default_factory=dict)
    """Of what is undecided, by up to which share B may be less, and more."""
    starts: ProcessSpread | None = None
    """What the interval is widened by, of single starts."""
    kernel: str | None = None
    """Whose time it is, of `task=kernels`: `gemv/D4096/int8/inductor`."""

    @property
    def name(self) -> str:
        """By which it is known in JSON."""
        return self.kernel or self.metric.name

    @property
    def label(self) -> str:
        """By which a person knows it."""
        return self.kernel or self.metric.label

    @property
    def heading(self) -> str:
        """Its label and unit."""
        return self.metric.heading if self.kernel is None else f"{self.kernel} ({self.metric.unit})"

    @property
    def told(self) -> str:
        """The verdict: `slower`, or `undecided: up to 39% slower`."""
        return self.verdict.value + (f": up to {in_words(self.possible)}" if self.possible else "")

    @classmethod
    def judged(cls, metric: Metric, a: float, b: float, ratio: Ratio, of: str, margin: float | None = None) -> "Row":
        """With what can be said of it.

        Args:
            margin: None takes that of the metric's kind.
        """
        return cls(metric, a, b, ratio, verdict(ratio, metric, margin), of, possible(ratio, metric, margin))

    def withheld(self, kinds: Collection[str]) -> "Row":
        """The same of a busy machine: without a verdict, if it is of these kinds of metrics."""
        kind = self.metric.kind
        return self if kind is None or kind.name not in kinds else replace(self, verdict=Verdict.busy, possible={})


def run_row(
    metric: Metric, a: list[Result], b: list[Result], margin: float | None, history: History = NO_HISTORY
) -> Row | None:
    """One metric of runs; None where a side has it not."""
    by_run = len(a) > 1 or len(b) > 1 or not metric.varies_in_run
    sides = [moments_of(side, metric, by_run) for side in (a, b)]
    if sides[0] is None or sides[1] is None:
        return None
    starts = None
    ratio, of = of_moments(sides[0], sides[1]), counted(sides[0].count, sides[1].count, "run" if by_run else "sample")
    if metric.is_counted and all(each.environment.on_gpu for each in (*a, *b)):
        # What an allocator counts is the same at each start: nothing is left to chance, but the margin.
        ratio, of = exactly(ratio), f"{of}, exact"
    elif not by_run:
        starts = history.spread(metric.name, [*a, *b])
        ratio, of = of_single_starts(ratio, starts.value, starts.freedom), f"{of}, one start each"
    middles = float(np.exp(sides[0].mean)), float(np.exp(sides[1].mean))
    return replace(Row.judged(metric, *middles, ratio, of, margin), starts=starts)


def exactly(ratio: Ratio) -> Ratio:
    """The same, without a doubt."""
    return Ratio(ratio.value, ratio.value, ratio.value)


def moments_of(side: list[Result], metric: Metric, by_run: bool) -> Moments | None:
    """Of runs of one configuration; None where none of them has the metric.

    Args:
        by_run: whether each run is one value; else there is a single one, whose samples count.
    """
    if metric.share is not None and not by_run:
        return Moments.of_jackknife(*steps_jackknife(valid_samples(side[0]), metric.share))
    values = values_of(side, metric, by_run)
    return Moments.of(values) if values else None


def values_of(side: list[Result], metric: Metric, by_run: bool) -> list[float]:
    """Of each run, where there are several; of a single one, of each sample."""
    if metric.varies_in_run and not by_run:
        return [sample[metric.name] for result in side for sample in result.sampled]
    told = [result.summary.get(metric.name) for result in side]
    return [value for value in told if value is not None and value > 0]


def counted(a: int, b: int, what: str) -> str:
    """`5 and 5 samples`."""
    return f"{a} and {b} {what}{'s' * (b > 1)}"


def kernel_row(kernel: str, a: list[float], b: list[float], what: str, margin: float | None) -> Row:
    """The time of one implementation of a kernel."""
    first, second = Moments.of(a), Moments.of(b)
    means = float(np.exp(first.mean)), float(np.exp(second.mean))
    ratio, of = of_moments(first, second), counted(len(a), len(b), what)
    return replace(Row.judged(METRICS[KERNEL_TIME], *means, ratio, of, margin), kernel=kernel)


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def quality_row(metric: Metric, per_token: PerToken, a: Result, b: Result) -> Row | None:
    """Token by token, where both predicted the same text; None where one did not, or another."""
    first, second = a.quality, b.quality
    if first is None or second is None or first.text_sha256 != second.text_sha256 or first.context != second.context:
        return None
    values = per_token.values(first), per_token.values(second)
    told = a.summary.get(metric.name), b.summary.get(metric.name)
    if told[0] is None or told[1] is None or len(values[0]) != len(values[1]) or len(values[0]) < 2:
        return None
    if per_token.is_logarithm:
        ratio: Ratio | None = of_pairs([other - own for own, other in zip(*values, strict=True)])
    else:
        ratio = of_paired_means(*values)
    if ratio is None:
        return None
    return Row.judged(metric, told[0], told[1], ratio, f"{len(values[0])} tokens")
