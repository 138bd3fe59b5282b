"""The median decode step of a run, and its parts, of which `gptbench.compare.explain` tells."""

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
"""What Inductor makes of a matrix and a single row (see `gptbench.model.linear`)."""
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
"""Part of a step to the names of its kernels: those of libraries, Inductor's, torch's operations on a CPU, and ours as
they were before records told their parts. The first that matches counts; what none does is `other`. `matrices` are what
reads weights. Inductor names a kernel
after the operations that it is made of: those of `gptbench.kernels.sample_reference` are found nowhere else in a
step."""


@dataclass(frozen=True)
class Part:
    """One part of a step."""

    name: str
    seconds: float
    """Scaled to the samples' median step."""
    told: str


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
        self.summary = result.summary
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
    def has_own_kernels(self) -> bool:
        """Whether its kernels are gptbench's own."""
        return engine_of(self.engine["_target_"]).OWN_KERNELS

    @property
    def is_one_graph(self) -> bool:
        """Whether a whole step is launched as one CUDA graph."""
        return self.on_gpu and engine_of(self.engine["_target_"]).launches_one_graph(self.engine)

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
        return self.step_tokens / max(self.step_tokens / self.summary[HEADLINE] - seconds, least_s)

    def share(self, part: str) -> float:
        """Of the step; 0 where it is not known."""
        return self.seconds.get(part, 0.0) / self.step_s


PARTS = ("matrices", "attention", "sampling", "other")
"""Of a step, those that kernels belong to."""


def part_of(launch: Launch) -> str:
    """As the engine has told, or else by the kernel's name; a part of another's is `other`."""
    if launch.part is not None:
        return launch.part if launch.part in PARTS else "other"
    return next((part for part, pattern in KERNELS if pattern.search(launch.name)), "other")


def parts_of(step: Breakdown, on_gpu: bool) -> dict[str, list[tuple[Launch, float]]]:
    """Each launch with its exclusive seconds, by part. Where the products with weights are generated, a library's are
    attention's. On a CPU, where all products are known by their names, whatever comes after the last of them draws the
    token."""
    found: dict[str, list[tuple[Launch, float]]] = {part: [] for part in PARTS}
    named = [part_of(launch) for launch in step.launches]
    if any(re.search(GENERATED, launch.name) for launch in step.launches):
        library = [re.search(LIBRARY, launch.name) is not None for launch in step.launches]
        named = ["attention" if is_library else part for part, is_library in zip(named, library, strict=True)]
    last = max((place for place, part in enumerate(named) if part == "matrices"), default=len(named))
    for place, (launch, exclusive) in enumerate(zip(step.launches, step.exclusive_s(), strict=True)):
        found["sampling" if place > last and not on_gpu else named[place]].append((launch, exclusive))
    return found


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
    yield Part("sampling", seconds["sampling"], f"{kernels(len(step.kernels['sampling']))} that draw|sample the token")
    yield Part("other", seconds["other"], most_of(step.kernels["other"], step.factor))
    if not step.is_one_graph:
        yield Part("host", seconds["gaps"], "gaps in which nothing runs: the host launches what comes next")


def kernels(count: int) -> str:
    return f"{count} kernel{'s' * (count != 1)}"


def kv_bytes(step: Step) -> float:
    """Keys and values of the profiled step."""
    moved, found = step.result.traffic, step.result.breakdown
    assert found is not None
    place = min(max(found.position + 1 - moved.kv_len[0], 0), len(moved.kv_len) - 1)
    return float(moved.moved()[place] - moved.weights)


MAX_NAMED = 3
"""Kernels of what is `other`, by name."""


def most_of(launches: list[tuple[Launch, float]], factor: float) -> str:
    """The kernels that take most."""
    seconds: dict[str, float] = {}
    for launch, exclusive in launches:
        seconds[launch.name] = seconds.get(launch.name, 0.0) + exclusive * factor
    first = sorted(seconds, key=lambda name: -seconds[name])[:MAX_NAMED]
    named = ", ".join(f"{name} {micro(seconds[name])}" for name in first)
    return kernels(len(launches)) + (f", most of it {named}" if named else "")
