"""Statistics of a result, computed from its raw samples whenever they are read.

Percentiles of decode steps (`QUANTILES`) are of the pooled steps of all valid samples. Steps of one sample are alike,
so a run's steps say less of its percentiles than so many independent ones would: see `steps_interval` and
`steps_jackknife`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrik, stdtrit

from gptbench.schema.ab import AbResult
from gptbench.schema.compilation import Compilation
from gptbench.schema.result import Result
from gptbench.schema.sample import Sample
from gptbench.schema.steps import Steps, decode_rate, output_times


@dataclass(frozen=True)
class Metric:
    """One number of each sample. What is reported of a run is the median over its samples; of percentiles of decode
    steps, that of all their steps."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("decode_tokens_per_s", "tokens/s", "decode: tokens of all decode steps over the time of all of them"),
    Metric("tpot_p50_s", "s", "time per output token: median decode step"),
    Metric("tpot_p90_s", "s", "time per output token: 90th percentile of the decode steps"),
    Metric("tpot_p99_s", "s", "time per output token: 99th percentile of the decode steps"),
    Metric("ttft_s", "s", "time to first token: prefill and the drawing of its token"),
    Metric("decode_gb_per_s", "GB/s", "decode: bytes that a step needs over the time of a step"),
    Metric("mbu", "", "memory bandwidth utilisation: decode_gb_per_s over the read roof"),
    Metric("moved_gb_per_s", "GB/s", "decode: bytes that a step moves, padding included, over the time of a step"),
    Metric("seed_tokens_per_s", "tokens/s", "the seed's figure: all new tokens over the whole call, prefill included"),
    Metric("seed_gb_per_s", "GB/s", "the seed's figure: weights times seed_tokens_per_s"),
    Metric("peak_memory_bytes", "B", "most memory in use"),
)

QUANTILES = {"tpot_p50_s": 0.5, "tpot_p90_s": 0.9, "tpot_p99_s": 0.99}
"""Metrics that are percentiles of decode steps, and the share of the steps that are no longer."""
CONFIDENCE = 0.95
"""Of all intervals."""


def steps_percentile(samples: Sequence[Sample], metric: str) -> float:
    """One of `QUANTILES`, in seconds, of the steps of all samples together."""
    return float(np.quantile(np.concatenate(output_times(samples)), QUANTILES[metric]))


def steps_interval(samples: Sequence[Sample], metric: str) -> tuple[float | None, float | None]:
    """Ends of the 95% interval around one of `QUANTILES`, in seconds, for other samples of the same start.

    The ends are steps that were measured, chosen by their rank alone, whatever the distribution of steps is. How many
    independent steps these are worth follows from how much the share of short steps differs between samples (Korn and
    Graubard, Survey Methodology 24, 1998). An end is None where so many cannot tell: a 99th percentile of few steps has
    no upper end, of very few no lower end either, and a single sample has no interval.
    """
    groups = output_times(samples)
    steps, count, share = np.sort(np.concatenate(groups)), len(groups), QUANTILES[metric]
    if count < 2 or len(steps) < 2:
        return None, None
    value = np.quantile(steps, share)
    shares = [float(np.mean(group < value) + np.mean(group <= value)) / 2 for group in groups]
    variance = float(np.var(shares, ddof=1)) / count
    worth = min(float(len(steps)), share * (1 - share) / variance) if variance > 0 else float(len(steps))
    tail = (1 + CONFIDENCE) / 2
    worth *= float(stdtrit(len(steps) - 1, tail) / stdtrit(count - 1, tail)) ** 2
    independent = max(1, int(worth))
    below, above = (int(np.ceil(bdtrik(chance, independent, share))) for chance in (1 - tail, tail))
    low, high = below / independent * len(steps), (above + 1) / independent * len(steps)
    return (
        float(steps[int(low) - 1]) if low >= 1 and below < independent else None,
        float(steps[int(np.ceil(high)) - 1]) if above < independent else None,
    )


def steps_jackknife(samples: Sequence[Sample], metric: str) -> tuple[float, list[float]]:
    """One of `QUANTILES`, in seconds; and what it is without each of the samples, none for a single one."""
    groups, share = output_times(samples), QUANTILES[metric]
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


def speed_metrics(sample: Sample) -> dict[str, float]:
    """Those of `METRICS` that a sample's own times give."""
    values = np.quantile(Steps(sample).output_s, list(QUANTILES.values()))
    quantiles = {name: float(value) for name, value in zip(QUANTILES, values, strict=True)}
    return {"decode_tokens_per_s": decode_rate(sample), **quantiles, "ttft_s": sample.ttft_s}


def sample_metrics(result: Result, sample: Sample) -> dict[str, float]:
    """Every one of `METRICS` for one sample."""
    steps, traffic, batch = Steps(sample), result.traffic, len(sample.tokens)
    gb_per_s = float(steps.needed(traffic).sum()) / steps.total_s / 1e9
    seed_tokens_per_s = sum(map(len, sample.tokens)) / sample.call_s
    return speed_metrics(sample) | {
        "decode_gb_per_s": gb_per_s,
        "mbu": gb_per_s / result.roof.gb_per_s,
        "moved_gb_per_s": float(steps.moved(traffic).sum()) / steps.total_s / 1e9,
        "seed_tokens_per_s": seed_tokens_per_s,
        "seed_gb_per_s": steps.weights(traffic) * seed_tokens_per_s / batch / 1e9,
        "peak_memory_bytes": float(sample.peak_memory_bytes),
    }


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


def step_bytes(result: Result) -> StepBytes:
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


def log_middle(samples: Sequence[Sample], metric: str) -> float:
    """Logarithm of what a start comes to in decode tokens/s, TTFT or one of `QUANTILES`: the percentile of all its
    steps, or the geometric mean of its samples."""
    if metric in QUANTILES:
        return float(np.log(steps_percentile(samples, metric)))
    values = [decode_rate(sample) if metric == "decode_tokens_per_s" else sample.ttft_s for sample in samples]
    return float(np.mean(np.log(values)))


def log_middles(result: AbResult, metric: str = "decode_tokens_per_s") -> list[tuple[float, float]]:
    """Logarithms of what A and B come to in each round with a whole block."""
    found = []
    for each in result.rounds:
        if blocks := each.blocks():
            a, b = ([sample for pair in blocks for sample in pair[side]] for side in (0, 1))
            found.append((log_middle(a, metric), log_middle(b, metric)))
    return found


def log_ratios(result: AbResult, metric: str = "decode_tokens_per_s") -> list[float]:
    """Of B over A, of each round with a whole block."""
    return [b - a for a, b in log_middles(result, metric)]


def quantile_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Each of `QUANTILES` of all steps of the samples, and the ends of its 95% interval that there are, such as
    `tpot_p99_low_s`."""
    metrics = {}
    for name in QUANTILES:
        metrics[name] = steps_percentile(samples, name)
        for end, value in zip(("low", "high"), steps_interval(samples, name), strict=True):
            if value is not None:
                metrics[f"{name.removesuffix('_s')}_{end}_s"] = value
    return metrics


def valid_samples(result: Result) -> list[Sample]:
    """Samples during which nothing was compiled."""
    return [sample for sample in result.samples if not sample.compiles]


def compile_metrics(result: Result) -> dict[str, float]:
    """Compile times under the state of the cache that they met: compile_cold_s, compile_warm_s or compile_mixed_s.

    They are of processes that had compiled nothing before; of a job that follows others in a sweep they are called
    compile_cold_later_s and so on, and compile_cold_shared_s is what earlier jobs paid for what this one took over.
    The seed's figure is of a cold cache. An engine that compiles nothing has none.
    """
    metrics: dict[str, float] = {}
    for compilation in result.compilations:
        name = compilation_name(compilation)
        if compilation.cache != "none":
            metrics.setdefault(f"compile_{name}_s", compilation.total_s)
        if name == "cold" and compilation.seed_s is not None:
            metrics["seed_compile_s"] = compilation.seed_s
    return metrics


def compilation_name(compilation: Compilation) -> str:
    """cold, warm or mixed; with _later where the process did not begin with it, and _shared where it is none of this
    job's (see `Compilation`)."""
    later = "_later" if compilation.process == "later" else ""
    return compilation.cache + later + ("_shared" if compilation.shared else "")


def quality_metrics(result: Result) -> dict[str, float]:
    """What `task=quality` is for; empty without it.

    reference_perplexity: the reference's; it and the divergence are of bfloat16, whatever type the run has.
    perplexity: exp of the mean negative log-likelihood of the text's tokens; bits_per_byte: their sum over the text's
    bytes, which compares models of different tokenizers; kl_divergence: mean over tokens, nats; top1_agreement: share
    of tokens. Of random tokens there is no perplexity.
    """
    found = result.quality
    if found is None:
        return {}
    metrics: dict[str, float] = {}
    if found.text is not None and found.scored_bytes:
        metrics["perplexity"] = float(np.exp(np.mean(found.nll)))
        metrics["bits_per_byte"] = float(np.sum(found.nll) / np.log(2) / found.scored_bytes)
        if found.reference_nll:
            metrics["reference_perplexity"] = float(np.exp(np.mean(found.reference_nll)))
    if found.kl:
        metrics["kl_divergence"] = float(np.mean(found.kl))
        metrics["top1_agreement"] = float(np.mean(found.same_top))
    return metrics


def breakdown_metrics(result: Result) -> dict[str, float]:
    """Of the one decode step that was profiled: seconds, those in which nothing ran, and kernels launched."""
    found = result.breakdown
    if found is None:
        return {}
    return {
        "breakdown_step_s": found.step_s,
        "breakdown_gaps_s": found.gaps_s,
        "breakdown_launches": float(len(found.launches)),
    }


def energy_metrics(result: Result) -> dict[str, float]:
    """Joules per token and tokens per joule of prefill (tokens of the prompt) and decode (new tokens), without what the
    device uses while idle, which `idle_w` tells; empty where no energy was measured. Tokens per joule are left out
    where nothing is left after that."""
    found = result.energy
    if found is None:
        return {}
    metrics = {"idle_w": found.idle_w}
    for name, phase in (("prefill", found.prefill), ("decode", found.decode)):
        joules = phase.joules_per_token(found.idle_w)
        metrics |= {f"{name}_joules_per_token": joules, f"{name}_w": phase.watts}
        if joules > 0:
            metrics[f"{name}_tokens_per_joule"] = 1 / joules
    return metrics


def state_metrics(result: Result) -> dict[str, float]:
    """Clocks of processors and memory, power and temperature: median of all readings of the valid samples (see
    `DeviceState.during`), of what was told."""
    states = [sample.state for sample in valid_samples(result) if sample.state is not None]
    metrics = {}
    for name in ("clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
        if readings := [value for state in states for value in state.during(name)]:
            metrics[name] = float(np.median(readings))
    return metrics


def summary(result: Result) -> dict[str, float]:
    """Median of each metric over the valid samples, percentiles of all their decode steps with the ends of their
    intervals, then compile times, quality, a profiled step, energy, bytes, the roof and the device's state. Without a
    valid sample, those of samples are missing."""
    valid = valid_samples(result)
    rows = [sample_metrics(result, sample) for sample in valid]
    medians = {m.name: float(np.median([row[m.name] for row in rows])) for m in METRICS} if rows else {}
    return (
        medians
        | (quantile_metrics(valid) if rows else {})
        | compile_metrics(result)
        | quality_metrics(result)
        | breakdown_metrics(result)
        | energy_metrics(result)
        | state_metrics(result)
        | {
            "load_s": result.load_s,
            "weight_gb_per_step": step_bytes(result).weights / 1e9,
            "gb_per_step": step_bytes(result).needed / 1e9,
            "moved_gb_per_step": step_bytes(result).moved / 1e9,
            "read_roof_gb_per_s": result.roof.gb_per_s,
            "samples_valid": float(len(rows)),
            "samples_all": float(len(result.samples)),
            "samples_throttled": float(sum(sample.throttled for sample in valid)),
            "finite": float(all(sample.finite for sample in result.samples)),
        }
    )
