"""The first half of the feed-forward network: norm, gate and value matrices, and SiLU(gate) · value.

Shazeer, 2020, arXiv:2002.05202. Every program takes the same rows of the gate's and of the value's matrix in turn.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
import triton
import triton.language as tl

from gptbench.kernels.activation import Activation, store_rows
from gptbench.kernels.launch import launch, pdl_wait_and_trigger, sized
from gptbench.kernels.mainloop import Shape, mainloop, of_expert, preloaded, stored
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.norm import Norm, norm_factor, norm_parts
from gptbench.kernels.op import Bytes, Op, nbytes
from gptbench.kernels.route import Routing
from gptbench.kernels.tile_config import TileConfig, TileKey


@triton.jit(repr=sized("swiglu"))
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
    WIDE: tl.constexpr = N // 2
    index = tl.arange(0, ROWS)
    first, offsets = tl.program_id(0) * (ROWS // 2), index // 2 + (index % 2) * WIDE
    if N % ROWS != 0:  # past the end, a row that is not there: it reads as 0
        offsets = tl.where(first + index // 2 < WIDE, offsets, N)
    rows = first + offsets
    slot = tl.program_id(1)
    tensors = weight.tensors
    if expert_ids is not None:
        pdl_wait_and_trigger(PDL)
        expert = tl.load(expert_ids + slot, cache_modifier=".cg").to(tl.int64)
        if expert < 0:
            return
        tensors = of_expert(tensors, expert, SHAPE)
    tiles = preloaded(tensors, weight.functions, first, offsets, SHAPE)
    row_scale = weight.functions.row_scale(tensors, rows, rows < N)
    if expert_ids is None:
        pdl_wait_and_trigger(PDL)
    parts = norm_parts(sum_sq_partials, NORM.SUMS, NORM.SUMS_PADDED, BATCH, PADDED)
    y = mainloop(tiles, tensors, weight.functions, first, offsets, x, 0, SHAPE)
    y = y * norm_factor(parts, eps, NORM.K)[:, None]
    y = y * row_scale[None, :]
    gate, value = tl.split(tl.reshape(y, [PADDED, ROWS // 2, 2]))
    hidden = gate / (1.0 + tl.exp(-gate)) * value
    store_rows(hidden, out, slot * BATCH, tl.program_id(0) * (ROWS // 2), WIDE, BATCH, PADDED, ROWS // 2)


@dataclass(frozen=True, eq=False)
class SwiGLU(Op):
    """SiLU(gate) · value of the norm of x."""

    x: Activation
    """[B, K], the norm's gain already in it, as the weight's format wants it."""
    norm: Norm
    """Its divisor."""
    weight: Matrix
    """[2F, K], the gate's rows first, or [E, 2F, K]."""
    routing: Routing | None
    """Of a mixture: which experts are read."""
    out: Activation
    """[B, F]; of a mixture [S·B, F], for each slot of the routing a row of the batch after the other. All of it is
    written, but for slots without an expert."""
    tile: TileConfig
    """How the work is cut up; half of its rows are the gate's."""

    part = "matrices"

    @classmethod
    def tile_key_of(cls, weight: Matrix, batch: int, out: Activation, max_experts: int = 0) -> TileKey:
        """What a tile is for: two rows of the weight become one number of what is written."""
        return TileKey.of("swiglu", weight, batch, multiple=2 * out.multiple, max_experts=max_experts)

    @property
    def max_experts(self) -> int:
        """Of a mixture: experts that are read at most."""
        return 0 if self.routing is None else self.routing.expert_ids.numel()

    @property
    def active(self) -> int:
        """Of a mixture: experts for each token."""
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
            stored(self.weight),
            self.x.buffers,
            self.norm.sum_sq_partials,
            self.norm.eps,
            None if self.routing is None else self.routing.expert_ids,
            self.out.buffers,
            SHAPE=Shape.of(self.x, self.weight, self.tile),
            NORM=self.norm.shape,
            PDL=pdl,
            num_warps=self.tile.warps,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        routing = self.routing
        weight = self.weight.read() if routing is None else self.weight.lookup(routing.expert_ids.long().clamp(min=0))
        gate, value = (self.x.read() * self.norm.factor() @ weight.mT).chunk(2, dim=-1)
        self.out.write((F.silu(gate) * value).flatten(0, -2))

    def reads_early(self) -> tuple[Any, ...]:
        return (self.weight,) if self.routing is None else ()

    def reads(self) -> tuple[Any, ...]:
        return self.weight, self.x, self.norm, self.routing

    def writes(self) -> tuple[Any, ...]:
        return (self.out,)

    def bytes_read(self) -> Bytes:
        return self.weight.bytes_read(self.max_experts)

    def bytes_beside(self) -> int:
        return nbytes(self.x, self.norm, None if self.routing is None else self.routing.expert_ids, self.out)

    def shape(self) -> dict[str, int]:
        return self.weight.sizes(self.x.batch, self.active)

    def flops(self, positions: int) -> int:
        return 2 * self.x.batch * max(self.active, 1) * self.weight.rows * self.weight.columns

    @property
    def dtype(self) -> str:
        return self.weight.label
