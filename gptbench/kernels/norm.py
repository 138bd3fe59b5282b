"""The RMS norm before a matrix, which needs no pass of its own: its gain is already in what the matrix is multiplied
with, its divisor is applied to the product.

Shapes: B batch, K columns, P partial sums.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor


class NormShape(NamedTuple):
    """Compile-time shape of a norm."""

    K: int
    SUMS: int
    """P."""
    SUMS_PADDED: int
    """The power of two from P on."""


@dataclass(frozen=True)
class Norm:
    """The divisor of an RMS norm over x [B, K]: the root of the mean square plus eps."""

    sum_sq_partials: Tensor
    """float32 [B, P]: sums of squares of parts of x."""
    width: int
    """K."""
    eps: float

    @property
    def shape(self) -> NormShape:
        sums = self.sum_sq_partials.shape[1]
        return NormShape(self.width, sums, triton.next_power_of_2(sums))

    def factor(self) -> Tensor:
        """What to multiply with: float32 [B, 1]."""
        return torch.rsqrt(self.sum_sq_partials.sum(-1, keepdim=True) / self.width + self.eps)

    def fill(self, generator: Generator) -> None:
        """Of numbers of order one."""
        mean = self.width / self.sum_sq_partials.shape[1]
        self.sum_sq_partials.uniform_(0.5 * mean, 1.5 * mean, generator=generator)


@triton.jit
def norm_parts(
    sum_sq_partials, SUMS: tl.constexpr, SUMS_PADDED: tl.constexpr, BATCH: tl.constexpr, PADDED: tl.constexpr
):
    """`Norm.sum_sq_partials`: float32 [PADDED, SUMS_PADDED]. To be loaded early, and added up late: others need not
    wait."""
    batch, part = tl.arange(0, PADDED), tl.arange(0, SUMS_PADDED)
    there = (batch < BATCH)[:, None] & (part < SUMS)[None, :]
    return tl.load(sum_sq_partials + batch[:, None] * SUMS + part[None, :], mask=there, other=0.0)


@triton.jit
def norm_factor(parts, eps, K: tl.constexpr):
    """`Norm.factor` of `norm_parts`: float32 [PADDED]."""
    return tl.math.rsqrt(tl.sum(parts, 1) / K + eps)
