"""The start of a decode step: each token's row of the embedding becomes the residual stream."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.activation import Activation, store
from gptbench.kernels.launch import follow, launch
from gptbench.kernels.op import Bytes, Op, nbytes

WARPS = 8
EXAMPLES = 64
"""Rows of a table that tokens are looked up in at random."""


@triton.jit
def embed_kernel(
    token,
    weight,
    weight_scale,
    residual,
    gain,
    low,
    high,
    scale,
    squares,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    SCALED: tl.constexpr,
    FIXED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    b = tl.program_id(0)
    column = tl.arange(0, D_PADDED)
    there = column < D
    gains = tl.load(gain + column, mask=there, other=0.0).to(tl.float32)
    follow(OVERLAP)
    row = tl.load(token + b)
    x = tl.load(weight + row * D + column, mask=there, other=0)
    if SCALED:
        x = x.to(tl.float32) * tl.load(weight_scale + row).to(tl.float32)
    x = x.to(residual.dtype.element_ty)
    tl.store(residual + b * D + column, x, mask=there)
    numbers = x.to(tl.float32)
    tl.store(squares + b, tl.sum(numbers * numbers, 0))
    store(numbers * gains, low, high, scale, b * D, D, D_PADDED, FIXED)


@dataclass(frozen=True, eq=False)
class Embed(Op):
    """Looks up one row for each token."""

    token: Tensor
    """int64 [B, 1]."""
    weight: Tensor
    """[V, D]."""
    weight_scale: Tensor | None
    """[V], of int8 weights."""
    residual: Tensor
    """[B, D]."""
    gain: Tensor
    """[D], of the first norm."""
    following: Activation
    """The residual stream times gain, [B, D]."""
    squares: Tensor
    """float32 [B, 1]: sum of squares of the residual stream."""

    name = "embed_kernel"

    def launch(self, pdl: bool = False) -> None:
        width = self.weight.shape[1]
        launch(
            embed_kernel,
            (self.token.shape[0],),
            self.token,
            self.weight,
            self.weight if self.weight_scale is None else self.weight_scale,
            self.residual,
            self.gain,
            *self.following.tensors,
            self.squares,
            D=width,
            D_PADDED=max(4, triton.next_power_of_2(width)),
            SCALED=self.weight_scale is not None,
            FIXED=self.following.fixed,
            OVERLAP=pdl,
            num_warps=WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        index = self.token.squeeze(1)
        rows = self.weight[index].float()
        if self.weight_scale is not None:
            rows = rows * self.weight_scale[index].float().unsqueeze(-1)
        self.residual.copy_(rows)
        self.following.write(self.residual.float() * self.gain.float())
        self.squares.copy_(self.residual.float().square().sum(-1, keepdim=True))

    def reads_early(self) -> tuple[Any, ...]:
        return (self.gain,)

    def reads(self) -> tuple[Any, ...]:
        return self.gain, self.token, self.weight, self.weight_scale

    def writes(self) -> tuple[Any, ...]:
        return self.residual, self.following, self.squares

    def bytes_read(self) -> Bytes:
        return Bytes(weights=self.weight[0].nbytes * self.token.shape[0])

    def bytes_beside(self) -> int:
        scales = 0 if self.weight_scale is None else self.token.shape[0] * self.weight_scale.itemsize
        return scales + nbytes(self.token, self.gain, *self.writes())

    def shape(self) -> dict[str, int]:
        return {"B": self.residual.shape[0], "D": self.residual.shape[1]}

    def flops(self, positions: int) -> int:
        return 3 * self.residual.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def example(self, position: int, launches: int) -> "Embed":
        """Of the table a few rows are there: more make no difference to the kernel."""
        scale = self.weight_scale
        return replace(self, weight=self.weight[:EXAMPLES], weight_scale=None if scale is None else scale[:EXAMPLES])

    def fill(self, generator: Generator, position: int) -> None:
        super().fill(generator, position)
        self.token.random_(len(self.weight), generator=generator)
