"""What an interleaved measurement of A and B tells.

Each block of samples, ABBA or BAAB, gives one ratio; what changes steadily meanwhile changes both sides of it alike. So
the interval is of independent blocks, however much the device drifts.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from gptbench.compare.comparison import Row, geometric_mean
from gptbench.compare.ratio import KINDS, of_pairs, verdict
from gptbench.measure.samples import Sample
from gptbench.record.ab import AbResult, Side
from gptbench.record.statistics import speed_metrics

HEADLINE = "decode_tokens_per_s"
"""The metric that decides when it ends, and what is said in the end."""
SURE = 0.001
"""Probability under which a drift is none of chance."""
CLOCKS_APART = 0.005
"""Share by which clocks must differ to be told."""


def rows(result: AbResult) -> list[Row]:
    """Each metric of a sample's own times; none without a whole block."""
    blocks = [tuple([speed_metrics(sample) for sample in side] for side in pair) for pair in result.blocks()]
    if not blocks:
        return []
    found = []
    for metric in blocks[0][0][0]:
        a, b = ([[each[metric] for each in pair[side]] for pair in blocks] for side in (0, 1))
        ratios = [float(np.mean(np.log(b[n])) - np.mean(np.log(a[n]))) for n in range(len(blocks))]
        ratio = of_pairs(ratios)
        middles = [geometric_mean([value for block in side for value in block]) for side in (a, b)]
        told = verdict(ratio, KINDS[metric], result.margin)
        found.append(Row(metric, middles[0], middles[1], ratio, told, f"{len(blocks)} blocks"))
    return found


@dataclass(frozen=True)
class Drift:
    """A steady change of decode tokens/s."""

    change: float
    """Over the whole measurement, as a share: -0.02 is 2% slower in the end."""
    probability: float
    """Of a slope as steep as this by chance."""


def drift(result: AbResult) -> Drift | None:
    """By least squares on the logarithms, one slope for both sides; None with less than two blocks."""
    times: list[float] = []
    values: list[float] = []
    for name, side in result.sides.items():
        at = [when for when, whose in zip(result.at_s, result.order, strict=True) if whose == name]
        rates = [np.log(speed_metrics(sample)[HEADLINE]) for sample in side.samples]
        own = [(t, r) for t, r, s in zip(at, rates, side.samples, strict=True) if not s.compiles]
        if len(own) < BLOCKS_FOR_DRIFT * 2:
            return None
        times += list(np.array([t for t, _ in own]) - np.mean([t for t, _ in own]))
        values += list(np.array([r for _, r in own]) - np.mean([r for _, r in own]))
    x, y = np.array(times), np.array(values)
    slope = float((x * y).sum() / (x * x).sum())
    freedom = len(x) - 3  # two means and a slope
    error = float(((y - slope * x) ** 2).sum() / freedom / (x * x).sum()) ** 0.5
    probability = 2 * float(stdtr(freedom, -abs(slope) / error)) if error else float(slope == 0)
    return Drift(float(np.exp(slope * (max(result.at_s) - min(result.at_s)))) - 1, probability)


BLOCKS_FOR_DRIFT = 2


def remarks(result: AbResult) -> list[str]:
    """What a reader must know beside the ratios: drift, clocks, throttling, samples that count for nothing."""
    told = []
    if (found := drift(result)) is not None and found.probability < SURE and abs(found.change) > result.margin:
        way = "slower" if found.change < 0 else "faster"
        told.append(
            f"both sides got {way} by {abs(found.change):.1%} over {result.seconds:.0f} s; what is steady of that "
            "cancels within each block"
        )
    told += clock_remarks(result)
    for name, side in result.sides.items():
        throttled = [sample for sample in side.samples if sample.throttled]
        if throttled:
            reasons = sorted({reason for sample in throttled if sample.state for reason in sample.state.throttled})
            told.append(f"{name}: {len(throttled)} of {len(side.samples)} samples throttled ({', '.join(reasons)})")
        if compiled := sum(1 for sample in side.samples if sample.compiles):
            told.append(f"{name}: {compiled} samples compiled something; their blocks are left out")
        if bad := sum(1 for sample in side.samples if not sample.finite):
            told.append(f"{name}: {bad} samples are not finite: these numbers measure nonsense")
    return told


def clock_remarks(result: AbResult) -> list[str]:
    """Whether the clock of the processors changed, or was another one for A than for B."""
    means = {name: [clock for sample in side.samples if (clock := mean_clock(sample))] for name, side in sides(result)}
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


def sides(result: AbResult) -> list[tuple[str, Side]]:
    return list(result.sides.items())


def mean_clock(sample: Sample) -> float | None:
    """MHz, of the readings during it; None where nothing tells."""
    return float(np.mean(sample.state.clock_mhz)) if sample.state is not None and sample.state.clock_mhz else None
