"""Values of the registry's metrics for a record."""

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
    """Return every metric that a single sample has."""
    return metrics_of(list(METRICS.values()), sample, result.traffic, result.roof)


def interleaved_metrics(result: "AbResult", side: str, sample: Sample) -> dict[str, float]:
    """Return the metrics of a sample of an interleaved measurement that are compared there."""
    return metrics_of(shown_in(View.interleaved), sample, result.sides[side].traffic, result.roof)


def metrics_of(metrics: Sequence[Metric], sample: Sample, traffic: Traffic, roof: Roof) -> dict[str, float]:
    """Return those of the metrics that one sample has."""
    values = {
        metric.name: metric.of_sample(sample, traffic, roof) for metric in metrics if metric.of_sample is not None
    }
    return {name: value for name, value in values.items() if value is not None}


def summary(result: "Result") -> dict[str, float]:
    """Return each metric of the run, in the registry's order: the median over the valid samples, or the percentile of
    all their decode steps."""
    values = {name: value_of(metric, result, result.sampled) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}


def value_of(metric: Metric, result: "Result", rows: Sequence[dict[str, float]]) -> float | None:
    """Return the value of one metric; None if the run does not have it.

    Args:
        rows: metrics of each valid sample.
    """
    if metric.of_sample is not None:
        if rows and metric.share is not None:
            return steps_percentile(valid_samples(result), metric.share)
        values = [row[metric.name] for row in rows if metric.name in row]
        return float(np.median(values)) if values else None
    part = getattr(result, metric.part) if metric.part else result
    return None if metric.of is None or part is None else metric.of(part)


def part_metrics(result: "Result", part: str) -> dict[str, float]:
    """Return the metrics of one part of a run, such as `quality`."""
    values = {name: value_of(metric, result, ()) for name, metric in METRICS.items() if metric.part == part}
    return {name: value for name, value in values.items() if value is not None}


def log_middles(result: "AbResult", name: str = HEADLINE) -> list[tuple[float, float]]:
    """Return the logarithms of a metric's values for A and B, for each round with a whole block."""
    middles = []
    for taken in result.rounds:
        if blocks := taken.blocks():
            a, b = ([sample for pair in blocks for sample in pair[side]] for side in (0, 1))
            middles.append((log_middle(result, "A", a, name), log_middle(result, "B", b, name)))
    return middles


def log_middle(result: "AbResult", side: str, samples: Sequence[Sample], name: str) -> float:
    """Return the logarithm of a metric's value for one engine of a round: the percentile of all its steps, or the
    geometric mean over its samples."""
    metric, traffic = metric_of(name), result.sides[side].traffic
    if metric.share is not None:
        return float(np.log(steps_percentile(samples, metric.share)))
    return float(np.mean(np.log([metrics_of([metric], sample, traffic, result.roof)[name] for sample in samples])))


def log_ratios(result: "AbResult") -> list[float]:
    """Return the logarithms of the ratio B over A of decode tokens/s, for each round with a whole block."""
    return [b - a for a, b in log_middles(result)]
