"""Takes samples: generations with the time of every step, repeated after a warm-up until nothing compiles any more."""

import gc
import time
from collections.abc import Callable, Collection

import numpy as np
import torch

from gptbench.engine import Runner
from gptbench.generate import Workload, generate
from gptbench.measure.compilation import CompileWatch
from gptbench.measure.load import observed
from gptbench.measure.sensors import NO_SENSOR, Sensor, watched
from gptbench.schema.sample import Sample, WarmUp

MAX_WARM_UPS = 10
"""Maximum number of warm-up generations."""


class StillCompilingError(RuntimeError):
    """Every warm-up generation compiled something."""


def sample_seed(seed: int, number: int) -> int:
    """Return the seed of sample `number`. It is hashed rather than added up, so that runs with consecutive seeds share
    no sample (numpy's `SeedSequence`, which is stable across versions)."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def take_sample(
    engine: Runner, workload: Workload, seed: int, watch: CompileWatch, sensor: Sensor = NO_SENSOR
) -> Sample:
    """Run one generation and return its sample."""
    device = engine.device
    engine.seed(seed)
    compiled = watch.count
    gc.collect()
    device.reset_peak_memory()
    gc.disable()  # a collection within the timed region would count as decoding
    try:
        with observed(sensor) as load, watched(sensor) as state:
            allocated = allocations(engine)
            device.synchronize()
            start = time.perf_counter()
            generate(engine, workload)
            device.synchronize()
            call_s = time.perf_counter() - start
            allocated_after = allocations(engine)
    finally:
        gc.enable()
    ttft_s, *step_s = workload.clock.intervals()
    tokens = engine.tokens(workload.new_tokens)
    if step_tokens := workload.clock.step_tokens(len(tokens)):
        tokens = [row[: 1 + sum(step[index] for step in step_tokens)] for index, row in enumerate(tokens)]
    chosen = engine.experts_chosen(len(step_s))
    return Sample(
        ttft_s=ttft_s,
        step_s=step_s,
        call_s=call_s,
        compiles=watch.count - compiled,
        allocations=None if allocated is None or allocated_after is None else allocated_after - allocated,
        peak_memory_bytes=device.peak_memory(),
        finite=engine.finite(),
        tokens=tokens,
        step_tokens=step_tokens,
        generated=[answer_length(row, engine.stop_tokens) for row in tokens],
        experts_chosen=chosen,
        experts_read=None if chosen is None else engine.experts_read(chosen, len(step_s)),
        state=state,
        load=load,
    )


def answer_length(tokens: list[int], stops: Collection[int]) -> int:
    """Return the number of tokens up to and including the first stop token, or of all if there is none."""
    return next((count for count, token in enumerate(tokens, 1) if token in stops), len(tokens))


def warm_up(engine: Runner, workload: Workload, watch: CompileWatch, sensor: Sensor = NO_SENSOR) -> list[WarmUp]:
    """Generate until a whole generation compiles nothing.

    Raises:
        StillCompilingError: each of `MAX_WARM_UPS` generations compiled something.
    """
    calls: list[WarmUp] = []
    while not calls or calls[-1].compiles:
        if len(calls) == MAX_WARM_UPS:
            raise StillCompilingError(
                f"each of {MAX_WARM_UPS} warm-up generations compiled something; the last: {calls[-1]}"
            )
        sample = take_sample(engine, workload, workload.config.seed, watch, sensor)
        calls.append(WarmUp(sample.call_s, sample.compiles))
    return calls


def take_samples(
    engine: Runner,
    workload: Workload,
    watch: CompileWatch,
    done: Callable[[Sample], None],
    sensor: Sensor = NO_SENSOR,
) -> list[Sample]:
    """Return the workload's samples. `done` is called with each, outside the timed region."""
    samples = []
    for index in range(workload.config.samples):
        samples.append(take_sample(engine, workload, sample_seed(workload.config.seed, index), watch, sensor))
        done(samples[-1])
    return samples


def allocations(engine: Runner) -> int | None:
    """Return the number of blocks requested from the GPU's allocator so far; None on a CPU."""
    if not engine.device.is_cuda:
        return None
    return torch.cuda.memory_stats(engine.device.torch).get("allocation.all.allocated", 0)
