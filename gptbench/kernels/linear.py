"""Linear layer of a decode step: RMSNorm of x times a matrix, plus bias."""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation
from gptbench.kernels.launch import launch, name_with_shape, pdl_wait_and_trigger
from gptbench.kernels.mainloop import GemvShape, mainloop, preload_tiles, weight_argument
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.norm import Norm, compute_rstd, load_sum_sq
from gptbench.kernels.op import Bytes, Op, nbytes
from gptbench.kernels.tile_config import TileConfig, TileKey


@triton.jit(repr=name_with_shape("linear"))
def linear_kernel(
    weight,
    bias,
    x,
    sum_sq_partials,
    eps,
    out,
    SHAPE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    N: tl.constexpr = SHAPE.N
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    first, offsets = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    rows = first + offsets
    tiles = preload_tiles(weight.tensors, weight.functions, first, offsets, SHAPE)
    row_scale = weight.functions.row_scale(weight.tensors, rows, rows < N)
    if bias is not None:
        row_bias = tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32)
    pdl_wait_and_trigger(PDL)
    sum_sq = load_sum_sq(sum_sq_partials, NORM.SUMS, NORM.SUMS_PADDED, BATCH, PADDED)
    y = mainloop(tiles, weight.tensors, weight.functions, first, offsets, x, 0, SHAPE)
    y = y * compute_rstd(sum_sq, eps, NORM.K)[:, None]
    y = y * row_scale[None, :]
    if bias is not None:
        y = y + row_bias[None, :]
    batch = tl.arange(0, PADDED)
    mask = (batch < BATCH)[:, None] & (rows < N)[None, :]
    tl.store(out + batch[:, None] * N + rows[None, :], y.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """Computes RMSNorm(x) times weight, plus bias."""

    x: Activation
    """Residual stream times the norm's weight, [B, K], in the encoding of the weight's format."""
    norm: Norm
    """Norm of x, of which only the reciprocal RMS remains to be applied."""
    weight: Matrix
    """Weight [N, K]."""
    bias: Tensor | None
    """Bias [N], or None."""
    out: Tensor
    """Output [B, N], of any float type."""
    tile: TileConfig
    """Tile of the kernel."""

    part = "matrices"

    @classmethod
    def tile_key_of(cls, weight: Matrix, batch: int) -> TileKey:
        """Return the key of the kernel's tile."""
        return TileKey.of("linear", weight, batch)

    @property
    def name(self) -> str:
        return self.tile_key.name

    @property
    def tile_key(self) -> TileKey:
        return self.tile_key_of(self.weight, self.x.batch)

    def launch(self, pdl: bool = False) -> None:
        launch(
            linear_kernel,
            (triton.cdiv(self.weight.rows, self.tile.rows),),
            weight_argument(self.weight),
            self.bias,
            self.x.buffers,
            self.norm.sum_sq_partials,
            self.norm.eps,
            self.out,
            SHAPE=GemvShape.of(self.x, self.weight, self.tile),
            NORM=self.norm.shape,
            PDL=pdl,
            num_warps=self.tile.warps,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        y = self.x.read() @ self.weight.read().T * self.norm.rstd()
        self.out.copy_(y if self.bias is None else y + self.bias.float())

    def reads_early(self) -> tuple[Any, ...]:
        return self.weight, self.bias

    def reads(self) -> tuple[Any, ...]:
        return self.weight, self.bias, self.x, self.norm

    def writes(self) -> tuple[Any, ...]:
        return (self.out,)

    def bytes_read(self) -> Bytes:
        return self.weight.bytes_read()

    def other_bytes(self) -> int:
        return nbytes(self.x, self.norm, self.bias, self.out)

    def shape(self) -> dict[str, int]:
        return self.weight.sizes(self.x.batch)

    def flops(self, positions: int) -> int:
        return 2 * self.x.batch * self.weight.rows * self.weight.columns

    @property
    def dtype(self) -> str:
        return self.weight.label
