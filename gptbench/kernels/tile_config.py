"""Tiles of the linear kernels, and the keys by which they are looked up. `gptbench.engine.tile_cache` holds the best
ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gptbench.kernels.matrix import Matrix


BYTES_PER_WARP = 512
"""Bytes of a row that a warp loads at once: 16 for each thread."""


@dataclass(frozen=True)
class TileConfig:
    """Tile of a linear kernel. `block` is best a multiple of what `warps` load at once, 512 bytes each."""

    rows: int
    """Rows of the weight per CTA: a power of two; a multiple of 4 where an `Activation` is written."""
    block: int
    """Columns per step of the K loop, a power of two."""
    warps: int
    preload: int
    """Steps whose weights are prefetched before the PDL wait."""


@dataclass(frozen=True)
class TileKey:
    """Key of a tile: the kernel and the shapes that it was tuned for. Its string is the key in the tile cache's
    file."""

    kernel: str
    rows: int
    columns: int
    format: Any
    """Format of the weight, a `gptbench.quant.WeightFormat`."""
    dtype: torch.dtype
    """Data type of the model."""
    batch: int
    multiple: int = 1
    """Number of which the tile's rows must be a multiple."""
    max_experts: int = 0
    """Maximum number of distinct experts that are read; 0 without a mixture."""

    @classmethod
    def of(cls, kernel: str, weight: "Matrix", batch: int, multiple: int = 1, max_experts: int = 0) -> "TileKey":
        """Return the key for a kernel over a weight."""
        return cls(kernel, weight.rows, weight.columns, weight.format, weight.dtype, batch, multiple, max_experts)

    @property
    def name(self) -> str:
        """Name that a profiler shows for the kernel."""
        return kernel_name(self.kernel, self.rows, self.columns, mixture=self.max_experts > 0)

    def __str__(self) -> str:
        experts = f" experts {self.max_experts}" if self.max_experts else ""
        return f"{self.kernel} {self.rows}x{self.columns} {self.format.label(self.dtype)} batch {self.batch}{experts}"


def kernel_name(kernel: str, rows: int, columns: int, mixture: bool) -> str:
    """Return the name that a profiler shows for a kernel over a weight [rows, columns], or over a mixture's experts."""
    return f"{kernel}_{rows}x{columns}" + "_experts" * mixture
