"""Matrix-vector product added to the residual stream: the end of the attention and of the feed-forward network.

The epilogue does what the next kernel needs of the next RMSNorm: the CTA that holds a new part of the residual stream
multiplies it with the next norm's weight and reduces its sum of squares. Where a mixture comes next, it also multiplies
the part with the router's matrix (see `route`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation, store_rows
from gptbench.kernels.launch import launch, name_with_shape, pdl_wait_and_trigger
from gptbench.kernels.mainloop import GemvShape, expert_slice, mainloop, preload_tiles, weight_argument
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.op import Bytes, Op, nbytes
from gptbench.kernels.route import RouterPartials, Routing
from gptbench.kernels.tile_config import TileConfig, TileKey


@triton.jit(repr=name_with_shape("add_linear"))
def add_linear_kernel(
    weight,
    x,
    expert_ids,
    expert_weights,
    residual,
    norm_weight,
    next_input,
    sum_sq_partials,
    router,
    router_partials,
    SHAPE: tl.constexpr,
    MAX_EXPERTS: tl.constexpr,
    E: tl.constexpr,
    E_PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    N: tl.constexpr = SHAPE.N
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    first, offsets = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    rows = first + offsets
    row_mask = rows < N
    batch = tl.arange(0, PADDED)
    norm_weights = tl.load(norm_weight + rows, mask=row_mask, other=0.0).to(tl.float32)
    if E > 0:
        expert_index = tl.arange(0, E_PADDED)
        router_rows = tl.load(
            router + expert_index[:, None] * N + rows[None, :],
            mask=(expert_index < E)[:, None] & row_mask[None, :],
            other=0.0,
        )
    mask = (batch < BATCH)[:, None] & row_mask[None, :]
    at = batch[:, None] * N + rows[None, :]
    if MAX_EXPERTS == 0:
        tiles = preload_tiles(weight.tensors, weight.functions, first, offsets, SHAPE)
        row_scale = weight.functions.row_scale(weight.tensors, rows, row_mask)
        pdl_wait_and_trigger(PDL)
        old = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = mainloop(tiles, weight.tensors, weight.functions, first, offsets, x, 0, SHAPE) * row_scale[None, :]
    else:
        # Safe before the wait: the router is two kernels back, and the kernel in between has waited for it. The load
        # bypasses L1 (.cg), which may still hold the previous step's ids.
        expert = tl.maximum(tl.load(expert_ids, cache_modifier=".cg"), 0).to(tl.int64)
        expert_tensors = expert_slice(weight.tensors, expert, SHAPE)
        tiles = preload_tiles(expert_tensors, weight.functions, first, offsets, SHAPE)
        pdl_wait_and_trigger(PDL)
        old = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = expert_product(tiles, expert_tensors, weight.functions, 0, first, offsets, x, expert_weights, SHAPE)
        for slot in range(1, MAX_EXPERTS):
            expert = tl.load(expert_ids + slot, cache_modifier=".cg").to(tl.int64)
            if expert >= 0:
                expert_tensors = expert_slice(weight.tensors, expert, SHAPE)
                y += expert_product(
                    (), expert_tensors, weight.functions, slot, first, offsets, x, expert_weights, SHAPE
                )
    new = (old + y).to(residual.dtype.element_ty)
    tl.store(residual + at, new, mask=mask)
    x_new = tl.where(mask, new.to(tl.float32), 0.0)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    tl.store(sum_sq_partials + part, tl.sum(x_new * x_new, 1), mask=batch < BATCH)
    scaled = x_new * norm_weights[None, :]
    if E > 0:
        partial = tl.sum(scaled[:, None, :] * router_rows.to(tl.float32)[None, :, :], 2)
        tl.store(
            router_partials + part[:, None] * E + expert_index[None, :],
            partial,
            mask=(batch < BATCH)[:, None] & (expert_index < E)[None, :],
        )
    store_rows(scaled, next_input, 0, tl.program_id(0) * ROWS, N, BATCH, PADDED, ROWS)


@triton.jit
def expert_product(tiles, tensors, functions, slot, first, offsets, x, expert_weights, SHAPE: tl.constexpr):
    """Return the product with one expert's weight, times that expert's weight in each row of the batch."""
    N: tl.constexpr = SHAPE.N
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    batch, rows = tl.arange(0, PADDED), first + offsets
    y = mainloop(tiles, tensors, functions, first, offsets, x, slot * BATCH, SHAPE)
    expert_weight = tl.load(expert_weights + slot * BATCH + batch, mask=batch < BATCH, other=0.0, cache_modifier=".cg")
    y = y * functions.row_scale(tensors, rows, rows < N)[None, :]
    return y * expert_weight[:, None]


@dataclass(frozen=True, eq=False)
class AddLinear(Op):
    """Adds x times weight to the residual stream, and computes what the norm after it needs."""

    x: Activation
    """Input [B, K] in the encoding of the weight's format; for a mixture [S·B, K], B rows for each slot of the
    routing."""
    weight: Matrix
    """Weight [N, K], or [E, N, K] for a mixture."""
    routing: Routing | None
    """Routing of a mixture: which experts' products are added, and with what weights. It must have been written before
    the kernel just before this one."""
    residual: Tensor
    """Residual stream [B, N], updated in place."""
    norm_weight: Tensor
    """Weight of the next norm, [N]."""
    next_input: Activation
    """New residual stream times the next norm's weight, [B, N]."""
    sum_sq_partials: Tensor
    """Partial sums of squares of the new residual stream, one per CTA, float32 [B, ⌈N / tile.rows⌉]."""
    router_partials: RouterPartials | None
    """Partial router logits, one set per CTA; None where no mixture comes next."""
    tile: TileConfig
    """Tile of the kernel."""

    part = "matrices"
    MIN_ROWS = 4
    """Minimum rows of a tile: with fewer, the next kernel would have to reduce more partial sums of squares."""

    @classmethod
    def tile_key_of(cls, weight: Matrix, batch: int, next_input: Activation, max_experts: int = 0) -> TileKey:
        """Return the key of the kernel's tile."""
        return TileKey.of(
            "add_linear", weight, batch, multiple=max(next_input.multiple, cls.MIN_ROWS), max_experts=max_experts
        )

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
        return self.tile_key_of(self.weight, self.residual.shape[0], self.next_input, self.max_experts)

    def launch(self, pdl: bool = False) -> None:
        programs = triton.cdiv(self.weight.rows, self.tile.rows)
        routing, router_partials = self.routing, self.router_partials
        assert self.sum_sq_partials.shape[1] == programs and self.tile.rows % self.next_input.multiple == 0
        experts = 0 if router_partials is None else router_partials.weight.shape[0]
        assert router_partials is None or router_partials.partial_logits.shape == (*self.sum_sq_partials.shape, experts)
        launch(
            add_linear_kernel,
            (programs,),
            weight_argument(self.weight),
            self.x.buffers,
            None if routing is None else routing.expert_ids,
            None if routing is None else routing.expert_weights,
            self.residual,
            self.norm_weight,
            self.next_input.buffers,
            self.sum_sq_partials,
            None if router_partials is None else router_partials.weight,
            None if router_partials is None else router_partials.partial_logits,
            SHAPE=GemvShape.of(self.x, self.weight, self.tile, batch=self.residual.shape[0]),
            MAX_EXPERTS=self.max_experts,
            E=experts,
            E_PADDED=triton.next_power_of_2(max(experts, 1)),
            PDL=pdl,
            num_warps=self.tile.warps,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        routing, router_partials, sum_sq_partials, rows = (
            self.routing,
            self.router_partials,
            self.sum_sq_partials,
            self.tile.rows,
        )
        if routing is None:
            y = self.x.read() @ self.weight.read().T
        else:
            expert_ids = routing.expert_ids.long()
            per_slot = self.x.read().view(self.max_experts, -1, self.x.width)
            products = per_slot @ self.weight.lookup(expert_ids.clamp(min=0)).mT * routing.expert_weights.unsqueeze(-1)
            y = products.where((expert_ids >= 0)[:, None, None], 0.0).sum(0)
        self.residual.copy_(self.residual.float() + y)
        new = self.residual.float()
        self.next_input.write(new * self.norm_weight.float())
        padding = sum_sq_partials.shape[1] * rows - new.shape[1]
        parts = F.pad(new, (0, padding)).unflatten(-1, (-1, rows))
        sum_sq_partials.copy_(parts.square().sum(-1))
        if router_partials is not None:
            norm_weights, router_weights = (
                F.pad(w.float(), (0, padding)).unflatten(-1, (-1, rows))
                for w in (self.norm_weight, router_partials.weight)
            )
            router_partials.partial_logits.copy_(torch.einsum("bpr,pr,epr->bpe", parts, norm_weights, router_weights))

    def reads_early(self) -> tuple[Any, ...]:
        router = None if self.router_partials is None else self.router_partials.weight
        expert_ids = None if self.routing is None else self.routing.expert_ids
        return self.weight, self.norm_weight, router, expert_ids

    def reads(self) -> tuple[Any, ...]:
        return *self.reads_early(), self.routing, self.x, self.residual

    def writes(self) -> tuple[Any, ...]:
        written = self.residual, self.next_input, self.sum_sq_partials
        return written if self.router_partials is None else (*written, self.router_partials.partial_logits)

    def results(self) -> tuple[Tensor, ...]:
        """Return the results, with partial sums reduced."""
        sums = (
            self.sum_sq_partials.sum(-1, keepdim=True),
            *(() if self.router_partials is None else (self.router_partials.partial_logits.sum(1),)),
        )
        return self.residual, self.next_input.read(), *sums

    def bytes_read(self) -> Bytes:
        router = 0 if self.router_partials is None else self.router_partials.weight.nbytes
        return self.weight.bytes_read(self.max_experts, extra=router)

    def other_bytes(self) -> int:
        return nbytes(self.x, self.routing, self.norm_weight, self.residual, *self.writes())

    def shape(self) -> dict[str, int]:
        return self.weight.sizes(self.residual.shape[0], self.active)

    def flops(self, positions: int) -> int:
        router = 0 if self.router_partials is None else self.router_partials.weight.numel()
        return 2 * self.residual.shape[0] * (max(self.active, 1) * self.weight.rows * self.weight.columns + router)

    @property
    def dtype(self) -> str:
        return self.weight.label
