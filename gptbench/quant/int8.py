"""int8, weight only: symmetric, one scale for each output row (and expert). Activations keep their type.

The stored integer is round(w / scale) with scale = max|row| / 127. Products are formed with the integers and scaled
afterwards, once for each output.
"""

import torch
from torch import Tensor

from gptbench.kernels.matrix import Encoding, Functions, Matrix
from gptbench.kernels.tile_config import TileKey
from gptbench.quant.base import TRITON, WeightFormat

UNIFORM_STD = 73
"""Standard deviation of integers from -127 to 127, all equally likely."""
SMALL = 2**25
"""Bytes of a weight that leaves few rows of a large tile to each processor."""


def quantise_rows(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight [N, D] to int8 [N, D] from -127 to 127 and scale [N]. A row of zeros gets scale 1.

    The integers belong to the scale as it is stored, so that rounding the scale adds no error of its own.
    """
    weight = weight.float()
    largest = weight.abs().amax(-1)
    scale = torch.where(largest > 0, largest / 127, 1.0).to(scale_dtype)
    integers = (weight / scale.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return integers.to(torch.int8), scale


class Int8(WeightFormat):
    """weight int8 [N, K] and scale [N], of the model's type."""

    encoding = Encoding.int16
    weights_per_word = 4
    tile_rows = (4, 8, 16)
    short = 64  # with more, a library's product of a converted copy is faster

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns), torch.int8), "scale": ((rows,), dtype)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return quantise_rows(weight, dtype)

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, scale = stored
        return weight, scale

    def random(self, matrix: Matrix, generator: torch.Generator) -> None:
        weight, scale = matrix.tensors
        weight.random_(-127, 128, generator=generator)
        mean = matrix.columns**-0.5 / UNIFORM_STD
        scale.uniform_(0.5 * mean, 1.5 * mean, generator=generator)

    def short_product(self, x: Tensor, *stored: Tensor) -> Tensor:
        from gptbench.kernels.int8_matmul import int8_matmul  # needs Triton

        weight, scale = stored
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty(len(flat), len(weight), dtype=x.dtype, device=x.device)
        int8_matmul(flat, weight, scale, out)
        return out.view(*x.shape[:-1], -1)

    def words(self, stored: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weight, scale = stored
        return weight.view(torch.int32), scale

    def functions(self) -> Functions:
        return FUNCTIONS

    def bits(self, dtype: torch.dtype) -> int:
        return 8

    def cut(self, tile_key: TileKey) -> tuple[int, int, int, int]:
        long = tile_key.columns > 8192
        if tile_key.kernel == "add_linear":
            return (4, 1, 16 if tile_key.max_experts else 8, 1) if long else (4, 1, 8, 2)
        if tile_key.kernel == "swiglu":
            return 4 if tile_key.max_experts else 2, 1, 8, 1
        if tile_key.rows * tile_key.columns <= SMALL:
            return 2, 1, 4, 1
        return (4, 1, 8, 1) if long else (2, 2, 8, 1)


if TRITON:
    import triton
    import triton.language as tl

    from gptbench.kernels.activation import dot4
    from gptbench.kernels.mainloop import load_words

    @triton.jit
    def multiply(tile, x, at, there):
        pair_lo = tl.load(x.pair_lo + at, mask=there, other=0)
        pair_hi = tl.load(x.pair_hi + at, mask=there, other=0)
        scale = tl.load(x.scale + at, mask=there, other=0.0)
        return dot4(tile, pair_lo[None, :], pair_hi[None, :]).to(tl.float32) * scale[None, :]

    @triton.jit
    def row_scale(tensors, rows, there):
        return tl.load(tensors[1] + rows, mask=there, other=0.0).to(tl.float32)

    @triton.jit
    def row(tensors, row, columns, there, K: tl.constexpr):
        words = tl.load(tensors[0] + row * (K // 4) + columns // 4, mask=there, other=0)
        integers = (words << (24 - 8 * (columns % 4))) >> 24
        return integers.to(tl.float32) * tl.load(tensors[1] + row).to(tl.float32)

    FUNCTIONS = Functions(load_words, multiply, row_scale, row)
