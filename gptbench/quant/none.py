"""Unquantised weights."""

import torch
from torch import Tensor

from gptbench.kernels.matrix import Functions, Matrix
from gptbench.kernels.tile_config import BYTES_PER_WARP, TileKey
from gptbench.quant.base import HAS_TRITON, WeightFormat


class Unquantised(WeightFormat):
    """Stores weights in the model's type."""

    def label(self, dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns), dtype)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (weight.to(dtype),)

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        (weight,) = stored
        return weight, None

    def copied_bytes(self, itemsize: int) -> int:
        return 0

    def random(self, matrix: Matrix, generator: torch.Generator) -> None:
        matrix.tensors[0].normal_(generator=generator).div_(matrix.columns**0.5)

    def functions(self) -> Functions:
        return FUNCTIONS

    def bits(self, dtype: torch.dtype) -> int:
        return 8 * dtype.itemsize

    def tile_hint(self, tile_key: TileKey) -> tuple[int, int, int, int]:
        long = tile_key.columns > 8192
        if tile_key.kernel == "add_linear":
            # Of two tiles of the same size, the one whose last step is fuller.
            step = 8 * BYTES_PER_WARP // tile_key.dtype.itemsize
            narrow = -(-tile_key.columns // step) % 2 == 1
            return (8, 1, 8, 2) if long and narrow else (8 if long else 4, 2, 4, 2)
        if tile_key.kernel == "swiglu":
            return 4 if tile_key.columns >= 4096 else 2, 2, 2, 1
        return 2, 2, 2, 1


if HAS_TRITON:
    import triton
    import triton.language as tl

    from gptbench.kernels.mainloop import load_words, unit_scale

    @triton.jit
    def multiply(tile, x, at, mask):
        numbers = tl.load(x.plain + at, mask=mask, other=0.0).to(tl.float32)
        return tile.to(tl.float32) * numbers[None, :]

    @triton.jit
    def row(tensors, row, columns, mask, K: tl.constexpr):
        return tl.load(tensors[0] + row * K + columns, mask=mask, other=0)

    FUNCTIONS = Functions(load_words, multiply, unit_scale, row)
