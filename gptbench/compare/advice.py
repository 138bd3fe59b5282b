"""What would make a run faster, and by how much at most."""

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
"""MBU from which on nothing but fewer bytes is worth advising."""
MIN_SAMPLING = 0.03
MIN_HOST = 0.02
MIN_BOUNDARIES = 0.03
MIN_KV = 0.2
"""Shares of a step from which on something is said of a part; of its bytes, for keys and values."""
MIN_WEIGHTS = 0.5
"""Share of the step that the weights take at the roof, from which on storing them smaller is advised."""


@dataclass(frozen=True)
class Advice:
    """Something that would make it faster."""

    change: str
    why: str
    tokens_per_s: float | None = None
    """Estimated, of the whole batch; None where the record does not tell."""
    at_most: bool = False
    """Whether the estimate is a bound."""


def in_order(found: Iterable[Advice], now: float) -> list[Advice]:
    """Without what would gain nothing, by tokens/s."""
    faster = [one for one in found if one.tokens_per_s is None or one.tokens_per_s > now]
    return sorted(faster, key=lambda one: -(one.tokens_per_s or 0.0))


def fewer_bytes(step: Step) -> Iterator[Advice]:
    """Weights that are stored smaller. Only where the time of their bytes is most of the step, and on a GPU: elsewhere
    the record does not tell what unpacking them costs."""
    config, dtype = step.result.config, step.result.dtype
    if not step.on_gpu or step.weights / step.roof < MIN_WEIGHTS * step.step_s:
        return
    unquantised = step.result.weights == dtype
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    model = config["model"]
    dim, ffn_dim, n_heads = (model.get(name) or 1 for name in ("dim", "ffn_dim", "n_heads"))  # 1 fits nowhere
    heads = n_heads * (model.get("head_dim") or dim // n_heads)
    fits = (
        QuantConfig.LIMITS[INT8].unsupported_reason([("dim", dim), ("ffn_dim", ffn_dim), ("n_heads·head_dim", heads)])
        is None
    )
    if unquantised and fits and dtype != "float16" and step.engine["_target_"] not in HuggingFaceConfig.TARGETS:
        yield saving(
            step, "quant=int8", step.weights * (1 - 1 / itemsize), "of weights less; task=quality tells what it loses"
        )
    if dtype == "float32":
        fewer = step.kv / 2 + (step.weights / 2 if unquantised else 0.0)
        yield saving(step, "device.dtype=bfloat16", fewer, "less of what is stored in float32")


def saving(step: Step, change: str, fewer: float, what: str) -> Advice:
    """Bytes that are not read any more, at the roof."""
    seconds = fewer / step.roof
    why = f"{giga(fewer)} {what}: {micro(seconds)} at the roof, and the rest as it is"
    return Advice(change, why, step.without(seconds, fewer))


def another_engine(step: Step) -> Iterator[Advice]:
    """The fused engine on a GPU; on a CPU a compiled one."""
    config = step.result.config
    gains, reasons = 0.0, []
    host = 0.0 if step.is_one_graph else step.seconds.get("gaps", 0.0)
    if host > MIN_HOST * step.step_s:
        gains += host
        reasons.append(f"launches all of a step at once ({micro(host)} of gaps)")
    if not step.on_gpu:
        if step.engine["_target_"] in EagerConfig.TARGETS and reasons:
            told = f"compiled code has fewer calls; without the {micro(host)} of gaps between them alone"
            yield Advice("engine=inductor", told, step.without(host))
        return
    has_functions = all(limits is not None and limits.fused for limits in recorded_limits(config["quant"]))
    allowed = has_functions and step.result.dtype != "float16"
    if step.has_own_kernels or not allowed or step.batch > MAX_FUSED_SEQUENCES:
        return
    if step.padding:
        gains += step.padding / step.roof
        reasons.append(
            f"reads of the cache what is filled ({giga(step.padding)} of padding a step, "
            f"{micro(step.padding / step.roof)} at the roof)"
        )
    between = step.seconds.get("other", 0.0) + (step.seconds.get("gaps", 0.0) if step.is_one_graph else 0.0)
    if between > MIN_BOUNDARIES * step.step_s:
        gains += between
        reasons.append(f"works out norms and the like where weights are read ({micro(between)} of others and gaps)")
    if (sampling := step.share("sampling")) > MIN_SAMPLING:
        reasons.append(f"draws without sorting (drawing is {sampling:.1%} of the step)")
    if step.summary["mbu"] >= NEAR_THE_ROOF and not reasons:
        return
    reasons.append("starts a kernel before the one before it has ended, where the GPU can")
    faster = step.without(gains) if gains else None
    told = f"it {', '.join(reasons)}" + ("; what is estimated is what has a time here" if gains else "")
    yield Advice("engine=fused", told, faster)


def settings(step: Step) -> Iterator[Advice]:
    """Of the engine that it has."""
    boundaries = bounded(step)
    if step.on_gpu and step.engine.get("cuda_graph") == "none":
        host = step.seconds.get("gaps")
        bound = None if host is None else step.without(host)
        yield Advice("engine.cuda_graph=step", "each kernel is launched by the host", bound, at_most=host is not None)
    if not step.has_own_kernels:
        return
    told = "it can gain no more than all boundaries" if boundaries is not None else "the record does not tell how much"
    if step.engine.get("pdl") is False:
        yield Advice("engine.pdl=true", told, boundaries, at_most=boundaries is not None)
    tuned = step.engine.get("autotune") or step.result.tune_s is not None
    if not tuned and step.summary["mbu"] < NEAR_THE_ROOF and boundaries is not None:
        yield Advice("engine.autotune=true", f"a search for tiles: {told}", boundaries, at_most=True)
    if (share := step.share("sampling")) > MIN_SAMPLING and step.result.config["sampling"]["temperature"] > 0:
        bound = step.without(step.seconds["sampling"])
        yield Advice("sampling=greedy", f"drawing is {share:.1%} of the step, if not all is lost", bound, at_most=True)


def bounded(step: Step) -> float | None:
    """Tokens/s without any boundaries; None where they are not known, or not worth it."""
    seconds = {part.name: part.seconds for part in partition(step)} if step.seconds else {}
    boundaries = seconds.get("boundaries", 0.0)
    return step.without(boundaries) if boundaries > MIN_BOUNDARIES * step.step_s else None


def other_work(step: Step) -> Iterator[Advice]:
    """What would be another measurement."""
    if step.kv > MIN_KV * (step.weights + step.kv):
        told = f"keys and values are {step.kv / (step.weights + step.kv):.0%} of the bytes"
        faster = step.without(step.kv / 2 / step.roof, step.kv / 2)
        yield Advice("a context half as long", f"{told}; a model with fewer key-value heads has fewer, too", faster)
    dense = not step.result.config["model"].get("n_experts")
    room = not step.has_own_kernels or 2 * step.batch <= MAX_FUSED_SEQUENCES
    if step.on_gpu and dense and room and step.weights > step.kv:
        more = step.kv / step.roof
        yield Advice(
            f"workload.batch_size={2 * step.batch}",
            f"for more tokens in all, not for a faster answer: both halves read the weights once, and {giga(step.kv)} "
            f"more of keys and values take {micro(more)} at the roof",
            2 * step.without(-more, -step.kv),
            at_most=True,
        )
