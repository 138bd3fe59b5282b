"""What the linear kernels multiply their weights with: x [B, K], plain, or in blocks of four 16-bit integers.

Weights of few bits go with blocks: four neighbours share a scale, the largest of them becomes 32767. That keeps 15 bits
and the sign of each (bfloat16 keeps 8), and lets one integer instruction (`dp2a`: two 16-bit numbers times two 8-bit
ones, added to a 32-bit sum) do what takes two conversions and two multiply-adds in floating point. The integers are
laid out for 16-byte loads beside 16 bytes of weights: `pair_lo` holds elements 4i and 4i + 1, `pair_hi` 4i + 2 and 4i
+ 3.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.launch import INTERPRETED
from gptbench.kernels.matrix import Encoding

MAX_INT16 = 32767
GROUP = 4

ASSEMBLY = tl.constexpr(not INTERPRETED)


class Buffers(NamedTuple):
    """An `Activation` as a kernel's argument."""

    plain: Tensor | None
    pair_lo: Tensor | None
    pair_hi: Tensor | None
    scale: Tensor | None


@dataclass(frozen=True)
class Activation:
    """x [B, K], encoded as the weight that is multiplied with it wants it: `plain` alone, or all but `plain`."""

    plain: Tensor | None = None
    """[B, K], of the model's type."""
    pair_lo: Tensor | None = None
    """int32 [B, K/4]: elements 4i (lower half) and 4i + 1 (upper half), in units of the scale."""
    pair_hi: Tensor | None = None
    """int32 [B, K/4]: elements 4i + 2 and 4i + 3."""
    scale: Tensor | None = None
    """float32 [B, K/4]."""

    @classmethod
    def empty(
        cls, batch: int, width: int, dtype: torch.dtype, device: torch.device, encoding: Encoding
    ) -> "Activation":
        """Memory for x [B, K]; in blocks, K must be a multiple of 4."""
        if encoding is Encoding.plain:
            return cls(plain=torch.empty(batch, width, dtype=dtype, device=device))
        assert width % GROUP == 0, width
        words = batch, width // GROUP
        return cls(
            pair_lo=torch.empty(words, dtype=torch.int32, device=device),
            pair_hi=torch.empty(words, dtype=torch.int32, device=device),
            scale=torch.empty(words, dtype=torch.float32, device=device),
        )

    @property
    def encoding(self) -> Encoding:
        return Encoding.int16 if self.plain is None else Encoding.plain

    @property
    def multiple(self) -> int:
        """Neighbours that are written together."""
        return GROUP if self.plain is None else 1

    @property
    def buffers(self) -> Buffers:
        """The kernels' argument."""
        return Buffers(self.plain, self.pair_lo, self.pair_hi, self.scale)

    @property
    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """low, high and scale."""
        assert self.pair_lo is not None and self.pair_hi is not None and self.scale is not None
        return self.pair_lo, self.pair_hi, self.scale

    @property
    def batch(self) -> int:
        return (self.blocks[0] if self.plain is None else self.plain).shape[0]

    @property
    def width(self) -> int:
        """K."""
        return self.blocks[0].shape[1] * GROUP if self.plain is None else self.plain.shape[1]

    def write(self, x: Tensor) -> None:
        """Takes over x [B, K]; `store` in plain PyTorch."""
        if self.plain is not None:
            self.plain.copy_(x)
            return
        pair_lo, pair_hi, scale = self.blocks
        groups = x.float().unflatten(-1, (-1, GROUP))
        peak = groups.abs().amax(-1, keepdim=True)
        scale.copy_(peak.squeeze(-1) / MAX_INT16)
        integers = torch.where(peak > 0, groups * (MAX_INT16 / peak), 0.0).round().to(torch.int32)
        pair_lo.copy_(integers[..., 0] & 0xFFFF | integers[..., 1] << 16)
        pair_hi.copy_(integers[..., 2] & 0xFFFF | integers[..., 3] << 16)

    def read(self) -> Tensor:
        """float32 [B, K]."""
        if self.plain is not None:
            return self.plain.float()
        pair_lo, pair_hi, scale = self.blocks
        integers = torch.stack((pair_lo << 16 >> 16, pair_lo >> 16, pair_hi << 16 >> 16, pair_hi >> 16), dim=-1)
        return (integers.float() * scale.unsqueeze(-1)).flatten(-2)

    def fill(self, generator: Generator) -> None:
        """Normal numbers."""
        self.write(torch.randn(self.batch, self.width, generator=generator, device=generator.device))


@triton.jit
def encode(x, N: tl.constexpr):
    """x, float32 [N], in fixed point: low, high, scale, each [N/4]."""
    groups = tl.reshape(x, [N // 4, 4])
    peak = tl.max(tl.abs(groups), 1)
    units = 32767.0 / tl.where(peak > 0, peak, 32767.0)  # of zeros it does not matter
    # Adding 1.5 · 2^23 rounds to the nearest integer, and leaves it in the lowest bits.
    bits = (groups * units[:, None] + 12582912.0).to(tl.int32, bitcast=True)
    even, odd = tl.split(tl.reshape(bits, [N // 4, 2, 2]))
    pair_lo, pair_hi = tl.split((even & 0xFFFF) | (odd << 16))
    # A NaN or infinity must not get lost: 0 times it is NaN.
    return pair_lo, pair_hi, peak * (1.0 / 32767.0) + 0.0 * tl.sum(groups, 1)


@triton.jit
def store(x, to, offset, valid, N: tl.constexpr):
    """Writes x, float32 [N], to elements `offset` to offset + N - 1, of which only the first `valid` are there.

    to: `Buffers`. With blocks, N, offset and valid are multiples of 4.
    """
    if to.plain is None:
        lo_word, hi_word, group_scale = encode(x, N)
        index = tl.arange(0, N // 4)
        at = offset // 4 + index
        there = index < valid // 4
        tl.store(to.pair_lo + at, lo_word, mask=there)
        tl.store(to.pair_hi + at, hi_word, mask=there)
        tl.store(to.scale + at, group_scale, mask=there)
    else:
        index = tl.arange(0, N)
        tl.store(to.plain + offset + index, x.to(to.plain.dtype.element_ty), mask=index < valid)


@triton.jit
def store_rows(x, to, first_row, first, K: tl.constexpr, BATCH: tl.constexpr, PADDED: tl.constexpr, N: tl.constexpr):
    """Writes x, float32 [PADDED, N], to BATCH rows from `first_row` on and columns from `first` on of an activation of
    width K, as far as there are so many. to: `Buffers`. With blocks, N and first are multiples of 4."""
    batch = tl.arange(0, PADDED)
    if to.plain is None:
        lo_word, hi_word, group_scale = encode(tl.reshape(x, [PADDED * N]), PADDED * N)
        column = first // 4 + tl.arange(0, N // 4)
        there = (batch < BATCH)[:, None] & (column < K // 4)[None, :]
        at = (first_row + batch)[:, None] * (K // 4) + column[None, :]
        tl.store(to.pair_lo + at, tl.reshape(lo_word, [PADDED, N // 4]), mask=there)
        tl.store(to.pair_hi + at, tl.reshape(hi_word, [PADDED, N // 4]), mask=there)
        tl.store(to.scale + at, tl.reshape(group_scale, [PADDED, N // 4]), mask=there)
    else:
        column = first + tl.arange(0, N)
        there = (batch < BATCH)[:, None] & (column < K)[None, :]
        at = (first_row + batch)[:, None] * K + column[None, :]
        tl.store(to.plain + at, x.to(to.plain.dtype.element_ty), mask=there)


@triton.jit
def dot4(weight, pair_lo, pair_hi):
    """int32: four int8 weights (one word) times four 16-bit activations (two words), added up. Operands broadcast."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; dp2a.lo.s32.s32 t, $2, $1, 0; dp2a.hi.s32.s32 $0, $3, $1, t; }",
            "=r,r,r,r",
            [weight, pair_lo, pair_hi],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    total = ((weight << 24) >> 24) * ((pair_lo << 16) >> 16)
    total += ((weight << 16) >> 24) * (pair_lo >> 16)
    total += ((weight << 8) >> 24) * ((pair_hi << 16) >> 16)
    return total + (weight >> 24) * (pair_hi >> 16)
