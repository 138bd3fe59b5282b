"""A task in a file of one's own: how fast memory is copied. Its section, what measures, and what is recorded."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch

from gptbench.config import TaskConfig
from gptbench.schema import Measured
from gptbench.task import Standalone, register_task


@dataclass(kw_only=True)
class CopyingConfig(TaskConfig):
    """Copies of some sizes."""

    RUNS_ENGINE: ClassVar[bool] = False

    megabytes: list[int] = field(default_factory=lambda: [16, 64])
    """Sizes, in 1e6 bytes."""
    repeats: int = 5
    """Timed copies of each."""

    def check(self) -> None:
        self.within(1, 1000, "repeats")
        if not self.megabytes or not all(1 <= size <= 1000 for size in self.megabytes):
            raise self.error("megabytes", "sizes from 1 to 1000")


@dataclass
class Copied:
    """One size."""

    megabytes: int
    """Size of what is copied, in 1e6 bytes."""
    seconds: list[float]
    """Seconds of each copy."""

    @property
    def gb_per_s(self) -> float:
        """Read and written, of the fastest copy."""
        return 2 * self.megabytes / 1e3 / min(self.seconds)


@dataclass(kw_only=True)
class CopyingResult(Measured):
    """Every size that was copied."""

    FILE: ClassVar[str] = "copies"
    IS_RUN: ClassVar[bool] = True
    NAMED_BY: ClassVar[tuple[str, ...]] = ("task",)

    wall_s: float
    """Seconds that all copies took."""
    copies: list[Copied]
    interrupted: bool = False
    """Whether some were left out because of Ctrl-C."""

    def problem(self) -> str | None:
        return "it was interrupted" if self.interrupted else None

    @cached_property
    def summary(self) -> dict[str, float]:
        return {f"copy/{copied.megabytes}MB/gb_per_s": copied.gb_per_s for copied in self.copies}


class Copying(Standalone):
    """Copies a tensor onto another one."""

    task: CopyingConfig

    @property
    def parts(self) -> int:
        return len(self.task.megabytes)

    def measure(self, stage: Callable[[str], AbstractContextManager[None]]) -> Iterator[Copied]:
        for size in self.task.megabytes:
            with stage(f"{size} MB"):
                source = torch.zeros(size * 10**6, dtype=torch.uint8, device=self.device.torch)
                copied = Copied(
                    size, [self.seconds(source, torch.empty_like(source)) for _ in range(self.task.repeats)]
                )
            yield copied

    def seconds(self, source: torch.Tensor, copy: torch.Tensor) -> float:
        """Of one copy."""
        self.device.synchronize()
        begin = time.perf_counter()
        copy.copy_(source)
        self.device.synchronize()
        return time.perf_counter() - begin

    def record(self, parts: list[Copied], **fields: Any) -> CopyingResult:
        return CopyingResult(copies=parts, **fields)


register_task("copying", CopyingConfig, Copying, CopyingResult)
