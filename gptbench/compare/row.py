"""One metric of A and B: the ratio with its interval, what the interval rests on, and a verdict."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

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
    widened_by_process_spread,
)
from gptbench.compare.starts import NO_HISTORY, History, ProcessSpread
from gptbench.schema import Result
from gptbench.schema.metrics import KERNEL_TIME, METRICS, Metric, PerToken
from gptbench.schema.statistics import steps_jackknife, valid_samples


@dataclass(frozen=True)
class Row:
    """One metric of A and B."""

    metric: Metric
    """The metric, whose kind sets the margin and whose unit `a` and `b` have."""
    a: float
    """Geometric mean of A's values, in the metric's unit. For percentiles of a single run it is the percentile of its
    pooled steps, for quality the first run's value."""
    b: float
    """The same for B."""
    ratio: Ratio
    """B / A with its interval."""
    verdict: Verdict
    """What can be said of B compared with A."""
    basis: str
    """Values that the interval is computed from: `5 and 5 samples, one process each`, `3 and 3 runs`, `2000 tokens`."""
    possible: dict[Verdict, float] = field(default_factory=dict)
    """Changes that an undecided ratio leaves possible, each with the largest share it may amount to."""
    process_spread: ProcessSpread | None = None
    """Process-to-process variance by which the interval is widened, where each side is a single process; else None."""
    kernel: str | None = None
    """Kernel and implementation whose time it is, in `task=kernels`: `gemv/D4096/int8/inductor`; else None."""

    @property
    def name(self) -> str:
        """Name of the metric in JSON."""
        return self.kernel or self.metric.name

    @property
    def label(self) -> str:
        """Name of the metric in tables."""
        return self.kernel or self.metric.label

    @property
    def heading(self) -> str:
        """Label and unit."""
        return self.metric.heading if self.kernel is None else f"{self.kernel} ({self.metric.unit})"

    @property
    def verdict_text(self) -> str:
        """The verdict in words: `slower`, or `undecided: up to 39% slower`."""
        return self.verdict.value + (f": up to {in_words(self.possible)}" if self.possible else "")

    @classmethod
    def from_ratio(
        cls, metric: Metric, a: float, b: float, ratio: Ratio, basis: str, margin: float | None = None
    ) -> "Row":
        """Return a row with the verdict on its ratio.

        Args:
            margin: smallest relative difference that counts; None takes the margin of the metric's kind.
        """
        return cls(metric, a, b, ratio, verdict(ratio, metric, margin), basis, possible_changes(ratio, metric, margin))

    def withheld(self, kinds: Collection[str]) -> "Row":
        """Return the row without a verdict if its metric is of a kind that the busy machine may have affected."""
        kind = self.metric.kind
        return self if kind is None or kind.name not in kinds else replace(self, verdict=Verdict.busy, possible={})


def run_row(
    metric: Metric, a: list[Result], b: list[Result], margin: float | None, history: History = NO_HISTORY
) -> Row | None:
    """Return the row of one metric of runs; None if a side does not have the metric."""
    by_run = len(a) > 1 or len(b) > 1 or not metric.varies_in_run
    sides = [metric_moments(side, metric, by_run) for side in (a, b)]
    if sides[0] is None or sides[1] is None:
        return None
    process_spread = None
    ratio, basis = (
        ratio_of_groups(sides[0], sides[1]),
        counted(sides[0].count, sides[1].count, "run" if by_run else "sample"),
    )
    if metric.is_counted and all(each.environment.on_gpu for each in (*a, *b)):
        # An allocator counts the same in every process, so there is no noise: the margin alone decides.
        ratio, basis = exact_ratio(ratio), f"{basis}, exact"
    elif not by_run:
        process_spread = history.spread(metric.name, [*a, *b])
        ratio = widened_by_process_spread(ratio, process_spread.value, process_spread.freedom)
        basis = f"{basis}, one process each"
    means = float(np.exp(sides[0].mean)), float(np.exp(sides[1].mean))
    return replace(Row.from_ratio(metric, *means, ratio, basis, margin), process_spread=process_spread)


def exact_ratio(ratio: Ratio) -> Ratio:
    """Return the ratio with an interval of zero width."""
    return Ratio(ratio.value, ratio.value, ratio.value)


def metric_moments(side: list[Result], metric: Metric, by_run: bool) -> Moments | None:
    """Return the moments of a metric of runs of one configuration; None if no run has the metric.

    Args:
        by_run: whether each run counts as one value; else `side` is a single run, whose samples count.
    """
    if metric.share is not None and not by_run:
        return Moments.of_jackknife(*steps_jackknife(valid_samples(side[0]), metric.share))
    values = metric_values(side, metric, by_run)
    return Moments.of(values) if values else None


def metric_values(side: list[Result], metric: Metric, by_run: bool) -> list[float]:
    """Return a metric's values: one per run, or one per sample where these are what counts."""
    if metric.varies_in_run and not by_run:
        return [sample[metric.name] for result in side for sample in result.sampled]
    values = [result.summary.get(metric.name) for result in side]
    return [value for value in values if value is not None and value > 0]


def counted(a: int, b: int, what: str) -> str:
    """Return the counts of both sides in words: `5 and 5 samples`."""
    return f"{a} and {b} {what}{'s' * (b > 1)}"


def kernel_row(kernel: str, a: list[float], b: list[float], what: str, margin: float | None) -> Row:
    """Return the row of the time of one implementation of a kernel.

    Args:
        a: seconds of A: of each round, or the median of each run.
        b: the same for B.
        what: what the values are: `round` or `run`.
    """
    first, second = Moments.of(a), Moments.of(b)
    means = float(np.exp(first.mean)), float(np.exp(second.mean))
    ratio, basis = ratio_of_groups(first, second), counted(len(a), len(b), what)
    return replace(Row.from_ratio(METRICS[KERNEL_TIME], *means, ratio, basis, margin), kernel=kernel)


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def quality_row(metric: Metric, per_token: PerToken, a: Result, b: Result) -> Row | None:
    """Return the row of a quality metric, compared token by token; None unless both runs predicted the same text."""
    first, second = a.quality, b.quality
    if first is None or second is None or first.text_sha256 != second.text_sha256 or first.context != second.context:
        return None
    values = per_token.values(first), per_token.values(second)
    totals = a.summary.get(metric.name), b.summary.get(metric.name)
    if totals[0] is None or totals[1] is None or len(values[0]) != len(values[1]) or len(values[0]) < 2:
        return None
    if per_token.is_logarithm:
        ratio: Ratio | None = ratio_of_pairs([other - own for own, other in zip(*values, strict=True)])
    else:
        ratio = ratio_of_paired_means(*values)
    if ratio is None:
        return None
    return Row.from_ratio(metric, totals[0], totals[1], ratio, f"{len(values[0])} tokens")
