"""What is computed of raw samples and of records, whenever they are read: the formulas of `gptbench.schema.metrics`.

Percentiles of decode steps are of the pooled steps of all valid samples. Steps of one sample are alike, so a run's
steps say less of its percentiles than so many independent ones would: see `steps_interval` and `steps_jackknife`.
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
"""Of all intervals."""


def student(freedom: float) -> float:
    """Half the width of the interval of `CONFIDENCE` around a mean, in its standard errors, with so many degrees of
    freedom."""
    from scipy.special import stdtrit  # which takes as long to import as all else

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def steps_percentile(samples: Sequence[Sample], share: float) -> float:
    """Seconds that so large a share of the steps of all samples together took at most."""
    return float(np.quantile(np.concatenate(output_times(samples)), share))


def steps_interval(samples: Sequence[Sample], share: float) -> tuple[float | None, float | None]:
    """Ends of the 95% interval around `steps_percentile`, in seconds, for other samples of the same start.

    The ends are steps that were measured, chosen by their rank alone, whatever the distribution of steps is. How many
    independent steps these are worth follows from how much the share of short steps differs between samples (Korn and
    Graubard, Survey Methodology 24, 1998). An end is None where so many cannot tell: a 99th percentile of few steps has
    no upper end, of very few no lower end either, and a single sample has no interval.
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
    """`steps_percentile`; and what it is without each of the samples, none for a single one."""
    groups = output_times(samples)
    steps = np.concatenate(groups)
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    rank = np.empty(len(steps), dtype=np.int64)
    rank[order] = np.arange(len(steps))
    without = []
    for gone in np.split(rank, np.cumsum([len(group) for group in groups])[:-1]) if len(groups) > 1 else ():
        left = len(steps) - len(gone)
        before = np.sort(gone) - np.arange(len(gone))  # of each step that goes, how many that stay are shorter
        place = (left - 1) * share
        near = np.array([int(place), min(int(place) + 1, left - 1)])
        a, b = ordered[near + np.searchsorted(before, near, side="right")]
        without.append(float(a + (b - a) * (place - int(place))))
    return float(np.quantile(ordered, share)), without


# Of one sample


def output_rate(sample: Sample, *_: object) -> float:
    """Tokens/s of all decode steps."""
    return Steps(sample).tokens_per_s


def output_quantile(sample: Sample, *_: object, share: float) -> float:
    """Seconds that so large a share of a sample's output tokens took at most."""
    return float(np.quantile(Steps(sample).output_s, share))


def decode_bandwidth(sample: Sample, traffic: Traffic, *_: object) -> float:
    """GB/s: bytes that the steps need over their time."""
    steps = Steps(sample)
    return float(steps.needed(traffic).sum()) / steps.total_s / 1e9


def moved_bandwidth(sample: Sample, traffic: Traffic, *_: object) -> float:
    """GB/s: bytes that the engine moves for the steps over their time."""
    steps = Steps(sample)
    return float(steps.moved(traffic).sum()) / steps.total_s / 1e9


def bandwidth_utilisation(sample: Sample, traffic: Traffic, roof: Roof) -> float:
    """MBU, a share of the read roof."""
    return decode_bandwidth(sample, traffic) / roof.gb_per_s


def call_rate(sample: Sample, *_: object) -> float:
    """Tokens/s of the whole call, prefill included."""
    return sum(map(len, sample.tokens)) / sample.call_s


def call_bandwidth(sample: Sample, traffic: Traffic, *_: object) -> float:
    """GB/s: weights times the call's tokens/s of one row."""
    return Steps(sample).weights(traffic) * call_rate(sample) / len(sample.tokens) / 1e9


# Of a result


def valid_samples(result: "Result") -> list[Sample]:
    """Samples during which nothing was compiled."""
    return [sample for sample in result.samples if not sample.compiles]


def interval_end(result: "Result", share: float, end: int) -> float | None:
    """The lower (0) or the upper (1) end of `steps_interval`, of the valid samples."""
    samples = valid_samples(result)
    return steps_interval(samples, share)[end] if samples else None


@dataclass(frozen=True)
class StepBytes:
    """Of the mean decode step of a run's valid samples, or, where there is none, as few as possible."""

    tokens: float
    """That it emits, for all rows together."""
    weights: float
    """That it needs."""
    needed: float
    """Weights, keys and values that it needs."""
    moved: float
    """That the engine reads and writes for it."""


def step_bytes(result: "Result") -> StepBytes:
    """What a run's samples read on average: of a mixture, each sample has its own experts."""
    traffic, steps = result.traffic, [Steps(sample) for sample in valid_samples(result)]
    if not steps:
        batch = result.config["workload"]["batch_size"]
        return StepBytes(batch, traffic.weights, float(np.mean(traffic.needed())), float(np.mean(traffic.moved())))
    return StepBytes(
        tokens=float(np.mean([each.tokens_per_step for each in steps])),
        weights=float(np.mean([each.weights(traffic) for each in steps])),
        needed=float(np.mean(np.concatenate([each.needed(traffic) for each in steps]))),
        moved=float(np.mean(np.concatenate([each.moved(traffic) for each in steps]))),
    )


def compile_time(compilations: Sequence[Compilation], name: str) -> float | None:
    """Seconds of the first compilation of that `metric`; None where there is none."""
    return next((one.total_s for one in compilations if one.metric == name), None)


def call_compile_time(compilations: Sequence[Compilation]) -> float | None:
    """The seed's figure, which is of a cold cache."""
    found = [one.seed_s for one in compilations if one.metric == "cold"]
    return next((seconds for seconds in reversed(found) if seconds is not None), None)


def device_state(result: "Result", name: str) -> float | None:
    """Median of all readings of the valid samples (see `DeviceState.during`); None where nothing was read."""
    states = [sample.state for sample in valid_samples(result) if sample.state is not None]
    readings = [value for state in states for value in state.during(name)]
    return float(np.median(readings)) if readings else None


# Of a text that was predicted; of random tokens there is no perplexity


def has_text(found: Predictions) -> bool:
    return found.text is not None and bool(found.scored_bytes)


def perplexity(found: Predictions) -> float | None:
    return float(np.exp(np.mean(found.nll))) if has_text(found) else None


def bits_per_byte(found: Predictions) -> float | None:
    return float(np.sum(found.nll) / np.log(2) / found.scored_bytes) if has_text(found) else None


def reference_perplexity(found: Predictions) -> float | None:
    return float(np.exp(np.mean(found.reference_nll))) if has_text(found) and found.reference_nll else None


def divergence(found: Predictions) -> float | None:
    return float(np.mean(found.kl)) if found.kl else None


def agreement(found: Predictions) -> float | None:
    return float(np.mean(found.same_top)) if found.kl else None


# Of energy, without what the device uses while idle


def joules_per_token(found: Energy, phase: str) -> float:
    return float(getattr(found, phase).joules_per_token(found.idle_w))


def tokens_per_joule(found: Energy, phase: str) -> float | None:
    """None where nothing is left."""
    joules = joules_per_token(found, phase)
    return 1 / joules if joules > 0 else None


def watts(found: Energy, phase: str) -> float:
    """With what it uses while idle."""
    return float(getattr(found, phase).watts)
