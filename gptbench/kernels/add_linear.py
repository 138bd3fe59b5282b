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
from gptbench.kernels.launch import follow, launch, sized
from gptbench.kernels.mainloop import Shape, mainloop, of_expert, preloaded, stored
from gptbench.kernels.matrix import Matrix
from gptbench.kernels.op import Bytes, Op, nbytes
from gptbench.kernels.route import Routing, Votes
from gptbench.kernels.tile import Tile, Use


@triton.jit(repr=sized("add_linear"))
def add_linear_kernel(
    weight,
    x,
    slots,
    gates,
    residual,
    gain,
    following,
    squares,
    router,
    votes,
    SHAPE: tl.constexpr,
    SLOTS: tl.constexpr,
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
    gains = tl.load(gain + rows, mask=there, other=0.0).to(tl.float32)
    if E > 0:
        voter = tl.arange(0, E_PADDED)
        voters = tl.load(
            router + voter[:, None] * N + rows[None, :], mask=(voter < E)[:, None] & there[None, :], other=0.0
        )
    mask = (batch < BATCH)[:, None] & there[None, :]
    at = batch[:, None] * N + rows[None, :]
    if SLOTS == 0:
        tiles = preloaded(weight.tensors, weight.functions, first, offsets, SHAPE)
        row_scale = weight.functions.row_scale(weight.tensors, rows, there)
        follow(PDL)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = mainloop(tiles, weight.tensors, weight.functions, first, offsets, x, 0, SHAPE) * row_scale[None, :]
    else:
        # The router ran before the kernel before this one, which has waited for it: what it wrote is there already.
        # Not from the L1 cache, which may still hold the step's before.
        expert = tl.maximum(tl.load(slots, cache_modifier=".cg"), 0).to(tl.int64)
        own = of_expert(weight.tensors, expert, SHAPE)
        tiles = preloaded(own, weight.functions, first, offsets, SHAPE)
        follow(PDL)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = expert_product(tiles, own, weight.functions, 0, first, offsets, x, gates, SHAPE)
        for slot in range(1, SLOTS):
            expert = tl.load(slots + slot, cache_modifier=".cg").to(tl.int64)
            if expert >= 0:
                other = of_expert(weight.tensors, expert, SHAPE)
                y += expert_product((), other, weight.functions, slot, first, offsets, x, gates, SHAPE)
    new = (before + y).to(residual.dtype.element_ty)
    tl.store(residual + at, new, mask=mask)
    x_new = tl.where(mask, new.to(tl.float32), 0.0)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    tl.store(squares + part, tl.sum(x_new * x_new, 1), mask=batch < BATCH)
    scaled = x_new * gains[None, :]
    if E > 0:
        vote = tl.sum(scaled[:, None, :] * voters.to(tl.float32)[None, :, :], 2)
        tl.store(votes + part[:, None] * E + voter[None, :], vote, mask=(batch < BATCH)[:, None] & (voter < E)[None, :])
    store_rows(scaled, following, 0, tl.program_id(0) * ROWS, N, BATCH, PADDED, ROWS)


@triton.jit
def expert_product(tiles, tensors, functions, slot, first, offsets, x, gates, SHAPE: tl.constexpr):
    """`mainloop` with one expert's weight, times how much each row of the batch wants of it."""
    N: tl.constexpr = SHAPE.N
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    batch, rows = tl.arange(0, PADDED), first + offsets
    y = mainloop(tiles, tensors, functions, first, offsets, x, slot * BATCH, SHAPE)
    gate = tl.load(gates + slot * BATCH + batch, mask=batch < BATCH, other=0.0, cache_modifier=".cg")
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
    gain: Tensor
    """[N], of the norm that comes next."""
    following: Activation
    """The new residual stream times gain, [B, N]."""
    squares: Tensor
    """float32 [B, ⌈N / tile.rows⌉]: sums of squares of the new residual stream's parts."""
    votes: Votes | None
    """Where a mixture comes next: for its router, of the same parts."""
    tile: Tile
    """How the work is cut up."""

    part = "matrices"
    LEAST_ROWS = 4
    """Of a tile: with fewer, the next kernel would have more sums of squares to add up."""

    @classmethod
    def use_of(cls, weight: Matrix, batch: int, following: Activation, slots: int = 0) -> Use:
        """What a tile is for."""
        return Use.of("add_linear", weight, batch, multiple=max(following.multiple, cls.LEAST_ROWS), slots=slots)

    @property
    def slots(self) -> int:
        """Of a mixture: experts that are read at most."""
        return 0 if self.routing is None else self.routing.slots.numel()

    @property
    def active(self) -> int:
        """Of a mixture: experts for each token."""
        return 0 if self.routing is None else self.routing.active

    @property
    def name(self) -> str:
        return self.use.name

    @property
    def use(self) -> Use:
        return self.use_of(self.weight, self.residual.shape[0], self.following, self.slots)

    def launch(self, pdl: bool = False) -> None:
        programs = triton.cdiv(self.weight.rows, self.tile.rows)
        routing, votes = self.routing, self.votes
        assert self.squares.shape[1] == programs and self.tile.rows % self.following.multiple == 0
        experts = 0 if votes is None else votes.weight.shape[0]
        assert votes is None or votes.parts.shape == (*self.squares.shape, experts)
        launch(
            add_linear_kernel,
            (programs,),
            stored(self.weight),
            self.x.buffers,
            None if routing is None else routing.slots,
            None if routing is None else routing.gates,
            self.residual,
            self.gain,
            self.following.buffers,
            self.squares,
            None if votes is None else votes.weight,
            None if votes is None else votes.parts,
            SHAPE=Shape.of(self.x, self.weight, self.tile, batch=self.residual.shape[0]),
            SLOTS=self.slots,
            E=experts,
            E_PADDED=triton.next_power_of_2(max(experts, 1)),
            PDL=pdl,
            num_warps=self.tile.warps,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        routing, votes, squares, rows = self.routing, self.votes, self.squares, self.tile.rows
        if routing is None:
            y = self.x.read() @ self.weight.read().T
        else:
            slots = routing.slots.long()
            per_slot = self.x.read().view(self.slots, -1, self.x.width)
            products = per_slot @ self.weight.lookup(slots.clamp(min=0)).mT * routing.gates.unsqueeze(-1)
            y = products.where((slots >= 0)[:, None, None], 0.0).sum(0)
        self.residual.copy_(self.residual.float() + y)
        new = self.residual.float()
        self.following.write(new * self.gain.float())
        missing = squares.shape[1] * rows - new.shape[1]
        parts = F.pad(new, (0, missing)).unflatten(-1, (-1, rows))
        squares.copy_(parts.square().sum(-1))
        if votes is not None:
            of_gain, of_router = (
                F.pad(w.float(), (0, missing)).unflatten(-1, (-1, rows)) for w in (self.gain, votes.weight)
            )
            votes.parts.copy_(torch.einsum("bpr,pr,epr->bpe", parts, of_gain, of_router))

    def reads_early(self) -> tuple[Any, ...]:
        router = None if self.votes is None else self.votes.weight
        slots = None if self.routing is None else self.routing.slots
        return self.weight, self.gain, router, slots

    def reads(self) -> tuple[Any, ...]:
        return *self.reads_early(), self.routing, self.x, self.residual

    def writes(self) -> tuple[Any, ...]:
        written = self.residual, self.following, self.squares
        return written if self.votes is None else (*written, self.votes.parts)

    def results(self) -> tuple[Tensor, ...]:
        """Of the parts of sums, the sums."""
        sums = self.squares.sum(-1, keepdim=True), *(() if self.votes is None else (self.votes.parts.sum(1),))
        return self.residual, self.following.read(), *sums

    def bytes_read(self) -> Bytes:
        router = 0 if self.votes is None else self.votes.weight.nbytes
        return self.weight.bytes_read(self.slots, more=router)

    def bytes_beside(self) -> int:
        return nbytes(self.x, self.routing, self.gain, self.residual, *self.writes())

    def shape(self) -> dict[str, int]:
        return self.weight.sizes(self.residual.shape[0], self.active)

    def flops(self, positions: int) -> int:
        router = 0 if self.votes is None else self.votes.weight.numel()
        return 2 * self.residual.shape[0] * (max(self.active, 1) * self.weight.rows * self.weight.columns + router)

    @property
    def dtype(self) -> str:
        return self.weight.label
