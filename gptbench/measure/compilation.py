"""Compile time: how long, of what stages, from what state of the caches, and a count that proves when it is over."""

import contextlib
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from gptbench.config.plugins import Plugins
from gptbench.engine import Runner, caches
from gptbench.measure.load import observed
from gptbench.measure.sensors import NO_SENSOR, Sensor
from gptbench.private import torch as private
from gptbench.private.triton import compile_switches
from gptbench.schema.compilation import Compilation, costs


class CompileWatch:
    """Counts, from its making on, every graph that torch compiles, every CUDA graph that its trees record, and every
    kernel that Triton compiles in this process.

    Raises:
        UserError: this version of torch or of Triton cannot be asked to say so. Then samples that compile would count.

    Attributes:
        compiling: when Triton compiled a kernel or loaded one, by the host's clock: beginnings and ends in seconds.
    """

    def __init__(self) -> None:
        self.count = 0
        self.compiling: list[tuple[float, float]] = []
        self.triton_hits = self.triton_misses = 0
        self.lock = threading.Lock()
        caches.import_compiler()
        self.torch = private.compile_callbacks()
        self.triton = compile_switches()
        self.torch.register_start_callback(self.torch_compiles)
        if self.triton is not None:
            self.listener, self.triton.listener = self.triton.listener, self.triton_compiles

    def close(self) -> None:
        """Stops counting."""
        self.torch.remove_start_callback(self.torch_compiles)
        if self.triton is not None:
            self.triton.listener = self.listener

    def torch_compiles(self, _: Any) -> None:
        self.count += 1

    def triton_compiles(self, **event: Any) -> None:
        now = time.perf_counter()
        with self.lock:  # several threads may compile
            self.count += 1
            self.compiling.append((now - event["times"].total / 1e6, now))
            if event.get("cache_hit"):
                self.triton_hits += 1
            else:
                self.triton_misses += 1
        if self.listener is not None:
            self.listener(**event)

    def __enter__(self) -> "CompileWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(
    engine: Runner,
    watch: CompileWatch,
    empty_cache: bool,
    process: str = "first",
    taken_over: bool = False,
    sensor: Sensor = NO_SENSOR,
) -> Compilation:
    """Prepares an engine, timed.

    Args:
        empty_cache: whether the compile cache's folder was empty.
        process: see `Compilation`.
        taken_over: whether an earlier job has left compiled code.
    """
    before, stages = private.cache_counts(), private.compile_seconds()
    compiled, found, built = watch.count, watch.triton_hits, watch.triton_misses
    by_triton = len(watch.compiling)
    engine.device.synchronize()
    with observed(sensor, family=True) as load:
        start = time.perf_counter()
        engine.prepare()
        engine.device.synchronize()
        elapsed = time.perf_counter() - start
    counts = {name: count - before[name] for name, count in private.cache_counts().items()}
    kernels = watch.triton_hits - found, watch.triton_misses - built
    hits, misses, bypasses = counts.values()
    spent = {name: seconds - stages.get(name, 0.0) for name, seconds in private.compile_seconds().items()}
    state = cache_state(empty_cache, watch.count > compiled, hits, misses, bypasses, *kernels)
    return Compilation(
        cache="mixed" if taken_over and state != "none" else state,
        process=process,
        prepare_s=elapsed,
        compiles=watch.count - compiled,
        stage_s=costs(elapsed, spent, covered(watch.compiling[by_triton:]), engine.capture_s),
        torch_stage_s=spent,
        cache_counts=counts | dict(zip(("triton_hit", "triton_miss"), kernels, strict=True)),
        load=load,
    )


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of what lies in at least one interval: several threads may compile at once."""
    total, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


def cache_state(
    empty: bool, compiled: bool, hits: int, misses: int, bypasses: int, kernel_hits: int = 0, kernel_misses: int = 0
) -> str:
    """Label for the compile cache that was met: see `Compilation.cache`. Graphs tell, as their kernels are compiled
    with them; where there are none, Triton's kernels, whose cache has a folder of its own."""
    if not compiled:
        return "none"
    if not hits + misses + bypasses and kernel_hits + kernel_misses:
        return "cold" if not kernel_hits else "mixed" if kernel_misses else "warm"
    if empty:
        return "cold"
    return "warm" if hits and not misses and not bypasses else "mixed"


@contextlib.contextmanager
def compile_cache(fresh: bool, keep: bool = False) -> Iterator[bool]:
    """Nothing compiled so far in this process is used again, but where `keep`; where `fresh`, nothing on disk either.

    Yields whether the cache's folder is empty.
    """
    if not keep:
        torch.compiler.reset()
    with private.fresh_cache() if fresh else contextlib.nullcontext():
        try:
            empty = not any(private.cache_folder().iterdir())
        except OSError:  # it can be neither made nor read
            empty = True
        yield empty


def begin_apart(_: Plugins) -> None:
    """In the new process, which has imported the plugins where it unpickled them. A terminal's Ctrl-C goes to both;
    only the parent knows whether it is to end now."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_second_process(function: Callable[..., Compilation], *args: Any) -> Compilation:
    """Calls `function` in a new process that finds the same caches on disk and nothing in memory.

    Raises:
        Exception: what the function raises, or BrokenProcessPool if the process is killed.
    """
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawning, initializer=begin_apart, initargs=(Plugins(),)) as pool:
        try:
            return pool.submit(function, *args).result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            raise
