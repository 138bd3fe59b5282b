"""How the linear kernels are cut up, and what a way to do so is for. Which is the best:
`gptbench.engine.tile_cache`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gptbench.kernels.matrix import Matrix


BYTES_PER_WARP = 512
"""What a warp loads of a row at once: 16 bytes for each thread."""


@dataclass(frozen=True)
class TileConfig:
    """How a linear kernel is cut up. BLOCK is best a multiple of what `warps` load at once: 512 bytes each."""

    rows: int
    """Rows of the weight for each program: a power of two; a multiple of 4 where an `Activation` is written."""
    block: int
    """Columns of a step: a power of two."""
    warps: int
    preload: int
    """Steps whose weights are loaded before the program waits."""


@dataclass(frozen=True)
class TileKey:
    """What a tile is for. Its text is the key in the file."""

    kernel: str
    rows: int
    columns: int
    format: Any
    """How the weight is stored: a `gptbench.quant.WeightFormat`."""
    dtype: torch.dtype
    """The model's type."""
    batch: int
    multiple: int = 1
    """What the tile's rows must be a multiple of."""
    max_experts: int = 0
    """Of a mixture: experts that are read."""

    @classmethod
    def of(cls, kernel: str, weight: "Matrix", batch: int, multiple: int = 1, max_experts: int = 0) -> "TileKey":
        """For a kernel over a weight."""
        return cls(kernel, weight.rows, weight.columns, weight.format, weight.dtype, batch, multiple, max_experts)

    @property
    def name(self) -> str:
        """What a profiler shows for the kernel."""
        return kernel_name(self.kernel, self.rows, self.columns, mixture=self.max_experts > 0)

    def __str__(self) -> str:
        experts = f" experts {self.max_experts}" if self.max_experts else ""
        return f"{self.kernel} {self.rows}x{self.columns} {self.format.label(self.dtype)} batch {self.batch}{experts}"


def kernel_name(kernel: str, rows: int, columns: int, mixture: bool) -> str:
    """What a profiler shows for a kernel over a weight [rows, columns], or over several: experts."""
    return f"{kernel}_{rows}x{columns}" + "_experts" * mixture
