"""The `device` group: where it runs."""

import os
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_THREADS_PER_CORE


class DeviceKind(Enum):
    """`auto` takes the GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(Enum):
    """Type of activations, KV cache and unquantised weights; `auto` is bfloat16 on a GPU, float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True)
class DeviceConfig(Section):
    """Where it runs."""

    GROUP: ClassVar[str] = "device"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.device.Device",)

    kind: DeviceKind = DeviceKind.auto
    """auto, cpu or cuda."""
    index: int = 0
    """Which GPU, counted from 0."""
    dtype: Dtype = Dtype.auto
    """Type of activations, KV cache and unquantised weights."""
    threads: int | None = None
    """CPU threads for one operation, or null for one a core."""
    measure_roof: bool = False
    """Measure the read roof once more, although outputs/roofs holds one; the highest rate seen counts."""

    def check(self) -> None:
        self.at_least(0, "index")
        most = MAX_THREADS_PER_CORE * (os.cpu_count() or 1)
        if self.threads is not None and not 1 <= self.threads <= most:
            raise self.error("threads", f"a number from 1 to {most}, or null for torch's choice")
