"""The median decode step of a run and its parts, from which `gptbench.compare.explain` explains its time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptbench.base.numbers import giga, micro
from gptbench.config import engine_of
from gptbench.schema import Result
from gptbench.schema.breakdown import Breakdown, Launch
from gptbench.schema.metrics import HEADLINE
from gptbench.schema.statistics import step_bytes, valid_samples
from gptbench.schema.steps import Steps

GENERATED = r"^triton_(red|per)_\w*_mul_sum"
"""Pattern of the kernels that Inductor generates for a matrix times a single row (see `gptbench.model.linear`)."""
LIBRARY = r"gemm|gemv|nvjet|cutlass|cublas|splitK"

KERNELS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        (
            "sampling",
            r"^(maxima|draw|sample)_kernel|^triton_\w*(sort|cumsum|masked_fill|scatter|amax|amin|index_select)",
        ),
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
"""Parts of a step, each with a pattern of its kernels' names: kernels of libraries, Inductor's, torch's operations on a
CPU, and gptbench's own as they were named before records held their parts. The first match counts, and a kernel without
a match is `other`. `matrices` are the kernels that read weights. Inductor names a kernel after the operations that it
fuses: those of `gptbench.kernels.sample_reference` occur nowhere else in a step."""


@dataclass(frozen=True)
class Part:
    """One part of a decode step."""

    name: str
    """Name of the part: see `gptbench.compare.explain`."""
    seconds: float
    """Seconds that the part takes, scaled to the samples' median step."""
    description: str
    """What the part consists of, in words."""


class Step:
    """The median decode step of a run's samples, and what its record shows of it.

    Attributes:
        summary: metrics of the run.
        step_s: median decode step of the samples, in seconds.
        step_tokens: tokens that a step emits on average, over all rows of the batch.
        weights: bytes of weights that a step has to read, on average over steps and samples.
        kv: bytes of keys and values that a step has to read and write, likewise.
        moved: bytes that the engine actually reads and writes, likewise.
        padding: bytes of the KV cache that are read although no token attends to them, likewise.
        roof: measured peak read bandwidth, in bytes/s.
        batch: rows of the batch.
        seconds: seconds by part, scaled to `step_s`, with `matrices` in place of `bytes` and `boundaries`, and with
            `gaps`; empty without a breakdown.
        kernels: launches by part, each with its exclusive seconds; empty without a breakdown.
    """

    def __init__(self, result: Result) -> None:
        self.result, moved = result, result.traffic
        self.summary = result.summary
        steps = [Steps(sample) for sample in valid_samples(result)]
        self.step_s = float(np.quantile(np.concatenate([timed.seconds for timed in steps]), 0.5))
        self.roof = result.roof.gb_per_s * 1e9
        self.batch: int = result.config["workload"]["batch_size"]
        per_step = step_bytes(result)
        self.step_tokens = per_step.tokens
        self.weights, self.kv, self.moved = per_step.weights, per_step.needed - per_step.weights, per_step.moved
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
        """Whether the run was on a GPU."""
        return self.result.environment.on_gpu

    @property
    def engine(self) -> dict[str, Any]:
        """The run's engine section."""
        section: dict[str, Any] = self.result.config["engine"]
        return section

    @property
    def has_own_kernels(self) -> bool:
        """Whether the engine runs gptbench's own kernels."""
        return engine_of(self.engine["_target_"]).OWN_KERNELS

    @property
    def is_one_graph(self) -> bool:
        """Whether a whole step is launched as one CUDA graph."""
        return self.on_gpu and engine_of(self.engine["_target_"]).launches_one_graph(self.engine)

    @property
    def least_s(self) -> float:
        """Seconds that the bytes of a step take at the read roof."""
        return (self.weights + self.kv) / self.roof

    @property
    def matrix_bytes(self) -> float:
        """Bytes read by the profiled step's kernels over weights where all of these are recorded, else all weights."""
        known = [launch.bytes_read for launch, _ in self.kernels["matrices"]]
        if not known or None in known:
            return self.weights
        return float(sum(count for count in known if count is not None))

    def without(self, seconds: float, fewer_bytes: float = 0.0) -> float:
        """Return tokens/s if a step took less time, bounded by what its bytes take at the read roof.

        Args:
            seconds: seconds saved per step.
            fewer_bytes: bytes saved per step, by which the bound falls.
        """
        least_s = self.least_s - fewer_bytes / self.roof
        return self.step_tokens / max(self.step_tokens / self.summary[HEADLINE] - seconds, least_s)

    def share(self, part: str) -> float:
        """Return a part's share of the step; 0 if it is not known."""
        return self.seconds.get(part, 0.0) / self.step_s


PARTS = ("matrices", "attention", "sampling", "other")
"""Parts of a step that kernels belong to."""


def part_of(launch: Launch) -> str:
    """Return the part that a launch belongs to: as recorded by the engine, or else by the kernel's name. A part that is
    not in `PARTS`, as a plugin's may be, is `other`."""
    if launch.part is not None:
        return launch.part if launch.part in PARTS else "other"
    return next((part for part, pattern in KERNELS if pattern.search(launch.name)), "other")


def parts_of(step: Breakdown, on_gpu: bool) -> dict[str, list[tuple[Launch, float]]]:
    """Return launches by part, each with its exclusive seconds.

    Where Inductor generates the kernels over weights, products by a library belong to attention. On a CPU, where all
    products are recognised by name, everything after the last of them samples the token.
    """
    parts: dict[str, list[tuple[Launch, float]]] = {part: [] for part in PARTS}
    named = [part_of(launch) for launch in step.launches]
    if any(re.search(GENERATED, launch.name) for launch in step.launches):
        library = [re.search(LIBRARY, launch.name) is not None for launch in step.launches]
        named = ["attention" if is_library else part for part, is_library in zip(named, library, strict=True)]
    last = max((place for place, part in enumerate(named) if part == "matrices"), default=len(named))
    for place, (launch, exclusive) in enumerate(zip(step.launches, step.exclusive_s(), strict=True)):
        parts["sampling" if place > last and not on_gpu else named[place]].append((launch, exclusive))
    return parts


def partition(step: Step) -> Iterator[Part]:
    """Yield the parts of a step with a breakdown, in the order of `gptbench.compare.explain`."""
    seconds = step.seconds
    reading_s = min(step.matrix_bytes / step.roof, seconds["matrices"])
    boundaries = seconds["matrices"] - reading_s
    read_by = "read by their kernels" if step.matrix_bytes != step.weights else "read per step"
    yield Part("bytes", reading_s, f"{giga(step.matrix_bytes)} of weights {read_by}, at the read roof")
    count = len(step.kernels["matrices"])
    description = f"ramp-up/drain and arithmetic of {kernels(count)} that read weights"
    if step.is_one_graph:
        boundaries += seconds["gaps"]
        description += f"; {micro(seconds['gaps'])} of it are launch gaps"
    yield Part("boundaries", boundaries, description)
    kv = kv_bytes(step)
    yield Part(
        "attention",
        seconds["attention"],
        f"{kernels(len(step.kernels['attention']))}; the step's {giga(kv)} of keys and values take "
        f"{micro(kv / step.roof)} at the read roof",
    )
    yield Part("sampling", seconds["sampling"], f"{kernels(len(step.kernels['sampling']))} that sample the token")
    yield Part("other", seconds["other"], most_of(step.kernels["other"], step.factor))
    if not step.is_one_graph:
        yield Part("host", seconds["gaps"], "gaps in which nothing runs while the host launches the next kernel")


def kernels(count: int) -> str:
    """Return a number of kernels in words."""
    return f"{count} kernel{'s' * (count != 1)}"


def kv_bytes(step: Step) -> float:
    """Return the bytes of keys and values that the profiled step moves."""
    traffic, profiled = step.result.traffic, step.result.breakdown
    assert profiled is not None
    index = min(max(profiled.position + 1 - traffic.kv_len[0], 0), len(traffic.kv_len) - 1)
    return float(traffic.moved()[index] - traffic.weights)


MAX_NAMED = 3
"""Number of `other` kernels that are listed by name."""


def most_of(launches: list[tuple[Launch, float]], factor: float) -> str:
    """Return in words how many launches there are, and which kernels take most of their time."""
    seconds: dict[str, float] = {}
    for launch, exclusive in launches:
        seconds[launch.name] = seconds.get(launch.name, 0.0) + exclusive * factor
    first = sorted(seconds, key=lambda name: -seconds[name])[:MAX_NAMED]
    named = ", ".join(f"{name} {micro(seconds[name])}" for name in first)
    return kernels(len(launches)) + (f", mostly {named}" if named else "")
