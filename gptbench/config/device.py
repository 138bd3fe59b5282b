"""The `device` group: the processor a run uses, and the type it computes in."""

import os
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_THREADS_PER_CORE


class DeviceKind(Enum):
    """The kind of processor a run uses; `auto` is the GPU if there is one, and otherwise the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(Enum):
    """Type of activations, KV cache and unquantised weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True)
class DeviceConfig(Section):
    """The processor on which the model runs, and the type in which it computes."""

    GROUP: ClassVar[str] = "device"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.device.Device",)

    kind: DeviceKind = DeviceKind.auto
    """Kind of processor: cpu, cuda (a GPU), or auto, which is the GPU if there is one and otherwise the CPU."""
    index: int = 0
    """Number of the GPU, counted from 0; has no effect on a CPU."""
    dtype: Dtype = Dtype.auto
    """Type of activations, KV cache and unquantised weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    threads: int | None = None
    """Number of CPU threads that one operation uses; null is one per core."""
    measure_roof: bool = False
    """Whether the read roof (the peak read bandwidth, in GB/s) is measured again even if outputs/roofs already holds
    one; the highest bandwidth ever measured counts."""

    def check(self) -> None:
        self.at_least(0, "index")
        most = MAX_THREADS_PER_CORE * (os.cpu_count() or 1)
        if self.threads is not None and not 1 <= self.threads <= most:
            raise self.error("threads", f"a number from 1 to {most}, or null for torch's choice")
