"""The start of a decode step: each token's row of the embedding becomes the residual stream."""

from dataclasses import dataclass, replace
from typing import Any

import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.activation import Activation, store
from gptbench.kernels.launch import follow, launch
from gptbench.kernels.mainloop import stored
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.op import Bytes, Op, nbytes

WARPS = 8
EXAMPLES = 64
"""Rows of a table that tokens are looked up in at random."""


@triton.jit
def embed_kernel(
    token,
    weight,
    residual,
    gain,
    following,
    squares,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    b = tl.program_id(0)
    column = tl.arange(0, D_PADDED)
    there = column < D
    gains = tl.load(gain + column, mask=there, other=0.0).to(tl.float32)
    follow(PDL)
    x = weight.functions.row(weight.tensors, tl.load(token + b), column, there, D)
    x = x.to(residual.dtype.element_ty)
    tl.store(residual + b * D + column, x, mask=there)
    numbers = x.to(tl.float32)
    tl.store(squares + b, tl.sum(numbers * numbers, 0))
    store(numbers * gains, following, b * D, D, D_PADDED)


@dataclass(frozen=True, eq=False)
class Embed(Op):
    """Looks up one row for each token."""

    token: Tensor
    """int64 [B, 1]."""
    weight: Matrix
    """[V, D]."""
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
        width = self.weight.columns
        launch(
            embed_kernel,
            (self.token.shape[0],),
            self.token,
            stored(self.weight),
            self.residual,
            self.gain,
            self.following.buffers,
            self.squares,
            D=width,
            D_PADDED=max(4, triton.next_power_of_2(width)),
            PDL=pdl,
            num_warps=WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        self.residual.copy_(self.weight.lookup(self.token.squeeze(1)))
        self.following.write(self.residual.float() * self.gain.float())
        self.squares.copy_(self.residual.float().square().sum(-1, keepdim=True))

    def reads_early(self) -> tuple[Any, ...]:
        return (self.gain,)

    def reads(self) -> tuple[Any, ...]:
        return self.gain, self.token, self.weight

    def writes(self) -> tuple[Any, ...]:
        return self.residual, self.following, self.squares

    def bytes_read(self) -> Bytes:
        return Bytes(weights=self.weight.nbytes // self.weight.rows * self.token.shape[0])

    def bytes_beside(self) -> int:
        return nbytes(self.token, self.gain, *self.writes())

    def shape(self) -> dict[str, int]:
        return {"B": self.residual.shape[0], "D": self.residual.shape[1]}

    def flops(self, positions: int) -> int:
        return 3 * self.residual.numel()

    @property
    def dtype(self) -> str:
        return self.weight.label

    def example(self, position: int, launches: int) -> "Embed":
        """Of the table a few rows are there: more make no difference to the kernel."""
        return replace(self, weight=self.weight.first(EXAMPLES))

    def fill(self, generator: Generator, position: int) -> None:
        super().fill(generator, position)
        self.token.random_(self.weight.rows, generator=generator)
