"""Activations: what the linear kernels multiply their weights with. x [B, K] is plain, or in blocks of four 16-bit
integers.

Formats with few bits per weight use blocks: four neighbours share a scale, chosen so that the largest of them becomes
±32767. That keeps 15 bits and the sign of each number (bfloat16 keeps 8), and lets one integer instruction (`dp2a`: two
16-bit numbers times two 8-bit ones, added to a 32-bit sum) do what takes two conversions and two multiply-adds in
floating point. The integers are laid out for 16-byte loads beside 16 bytes of weights: `pair_lo` holds elements 4i and
4i + 1, `pair_hi` elements 4i + 2 and 4i + 3.
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

USE_PTX = tl.constexpr(not INTERPRETED)


class Buffers(NamedTuple):
    """`Activation` as a kernel argument."""

    plain: Tensor | None
    pair_lo: Tensor | None
    pair_hi: Tensor | None
    scale: Tensor | None


@dataclass(frozen=True)
class Activation:
    """Activation x [B, K] in the encoding of the weight it is multiplied with: either `plain` is set, or all other
    fields."""

    plain: Tensor | None = None
    """Numbers in the model's type, [B, K]."""
    pair_lo: Tensor | None = None
    """Elements 4i (lower half) and 4i + 1 (upper half) in units of the scale, int32 [B, K/4]."""
    pair_hi: Tensor | None = None
    """Elements 4i + 2 and 4i + 3, packed likewise, int32 [B, K/4]."""
    scale: Tensor | None = None
    """Scale of each block of four, float32 [B, K/4]."""

    @classmethod
    def empty(
        cls, batch: int, width: int, dtype: torch.dtype, device: torch.device, encoding: Encoding
    ) -> "Activation":
        """Allocate memory for x [B, K]; blocks require K to be a multiple of 4."""
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
        """Number of neighbours that are written together."""
        return GROUP if self.plain is None else 1

    @property
    def buffers(self) -> Buffers:
        """The activation as a kernel argument."""
        return Buffers(self.plain, self.pair_lo, self.pair_hi, self.scale)

    @property
    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """`pair_lo`, `pair_hi` and `scale` of an activation in blocks."""
        assert self.pair_lo is not None and self.pair_hi is not None and self.scale is not None
        return self.pair_lo, self.pair_hi, self.scale

    @property
    def batch(self) -> int:
        return (self.blocks[0] if self.plain is None else self.plain).shape[0]

    @property
    def width(self) -> int:
        """Width K."""
        return self.blocks[0].shape[1] * GROUP if self.plain is None else self.plain.shape[1]

    def write(self, x: Tensor) -> None:
        """Encode and store x [B, K]: `store` in plain PyTorch."""
        if self.plain is not None:
            self.plain.copy_(x)
            return
        pair_lo, pair_hi, scale = self.blocks
        groups = x.float().unflatten(-1, (-1, GROUP))
        max_abs = groups.abs().amax(-1, keepdim=True)
        scale.copy_(max_abs.squeeze(-1) / MAX_INT16)
        integers = torch.where(max_abs > 0, groups * (MAX_INT16 / max_abs), 0.0).round().to(torch.int32)
        pair_lo.copy_(integers[..., 0] & 0xFFFF | integers[..., 1] << 16)
        pair_hi.copy_(integers[..., 2] & 0xFFFF | integers[..., 3] << 16)

    def read(self) -> Tensor:
        """Return the decoded numbers, float32 [B, K]."""
        if self.plain is not None:
            return self.plain.float()
        pair_lo, pair_hi, scale = self.blocks
        integers = torch.stack((pair_lo << 16 >> 16, pair_lo >> 16, pair_hi << 16 >> 16, pair_hi >> 16), dim=-1)
        return (integers.float() * scale.unsqueeze(-1)).flatten(-2)

    def fill(self, generator: Generator) -> None:
        """Fill with normally distributed numbers."""
        self.write(torch.randn(self.batch, self.width, generator=generator, device=generator.device))


@triton.jit
def encode(x, N: tl.constexpr):
    """Encode x, float32 [N], in blocks: return pair_lo, pair_hi and scale, each [N/4]."""
    groups = tl.reshape(x, [N // 4, 4])
    max_abs = tl.max(tl.abs(groups), 1)
    inverse_scale = 32767.0 / tl.where(max_abs > 0, max_abs, 32767.0)  # arbitrary for a block of zeros
    # Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits of the mantissa.
    bits = (groups * inverse_scale[:, None] + 12582912.0).to(tl.int32, bitcast=True)
    even, odd = tl.split(tl.reshape(bits, [N // 4, 2, 2]))
    pair_lo, pair_hi = tl.split((even & 0xFFFF) | (odd << 16))
    # Propagate NaN and infinity through the scale: 0 times either is NaN.
    return pair_lo, pair_hi, max_abs * (1.0 / 32767.0) + 0.0 * tl.sum(groups, 1)


@triton.jit
def store(x, out, offset, valid, N: tl.constexpr):
    """Store x, float32 [N], to elements `offset` to offset + N - 1, of which only the first `valid` exist.

    Args:
        out: `Buffers`. With blocks, N, offset and valid are multiples of 4.
    """
    if out.plain is None:
        lo_word, hi_word, group_scale = encode(x, N)
        index = tl.arange(0, N // 4)
        at = offset // 4 + index
        mask = index < valid // 4
        tl.store(out.pair_lo + at, lo_word, mask=mask)
        tl.store(out.pair_hi + at, hi_word, mask=mask)
        tl.store(out.scale + at, group_scale, mask=mask)
    else:
        index = tl.arange(0, N)
        tl.store(out.plain + offset + index, x.to(out.plain.dtype.element_ty), mask=index < valid)


@triton.jit
def store_rows(x, out, first_row, first, K: tl.constexpr, BATCH: tl.constexpr, PADDED: tl.constexpr, N: tl.constexpr):
    """Store x, float32 [PADDED, N], to BATCH rows from `first_row` on and columns from `first` on, within width K.

    Args:
        out: `Buffers`. With blocks, N and first are multiples of 4.
    """
    batch = tl.arange(0, PADDED)
    if out.plain is None:
        lo_word, hi_word, group_scale = encode(tl.reshape(x, [PADDED * N]), PADDED * N)
        column = first // 4 + tl.arange(0, N // 4)
        mask = (batch < BATCH)[:, None] & (column < K // 4)[None, :]
        at = (first_row + batch)[:, None] * (K // 4) + column[None, :]
        tl.store(out.pair_lo + at, tl.reshape(lo_word, [PADDED, N // 4]), mask=mask)
        tl.store(out.pair_hi + at, tl.reshape(hi_word, [PADDED, N // 4]), mask=mask)
        tl.store(out.scale + at, tl.reshape(group_scale, [PADDED, N // 4]), mask=mask)
    else:
        column = first + tl.arange(0, N)
        mask = (batch < BATCH)[:, None] & (column < K)[None, :]
        at = (first_row + batch)[:, None] * K + column[None, :]
        tl.store(out.plain + at, x.to(out.plain.dtype.element_ty), mask=mask)


@triton.jit
def dot4(weight, pair_lo, pair_hi):
    """Return the int32 dot product of four int8 weights (one word) and four 16-bit activations (two words). Operands
    broadcast."""
    if USE_PTX:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; dp2a.lo.s32.s32 t, $2, $1, 0; dp2a.hi.s32.s32 $0, $3, $1, t; }",
            "=r,r,r,r",
            [weight, pair_lo, pair_hi],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    acc = ((weight << 24) >> 24) * ((pair_lo << 16) >> 16)
    acc += ((weight << 16) >> 24) * (pair_lo >> 16)
    acc += ((weight << 8) >> 24) * ((pair_hi << 16) >> 16)
    return acc + (weight >> 24) * (pair_hi >> 16)
