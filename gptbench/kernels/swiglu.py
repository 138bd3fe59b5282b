"""First half of the feed-forward network: RMSNorm, gate and value matrices, and SiLU(gate) · value.

Shazeer, 2020, arXiv:2002.05202. Rows of the gate's and of the value's matrix are interleaved within a CTA's tile.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
import triton
import triton.language as tl

from gptbench.kernels.activation import Activation, store_rows
from gptbench.kernels.launch import launch, name_with_shape, pdl_wait_and_trigger
from gptbench.kernels.mainloop import GemvShape, expert_slice, mainloop, preload_tiles, weight_argument
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.norm import Norm, compute_rstd, load_sum_sq
from gptbench.kernels.op import Bytes, Op, nbytes
from gptbench.kernels.route import Routing
from gptbench.kernels.tile_config import TileConfig, TileKey


@triton.jit(repr=name_with_shape("swiglu"))
def swiglu_kernel(
    weight,
    x,
    sum_sq_partials,
    eps,
    expert_ids,
    out,
    SHAPE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    N: tl.constexpr = SHAPE.N
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    HALF: tl.constexpr = N // 2
    index = tl.arange(0, ROWS)
    first, offsets = tl.program_id(0) * (ROWS // 2), index // 2 + (index % 2) * HALF
    if N % ROWS != 0:  # rows past the end are mapped to N, which is masked off
        offsets = tl.where(first + index // 2 < HALF, offsets, N)
    rows = first + offsets
    slot = tl.program_id(1)
    tensors = weight.tensors
    if expert_ids is not None:
        pdl_wait_and_trigger(PDL)
        expert = tl.load(expert_ids + slot, cache_modifier=".cg").to(tl.int64)
        if expert < 0:
            return
        tensors = expert_slice(tensors, expert, SHAPE)
    tiles = preload_tiles(tensors, weight.functions, first, offsets, SHAPE)
    row_scale = weight.functions.row_scale(tensors, rows, rows < N)
    if expert_ids is None:
        pdl_wait_and_trigger(PDL)
    sum_sq = load_sum_sq(sum_sq_partials, NORM.SUMS, NORM.SUMS_PADDED, BATCH, PADDED)
    y = mainloop(tiles, tensors, weight.functions, first, offsets, x, 0, SHAPE)
    y = y * compute_rstd(sum_sq, eps, NORM.K)[:, None]
    y = y * row_scale[None, :]
    gate, value = tl.split(tl.reshape(y, [PADDED, ROWS // 2, 2]))
    hidden = gate / (1.0 + tl.exp(-gate)) * value
    store_rows(hidden, out, slot * BATCH, tl.program_id(0) * (ROWS // 2), HALF, BATCH, PADDED, ROWS // 2)


@dataclass(frozen=True, eq=False)
class SwiGLU(Op):
    """Computes SiLU(gate) · value of RMSNorm(x)."""

    x: Activation
    """Residual stream times the norm's weight, [B, K], in the encoding of the weight's format."""
    norm: Norm
    """Norm of x, of which only the reciprocal RMS remains to be applied."""
    weight: Matrix
    """Weight [2F, K], gate rows first, or [E, 2F, K] for a mixture."""
    routing: Routing | None
    """Routing of a mixture: which experts are computed. None without a mixture."""
    out: Activation
    """Output [B, F]; for a mixture [S·B, F], B rows for each slot of the routing. Everything is written but slots
    without an expert."""
    tile: TileConfig
    """Tile of the kernel; half of its rows are the gate's."""

    part = "matrices"

    @classmethod
    def tile_key_of(cls, weight: Matrix, batch: int, out: Activation, max_experts: int = 0) -> TileKey:
        """Return the key of the kernel's tile; two rows of the weight make one output element."""
        return TileKey.of("swiglu", weight, batch, multiple=2 * out.multiple, max_experts=max_experts)

    @property
    def max_experts(self) -> int:
        """Maximum number of distinct experts that a step reads; 0 without a mixture."""
        return 0 if self.routing is None else self.routing.expert_ids.numel()

    @property
    def active(self) -> int:
        """Experts per token; 0 without a mixture."""
        return 0 if self.routing is None else self.routing.active

    @property
    def name(self) -> str:
        return self.tile_key.name

    @property
    def tile_key(self) -> TileKey:
        return self.tile_key_of(self.weight, self.x.batch, self.out, self.max_experts)

    def launch(self, pdl: bool = False) -> None:
        assert self.tile.rows % self.tile_key.multiple == 0
        launch(
            swiglu_kernel,
            (triton.cdiv(self.weight.rows, self.tile.rows), max(self.max_experts, 1)),
            weight_argument(self.weight),
            self.x.buffers,
            self.norm.sum_sq_partials,
            self.norm.eps,
            None if self.routing is None else self.routing.expert_ids,
            self.out.buffers,
            SHAPE=GemvShape.of(self.x, self.weight, self.tile),
            NORM=self.norm.shape,
            PDL=pdl,
            num_warps=self.tile.warps,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        routing = self.routing
        weight = self.weight.read() if routing is None else self.weight.lookup(routing.expert_ids.long().clamp(min=0))
        gate, value = (self.x.read() * self.norm.rstd() @ weight.mT).chunk(2, dim=-1)
        self.out.write((F.silu(gate) * value).flatten(0, -2))

    def reads_early(self) -> tuple[Any, ...]:
        return (self.weight,) if self.routing is None else ()

    def reads(self) -> tuple[Any, ...]:
        return self.weight, self.x, self.norm, self.routing

    def writes(self) -> tuple[Any, ...]:
        return (self.out,)

    def bytes_read(self) -> Bytes:
        return self.weight.bytes_read(self.max_experts)

    def other_bytes(self) -> int:
        return nbytes(self.x, self.norm, None if self.routing is None else self.routing.expert_ids, self.out)

    def shape(self) -> dict[str, int]:
        return self.weight.sizes(self.x.batch, self.active)

    def flops(self, positions: int) -> int:
        return 2 * self.x.batch * max(self.active, 1) * self.weight.rows * self.weight.columns

    @property
    def dtype(self) -> str:
        return self.weight.label
