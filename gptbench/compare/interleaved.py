"""What an interleaved measurement of A and B tells.

Two engines of the very same configuration differ, too: by where in memory their weights came to lie, up to a percent or
two for a small model (docs/log). So each round makes both anew, and gives one ratio; the interval is of rounds. Within
a round samples come in blocks, ABBA or BAAB, so that what changes steadily changes both sides alike.
"""

from dataclasses import dataclass

import numpy as np

from gptbench.base.errors import counted
from gptbench.compare.comparison import CLOCKS, MIN_CLOCK_DIFFERENCE, clock_remark
from gptbench.compare.ratio import ratio_of_pairs
from gptbench.compare.row import Row
from gptbench.compare.work import different_work
from gptbench.schema.ab import AbResult
from gptbench.schema.metrics import HEADLINE, METRICS, Metric, View, shown_in
from gptbench.schema.sample import Sample, throttling
from gptbench.schema.steps import decode_rate
from gptbench.schema.summary import log_middles

SURE = 0.01
"""Probability under which a drift is none of chance."""


def rows(result: AbResult) -> list[Row]:
    """Each metric of the samples' times; none without a whole block."""
    found = [row_of(result, metric) for metric in shown_in(View.interleaved)]
    return [row for row in found if row is not None]


def headline(result: AbResult) -> Row | None:
    """The metric that decides when it ends, and what is said in the end; None without a whole block."""
    return row_of(result, METRICS[HEADLINE])


def row_of(result: AbResult, metric: Metric) -> Row | None:
    """One metric: each round is one ratio, of what the two sides come to in it."""
    middles = log_middles(result, metric.name)
    if not middles:
        return None
    a, b = (float(np.exp(np.mean(side))) for side in zip(*middles, strict=True))
    ratio = ratio_of_pairs([other - own for own, other in middles])
    return Row.from_ratio(metric, a, b, ratio, f"{len(middles)} round{'s' * (len(middles) > 1)}", result.margin)


@dataclass(frozen=True)
class Drift:
    """A steady change of one side's decode tokens/s."""

    side: str
    change: float
    """From the first round to the last, as a share: -0.02 is 2% slower."""
    probability: float
    """Of a slope as steep as this by chance."""


def drifts(result: AbResult) -> list[Drift]:
    """Of each side, by least squares on the logarithms of its rounds; none of fewer than four rounds."""
    from scipy.stats import linregress  # takes long to import

    found = []
    for name in result.sides:
        rounds = [each for each in result.rounds if each.blocks()]
        if len(rounds) < MIN_ROUNDS_FOR_DRIFT:
            continue
        x = np.array([np.mean(each.at_s) for each in rounds])
        y = np.array(
            [np.mean(np.log([decode_rate(one) for one in each.samples[name] if not one.compiles])) for each in rounds]
        )
        fit = linregress(x, y)
        found.append(Drift(name, float(np.exp(fit.slope * (x[-1] - x[0]))) - 1, float(fit.pvalue)))
    return found


MIN_ROUNDS_FOR_DRIFT = 4


def remarks(result: AbResult) -> list[str]:
    """What a reader must know beside the ratios: that the sides do not do the same work; drift, rounds on
    a busy machine, clocks, throttling, samples that count for nothing."""
    told = []
    if (other := different_work([side.config["workload"] for side in result.sides.values()])) is not None:
        told.append(other)
    for drift in drifts(result):
        if drift.probability < SURE and abs(drift.change) > result.margin:
            way = "slower" if drift.change < 0 else "faster"
            told.append(
                f"{drift.side} got {way} by {abs(drift.change):.1%} from the first round to the last; what both sides "
                "share of that cancels within each block"
            )
    if marked := result.busy_rounds():
        each = ". ".join(f"Round {number}: {'; '.join(reasons)}" for number, reasons in marked.items())
        told.append(f"{len(marked)} of {len(result.rounds)} rounds were measured on a busy machine. {each}")
    told += clock_remarks(result)
    for name in result.sides:
        samples = result.samples(name)
        if (held_back := throttling(samples)) is not None:
            told.append(f"{name}: {held_back}")
        if compiled := sum(1 for sample in samples if sample.compiles):
            told.append(f"{name}: {counted(compiled, 'sample')} compiled something; their blocks are left out")
        if bad := sum(1 for sample in samples if not sample.finite):
            told.append(f"{name}: {counted(bad, 'sample')} not finite: these numbers measure nonsense")
    return told


def clock_remarks(result: AbResult) -> list[str]:
    """Whether a clock changed, or was another one for A than for B: that of the processors, or that of the memory, by
    which decode is bound."""
    told = []
    for which, name in CLOCKS.items():
        a, b = ([clock for sample in result.samples(side) if (clock := mean_clock(sample, name))] for side in "AB")
        if not a or not b:
            continue
        told += clock_remark(a, b, which)
        both = a + b
        if max(both) / min(both) - 1 > 2 * MIN_CLOCK_DIFFERENCE:
            told.append(f"{which} went from {min(both):.0f} to {max(both):.0f} MHz (means of samples)")
    return told


def mean_clock(sample: Sample, name: str) -> float | None:
    """MHz, of the readings of that name during it; None where nothing tells."""
    readings = [] if sample.state is None else sample.state.during(name)
    return float(np.mean(readings)) if readings else None
