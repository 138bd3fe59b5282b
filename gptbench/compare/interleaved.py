"""What an interleaved measurement of A and B tells.

Two engines of the very same configuration differ, too: by where in memory their weights came to lie, up to a percent
or two for a small model (LOG.md). So each round makes both anew, and gives one ratio; the interval is of rounds. Within
a round samples come in blocks, ABBA or BAAB, so that what changes steadily changes both sides alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from gptbench.compare.comparison import Row, geometric_mean
from gptbench.compare.ratio import KINDS, of_pairs, verdict
from gptbench.measure.samples import Sample
from gptbench.record.ab import AbResult
from gptbench.record.statistics import decode_rate, speed_metrics

HEADLINE = "decode_tokens_per_s"
"""The metric that decides when it ends, and what is said in the end."""
SHOWN = (HEADLINE, "tpot_p50_s", "tpot_p90_s", "tpot_p99_s", "ttft_s")
SURE = 0.001
"""Probability under which a drift is none of chance."""
CLOCKS_APART = 0.005
"""Share by which clocks must differ to be told."""


def rows(result: AbResult) -> list[Row]:
    """Each metric of a sample's own times; none without a whole block."""

    def value_of(metric: str) -> Callable[[Sample], float]:
        return lambda sample: speed_metrics(sample)[metric]

    found = [row_of(result, metric, value_of(metric)) for metric in SHOWN]
    return [row for row in found if row is not None]


def headline(result: AbResult) -> Row | None:
    """Decode tokens/s; None without a whole block."""
    return row_of(result, HEADLINE, decode_rate)


def row_of(result: AbResult, metric: str, value: Callable[[Sample], float]) -> Row | None:
    """One metric: each round is one ratio, the mean of its blocks'."""
    logarithms = log_ratios(result, value)
    if not logarithms:
        return None
    ratio = of_pairs(logarithms)
    sides: tuple[list[float], list[float]] = ([], [])
    for each in result.rounds:
        for pair in each.blocks():
            for side, samples in zip(sides, pair, strict=True):
                side.extend(map(value, samples))
    a, b = map(geometric_mean, sides)
    return Row(metric, a, b, ratio, verdict(ratio, KINDS[metric], result.margin), f"{len(logarithms)} rounds")


def log_ratios(result: AbResult, value: Callable[[Sample], float] = decode_rate) -> list[float]:
    """Of B over A, of each round with a whole block."""
    found = []
    for each in result.rounds:
        if blocks := each.blocks():
            a, b = ([value(sample) for pair in blocks for sample in pair[side]] for side in (0, 1))
            found.append(float(np.mean(np.log(b)) - np.mean(np.log(a))))
    return found


@dataclass(frozen=True)
class Drift:
    """A steady change of decode tokens/s."""

    change: float
    """Within rounds, reckoned up to the whole measurement, as a share: -0.02 is 2% slower in the end."""
    probability: float
    """Of a slope as steep as this by chance."""


def drift(result: AbResult) -> Drift | None:
    """By least squares on the logarithms: each side of each round has a level of its own, and all share one slope. None
    where that leaves nothing to judge it by, or the samples took no time."""
    times: list[float] = []
    values: list[float] = []
    levels = 0
    for each in result.rounds:
        for name in result.sides:
            at = [when for when, whose in zip(each.at_s, each.order, strict=True) if whose == name]
            own = [
                (when, np.log(decode_rate(sample)))
                for when, sample in zip(at, each.samples[name], strict=True)
                if not sample.compiles
            ]
            if own:
                levels += 1
                times += list(np.array([when for when, _ in own]) - np.mean([when for when, _ in own]))
                values += list(np.array([rate for _, rate in own]) - np.mean([rate for _, rate in own]))
    x, y = np.array(times), np.array(values)
    freedom = len(x) - levels - 1
    if freedom < 1 or not (x * x).sum():
        return None
    slope = float((x * y).sum() / (x * x).sum())
    error = float(((y - slope * x) ** 2).sum() / freedom / (x * x).sum()) ** 0.5
    probability = 2 * float(stdtr(freedom, -abs(slope) / error)) if error else float(slope == 0)
    return Drift(float(np.exp(slope * result.seconds)) - 1, probability)


def remarks(result: AbResult) -> list[str]:
    """What a reader must know beside the ratios: drift, clocks, throttling, samples that count for nothing."""
    told = []
    if (found := drift(result)) is not None and found.probability < SURE and abs(found.change) > result.margin:
        way = "slower" if found.change < 0 else "faster"
        told.append(
            f"both sides got {way}, at a rate of {abs(found.change):.1%} over {result.seconds:.0f} s; what is steady "
            "of that cancels within each block"
        )
    told += clock_remarks(result)
    for name in result.sides:
        samples = result.samples(name)
        if throttled := [sample for sample in samples if sample.throttled]:
            reasons = sorted({reason for sample in throttled if sample.state for reason in sample.state.throttled})
            told.append(f"{name}: {len(throttled)} of {len(samples)} samples throttled ({', '.join(reasons)})")
        if compiled := sum(1 for sample in samples if sample.compiles):
            told.append(f"{name}: {compiled} samples compiled something; their blocks are left out")
        if bad := sum(1 for sample in samples if not sample.finite):
            told.append(f"{name}: {bad} samples are not finite: these numbers measure nonsense")
    return told


def clock_remarks(result: AbResult) -> list[str]:
    """Whether the clock of the processors changed, or was another one for A than for B."""
    means = {name: [clock for sample in result.samples(name) if (clock := mean_clock(sample))] for name in result.sides}
    if not all(means.values()):
        return []
    told = []
    a, b = (float(np.mean(clocks)) for clocks in means.values())
    if abs(b / a - 1) > CLOCKS_APART:
        told.append(f"the clock was {a:.0f} MHz for A and {b:.0f} MHz for B: part of the difference may be the clock's")
    both = [clock for clocks in means.values() for clock in clocks]
    if max(both) / min(both) - 1 > 2 * CLOCKS_APART:
        told.append(f"the clock went from {min(both):.0f} to {max(both):.0f} MHz (means of samples)")
    return told


def mean_clock(sample: Sample) -> float | None:
    """MHz, of the readings during it; None where nothing tells."""
    return float(np.mean(sample.state.clock_mhz)) if sample.state is not None and sample.state.clock_mhz else None
