"""How the linear kernels are cut up on a device: what was found by measuring, and what holds without it.

The defaults are what was fastest on an H200 (see LOG.md). A weight whose rows are short, or that is small, wants other
tiles than one that fills the device many times over; so the best one is searched for each shape, and kept.
"""

from collections.abc import Iterator

import torch
import triton

from gptbench.kernels.linear import Tile

BYTES_PER_WARP = 512
"""What a warp loads of a row at once: 16 bytes for each thread."""
MOST_PRELOADED = 96
"""Registers of each thread for weights that are loaded before the program waits."""
MOST_TOTALS = 32
"""Rows of the tile times rows of the batch."""


def default_tile(
    kernel: str, rows: int, columns: int, dtype: torch.dtype, multiple: int = 1, batch: int = 1, mixture: bool = False
) -> Tile:
    """For a kernel of that name over a weight [rows, columns] (or several, of a mixture), the tile's rows a multiple of
    `multiple`; few where the batch has many rows, each of which takes registers for them."""
    int8 = dtype == torch.int8
    if kernel == "add_linear":  # few rows: whole ones are loaded early, if they are short
        warps, width, high, preload = (4, 1, 8, 2 if columns <= 8192 else 1) if int8 else (4, 2, 4, 2)
    elif kernel == "swiglu":
        warps, width, high, preload = (4 if mixture else 2, 1, 8, 1) if int8 else (2, 2, 2, 1)
    elif int8 and rows * columns <= 2**25:
        warps, width, high, preload = 2, 1, 4, 1
    else:
        warps, width, high, preload = (2, 2, 8, 1) if int8 else (2, 2, 2, 1)
    block = warps * width * BYTES_PER_WARP // dtype.itemsize
    high = min(high, max(2, MOST_TOTALS // triton.next_power_of_2(batch)))
    return fitted(Tile(max(high, multiple), block, warps, preload), columns, dtype)


def fitted(tile: Tile, columns: int, dtype: torch.dtype) -> Tile:
    """The tile, no wider than rows of so many columns."""
    block, warps = tile.block, tile.warps
    while block // 2 >= columns and block * dtype.itemsize > BYTES_PER_WARP:
        block //= 2
    while warps > 1 and warps * BYTES_PER_WARP > block * dtype.itemsize:
        warps //= 2
    return Tile(tile.rows, block, warps, min(tile.preload, -(-columns // block)))


def candidates(columns: int, dtype: torch.dtype, multiple: int = 1) -> Iterator[Tile]:
    """Tiles worth trying for rows of so many columns."""
    seen = set()
    for rows in (4, 8, 16) if dtype == torch.int8 else (2, 4, 8):
        for warps in (2, 4, 8):
            for width in (1, 2):
                block = warps * width * BYTES_PER_WARP // dtype.itemsize
                steps = -(-columns // block)
                for preload in sorted({1, 2, steps}):
                    tile = fitted(Tile(max(rows, multiple), block, warps, preload), columns, dtype)
                    registers = tile.rows * 4 * width * tile.preload
                    if registers <= MOST_PRELOADED and tile not in seen:
                        seen.add(tile)
                        yield tile
