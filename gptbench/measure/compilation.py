"""Compile time: how long, of what stages, from what state of the caches, and a count that proves when it is over."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import compilation_time_metrics, counters
from torch._inductor.utils import fresh_cache

from gptbench.engine import Engine


class CompileWatch:
    """Counts, from its making on, every graph that torch compiles, every CUDA graph that its trees record, and every
    kernel that Triton compiles in this process."""

    def __init__(self) -> None:
        self.count = 0
        callback_handler.register_start_callback(self.torch_compiles)
        self.triton = triton_compilation()
        if self.triton is not None:
            self.listener, self.triton.listener = self.triton.listener, self.triton_compiles

    def close(self) -> None:
        """Stops counting."""
        callback_handler.remove_start_callback(self.torch_compiles)
        if self.triton is not None:
            self.triton.listener = self.listener

    def torch_compiles(self, _: Any) -> None:
        self.count += 1

    def triton_compiles(self, **event: Any) -> None:
        self.count += 1
        if self.listener is not None:
            self.listener(**event)

    def __enter__(self) -> "CompileWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def triton_compilation() -> Any:
    """Triton's switches for compiling, or None where there is no Triton."""
    try:
        from triton import knobs
    except ImportError:
        return None
    return knobs.compilation


@dataclass
class Compilation:
    """What it took to prepare an engine, in one process."""

    cache: str
    """State of the compile cache that was met: cold (nothing found), warm (all found), mixed, or none (not used)."""
    process: str
    """first: the process that also ran the samples; second: one started for this alone, on the first one's cache."""
    prepare_s: float
    """Seconds from the weights being there until prefill and decode had run and been captured."""
    later_s: float = 0.0
    """Seconds of warm-up generations during which something was compiled after all."""
    first_generation_s: float | None = None
    """Seconds of the first whole generation after preparing."""
    compiles: int = 0
    """Graphs and kernels compiled, and graphs recorded by torch, while preparing."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, under torch's own names. Stages hold each other, so they do not add up."""
    cache_counts: dict[str, int] = field(default_factory=dict)
    """Compile-cache hits, misses and bypasses, as torch counts them."""

    @property
    def total_s(self) -> float:
        """Seconds spent on compiling, all told."""
        return self.prepare_s + self.later_s

    @property
    def seed_s(self) -> float | None:
        """What the seed calls compilation time: preparing and the first generation."""
        return None if self.first_generation_s is None else self.prepare_s + self.first_generation_s


CACHE_COUNTERS = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")


def prepare(engine: Engine, watch: CompileWatch, process: str) -> Compilation:
    """Prepares an engine, timed."""
    before = {name: counters["inductor"][name] for name in CACHE_COUNTERS}
    stages = {name: sum(seconds) for name, seconds in compilation_time_metrics.items()}
    compiled = watch.count
    engine.device.synchronize()
    start = time.perf_counter()
    engine.prepare()
    engine.device.synchronize()
    elapsed = time.perf_counter() - start
    counts = {name: counters["inductor"][name] - before[name] for name in CACHE_COUNTERS}
    return Compilation(
        cache=cache_state(*counts.values()),
        process=process,
        prepare_s=elapsed,
        compiles=watch.count - compiled,
        stages_s={name: sum(s) - stages.get(name, 0.0) for name, s in compilation_time_metrics.items()},
        cache_counts=counts,
    )


def cache_state(hits: int, misses: int, bypasses: int) -> str:
    """Label for what was found in the compile cache."""
    if not hits:
        return "cold" if misses or bypasses else "none"
    return "mixed" if misses or bypasses else "warm"


@contextlib.contextmanager
def compile_cache(fresh: bool) -> Iterator[None]:
    """Nothing compiled so far in this process is used again; where `fresh`, nothing on disk either."""
    torch.compiler.reset()
    with fresh_cache() if fresh else contextlib.nullcontext():
        yield


def in_second_process(function: Callable[..., Compilation], *args: Any) -> Compilation:
    """Calls `function` in a new process that finds the same caches on disk and nothing in memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)
