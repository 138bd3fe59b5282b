"""Start of a decode step: looks up each token's row of the embedding, which becomes the residual stream."""

from dataclasses import dataclass, replace
from typing import Any

import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.activation import Activation, store
from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.mainloop import weight_argument
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.op import Bytes, Op, nbytes

WARPS = 8
EXAMPLE_ROWS = 64
"""Rows of the table of `Embed.example`."""


@triton.jit
def embed_kernel(
    token,
    weight,
    residual,
    norm_weight,
    next_input,
    sum_sq_partials,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    b = tl.program_id(0)
    column = tl.arange(0, D_PADDED)
    mask = column < D
    norm_weights = tl.load(norm_weight + column, mask=mask, other=0.0).to(tl.float32)
    pdl_wait_and_trigger(PDL)
    x = weight.functions.row(weight.tensors, tl.load(token + b), column, mask, D)
    x = x.to(residual.dtype.element_ty)
    tl.store(residual + b * D + column, x, mask=mask)
    x32 = x.to(tl.float32)
    tl.store(sum_sq_partials + b, tl.sum(x32 * x32, 0))
    store(x32 * norm_weights, next_input, b * D, D, D_PADDED)


@dataclass(frozen=True, eq=False)
class Embed(Op):
    """Looks up one row of the embedding for each token."""

    token: Tensor
    """Tokens, int64 [B, 1]."""
    weight: Matrix
    """Embedding table [V, D]."""
    residual: Tensor
    """Residual stream [B, D]."""
    norm_weight: Tensor
    """Weight of the first norm, [D]."""
    next_input: Activation
    """Residual stream times the first norm's weight, [B, D]."""
    sum_sq_partials: Tensor
    """Sum of squares of the residual stream, float32 [B, 1]."""

    name = "embed_kernel"

    def launch(self, pdl: bool = False) -> None:
        width = self.weight.columns
        launch(
            embed_kernel,
            (self.token.shape[0],),
            self.token,
            weight_argument(self.weight),
            self.residual,
            self.norm_weight,
            self.next_input.buffers,
            self.sum_sq_partials,
            D=width,
            D_PADDED=max(4, triton.next_power_of_2(width)),
            PDL=pdl,
            num_warps=WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        self.residual.copy_(self.weight.lookup(self.token.squeeze(1)))
        self.next_input.write(self.residual.float() * self.norm_weight.float())
        self.sum_sq_partials.copy_(self.residual.float().square().sum(-1, keepdim=True))

    def reads_early(self) -> tuple[Any, ...]:
        return (self.norm_weight,)

    def reads(self) -> tuple[Any, ...]:
        return self.norm_weight, self.token, self.weight

    def writes(self) -> tuple[Any, ...]:
        return self.residual, self.next_input, self.sum_sq_partials

    def bytes_read(self) -> Bytes:
        return Bytes(weights=self.weight.nbytes // self.weight.rows * self.token.shape[0])

    def other_bytes(self) -> int:
        return nbytes(self.token, self.norm_weight, *self.writes())

    def shape(self) -> dict[str, int]:
        return {"B": self.residual.shape[0], "D": self.residual.shape[1]}

    def flops(self, positions: int) -> int:
        return 3 * self.residual.numel()

    @property
    def dtype(self) -> str:
        return self.weight.label

    def example(self, position: int, launches: int) -> "Embed":
        """Return an equivalent op with a table of a few rows: more make no difference to the kernel."""
        return replace(self, weight=self.weight.first(EXAMPLE_ROWS))

    def fill(self, generator: Generator, position: int) -> None:
        super().fill(generator, position)
        self.token.random_(self.weight.rows, generator=generator)
