"""Generate: one prefill and the decode steps after it, with a tick of a clock after each."""

import itertools
import time
from typing import Protocol

import torch
from torch import Tensor

from gptbench.config import WorkloadConfig
from gptbench.device import Device
from gptbench.engine import Engine


class Clock(Protocol):
    """Takes the time at numbered ticks, without waiting for the device."""

    def tick(self, index: int) -> None:
        """Notes the time."""

    def intervals(self) -> list[float]:
        """Seconds between one tick and the next; to be read once the device is done."""


class CudaClock:
    """CUDA events, made beforehand: the time at which the device gets to them."""

    def __init__(self, ticks: int) -> None:
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(ticks)]

    def tick(self, index: int) -> None:
        self.events[index].record()

    def intervals(self) -> list[float]:
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self.events)]


class HostClock:
    """The host's clock: right on a CPU, where a call returns when its work is done."""

    def __init__(self, ticks: int) -> None:
        self.times = [0.0] * ticks

    def tick(self, index: int) -> None:
        self.times[index] = time.perf_counter()

    def intervals(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.times)]


class Workload:
    """What every sample runs.

    Attributes:
        prompt: int64 [B, T] on the device.
        new_tokens: tokens generated for each row.
        clock: one tick before the prefill, and one after each token.
    """

    def __init__(self, config: WorkloadConfig, device: Device) -> None:
        rows = config.prompts or [config.prompt] * config.batch_size
        self.config = config
        self.prompt: Tensor = torch.tensor(rows, dtype=torch.int64, device=device.torch)
        self.new_tokens = config.new_tokens
        ticks = config.new_tokens + 1
        self.clock: Clock = CudaClock(ticks) if device.is_cuda else HostClock(ticks)


def generate(engine: Engine, workload: Workload) -> None:
    """The timed region: hands all work to the device, ticks, and waits for nothing."""
    clock = workload.clock
    clock.tick(0)
    engine.prefill(workload.prompt)
    clock.tick(1)
    for index in range(2, workload.new_tokens + 1):
        engine.decode()
        clock.tick(index)
