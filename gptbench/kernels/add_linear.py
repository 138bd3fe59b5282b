"""Matrix times vector, added to the residual stream: the ends of the attention and of the feed-forward network.

The program that has a new part of the residual stream also multiplies it with the gain of the norm that comes next, and
adds up its squares: what the next kernel needs of the norm (see `linear`). Where a mixture comes next, it multiplies it
with the router's matrix, too (see `route`).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation, store_rows
from gptbench.kernels.launch import follow, launch, sized
from gptbench.kernels.linear import preloaded, product, shape_arguments, words
from gptbench.kernels.route import Routing, Votes
from gptbench.kernels.tile import Tile


@triton.jit(repr=sized("add_linear"))
def add_linear_kernel(
    weight,
    weight_scale,
    low,
    high,
    scale,
    slots,
    gates,
    residual,
    gain,
    next_low,
    next_high,
    next_scale,
    squares,
    router,
    votes,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRELOAD: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    SLOTS: tl.constexpr,
    E: tl.constexpr,
    E_PADDED: tl.constexpr,
    FIXED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    first, offsets = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    rows = first + offsets
    there = rows < N
    batch = tl.arange(0, PADDED)
    gains = tl.load(gain + rows, mask=there, other=0.0).to(tl.float32)
    if E > 0:
        expert = tl.arange(0, E_PADDED)
        voters = tl.load(
            router + expert[:, None] * N + rows[None, :], mask=(expert < E)[:, None] & there[None, :], other=0.0
        )
    mask = (batch < BATCH)[:, None] & there[None, :]
    at = batch[:, None] * N + rows[None, :]
    if SLOTS == 0:
        tiles = preloaded(weight, first, offsets, N, COLUMNS, WIDTH, ROWS, PRELOAD)
        if FIXED:
            row_scale = tl.load(weight_scale + rows, mask=there, other=0.0).to(tl.float32)
        follow(OVERLAP)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = product(
            tiles, weight, first, offsets, low, high, scale, N, COLUMNS, WIDTH, ROWS, PRELOAD, BATCH, PADDED, FIXED
        )
        if FIXED:
            y = y * row_scale[None, :]
    else:
        # The router ran before the kernel before this one, which has waited for it: what it wrote is there already.
        # Not from the L1 cache, which may still hold the step's before.
        expert = tl.maximum(tl.load(slots, cache_modifier=".cg"), 0).to(tl.int64)
        tiles = preloaded(weight + expert * (N * COLUMNS), first, offsets, N, COLUMNS, WIDTH, ROWS, PRELOAD)
        follow(OVERLAP)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        y = expert_product(
            tiles, expert, 0, weight, weight_scale, first, offsets, low, high, scale, gates,
            N, COLUMNS, WIDTH, ROWS, PRELOAD, BATCH, PADDED, FIXED,
        )  # fmt: skip
        for slot in range(1, SLOTS):
            expert = tl.load(slots + slot, cache_modifier=".cg").to(tl.int64)
            if expert >= 0:
                y += expert_product(
                    (), expert, slot, weight, weight_scale, first, offsets, low, high, scale, gates,
                    N, COLUMNS, WIDTH, ROWS, 0, BATCH, PADDED, FIXED,
                )  # fmt: skip
    new = (before + y).to(residual.dtype.element_ty)
    tl.store(residual + at, new, mask=mask)
    x = tl.where(mask, new.to(tl.float32), 0.0)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    tl.store(squares + part, tl.sum(x * x, 1), mask=batch < BATCH)
    scaled = x * gains[None, :]
    if E > 0:
        vote = tl.sum(scaled[:, None, :] * voters.to(tl.float32)[None, :, :], 2)
        tl.store(
            votes + part[:, None] * E + expert[None, :], vote, mask=(batch < BATCH)[:, None] & (expert < E)[None, :]
        )
    store_rows(scaled, next_low, next_high, next_scale, tl.program_id(0) * ROWS, N, BATCH, PADDED, ROWS, FIXED)


@triton.jit
def expert_product(
    tiles,
    expert,
    slot,
    weight,
    weight_scale,
    first,
    offsets,
    low,
    high,
    scale,
    gates,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRELOAD: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    FIXED: tl.constexpr,
):
    """`product` with one expert's weight, times how much each row of the batch wants of it."""
    batch, rows = tl.arange(0, PADDED), first + offsets
    offset = slot * (BATCH * COLUMNS)
    y = product(
        tiles, weight + expert * (N * COLUMNS), first, offsets, low + offset, high + offset, scale + offset,
        N, COLUMNS, WIDTH, ROWS, PRELOAD, BATCH, PADDED, FIXED,
    )  # fmt: skip
    gate = tl.load(gates + slot * BATCH + batch, mask=batch < BATCH, other=0.0, cache_modifier=".cg")
    if FIXED:
        row_scale = tl.load(weight_scale + expert * N + rows, mask=rows < N, other=0.0).to(tl.float32)
        y = y * row_scale[None, :]
    return y * gate[:, None]


def add_linear(
    x: Activation,
    weight: Tensor,
    weight_scale: Tensor | None,
    routing: Routing | None,
    residual: Tensor,
    gain: Tensor,
    following: Activation,
    squares: Tensor,
    votes: Votes | None,
    tile: Tile,
    overlap: bool = False,
) -> None:
    """Adds x times weight to the residual stream, and makes what the norm after it needs.

    Args:
        x: [B, K], in fixed point for int8 weights; of a mixture [S·B, K], a row of the batch after the other for each
            slot of the routing.
        weight: [N, K], or [E, N, K]; weight_scale: [N] or [E, N] for int8 weights.
        routing: of a mixture: which experts' products are added, and their weights. It must have been written before
            the kernel that this one follows.
        residual: [B, N], changed in place.
        gain: [N], of the norm that comes next.
        following: the new residual stream times gain, [B, N]. All of it is written.
        squares: float32 [B, ⌈N / tile.rows⌉]: sums of squares of the new residual stream's parts. All of it is written.
        votes: where a mixture comes next: for its router, of the same parts. All of them are written.
        tile: how the work is cut up.
        overlap: launched while the kernel before it still runs (see `launch`).
    """
    programs = triton.cdiv(weight.shape[-2], tile.rows)
    assert squares.shape[1] == programs and (not following.fixed or tile.rows % 4 == 0)
    experts = 0 if votes is None else votes.weight.shape[0]
    assert votes is None or votes.parts.shape == (*squares.shape, experts)
    slots = routing.slots if routing is not None else residual
    gates = routing.gates if routing is not None else residual
    launch(
        add_linear_kernel,
        (programs,),
        words(weight),
        weight if weight_scale is None else weight_scale,
        *x.tensors,
        slots,
        gates,
        residual,
        gain,
        *following.tensors,
        squares,
        residual if votes is None else votes.weight,
        squares if votes is None else votes.parts,
        **shape_arguments(x, weight, tile, batch=residual.shape[0]),
        SLOTS=routing.slots.numel() if routing is not None else 0,
        E=experts,
        E_PADDED=triton.next_power_of_2(max(experts, 1)),
        OVERLAP=overlap,
        num_warps=tile.warps,
        launch_pdl=overlap,
    )


def add_linear_reference(
    x: Activation,
    weight: Tensor,
    weight_scale: Tensor | None,
    routing: Routing | None,
    residual: Tensor,
    gain: Tensor,
    following: Activation,
    squares: Tensor,
    votes: Votes | None,
    tile: Tile,
    overlap: bool = False,
) -> None:
    """The twin of `add_linear`."""
    full = weight.float() if weight_scale is None else weight.float() * weight_scale.float().unsqueeze(-1)
    if routing is None:
        y = x.read() @ full.T
    else:
        y = torch.zeros_like(residual, dtype=torch.float32)
        per_slot = x.read().view(routing.slots.numel(), -1, x.width)
        for slot, expert in enumerate(routing.slots.tolist()):
            if expert >= 0:
                y += routing.gates[slot].unsqueeze(-1) * (per_slot[slot] @ full[expert].T)
    residual.copy_(residual.float() + y)
    new = residual.float()
    following.write(new * gain.float())
    missing = squares.shape[1] * tile.rows - new.shape[1]
    parts = F.pad(new, (0, missing)).unflatten(-1, (-1, tile.rows))
    squares.copy_(parts.square().sum(-1))
    if votes is not None:
        gains, matrix = (F.pad(w.float(), (0, missing)).unflatten(-1, (-1, tile.rows)) for w in (gain, votes.weight))
        votes.parts.copy_(torch.einsum("bpr,pr,epr->bpe", parts, gains, matrix))
