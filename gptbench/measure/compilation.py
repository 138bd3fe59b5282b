"""Measures compile time by stage, the state of the compile caches, and whether anything still compiles."""

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
    """Counts every graph that torch compiles, every CUDA graph that its CUDA graph trees record, and every kernel that
    Triton compiles in this process, from construction until `close`.

    Raises:
        UserError: this version of torch or Triton offers no such callbacks, so compiling samples would go unnoticed.

    Attributes:
        count: number of compilations so far.
        compiling: start and end, in seconds of the host's clock, of each kernel that Triton compiled or loaded.
        triton_hits, triton_misses: number of kernels found and not found in Triton's cache.
    """

    def __init__(self) -> None:
        self.count = 0
        self.compiling: list[tuple[float, float]] = []
        self.triton_hits = self.triton_misses = 0
        self.lock = threading.Lock()
        caches.import_compiler()
        self.torch = private.compile_callbacks()
        self.triton = compile_switches()
        self.torch.register_start_callback(self.on_torch_compile)
        if self.triton is not None:
            self.listener, self.triton.listener = self.triton.listener, self.on_triton_compile

    def close(self) -> None:
        """Stop counting."""
        self.torch.remove_start_callback(self.on_torch_compile)
        if self.triton is not None:
            self.triton.listener = self.listener

    def on_torch_compile(self, _: Any) -> None:
        """Count a graph; torch calls this."""
        self.count += 1

    def on_triton_compile(self, **event: Any) -> None:
        """Count a kernel; Triton calls this, and then the listener that was there before."""
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
    """Prepare an engine and return how long that took and what it compiled.

    Args:
        empty_cache: whether the folder of the compile cache was empty.
        process: see `Compilation.process`.
        taken_over: whether an earlier job left compiled code.
        sensor: sensor of the device.
    """
    counts_before, seconds_before = private.cache_counts(), private.compile_seconds()
    compiled, hits_before, misses_before = watch.count, watch.triton_hits, watch.triton_misses
    by_triton = len(watch.compiling)
    engine.device.synchronize()
    with observed(sensor, family=True) as load:
        start = time.perf_counter()
        engine.prepare()
        engine.device.synchronize()
        elapsed = time.perf_counter() - start
    counts = {name: count - counts_before[name] for name, count in private.cache_counts().items()}
    kernels = watch.triton_hits - hits_before, watch.triton_misses - misses_before
    hits, misses, bypasses = counts.values()
    spent = {name: seconds - seconds_before.get(name, 0.0) for name, seconds in private.compile_seconds().items()}
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
    """Return the length of the union of intervals, which overlap if several threads compile at once."""
    total, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


def cache_state(
    empty: bool, compiled: bool, hits: int, misses: int, bypasses: int, kernel_hits: int = 0, kernel_misses: int = 0
) -> str:
    """Return the label of `Compilation.cache` for the state that the compile cache was in.

    It goes by graphs, whose kernels are compiled with them, or without any by Triton's kernels, whose cache is in
    another folder.
    """
    if not compiled:
        return "none"
    if not hits + misses + bypasses and kernel_hits + kernel_misses:
        return "cold" if not kernel_hits else "mixed" if kernel_misses else "warm"
    if empty:
        return "cold"
    return "warm" if hits and not misses and not bypasses else "mixed"


@contextlib.contextmanager
def compile_cache(fresh: bool, keep: bool = False) -> Iterator[bool]:
    """Set up the compile cache for one job; yields whether its folder is empty.

    Args:
        fresh: whether to use a new, empty folder.
        keep: whether to keep what this process has compiled so far.
    """
    if not keep:
        torch.compiler.reset()
    with private.fresh_cache() if fresh else contextlib.nullcontext():
        try:
            empty = not any(private.cache_folder().iterdir())
        except OSError:  # the folder cannot be created or read
            empty = True
        yield empty


def start_second_process(_: Plugins) -> None:
    """Initialise the new process. Unpickling the argument has imported the plugins. A terminal's Ctrl-C reaches both
    processes, but only the parent can decide whether to stop, so the child ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_second_process(function: Callable[..., Compilation], *args: Any) -> Compilation:
    """Call `function` in a new process, which has the same caches on disk and nothing in memory.

    Raises:
        Exception: whatever the function raises, or BrokenProcessPool if the process is killed.
    """
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawning, initializer=start_second_process, initargs=(Plugins(),)) as pool:
        try:
            return pool.submit(function, *args).result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            raise
