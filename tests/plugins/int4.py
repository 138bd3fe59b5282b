"""A format of weights in a file of one's own, as a plugin has it: four bits, symmetric, a scale for every 128 columns.

The kernels load eight weights as a word, and multiply them as two words of four int8, which are 16 times as large: the
low halves of its bytes are columns 0 to 3, the high halves columns 4 to 7.
"""

import torch
from torch import Tensor

from gptbench.config import FormatLimits
from gptbench.kernels.matrix import Encoding, Functions
from gptbench.kernels.tile_config import TileKey
from gptbench.quant import WeightFormat, register_format

GROUP = 128
LARGEST = 7
SHIFTS = (0, 8, 16, 24, 4, 12, 20, 28)
"""Of the columns of a word."""


@register_format(FormatLimits(multiple=GROUP, float16="sums of unscaled products may pass float16's 65504"))
class Int4(WeightFormat):
    """weight int32 [N, K/8] and scale [N, K/128], of the model's type."""

    encoding = Encoding.int16
    weights_per_word = 8
    tile_rows = (4, 8, 16)
    packing_bytes = 20

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns // 8), torch.int32), "scale": ((rows, columns // GROUP), dtype)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        groups = weight.float().unflatten(-1, (-1, GROUP))
        largest = groups.abs().amax(-1)
        scale = torch.where(largest > 0, largest / LARGEST, 1.0).to(dtype)
        integers = (groups / scale.float().unsqueeze(-1)).round().clamp(-LARGEST, LARGEST).int().flatten(-2)
        halves = (integers.unflatten(-1, (-1, 8)) & 15) << torch.tensor(SHIFTS, device=weight.device, dtype=torch.int32)
        return halves.sum(-1).to(torch.int32), scale

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        words, scale = stored
        halves = torch.stack([words >> shift & 15 for shift in SHIFTS], -1)  # no constants of the host: it is captured
        groups = ((halves ^ 8) - 8).flatten(-2).unflatten(-1, (-1, GROUP))
        return (groups.float() * scale.float().unsqueeze(-1)).flatten(-2), None

    def copied_bytes(self, itemsize: int) -> int:
        return 4 * 4 + itemsize  # integers, those with a sign, float32, what is scaled, and all in the model's type

    def functions(self) -> Functions:
        return FUNCTIONS

    def bits(self, dtype: torch.dtype) -> int:
        return 4

    def tile_hint(self, tile_key: TileKey) -> tuple[int, int, int, int]:
        return 2, 1, 8, 1


try:
    import triton
    import triton.language as tl

    from gptbench.kernels.activation import dot4
    from gptbench.kernels.mainloop import load_words, unit_scale
except ImportError:  # then there are no kernels, and torch's engines have the format alone
    pass
else:

    @triton.jit
    def load(tensors, first, offsets, step, SHAPE: tl.constexpr):
        GROUPS: tl.constexpr = SHAPE.K // 128
        group = (step * SHAPE.WIDTH + tl.arange(0, SHAPE.WIDTH)) // 16
        rows = first.to(tl.int64) + offsets
        mask = (rows < SHAPE.N)[:, None] & (group < GROUPS)[None, :]
        scale = tl.load(tensors[1] + rows[:, None] * GROUPS + group[None, :], mask=mask, other=0.0)
        return load_words(tensors, first, offsets, step, SHAPE), scale

    @triton.jit
    def four(words, x, at, mask):
        """Words of four int8 times blocks of four numbers."""
        low = tl.load(x.pair_lo + at, mask=mask, other=0)
        high = tl.load(x.pair_hi + at, mask=mask, other=0)
        scale = tl.load(x.scale + at, mask=mask, other=0.0)
        return dot4(words, low[None, :], high[None, :]).to(tl.float32) * scale[None, :]

    @triton.jit
    def multiply(tile, x, at, mask):
        words, scale = tile
        y = four((words << 4) & -252645136, x, 2 * at, mask) + four(words & -252645136, x, 2 * at + 1, mask)
        return y * (scale.to(tl.float32) * 0.0625)

    @triton.jit
    def row(tensors, row, columns, mask, K: tl.constexpr):
        words = tl.load(tensors[0] + row * (K // 8) + columns // 8, mask=mask, other=0)
        integers = (words << (28 - 8 * (columns % 4) - 4 * (columns % 8 // 4))) >> 28
        scale = tl.load(tensors[1] + row * (K // 128) + columns // 128, mask=mask, other=0.0)
        return integers.to(tl.float32) * scale.to(tl.float32)

    FUNCTIONS = Functions(load, multiply, unit_scale, row)
