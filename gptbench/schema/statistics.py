"""Statistics computed from raw samples and records whenever they are read: the formulas of `gptbench.schema.metrics`.

Percentiles of decode steps are those of the pooled steps of all valid samples. Steps of one sample resemble each other,
so the steps of a run say less about its percentiles than as many independent ones would: see `steps_interval` and
`steps_jackknife`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptbench.schema.compilation import Compilation
from gptbench.schema.energy import Energy
from gptbench.schema.machine import Roof
from gptbench.schema.quality import Predictions
from gptbench.schema.sample import Sample, Traffic
from gptbench.schema.steps import Steps, output_times

if TYPE_CHECKING:
    from gptbench.schema.result import Result

CONFIDENCE = 0.95
"""Level of all confidence intervals."""


def student(freedom: float) -> float:
    """Return half the width of a `CONFIDENCE` interval around a mean, in standard errors, for that many degrees of
    freedom."""
    from scipy.special import stdtrit  # importing it takes as long as everything else

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def steps_percentile(samples: Sequence[Sample], share: float) -> float:
    """Return the percentile of the pooled steps of all samples, in seconds; `share` is 0.99 for p99."""
    return float(np.quantile(np.concatenate(output_times(samples)), share))


def steps_interval(samples: Sequence[Sample], share: float) -> tuple[float | None, float | None]:
    """Return the ends of the 95% interval around `steps_percentile`, in seconds, for further samples of the same
    process.

    The ends are steps that were measured, chosen by their rank alone, whatever the distribution of steps is. How many
    independent steps these are worth follows from how much the share of short steps differs between samples (Korn and
    Graubard, Survey Methodology 24, 1998). An end is None where there are too few steps for it: the 99th percentile of
    few steps has no upper end, that of very few no lower end either, and a single sample has no interval.
    """
    from scipy.special import bdtrik

    groups = output_times(samples)
    steps, count = np.sort(np.concatenate(groups)), len(groups)
    if count < 2 or len(steps) < 2:
        return None, None
    value = np.quantile(steps, share)
    shares = [float(np.mean(group < value) + np.mean(group <= value)) / 2 for group in groups]
    variance = float(np.var(shares, ddof=1)) / count
    worth = min(float(len(steps)), share * (1 - share) / variance) if variance > 0 else float(len(steps))
    tail = (1 + CONFIDENCE) / 2
    worth *= (student(len(steps) - 1) / student(count - 1)) ** 2
    independent = max(1, int(worth))
    below, above = (int(np.ceil(bdtrik(chance, independent, share))) for chance in (1 - tail, tail))
    low, high = below / independent * len(steps), (above + 1) / independent * len(steps)
    return (
        float(steps[int(low) - 1]) if low >= 1 and below < independent else None,
        float(steps[int(np.ceil(high)) - 1]) if above < independent else None,
    )


def steps_jackknife(samples: Sequence[Sample], share: float) -> tuple[float, list[float]]:
    """Return `steps_percentile`, and its values with each of the samples left out in turn (an empty list for a single
    sample)."""
    groups = output_times(samples)
    steps = np.concatenate(groups)
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    rank = np.empty(len(steps), dtype=np.int64)
    rank[order] = np.arange(len(steps))
    without = []
    for left_out in np.split(rank, np.cumsum([len(group) for group in groups])[:-1]) if len(groups) > 1 else ():
        left = len(steps) - len(left_out)
        before = np.sort(left_out) - np.arange(
            len(left_out)
        )  # for each step left out, how many of the others are shorter
        place = (left - 1) * share
        near = np.array([int(place), min(int(place) + 1, left - 1)])
        a, b = ordered[near + np.searchsorted(before, near, side="right")]
        without.append(float(a + (b - a) * (place - int(place))))
    return float(np.quantile(ordered, share)), without


# Metrics of one sample


def output_rate(sample: Sample, *_: object) -> float:
    """Return the tokens/s of all decode steps."""
    return Steps(sample).tokens_per_s


def output_quantile(sample: Sample, *_: object, share: float) -> float:
    """Return a quantile of the seconds per output token of one sample."""
    return float(np.quantile(Steps(sample).output_s, share))


def decode_bandwidth(sample: Sample, traffic: Traffic, *_: object) -> float:
    """Return the bytes that the steps need over their time, in GB/s."""
    steps = Steps(sample)
    return float(steps.needed(traffic).sum()) / steps.total_s / 1e9


def moved_bandwidth(sample: Sample, traffic: Traffic, *_: object) -> float:
    """Return the bytes that the engine moves for the steps over their time, in GB/s."""
    steps = Steps(sample)
    return float(steps.moved(traffic).sum()) / steps.total_s / 1e9


def bandwidth_utilisation(sample: Sample, traffic: Traffic, roof: Roof) -> float:
    """Return MBU as a share of the read roof."""
    return decode_bandwidth(sample, traffic) / roof.gb_per_s


def call_rate(sample: Sample, *_: object) -> float:
    """Return the tokens/s of the whole call, prefill included."""
    return sum(map(len, sample.tokens)) / sample.call_s


def call_bandwidth(sample: Sample, traffic: Traffic, *_: object) -> float:
    """Return the bytes of the weights times the call's tokens/s of one row, in GB/s."""
    return Steps(sample).weights(traffic) * call_rate(sample) / len(sample.tokens) / 1e9


# Metrics of a result


def valid_samples(result: "Result") -> list[Sample]:
    """Return the samples during which nothing was compiled."""
    return [sample for sample in result.samples if not sample.compiles]


def interval_end(result: "Result", share: float, end: int) -> float | None:
    """Return the lower (`end` 0) or upper (1) end of `steps_interval` over the valid samples."""
    samples = valid_samples(result)
    return steps_interval(samples, share)[end] if samples else None


@dataclass(frozen=True)
class StepBytes:
    """Bytes of the mean decode step over a run's valid samples; without a valid sample, the fewest that are
    possible."""

    tokens: float
    """Tokens that the step emits, for all rows together."""
    weights: float
    """Bytes of weights that the step needs."""
    needed: float
    """Bytes of weights, keys and values that the step needs."""
    moved: float
    """Bytes that the engine reads and writes for the step."""


def step_bytes(result: "Result") -> StepBytes:
    """Return the mean bytes of a step over a run's samples; in a mixture, each sample chooses other experts."""
    traffic, steps = result.traffic, [Steps(sample) for sample in valid_samples(result)]
    if not steps:
        batch = result.config["workload"]["batch_size"]
        return StepBytes(batch, traffic.weights, float(np.mean(traffic.needed())), float(np.mean(traffic.moved())))
    return StepBytes(
        tokens=float(np.mean([sample.tokens_per_step for sample in steps])),
        weights=float(np.mean([sample.weights(traffic) for sample in steps])),
        needed=float(np.mean(np.concatenate([sample.needed(traffic) for sample in steps]))),
        moved=float(np.mean(np.concatenate([sample.moved(traffic) for sample in steps]))),
    )


def compile_time(compilations: Sequence[Compilation], name: str) -> float | None:
    """Return the seconds of the first compilation with that `metric`; None if there is none."""
    return next((entry.total_s for entry in compilations if entry.metric == name), None)


def call_compile_time(compilations: Sequence[Compilation]) -> float | None:
    """Return gpt_fast's compile time, which is that with a cold cache; None if there is none."""
    cold = [entry.gptfast_s for entry in compilations if entry.metric == "cold"]
    return next((seconds for seconds in reversed(cold) if seconds is not None), None)


def device_state(result: "Result", name: str) -> float | None:
    """Return the median of all readings during the valid samples (see `DeviceState.during`); None if there are none."""
    states = [sample.state for sample in valid_samples(result) if sample.state is not None]
    readings = [value for state in states for value in state.during(name)]
    return float(np.median(readings)) if readings else None


# Metrics of a predicted text; random tokens have no perplexity


def has_text(predictions: Predictions) -> bool:
    return predictions.text is not None and bool(predictions.scored_bytes)


def perplexity(predictions: Predictions) -> float | None:
    return float(np.exp(np.mean(predictions.nll))) if has_text(predictions) else None


def bits_per_byte(predictions: Predictions) -> float | None:
    return float(np.sum(predictions.nll) / np.log(2) / predictions.scored_bytes) if has_text(predictions) else None


def reference_perplexity(predictions: Predictions) -> float | None:
    return (
        float(np.exp(np.mean(predictions.reference_nll)))
        if has_text(predictions) and predictions.reference_nll
        else None
    )


def divergence(predictions: Predictions) -> float | None:
    return float(np.mean(predictions.kl)) if predictions.kl else None


def agreement(predictions: Predictions) -> float | None:
    return float(np.mean(predictions.same_top)) if predictions.kl else None


# Metrics of energy above the idle power


def joules_per_token(energy: Energy, phase: str) -> float:
    return float(getattr(energy, phase).joules_per_token(energy.idle_w))


def tokens_per_joule(energy: Energy, phase: str) -> float | None:
    """Return the tokens per joule above the idle power; None if nothing is above it."""
    joules = joules_per_token(energy, phase)
    return 1 / joules if joules > 0 else None


def watts(energy: Energy, phase: str) -> float:
    """Return the mean power of a phase, idle power included."""
    return float(getattr(energy, phase).watts)
