"""Statistics of a result, computed from its raw samples whenever they are read."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptbench.measure.compilation import Compilation
from gptbench.measure.samples import Sample
from gptbench.record.ab import AbResult
from gptbench.record.result import Result


@dataclass(frozen=True)
class Metric:
    """One number of each sample. What is reported of a run is the median over its samples."""

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


def decode_rate(sample: Sample) -> float:
    """Tokens/s of all decode steps."""
    return len(sample.tokens) * len(sample.step_s) / sum(sample.step_s)


def speed_metrics(sample: Sample) -> dict[str, float]:
    """Those of `METRICS` that a sample's own times give."""
    p50, p90, p99 = np.percentile(sample.step_s, [50, 90, 99])
    return {
        "decode_tokens_per_s": decode_rate(sample),
        "tpot_p50_s": float(p50),
        "tpot_p90_s": float(p90),
        "tpot_p99_s": float(p99),
        "ttft_s": sample.ttft_s,
    }


def sample_metrics(result: Result, sample: Sample) -> dict[str, float]:
    """Every one of `METRICS` for one sample."""
    batch, traffic, seconds = len(sample.tokens), result.traffic, sum(sample.step_s)
    gb_per_s = sum(traffic.needed(sample.experts_chosen)) / seconds / 1e9
    seed_tokens_per_s = batch * len(sample.tokens[0]) / sample.call_s
    return speed_metrics(sample) | {
        "decode_gb_per_s": gb_per_s,
        "mbu": gb_per_s / result.roof.gb_per_s,
        "moved_gb_per_s": sum(traffic.moved(sample.experts_read)) / seconds / 1e9,
        "seed_tokens_per_s": seed_tokens_per_s,
        "seed_gb_per_s": traffic.weights_with(sample.experts_chosen) * seed_tokens_per_s / batch / 1e9,
        "peak_memory_bytes": float(sample.peak_memory_bytes),
    }


@dataclass(frozen=True)
class StepBytes:
    """Of the mean decode step of a run's valid samples, or, where there is none, as few as possible."""

    weights: float
    """That it needs."""
    needed: float
    """Weights, keys and values that it needs."""
    moved: float
    """That the engine reads and writes for it."""


def step_bytes(result: Result) -> StepBytes:
    """What a run's samples read on average: of a mixture, each sample has its own experts."""
    traffic, samples = result.traffic, valid_samples(result)
    chosen = [sample.experts_chosen for sample in samples] or [None]
    read = [sample.experts_read for sample in samples] or [None]
    return StepBytes(
        weights=float(np.mean([traffic.weights_with(experts) for experts in chosen])),
        needed=float(np.mean([traffic.needed(experts) for experts in chosen])),
        moved=float(np.mean([traffic.moved(experts) for experts in read])),
    )


def log_ratios(result: AbResult, value: Callable[[Sample], float] = decode_rate) -> list[float]:
    """Of B over A, of each round with a whole block."""
    found = []
    for each in result.rounds:
        if blocks := each.blocks():
            a, b = ([value(sample) for pair in blocks for sample in pair[side]] for side in (0, 1))
            found.append(float(np.mean(np.log(b)) - np.mean(np.log(a))))
    return found


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
    """Median of each metric over the valid samples, then compile times, quality, a profiled step, energy, bytes, the
    roof and the device's state. Without a valid sample, the medians are missing."""
    rows = [sample_metrics(result, sample) for sample in valid_samples(result)]
    medians = {m.name: float(np.median([row[m.name] for row in rows])) for m in METRICS} if rows else {}
    return (
        medians
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
            "samples_throttled": float(sum(sample.throttled for sample in valid_samples(result))),
            "finite": float(all(sample.finite for sample in result.samples)),
        }
    )
