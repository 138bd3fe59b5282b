"""Matrix times vector, added to the residual stream: the ends of the attention and of the feed-forward network.

The program that has a new part of the residual stream also multiplies it with the gain of the norm that comes next, and
adds up its squares: what the next kernel needs of the norm. Where a mixture comes next, it multiplies it with the
router's matrix, too (see `route`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation, store_rows
from gptbench.kernels.launch import launch, pdl_wait_and_trigger, sized
from gptbench.kernels.mainloop import Shape, mainloop, of_expert, preloaded, stored
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.op import Bytes, Op, nbytes
from gptbench.kernels.route import RouterPartials, Routing
from gptbench.kernels.tile_config import TileConfig, TileKey


@triton.jit(repr=sized("add_linear"))
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
    there = rows < N
    batch = tl.arange(0, PADDED)
    norm_weights = tl.load(norm_weight + rows, mask=there, other=0.0).to(tl.float32)
    if E > 0:
        expert_index = tl.arange(0, E_PADDED)
        router_rows = tl.load(
            router + expert_index[:, None] * N + rows[None, :],
            mask=(expert_index < E)[:, None] & there[None, :],
            other=0.0,
        )
    mask = (batch < BATCH)[:, None] & there[None, :]
    at = batch[:, None] * N + rows[None, :]
    if MAX_EXPERTS == 0:
        tiles = preloaded(weight.tensors, weight.functions, first, offsets, SHAPE)
        row_scale = weight.functions.row_scale(weight.tensors, rows, there)
        pdl_wait_and_trigger(PDL)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = mainloop(tiles, weight.tensors, weight.functions, first, offsets, x, 0, SHAPE) * row_scale[None, :]
    else:
        # The router ran before the kernel before this one, which has waited for it: what it wrote is there already.
        # Not from the L1 cache, which may still hold the step's before.
        expert = tl.maximum(tl.load(expert_ids, cache_modifier=".cg"), 0).to(tl.int64)
        own = of_expert(weight.tensors, expert, SHAPE)
        tiles = preloaded(own, weight.functions, first, offsets, SHAPE)
        pdl_wait_and_trigger(PDL)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = expert_product(tiles, own, weight.functions, 0, first, offsets, x, expert_weights, SHAPE)
        for slot in range(1, MAX_EXPERTS):
            expert = tl.load(expert_ids + slot, cache_modifier=".cg").to(tl.int64)
            if expert >= 0:
                other = of_expert(weight.tensors, expert, SHAPE)
                y += expert_product((), other, weight.functions, slot, first, offsets, x, expert_weights, SHAPE)
    new = (before + y).to(residual.dtype.element_ty)
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
    """`mainloop` with one expert's weight, times how much each row of the batch wants of it."""
    N: tl.constexpr = SHAPE.N
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    batch, rows = tl.arange(0, PADDED), first + offsets
    y = mainloop(tiles, tensors, functions, first, offsets, x, slot * BATCH, SHAPE)
    gate = tl.load(expert_weights + slot * BATCH + batch, mask=batch < BATCH, other=0.0, cache_modifier=".cg")
    y = y * functions.row_scale(tensors, rows, rows < N)[None, :]
    return y * gate[:, None]


@dataclass(frozen=True, eq=False)
class AddLinear(Op):
    """Adds x times weight to the residual stream, and makes what the norm after it needs."""

    x: Activation
    """[B, K], as the weight's format wants it; of a mixture [S·B, K], a row of the batch after the other for each slot
    of the routing."""
    weight: Matrix
    """[N, K], or [E, N, K]."""
    routing: Routing | None
    """Of a mixture: which experts' products are added, and their weights. It must have been written before the kernel
    that this one follows."""
    residual: Tensor
    """[B, N], changed in place."""
    norm_weight: Tensor
    """[N], of the norm that comes next."""
    next_input: Activation
    """The new residual stream times gain, [B, N]."""
    sum_sq_partials: Tensor
    """float32 [B, ⌈N / tile.rows⌉]: sums of squares of the new residual stream's parts."""
    router_partials: RouterPartials | None
    """Where a mixture comes next: for its router, of the same parts."""
    tile: TileConfig
    """How the work is cut up."""

    part = "matrices"
    MIN_ROWS = 4
    """Of a tile: with fewer, the next kernel would have more sums of squares to add up."""

    @classmethod
    def tile_key_of(cls, weight: Matrix, batch: int, next_input: Activation, max_experts: int = 0) -> TileKey:
        """What a tile is for."""
        return TileKey.of(
            "add_linear", weight, batch, multiple=max(next_input.multiple, cls.MIN_ROWS), max_experts=max_experts
        )

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
            stored(self.weight),
            self.x.buffers,
            None if routing is None else routing.expert_ids,
            None if routing is None else routing.expert_weights,
            self.residual,
            self.norm_weight,
            self.next_input.buffers,
            self.sum_sq_partials,
            None if router_partials is None else router_partials.weight,
            None if router_partials is None else router_partials.partial_logits,
            SHAPE=Shape.of(self.x, self.weight, self.tile, batch=self.residual.shape[0]),
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
        missing = sum_sq_partials.shape[1] * rows - new.shape[1]
        parts = F.pad(new, (0, missing)).unflatten(-1, (-1, rows))
        sum_sq_partials.copy_(parts.square().sum(-1))
        if router_partials is not None:
            of_norm, of_router = (
                F.pad(w.float(), (0, missing)).unflatten(-1, (-1, rows))
                for w in (self.norm_weight, router_partials.weight)
            )
            router_partials.partial_logits.copy_(torch.einsum("bpr,pr,epr->bpe", parts, of_norm, of_router))

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
        """Of the parts of sums, the sums."""
        sums = (
            self.sum_sq_partials.sum(-1, keepdim=True),
            *(() if self.router_partials is None else (self.router_partials.partial_logits.sum(1),)),
        )
        return self.residual, self.next_input.read(), *sums

    def bytes_read(self) -> Bytes:
        router = 0 if self.router_partials is None else self.router_partials.weight.nbytes
        return self.weight.bytes_read(self.max_experts, more=router)

    def bytes_beside(self) -> int:
        return nbytes(self.x, self.routing, self.norm_weight, self.residual, *self.writes())

    def shape(self) -> dict[str, int]:
        return self.weight.sizes(self.residual.shape[0], self.active)

    def flops(self, positions: int) -> int:
        router = 0 if self.router_partials is None else self.router_partials.weight.numel()
        return 2 * self.residual.shape[0] * (max(self.active, 1) * self.weight.rows * self.weight.columns + router)

    @property
    def dtype(self) -> str:
        return self.weight.label
