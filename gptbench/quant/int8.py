"""int8, weight-only: symmetric, with one scale per output row (and expert). Activations keep their type.

The stored integer is round(w / scale) with scale = max|row| / 127. Products are formed with the integers and scaled
afterwards, once per output.
"""

import torch
from torch import Tensor

from gptbench.kernels.matrix import Encoding, Functions, Matrix
from gptbench.kernels.tile_config import TileKey
from gptbench.quant.base import HAS_TRITON, WeightFormat

UNIFORM_STD = 73
"""Standard deviation of uniformly distributed integers from -127 to 127."""
SMALL_WEIGHT_BYTES = 2**25
"""Bytes of a weight up to which large tiles would leave too few rows per SM."""


def quantise_rows(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise weight [N, D] to int8 [N, D] from -127 to 127 and scale [N]. A row of zeros gets scale 1.

    The integers are computed with the scale as it is stored, so that rounding the scale adds no error.
    """
    weight = weight.float()
    max_abs = weight.abs().amax(-1)
    scale = torch.where(max_abs > 0, max_abs / 127, 1.0).to(scale_dtype)
    integers = (weight / scale.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return integers.to(torch.int8), scale


class Int8(WeightFormat):
    """Stores `weight`, int8 [N, K], and `scale` [N] in the model's type."""

    encoding = Encoding.int16
    weights_per_word = 4
    tile_rows = (4, 8, 16)
    max_skinny_tokens = 64  # for more tokens, a library's product with a converted copy is faster

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

    def skinny_product(self, x: Tensor, *stored: Tensor) -> Tensor:
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

    def tile_hint(self, tile_key: TileKey) -> tuple[int, int, int, int]:
        long = tile_key.columns > 8192
        if tile_key.kernel == "add_linear":
            return (4, 1, 16 if tile_key.max_experts else 8, 1) if long else (4, 1, 8, 2)
        if tile_key.kernel == "swiglu":
            return 4 if tile_key.max_experts else 2, 1, 8, 1
        if tile_key.rows * tile_key.columns <= SMALL_WEIGHT_BYTES:
            return 2, 1, 4, 1
        return (4, 1, 8, 1) if long else (2, 2, 8, 1)


if HAS_TRITON:
    import triton
    import triton.language as tl

    from gptbench.kernels.activation import dot4
    from gptbench.kernels.mainloop import load_words

    @triton.jit
    def multiply(tile, x, at, mask):
        pair_lo = tl.load(x.pair_lo + at, mask=mask, other=0)
        pair_hi = tl.load(x.pair_hi + at, mask=mask, other=0)
        scale = tl.load(x.scale + at, mask=mask, other=0.0)
        return dot4(tile, pair_lo[None, :], pair_hi[None, :]).to(tl.float32) * scale[None, :]

    @triton.jit
    def row_scale(tensors, rows, mask):
        return tl.load(tensors[1] + rows, mask=mask, other=0.0).to(tl.float32)

    @triton.jit
    def row(tensors, row, columns, mask, K: tl.constexpr):
        words = tl.load(tensors[0] + row * (K // 4) + columns // 4, mask=mask, other=0)
        integers = (words << (24 - 8 * (columns % 4))) >> 24
        return integers.to(tl.float32) * tl.load(tensors[1] + row).to(tl.float32)

    FUNCTIONS = Functions(load_words, multiply, row_scale, row)
