"""Where the time of a run's decode step goes, against what the read roof allows, and what would help.

Everything follows from one record. With `task.breakdown=true` it holds a profiled step, whose kernels are told apart by
their names and scaled to the samples' median step, as tracing costs time. The parts add up to that step:

    bytes       what the weights take at the read roof
    boundaries  what the kernels that read them take beyond that, and the gaps within a CUDA graph: starts and ends
    attention   its kernels, the keys and values that they read included
    sampling    the drawing of the token
    other       norms, rotary embedding, routing and whatever is not known by its name
    host        gaps in which nothing runs, where the host launches each kernel

Advice is given where the record says that it applies, with an estimate in which all that it does not change takes as
long as now. Where only a bound is known, it is called so. No estimate is beyond the roof.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptbench.base.numbers import giga, micro
from gptbench.config import (
    INT8,
    MOST_FUSED_SEQUENCES,
    EagerConfig,
    FusedConfig,
    HuggingFaceConfig,
    InductorConfig,
    QuantConfig,
)
from gptbench.schema import Result
from gptbench.schema.breakdown import Breakdown, Launch
from gptbench.schema.busy import idle_neighbours, why_busy
from gptbench.schema.metrics import HEADLINE
from gptbench.schema.sample import throttling
from gptbench.schema.statistics import step_bytes, valid_samples
from gptbench.schema.steps import Steps
from gptbench.schema.summary import summary

GENERATED = r"^triton_(red|per)_\w*_mul_sum"
"""What Inductor makes of a matrix and a single row (see `gptbench.model.linear`)."""
LIBRARY = r"gemm|gemv|nvjet|cutlass|cublas|splitK"

KERNELS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("sampling", r"^(maxima|draw)_kernel|^triton_\w*(sort|cumsum|masked_fill|scatter|amax|amin|index_select)"),
        ("attention", r"^attend_kernel|flash|fmha|scaled_dot_product|attention|softmax|^triton_\w*(bmm|matmul)"),
        ("attention", r"^aten::(matmul|bmm)$"),
        ("matrices", r"^(add_linear|linear|swiglu)_\d+x\d+|^int8_matmul"),
        ("matrices", GENERATED),
        ("matrices", LIBRARY),
        ("matrices", r"^triton_tem_|^triton_\w*_(mm|addmm|linear)(_|$)"),
        ("matrices", r"^aten::(linear|mm|addmm)$|^compiled graph "),
        ("sampling", r"(?i:sort|scan|cumsum)"),
    )
)
"""Part of a step to the names of its kernels: those of libraries, Inductor's, torch's operations on a CPU, and ours as
they were before records told their parts. The first that matches counts; what none does is `other`. `matrices` are what
reads weights. Inductor names a kernel
after the operations that it is made of: those of `gptbench.kernels.draw_reference` are found nowhere else in a step."""

NEAR_THE_ROOF = 0.92
"""MBU from which on nothing but fewer bytes is worth advising."""
LEAST_SAMPLING = 0.03
LEAST_HOST = 0.02
LEAST_BOUNDARIES = 0.03
LEAST_KV = 0.2
MIN_MOVED = 0.01
"""Shares of a step from which on something is said of a part; of its bytes, for keys and values."""
LEAST_WEIGHTS = 0.5
"""Share of the step that the weights take at the roof, from which on storing them smaller is advised."""
STEADY_CLOCK = 0.05
"""Difference between the highest and the lowest clock of the samples, from which on it is told."""


@dataclass(frozen=True)
class Part:
    """One part of a step."""

    name: str
    seconds: float
    """Scaled to the samples' median step."""
    told: str


@dataclass(frozen=True)
class Advice:
    """Something that would make it faster."""

    change: str
    why: str
    tokens_per_s: float | None = None
    """Estimated, of the whole batch; None where the record does not tell."""
    at_most: bool = False
    """Whether the estimate is a bound."""


@dataclass(frozen=True)
class Explanation:
    """Of one run."""

    title: str
    step_s: float
    """Median decode step of the samples."""
    least_s: float
    """What its bytes take at the read roof."""
    mbu: float
    tokens_per_s: float
    most_tokens_per_s: float
    limit: str
    """The same in a sentence."""
    parts: list[Part] = field(default_factory=list)
    """Which add up to `step_s`; empty without a breakdown."""
    profiled_s: float | None = None
    """The profiled step, of which the parts are shares."""
    beyond_s: float | None = None
    """Of a whole call, what the host takes beyond prefill and steps: median."""
    notes: list[str] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    """What is estimated to gain most comes first, what is not estimated after it, and other work last."""
    more: str | None = None
    """Command that would tell more, where there is no breakdown."""


class Step:
    """The median decode step of a run's samples, and what is known of it.

    Attributes:
        step_s: see `Explanation`.
        step_tokens: that a step emits on average, for all rows together.
        weights, kv: bytes that a step needs, on average over steps and samples.
        moved: bytes that its engine reads and writes for it, on average, too.
        padding: bytes of the cache that are read and that no token attends to.
        roof: bytes/s.
        seconds: by part, scaled to `step_s`, with `matrices` in the place of `bytes` and `boundaries`, and `gaps`;
            empty without a breakdown.
        kernels: launches with their exclusive seconds, by part.
    """

    def __init__(self, result: Result) -> None:
        self.result, moved = result, result.traffic
        self.told = summary(result)
        steps = [Steps(sample) for sample in valid_samples(result)]
        self.step_s = float(np.quantile(np.concatenate([each.seconds for each in steps]), 0.5))
        self.roof = result.roof.gb_per_s * 1e9
        self.batch: int = result.config["workload"]["batch_size"]
        each = step_bytes(result)
        self.step_tokens = each.tokens
        self.weights, self.kv, self.moved = each.weights, each.needed - each.weights, each.moved
        self.padding = float(np.mean(moved.positions_read) - np.mean(moved.attended)) * moved.kv_per_position
        self.seconds: dict[str, float] = {}
        self.kernels: dict[str, list[tuple[Launch, float]]] = {}
        if result.breakdown is not None:
            self.factor = self.step_s / result.breakdown.step_s
            self.kernels = parts_of(result.breakdown, self.on_gpu)
            for part, launches in self.kernels.items():
                self.seconds[part] = self.factor * sum(exclusive for _, exclusive in launches)
            self.seconds["gaps"] = self.factor * result.breakdown.gaps_s

    @property
    def on_gpu(self) -> bool:
        return self.result.environment.on_gpu

    @property
    def engine(self) -> dict[str, Any]:
        section: dict[str, Any] = self.result.config["engine"]
        return section

    @property
    def is_fused(self) -> bool:
        return bool(self.engine["_target_"] in FusedConfig.TARGETS)

    @property
    def is_inductor(self) -> bool:
        return bool(self.engine["_target_"] in InductorConfig.TARGETS)

    @property
    def is_one_graph(self) -> bool:
        """Whether a whole step is launched as one CUDA graph."""
        return self.on_gpu and (self.is_fused or (self.is_inductor and self.engine.get("cuda_graph") == "step"))

    @property
    def least_s(self) -> float:
        return (self.weights + self.kv) / self.roof

    @property
    def matrix_bytes(self) -> float:
        """Of the profiled step's kernels over weights, where all of them are known; else all weights."""
        known = [launch.bytes_read for launch, _ in self.kernels["matrices"]]
        if not known or None in known:
            return self.weights
        return float(sum(count for count in known if count is not None))

    def without(self, seconds: float, fewer_bytes: float = 0.0) -> float:
        """Tokens/s if a step took so much less, or what its bytes take at the roof, so many fewer."""
        least_s = self.least_s - fewer_bytes / self.roof
        return self.step_tokens / max(self.step_tokens / self.told[HEADLINE] - seconds, least_s)

    def share(self, part: str) -> float:
        """Of the step; 0 where it is not known."""
        return self.seconds.get(part, 0.0) / self.step_s


def part_of(launch: Launch) -> str:
    """As the engine has told, or else by the kernel's name."""
    return launch.part or next((part for part, pattern in KERNELS if pattern.search(launch.name)), "other")


def parts_of(step: Breakdown, on_gpu: bool) -> dict[str, list[tuple[Launch, float]]]:
    """Each launch with its exclusive seconds, by part. Where the products with weights are generated, a library's are
    attention's. On a CPU, where all products are known by their names, whatever comes after the last of them draws the
    token."""
    found: dict[str, list[tuple[Launch, float]]] = {"matrices": [], "attention": [], "sampling": [], "other": []}
    named = [part_of(launch) for launch in step.launches]
    if any(re.search(GENERATED, launch.name) for launch in step.launches):
        library = [re.search(LIBRARY, launch.name) is not None for launch in step.launches]
        named = ["attention" if is_library else part for part, is_library in zip(named, library, strict=True)]
    last = max((place for place, part in enumerate(named) if part == "matrices"), default=len(named))
    for place, (launch, exclusive) in enumerate(zip(step.launches, step.exclusive_s(), strict=True)):
        found["sampling" if place > last and not on_gpu else named[place]].append((launch, exclusive))
    return found


def explain(result: Result) -> Explanation:
    """Of a run that counts."""
    step = Step(result)
    names = {group: result.config[group]["name"] for group in ("model", "engine")}
    told = step.told
    most = step.step_tokens / step.least_s
    found = step.result.breakdown
    now = told[HEADLINE]
    sources = ((*fewer_bytes(step), *another_engine(step), *settings(step)), other_work(step))
    faster = [in_order(source, now) for source in sources]
    command = [part for part in result.command if not part.startswith("task.breakdown=")]
    return Explanation(
        title=f"{names['model']}, {result.weights}, engine {names['engine']}, batch {step.batch}, "
        f"on {result.environment.device}",
        step_s=step.step_s,
        least_s=step.least_s,
        mbu=told["mbu"],
        tokens_per_s=told[HEADLINE],
        most_tokens_per_s=most,
        limit=f"A decode step takes {micro(step.step_s)} and needs {giga(step.weights + step.kv)}{more_moved(step)}; "
        f"at the read roof of {result.roof.gb_per_s:.4g} GB/s that takes {micro(step.least_s)}: MBU {told['mbu']:.1%}, "
        f"{told[HEADLINE]:.4g} tokens/s of at most {most:.4g}.",
        parts=[] if found is None else list(partition(step)),
        profiled_s=None if found is None else found.step_s,
        beyond_s=beyond(result),
        notes=list(notes(step)),
        advice=[one for each in faster for one in each],
        more=shlex.join([*command, "task.breakdown=true"]) if found is None else None,
    )


def more_moved(step: Step) -> str:
    """What the engine moves beyond that, in words; nothing where it is next to nothing."""
    needed = step.weights + step.kv
    if step.moved <= needed * (1 + MIN_MOVED):
        return ""
    return f" (its engine moves {giga(step.moved)}: padding, copies, or experts that nobody chose)"


def beyond(result: Result) -> float:
    """Of a call, by the host's clock, what is neither prefill nor a step: the calls themselves, and waiting."""
    return float(np.median([one.call_s - one.ttft_s - sum(one.step_s) for one in valid_samples(result)]))


def partition(step: Step) -> Iterator[Part]:
    """The parts of the step, in the order of the module's docstring."""
    seconds = step.seconds
    own = min(step.matrix_bytes / step.roof, seconds["matrices"])
    boundaries = seconds["matrices"] - own
    whose = "their kernels read" if step.matrix_bytes != step.weights else "a step reads"
    yield Part("bytes", own, f"{giga(step.matrix_bytes)} of weights that {whose}, at the read roof")
    count = len(step.kernels["matrices"])
    between = f"{kernels(count)} that read weights, beyond that"
    if step.is_one_graph:
        boundaries += seconds["gaps"]
        between += f"; {micro(seconds['gaps'])} of it are gaps in which nothing runs"
    yield Part("boundaries", boundaries, between)
    kv = kv_bytes(step)
    yield Part(
        "attention",
        seconds["attention"],
        f"{kernels(len(step.kernels['attention']))}; the {giga(kv)} of keys and values of this step take "
        f"{micro(kv / step.roof)} at the read roof",
    )
    yield Part("sampling", seconds["sampling"], f"{kernels(len(step.kernels['sampling']))} that draw the token")
    yield Part("other", seconds["other"], most_of(step.kernels["other"], step.factor))
    if not step.is_one_graph:
        yield Part("host", seconds["gaps"], "gaps in which nothing runs: the host launches what comes next")


def kernels(count: int) -> str:
    return f"{count} kernel{'s' * (count != 1)}"


def kv_bytes(step: Step) -> float:
    """Keys and values of the profiled step."""
    moved, found = step.result.traffic, step.result.breakdown
    assert found is not None
    place = min(max(found.position + 1 - moved.positions_filled[0], 0), len(moved.positions_filled) - 1)
    return float(moved.moved()[place] - moved.weights)


MOST_NAMED = 3
"""Kernels of what is `other`, by name."""


def most_of(launches: list[tuple[Launch, float]], factor: float) -> str:
    """The kernels that take most."""
    seconds: dict[str, float] = {}
    for launch, exclusive in launches:
        seconds[launch.name] = seconds.get(launch.name, 0.0) + exclusive * factor
    first = sorted(seconds, key=lambda name: -seconds[name])[:MOST_NAMED]
    named = ", ".join(f"{name} {micro(seconds[name])}" for name in first)
    return kernels(len(launches)) + (f", most of it {named}" if named else "")


def notes(step: Step) -> Iterator[str]:
    """What must be known to read the rest."""
    if (told_busy := why_busy(step.result)) is not None:
        yield f"It was {told_busy}."
    if (told_idle := idle_neighbours(step.result)) is not None:
        yield f"{told_idle}."
    found, told = step.result.breakdown, step.told
    if found is None:
        weights, kv = micro(step.weights / step.roof), micro(step.kv / step.roof)
        yield f"At the roof, {weights} are the weights' and {kv} keys and values'; a breakdown would tell the rest."
    else:
        yield (
            f"The step at position {found.position} took {micro(found.step_s)} while it was profiled; its parts are "
            f"scaled by {step.factor:.3f} to the samples' median."
        )
        if step.kernels["matrices"] and step.matrix_bytes / step.roof > step.seconds["matrices"]:
            yield (
                "The kernels that read weights were faster than the read roof: caches held some of it, or names tell "
                "too few of them; so there are no boundaries to be told."
            )
        if not step.kernels["matrices"]:
            yield "No kernel is known to read weights, so what reads them is among the others."
        if any(launch.name.startswith("compiled graph ") for launch, _ in step.kernels["matrices"]):
            yield (
                "A compiled graph is one operation on a CPU: attention and all else in it count among the boundaries."
            )
    if (held_back := throttling(valid_samples(step.result))) is not None:
        yield f"{held_back}. Cooler, or with more power, it may be faster."
    states = [one.state for one in valid_samples(step.result) if one.state is not None]
    clocks = [clock for state in states for clock in state.during("clock_mhz")]
    if clocks and max(clocks) > min(clocks) * (1 + STEADY_CLOCK):
        yield f"The clock went from {min(clocks):.0f} to {max(clocks):.0f} MHz between the samples' readings."
    mixture = step.batch > 1 and bool(step.result.config["model"].get("n_experts"))
    if mixture and any(one.experts_chosen is None for one in valid_samples(step.result)):
        yield "The experts that its batch chose were not counted: bytes and MBU are the most there can be."
    whole = float(np.median([one.call_s for one in valid_samples(step.result)]))
    if (host := beyond(step.result)) > LEAST_HOST * whole:
        yield f"A whole call takes {micro(host)} of the host's time beyond prefill and steps, {host / whole:.1%} of it."
    if told["mbu"] > 1:
        yield "More than the read roof: measure it again, with device.measure_roof=true."
    elif told["mbu"] >= NEAR_THE_ROOF:
        yield f"At an MBU of {told['mbu']:.1%} hardly anything but fewer bytes can help."


def in_order(found: Iterable[Advice], now: float) -> list[Advice]:
    """Without what would gain nothing, by tokens/s."""
    faster = [one for one in found if one.tokens_per_s is None or one.tokens_per_s > now]
    return sorted(faster, key=lambda one: -(one.tokens_per_s or 0.0))


def fewer_bytes(step: Step) -> Iterator[Advice]:
    """Weights that are stored smaller. Only where the time of their bytes is most of the step, and on a GPU: elsewhere
    the record does not tell what unpacking them costs."""
    config, dtype = step.result.config, step.result.dtype
    if not step.on_gpu or step.weights / step.roof < LEAST_WEIGHTS * step.step_s:
        return
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    model = config["model"]
    dim, ffn_dim, n_heads = (model.get(name) or 1 for name in ("dim", "ffn_dim", "n_heads"))  # 1 fits nowhere
    heads = n_heads * (model.get("head_dim") or dim // n_heads)
    fits = QuantConfig.LIMITS[INT8].refuse([("dim", dim), ("ffn_dim", ffn_dim), ("n_heads·head_dim", heads)]) is None
    if (
        config["quant"]["name"] == "none"
        and fits
        and dtype != "float16"
        and step.engine["_target_"] not in HuggingFaceConfig.TARGETS
    ):
        yield saving(
            step, "quant=int8", step.weights * (1 - 1 / itemsize), "of weights less; task=quality tells what it loses"
        )
    if dtype == "float32":
        fewer = step.kv / 2 + (step.weights / 2 if config["quant"]["name"] == "none" else 0.0)
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
    if host > LEAST_HOST * step.step_s:
        gains += host
        reasons.append(f"launches all of a step at once ({micro(host)} of gaps)")
    if not step.on_gpu:
        if step.engine["_target_"] in EagerConfig.TARGETS and reasons:
            told = f"compiled code has fewer calls; without the {micro(host)} of gaps between them alone"
            yield Advice("engine=inductor", told, step.without(host))
        return
    limits = QuantConfig.LIMITS.get(config["quant"].get("_target_"))
    allowed = limits is not None and limits.fused and step.result.dtype != "float16"
    if step.is_fused or not allowed or step.batch > MOST_FUSED_SEQUENCES:
        return
    if step.padding:
        gains += step.padding / step.roof
        reasons.append(
            f"reads of the cache what is filled ({giga(step.padding)} of padding a step, "
            f"{micro(step.padding / step.roof)} at the roof)"
        )
    between = step.seconds.get("other", 0.0) + (step.seconds.get("gaps", 0.0) if step.is_one_graph else 0.0)
    if between > LEAST_BOUNDARIES * step.step_s:
        gains += between
        reasons.append(f"works out norms and the like where weights are read ({micro(between)} of others and gaps)")
    if (sampling := step.share("sampling")) > LEAST_SAMPLING:
        reasons.append(f"draws without sorting (drawing is {sampling:.1%} of the step)")
    if step.told["mbu"] >= NEAR_THE_ROOF and not reasons:
        return
    reasons.append("starts a kernel before the one before it has ended, where the GPU can")
    faster = step.without(gains) if gains else None
    told = f"it {', '.join(reasons)}" + ("; what is estimated is what has a time here" if gains else "")
    yield Advice("engine=fused", told, faster)


def settings(step: Step) -> Iterator[Advice]:
    """Of the engine that it has."""
    boundaries = bounded(step)
    if step.on_gpu and step.is_inductor and step.engine.get("cuda_graph") == "none":
        host = step.seconds.get("gaps")
        bound = None if host is None else step.without(host)
        yield Advice("engine.cuda_graph=step", "each kernel is launched by the host", bound, at_most=host is not None)
    if not step.is_fused:
        return
    told = "it can gain no more than all boundaries" if boundaries is not None else "the record does not tell how much"
    if step.engine.get("overlap") is False:
        yield Advice("engine.overlap=true", told, boundaries, at_most=boundaries is not None)
    tuned = step.engine.get("tune") or step.result.tune_s is not None
    if not tuned and step.told["mbu"] < NEAR_THE_ROOF and boundaries is not None:
        yield Advice("engine.tune=true", f"a search for tiles: {told}", boundaries, at_most=True)
    if (share := step.share("sampling")) > LEAST_SAMPLING and step.result.config["sampling"]["temperature"] > 0:
        bound = step.without(step.seconds["sampling"])
        yield Advice("sampling=greedy", f"drawing is {share:.1%} of the step, if not all is lost", bound, at_most=True)


def bounded(step: Step) -> float | None:
    """Tokens/s without any boundaries; None where they are not known, or not worth it."""
    seconds = {part.name: part.seconds for part in partition(step)} if step.seconds else {}
    boundaries = seconds.get("boundaries", 0.0)
    return step.without(boundaries) if boundaries > LEAST_BOUNDARIES * step.step_s else None


def other_work(step: Step) -> Iterator[Advice]:
    """What would be another measurement."""
    if step.kv > LEAST_KV * (step.weights + step.kv):
        told = f"keys and values are {step.kv / (step.weights + step.kv):.0%} of the bytes"
        faster = step.without(step.kv / 2 / step.roof, step.kv / 2)
        yield Advice("a context half as long", f"{told}; a model with fewer key-value heads has fewer, too", faster)
    dense = not step.result.config["model"].get("n_experts")
    room = not step.is_fused or 2 * step.batch <= MOST_FUSED_SEQUENCES
    if step.on_gpu and dense and room and step.weights > step.kv:
        more = step.kv / step.roof
        yield Advice(
            f"workload.batch_size={2 * step.batch}",
            f"for more tokens in all, not for a faster answer: both halves read the weights once, and {giga(step.kv)} "
            f"more of keys and values take {micro(more)} at the roof",
            2 * step.without(-more, -step.kv),
            at_most=True,
        )
