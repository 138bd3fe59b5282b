"""Advice on what would make a run faster, with an estimate or an upper bound of the gain."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptbench.base.numbers import giga, micro
from gptbench.compare.step import Step, partition
from gptbench.config import (
    INT8,
    MAX_FUSED_SEQUENCES,
    EagerConfig,
    HuggingFaceConfig,
    QuantConfig,
)
from gptbench.config.quant import recorded_limits

NEAR_THE_ROOF = 0.92
"""MBU from which on only fewer bytes are worth advising."""
MIN_SAMPLING = 0.03
"""Share of a step from which on sampling is worth mentioning."""
MIN_HOST = 0.02
"""Share of a step, or of a call, from which on the host's time is worth mentioning."""
MIN_BOUNDARIES = 0.03
"""Share of a step from which on boundaries between kernels are worth mentioning."""
MIN_KV = 0.2
"""Share of a step's bytes from which on keys and values are worth mentioning."""
MIN_WEIGHTS = 0.5
"""Share of the step that the weights take at the read roof, from which on quantising them is advised."""


@dataclass(frozen=True)
class Advice:
    """A change that would make a run faster."""

    change: str
    """The change, as an override where it is one."""
    why: str
    """Reason why it is faster, in words."""
    tokens_per_s: float | None = None
    """Estimated tokens/s of the whole batch; None if the record does not allow an estimate."""
    at_most: bool = False
    """Whether the estimate is an upper bound."""


def in_order(advice: Iterable[Advice], now: float) -> list[Advice]:
    """Return the advice that gains something, the fastest first, without estimates last.

    Args:
        now: tokens/s of the run.
    """
    faster = [item for item in advice if item.tokens_per_s is None or item.tokens_per_s > now]
    return sorted(faster, key=lambda item: -(item.tokens_per_s or 0.0))


def fewer_bytes(step: Step) -> Iterator[Advice]:
    """Yield advice to store weights in fewer bytes. It is given only where reading them is most of the step, and on a
    GPU: elsewhere the record does not show what unpacking them costs."""
    config, dtype = step.result.config, step.result.dtype
    if not step.on_gpu or step.weights / step.roof < MIN_WEIGHTS * step.step_s:
        return
    unquantised = step.result.weights == dtype
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    model = config["model"]
    dim, ffn_dim, n_heads = (model.get(name) or 1 for name in ("dim", "ffn_dim", "n_heads"))  # no limit allows 1
    heads = n_heads * (model.get("head_dim") or dim // n_heads)
    fits = (
        QuantConfig.LIMITS[INT8].unsupported_reason([("dim", dim), ("ffn_dim", ffn_dim), ("n_heads·head_dim", heads)])
        is None
    )
    if unquantised and fits and dtype != "float16" and step.engine["_target_"] not in HuggingFaceConfig.TARGETS:
        yield saving(
            step,
            "quant=int8",
            step.weights * (1 - 1 / itemsize),
            "weights",
            "; task=quality measures the loss in quality",
        )
    if dtype == "float32":
        fewer = step.kv / 2 + (step.weights / 2 if unquantised else 0.0)
        yield saving(step, "device.dtype=bfloat16", fewer, "what is stored in float32")


def saving(step: Step, change: str, fewer: float, what: str, caveat: str = "") -> Advice:
    """Return advice on a change that saves bytes, at the read roof.

    Args:
        fewer: bytes saved per step.
        what: what is read less of.
        caveat: what else to know, appended to the reason.
    """
    seconds = fewer / step.roof
    why = f"saves reading {giga(fewer)} of {what}: {micro(seconds)} at the read roof, all else unchanged{caveat}"
    return Advice(change, why, step.without(seconds, fewer))


def another_engine(step: Step) -> Iterator[Advice]:
    """Yield advice to use the fused engine on a GPU, or a compiled one on a CPU."""
    config = step.result.config
    gains, reasons = 0.0, []
    host = 0.0 if step.is_one_graph else step.seconds.get("gaps", 0.0)
    if host > MIN_HOST * step.step_s:
        gains += host
        reasons.append(f"launches all kernels of a step at once ({micro(host)} of gaps)")
    if not step.on_gpu:
        if step.engine["_target_"] in EagerConfig.TARGETS and reasons:
            why = f"compiled code makes fewer calls; estimated from the {micro(host)} of gaps between them alone"
            yield Advice("engine=inductor", why, step.without(host))
        return
    has_functions = all(limits is not None and limits.fused for limits in recorded_limits(config["quant"]))
    allowed = has_functions and step.result.dtype != "float16"
    if step.has_own_kernels or not allowed or step.batch > MAX_FUSED_SEQUENCES:
        return
    if step.padding:
        gains += step.padding / step.roof
        reasons.append(
            f"reads only valid entries of the KV cache ({giga(step.padding)} of padding per step, "
            f"{micro(step.padding / step.roof)} at the read roof)"
        )
    between = step.seconds.get("other", 0.0) + (step.seconds.get("gaps", 0.0) if step.is_one_graph else 0.0)
    if between > MIN_BOUNDARIES * step.step_s:
        gains += between
        reasons.append(
            f"fuses norms and the like into the kernels that read weights ({micro(between)} of other kernels and gaps)"
        )
    if (sampling := step.share("sampling")) > MIN_SAMPLING:
        reasons.append(f"samples without sorting (sampling is {sampling:.1%} of the step)")
    if step.summary["mbu"] >= NEAR_THE_ROOF and not reasons:
        return
    reasons.append("starts each kernel before the previous one has ended, on GPUs with PDL")
    faster = step.without(gains) if gains else None
    why = f"it {', '.join(reasons)}" + ("; the estimate covers what is timed here" if gains else "")
    yield Advice("engine=fused", why, faster)


def settings(step: Step) -> Iterator[Advice]:
    """Yield advice on the settings of the run's engine and of its sampling."""
    boundaries = bounded(step)
    if step.on_gpu and step.engine.get("cuda_graph") == "none":
        host = step.seconds.get("gaps")
        bound = None if host is None else step.without(host)
        yield Advice(
            "engine.cuda_graph=step", "the host launches each kernel separately", bound, at_most=host is not None
        )
    if not step.has_own_kernels:
        return
    known = boundaries is not None
    bound_is = (
        "at best it removes all boundaries between kernels" if known else "the record does not show how much it gains"
    )
    if step.engine.get("pdl") is False:
        yield Advice(
            "engine.pdl=true",
            f"overlaps each kernel's ramp-up with the drain of the previous one: {bound_is}",
            boundaries,
            at_most=known,
        )
    tuned = step.engine.get("autotune") or step.result.tune_s is not None
    if not tuned and step.summary["mbu"] < NEAR_THE_ROOF and boundaries is not None:
        yield Advice(
            "engine.autotune=true", f"searches for faster tile configurations: {bound_is}", boundaries, at_most=True
        )
    if (share := step.share("sampling")) > MIN_SAMPLING and step.result.config["sampling"]["temperature"] > 0:
        bound = step.without(step.seconds["sampling"])
        yield Advice(
            "sampling=greedy",
            f"sampling is {share:.1%} of the step, and at best all of it is saved",
            bound,
            at_most=True,
        )


def bounded(step: Step) -> float | None:
    """Return tokens/s without any boundaries; None if their time is not known, or not worth mentioning."""
    seconds = {part.name: part.seconds for part in partition(step)} if step.seconds else {}
    boundaries = seconds.get("boundaries", 0.0)
    return step.without(boundaries) if boundaries > MIN_BOUNDARIES * step.step_s else None


def other_work(step: Step) -> Iterator[Advice]:
    """Yield advice that changes the work, so that it would be another measurement."""
    if step.kv > MIN_KV * (step.weights + step.kv):
        share = f"keys and values are {step.kv / (step.weights + step.kv):.0%} of the bytes"
        faster = step.without(step.kv / 2 / step.roof, step.kv / 2)
        yield Advice("a context half as long", f"{share}; so would a model with fewer key-value heads help", faster)
    dense = not step.result.config["model"].get("n_experts")
    fits = not step.has_own_kernels or 2 * step.batch <= MAX_FUSED_SEQUENCES
    if step.on_gpu and dense and fits and step.weights > step.kv:
        more = step.kv / step.roof
        yield Advice(
            f"workload.batch_size={2 * step.batch}",
            f"raises throughput, not the speed of one sequence: the weights are read once for the whole batch, and the "
            f"additional {giga(step.kv)} of keys and values take {micro(more)} at the read roof",
            2 * step.without(-more, -step.kv),
            at_most=True,
        )
