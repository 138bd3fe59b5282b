"""Evaluation of an interleaved measurement of A and B.

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
"""P-value below which a drift is reported."""


def rows(result: AbResult) -> list[Row]:
    """Return the row of each metric of the samples' times; empty without a complete block."""
    metric_rows = [row_of(result, metric) for metric in shown_in(View.interleaved)]
    return [row for row in metric_rows if row is not None]


def headline(result: AbResult) -> Row | None:
    """Return the row of the metric that decides when to stop, and that the conclusion is about; None without a complete
    block."""
    return row_of(result, METRICS[HEADLINE])


def row_of(result: AbResult, metric: Metric) -> Row | None:
    """Return the row of one metric, to which each round contributes the ratio of its two sides; None without a complete
    block."""
    round_means = log_middles(result, metric.name)
    if not round_means:
        return None
    a, b = (float(np.exp(np.mean(side))) for side in zip(*round_means, strict=True))
    ratio = ratio_of_pairs([of_b - of_a for of_a, of_b in round_means])
    return Row.from_ratio(metric, a, b, ratio, counted(len(round_means), "round"), result.margin)


@dataclass(frozen=True)
class Drift:
    """A steady change of one side's decode tokens/s."""

    side: str
    """Name of the side: A or B."""
    change: float
    """Relative change from the first round to the last: -0.02 is 2% slower."""
    probability: float
    """P-value: probability of a slope at least as steep by chance."""


def drifts(result: AbResult) -> list[Drift]:
    """Return the drift of each side, by least squares on the logarithms of its rounds; empty with fewer than four
    rounds."""
    from scipy.stats import linregress  # takes long to import

    fits = []
    for name in result.sides:
        rounds = [entry for entry in result.rounds if entry.blocks()]
        if len(rounds) < MIN_ROUNDS_FOR_DRIFT:
            continue
        x = np.array([np.mean(entry.at_s) for entry in rounds])
        y = np.array(
            [
                np.mean(np.log([decode_rate(sample) for sample in entry.samples[name] if not sample.compiles]))
                for entry in rounds
            ]
        )
        fit = linregress(x, y)
        fits.append(Drift(name, float(np.exp(fit.slope * (x[-1] - x[0]))) - 1, float(fit.pvalue)))
    return fits


MIN_ROUNDS_FOR_DRIFT = 4


def remarks(result: AbResult) -> list[str]:
    """Return caveats to the ratios: different work, drift, rounds on a busy machine, clocks, throttling, and invalid
    samples."""
    lines = []
    if (different := different_work([side.config["workload"] for side in result.sides.values()])) is not None:
        lines.append(different)
    for drift in drifts(result):
        if drift.probability < SURE and abs(drift.change) > result.margin:
            way = "slower" if drift.change < 0 else "faster"
            lines.append(
                f"{drift.side} got {way} by {abs(drift.change):.1%} from the first round to the last; drift common to "
                "both sides cancels within each block"
            )
    if busy := result.busy_rounds():
        reasons_by_round = ". ".join(f"Round {number}: {'; '.join(reasons)}" for number, reasons in busy.items())
        lines.append(f"{len(busy)} of {len(result.rounds)} rounds were measured on a busy machine. {reasons_by_round}")
    lines += clock_remarks(result)
    for name in result.sides:
        samples = result.samples(name)
        if (throttled := throttling(samples)) is not None:
            lines.append(f"{name}: {throttled}")
        if compiled := sum(1 for sample in samples if sample.compiles):
            lines.append(f"{name}: {counted(compiled, 'sample')} compiled something; their blocks are left out")
        if bad := sum(1 for sample in samples if not sample.finite):
            lines.append(
                f"{name}: {counted(bad, 'sample')} with values that are not finite: these numbers mean nothing"
            )
    return lines


def clock_remarks(result: AbResult) -> list[str]:
    """Return remarks on clocks that changed, or that differed between A and B: the processors' clock, and that of the
    memory, which bounds decode."""
    lines = []
    for clock_name, name in CLOCKS.items():
        a, b = ([clock for sample in result.samples(side) if (clock := mean_clock(sample, name))] for side in "AB")
        if not a or not b:
            continue
        lines += clock_remark(a, b, clock_name)
        both = a + b
        if max(both) / min(both) - 1 > 2 * MIN_CLOCK_DIFFERENCE:
            lines.append(f"{clock_name} varied from {min(both):.0f} to {max(both):.0f} MHz (means of samples)")
    return lines


def mean_clock(sample: Sample, name: str) -> float | None:
    """Return the mean of a clock's readings during a sample, in MHz; None without readings."""
    readings = [] if sample.state is None else sample.state.during(name)
    return float(np.mean(readings)) if readings else None
