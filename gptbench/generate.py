"""One timed generation: a prefill and the decode steps after it, each followed by a clock tick."""

import itertools
import time

import torch
from torch import Tensor

from gptbench.config import WorkloadConfig
from gptbench.device import Device
from gptbench.engine import Runner


class Clock:
    """Records the time at numbered ticks without synchronising with the device: one tick before the prefill, one after
    it, and one after each decode step.

    Attributes:
        ticks: maximum number of ticks.
        emitted: int64 [B] by tick: how many tokens each row got since the previous tick, where that is not one per row.
            If any tick is there, so is the last one.
    """

    def __init__(self, ticks: int) -> None:
        self.ticks = ticks
        self.emitted: dict[int, Tensor] = {}

    def tick(self, index: int, emitted: Tensor | None = None) -> None:
        """Record the time of a tick.

        Args:
            index: number of the tick.
            emitted: int64 [B], tokens that the step emits for each row, if that is not one per row. The device may
                write it later, but only once.
        """
        raise NotImplementedError

    def intervals(self) -> list[float]:
        """Return the seconds between consecutive ticks. Call it once the device has finished."""
        raise NotImplementedError

    @property
    def last(self) -> int:
        """Index of the last tick of the most recent generation."""
        return max(self.emitted, default=self.ticks - 1)

    def step_tokens(self, rows: int) -> list[list[int]]:
        """Return the tokens that each decode step emitted for each row; empty if it was always one per row. Call it
        once the device has finished."""
        if not self.emitted:
            return []
        one_per_row = torch.ones(rows, dtype=torch.int64)
        return [self.emitted.get(index, one_per_row).tolist() for index in range(2, self.last + 1)]


class CudaClock(Clock):
    """Preallocated CUDA events, which give the time at which the device reaches each tick."""

    def __init__(self, ticks: int) -> None:
        super().__init__(ticks)
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(ticks)]

    def tick(self, index: int, emitted: Tensor | None = None) -> None:
        self.events[index].record()
        if emitted is not None:
            self.emitted[index] = emitted

    def intervals(self) -> list[float]:
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self.events[: self.last + 1])]


class HostClock(Clock):
    """The host's clock, which is accurate on a CPU because a call returns when its work is done."""

    def __init__(self, ticks: int) -> None:
        super().__init__(ticks)
        self.times = [0.0] * ticks

    def tick(self, index: int, emitted: Tensor | None = None) -> None:
        self.times[index] = time.perf_counter()
        if emitted is not None:
            self.emitted[index] = emitted

    def intervals(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.times[: self.last + 1])]


class Workload:
    """The prompt and the clock of a generation, which every sample repeats.

    Attributes:
        config: workload section of the configuration.
        prompt: int64 [B, T] on the device.
        new_tokens: tokens generated for each row.
        clock: clock with room for a tick per generated token and one before the prefill.
    """

    def __init__(self, config: WorkloadConfig, device: Device) -> None:
        rows = config.prompts or [config.prompt] * config.batch_size
        self.config = config
        self.prompt: Tensor = torch.tensor(rows, dtype=torch.int64, device=device.torch)
        self.new_tokens = config.new_tokens
        ticks = config.new_tokens + 1
        self.clock: Clock = CudaClock(ticks) if device.is_cuda else HostClock(ticks)


def generate(engine: Runner, workload: Workload) -> None:
    """Run the timed region: one generation of the engine, with the workload's clock."""
    workload.clock.emitted.clear()
    engine.generate(workload.prompt, workload.new_tokens, workload.clock.tick)
