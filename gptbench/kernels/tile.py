"""How the linear kernels are cut up, and what a way to do so is for. Which is the best: `gptbench.engine.tiles`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """How a linear kernel is cut up. BLOCK is best a multiple of what `warps` load at once: 512 bytes each."""

    rows: int
    """Rows of the weight for each program: a power of two; a multiple of 4 where an `Activation` is written."""
    block: int
    """Columns of a step: a power of two."""
    warps: int
    preload: int
    """Steps whose weights are loaded before the program waits."""


@dataclass(frozen=True)
class Use:
    """What a tile is for. Its text is the key in the file."""

    kernel: str
    rows: int
    columns: int
    dtype: torch.dtype
    batch: int
    multiple: int = 1
    """What the tile's rows must be a multiple of."""
    slots: int = 0
    """Of a mixture: experts that are read."""

    @classmethod
    def of(
        cls, kernel: Callable[..., None], weight: Tensor, batch: int, written: int = 0, least: int = 1, slots: int = 0
    ) -> "Use":
        """For a kernel over weight [..., N, K].

        Args:
            written: rows of the weight that become one number of an `Activation`: in fixed point, four of these are
                written at once. 0: none is written.
            least: fewest rows, a power of two.
            slots: see `Use.slots`.
        """
        rows, columns = weight.shape[-2:]
        multiple = written * 4 if weight.dtype == torch.int8 else written
        return cls(kernel.__name__, rows, columns, weight.dtype, batch, max(multiple, least), slots)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        experts = f" experts {self.slots}" if self.slots else ""
        return f"{self.kernel} {self.rows}x{self.columns} {dtype} batch {self.batch}{experts}"
