"""RMSNorm fused into the matrix-vector product that follows it.

The norm's weight is applied by whichever kernel writes the residual stream; the reciprocal RMS (rstd) is a scalar per
row, applied to the product in the epilogue.

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
    """Number of partial sums P."""
    SUMS_PADDED: int
    """P, rounded up to a power of two."""


@dataclass(frozen=True)
class Norm:
    """RMSNorm over x [B, K], given partial sums of squares: rstd = 1 / sqrt(mean square + eps)."""

    sum_sq_partials: Tensor
    """Sums of squares of parts of x, float32 [B, P]."""
    width: int
    """Width K of x."""
    eps: float

    @property
    def shape(self) -> NormShape:
        sums = self.sum_sq_partials.shape[1]
        return NormShape(self.width, sums, triton.next_power_of_2(sums))

    def rstd(self) -> Tensor:
        """Return the reciprocal RMS of each row, float32 [B, 1]."""
        return torch.rsqrt(self.sum_sq_partials.sum(-1, keepdim=True) / self.width + self.eps)

    def fill(self, generator: Generator) -> None:
        """Fill with sums of squares of numbers of order one."""
        mean = self.width / self.sum_sq_partials.shape[1]
        self.sum_sq_partials.uniform_(0.5 * mean, 1.5 * mean, generator=generator)


@triton.jit
def load_sum_sq(
    sum_sq_partials, SUMS: tl.constexpr, SUMS_PADDED: tl.constexpr, BATCH: tl.constexpr, PADDED: tl.constexpr
):
    """Load `Norm.sum_sq_partials`, float32 [PADDED, SUMS_PADDED]. To be loaded before the K loop and reduced after it,
    so that nothing waits for the loads."""
    batch, part = tl.arange(0, PADDED), tl.arange(0, SUMS_PADDED)
    mask = (batch < BATCH)[:, None] & (part < SUMS)[None, :]
    return tl.load(sum_sq_partials + batch[:, None] * SUMS + part[None, :], mask=mask, other=0.0)


@triton.jit
def compute_rstd(sum_sq, eps, K: tl.constexpr):
    """Return the reciprocal RMS of each row, float32 [PADDED], from `load_sum_sq`."""
    return tl.math.rsqrt(tl.sum(sum_sq, 1) / K + eps)
