"""Generate: one prefill and the decode steps after it, with a tick of a clock after each."""

import itertools
import time

import torch
from torch import Tensor

from gptbench.config import WorkloadConfig
from gptbench.device import Device
from gptbench.engine import Runner


class Clock:
    """Takes the time at numbered ticks, without waiting for the device: one before the prefill, one after it, and one
    after each decode step.

    Attributes:
        ticks: how many there can be.
        emitted: by tick, int64 [B]: how many tokens each row got since the tick before, where that is not one each.
            Where any are, those of the last tick are.
    """

    def __init__(self, ticks: int) -> None:
        self.ticks = ticks
        self.emitted: dict[int, Tensor] = {}

    def tick(self, index: int, emitted: Tensor | None = None) -> None:
        """Notes the time.

        Args:
            emitted: of a step that does not emit one token for each row, how many it does, as above: the device may
                write it later, but only once.
        """
        raise NotImplementedError

    def intervals(self) -> list[float]:
        """Seconds between one tick and the next; to be read once the device is done."""
        raise NotImplementedError

    @property
    def last(self) -> int:
        """Number of the last tick of the last generation."""
        return max(self.emitted, default=self.ticks - 1)

    def step_tokens(self, rows: int) -> list[list[int]]:
        """Tokens that each decode step emitted for each row; empty where each emitted one for each. As `intervals`."""
        if not self.emitted:
            return []
        one = torch.ones(rows, dtype=torch.int64)
        return [self.emitted.get(index, one).tolist() for index in range(2, self.last + 1)]


class CudaClock(Clock):
    """CUDA events, made beforehand: the time at which the device gets to them."""

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
    """The host's clock: right on a CPU, where a call returns when its work is done."""

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
    """What every sample runs.

    Attributes:
        prompt: int64 [B, T] on the device.
        new_tokens: tokens generated for each row.
        clock: with as many ticks as there can be.
    """

    def __init__(self, config: WorkloadConfig, device: Device) -> None:
        rows = config.prompts or [config.prompt] * config.batch_size
        self.config = config
        self.prompt: Tensor = torch.tensor(rows, dtype=torch.int64, device=device.torch)
        self.new_tokens = config.new_tokens
        ticks = config.new_tokens + 1
        self.clock: Clock = CudaClock(ticks) if device.is_cuda else HostClock(ticks)


def generate(engine: Runner, workload: Workload) -> None:
    """The timed region."""
    workload.clock.emitted.clear()
    engine.generate(workload.prompt, workload.new_tokens, workload.clock.tick)
