"""What the metrics of the registry come to for a record."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptbench.schema.machine import Roof
from gptbench.schema.metrics import HEADLINE, METRICS, Metric, View, metric_of, shown_in
from gptbench.schema.sample import Sample, Traffic
from gptbench.schema.statistics import steps_percentile, valid_samples

if TYPE_CHECKING:
    from gptbench.schema.ab import AbResult
    from gptbench.schema.result import Result


def sample_metrics(result: "Result", sample: Sample) -> dict[str, float]:
    """Every metric that a sample has of itself."""
    return metrics_of(list(METRICS.values()), sample, result.traffic, result.roof)


def interleaved_metrics(result: "AbResult", side: str, sample: Sample) -> dict[str, float]:
    """The same of an interleaved measurement, as far as they are compared there."""
    return metrics_of(shown_in(View.interleaved), sample, result.sides[side].traffic, result.roof)


def metrics_of(metrics: Sequence[Metric], sample: Sample, traffic: Traffic, roof: Roof) -> dict[str, float]:
    """Those that one sample has."""
    found = {one.name: one.of_sample(sample, traffic, roof) for one in metrics if one.of_sample is not None}
    return {name: value for name, value in found.items() if value is not None}


def summary(result: "Result") -> dict[str, float]:
    """Each metric of the registry that the run has, in its order: of those that samples have the median over the valid
    ones, or the percentile of all their decode steps."""
    found = {name: value_of(one, result, result.sampled) for name, one in METRICS.items()}
    return {name: value for name, value in found.items() if value is not None}


def value_of(one: Metric, result: "Result", rows: Sequence[dict[str, float]]) -> float | None:
    """Of one metric; None where the run does not have it.

    Args:
        rows: metrics of its valid samples.
    """
    if one.of_sample is not None:
        if rows and one.share is not None:
            return steps_percentile(valid_samples(result), one.share)
        values = [row[one.name] for row in rows if one.name in row]
        return float(np.median(values)) if values else None
    part = getattr(result, one.part) if one.part else result
    return None if one.of is None or part is None else one.of(part)


def part_metrics(result: "Result", part: str) -> dict[str, float]:
    """Those of one part of a run, such as `quality`."""
    found = {name: value_of(one, result, ()) for name, one in METRICS.items() if one.part == part}
    return {name: value for name, value in found.items() if value is not None}


def log_middles(result: "AbResult", name: str = HEADLINE) -> list[tuple[float, float]]:
    """Logarithms of what A and B come to in a metric, in each round with a whole block."""
    found = []
    for each in result.rounds:
        if blocks := each.blocks():
            a, b = ([sample for pair in blocks for sample in pair[side]] for side in (0, 1))
            found.append((log_middle(result, "A", a, name), log_middle(result, "B", b, name)))
    return found


def log_middle(result: "AbResult", side: str, samples: Sequence[Sample], name: str) -> float:
    """Logarithm of what a start comes to: the percentile of all its steps, or the geometric mean of its samples."""
    one, traffic = metric_of(name), result.sides[side].traffic
    if one.share is not None:
        return float(np.log(steps_percentile(samples, one.share)))
    return float(np.mean(np.log([metrics_of([one], sample, traffic, result.roof)[name] for sample in samples])))


def log_ratios(result: "AbResult") -> list[float]:
    """Of B over A in decode tokens/s, of each round with a whole block."""
    return [b - a for a, b in log_middles(result)]
