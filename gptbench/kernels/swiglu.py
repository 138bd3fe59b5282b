"""The first half of the feed-forward network: norm, gate and value matrices, and SiLU(gate) · value.

Shazeer, 2020, arXiv:2002.05202. Every program takes the same rows of the gate's and of the value's matrix in turn.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation, store_rows
from gptbench.kernels.launch import follow, launch, sized
from gptbench.kernels.linear import Norm, norm_factor, norm_parts, preloaded, product, shape_arguments, words
from gptbench.kernels.route import Routing
from gptbench.kernels.tile import Tile


@triton.jit(repr=sized("swiglu"))
def swiglu_kernel(
    weight,
    weight_scale,
    low,
    high,
    scale,
    squares,
    eps,
    slots,
    out_low,
    out_high,
    out_scale,
    N: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRELOAD: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    SUMS: tl.constexpr,
    SUMS_PADDED: tl.constexpr,
    FIXED: tl.constexpr,
    MIXTURE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    WIDE: tl.constexpr = N // 2
    index = tl.arange(0, ROWS)
    first, offsets = tl.program_id(0) * (ROWS // 2), index // 2 + (index % 2) * WIDE
    if N % ROWS != 0:  # past the end, a row that is not there: it reads as 0
        offsets = tl.where(first + index // 2 < WIDE, offsets, N)
    rows = first + offsets
    slot = tl.program_id(1)
    if MIXTURE:
        follow(OVERLAP)
        expert = tl.load(slots + slot, cache_modifier=".cg").to(tl.int64)
        if expert < 0:
            return
        weight += expert * (N * COLUMNS)
        weight_scale += expert * N
    tiles = preloaded(weight, first, offsets, N, COLUMNS, WIDTH, ROWS, PRELOAD)
    if FIXED:
        row_scale = tl.load(weight_scale + rows, mask=rows < N, other=0.0).to(tl.float32)
    if not MIXTURE:
        follow(OVERLAP)
    parts = norm_parts(squares, SUMS, SUMS_PADDED, BATCH, PADDED)
    y = product(tiles, weight, first, offsets, low, high, scale, N, COLUMNS, WIDTH, ROWS, PRELOAD, BATCH, PADDED, FIXED)
    y = y * norm_factor(parts, eps, K)[:, None]
    if FIXED:
        y = y * row_scale[None, :]
    gate, value = tl.split(tl.reshape(y, [PADDED, ROWS // 2, 2]))
    hidden = gate / (1.0 + tl.exp(-gate)) * value
    WORD: tl.constexpr = 4 if FIXED else 1
    offset = slot * (BATCH * WIDE // WORD)
    store_rows(
        hidden, out_low + offset, out_high + offset, out_scale + offset, tl.program_id(0) * (ROWS // 2),
        WIDE, BATCH, PADDED, ROWS // 2, FIXED,
    )  # fmt: skip


def swiglu(
    x: Activation,
    norm: Norm,
    weight: Tensor,
    weight_scale: Tensor | None,
    routing: Routing | None,
    out: Activation,
    tile: Tile,
    overlap: bool = False,
) -> None:
    """Writes to out SiLU(gate) · value of the norm of x.

    Args:
        x: [B, K], the norm's gain already in it; in fixed point for int8 weights.
        norm: its divisor.
        weight: [2F, K], the gate's rows first, or [E, 2F, K]; weight_scale: [2F] or [E, 2F] for int8 weights.
        routing: of a mixture: which experts are read.
        out: [B, F]; of a mixture [S·B, F], for each slot of the routing a row of the batch after the other. All of it
            is written, but for slots without an expert.
        tile: how the work is cut up; half of its rows are the gate's.
        overlap: launched while the kernel before it still runs (see `launch`).
    """
    assert tile.rows % (8 if out.fixed else 2) == 0
    slots = routing.slots.numel() if routing is not None else 1
    sums = norm.squares.shape[1]
    launch(
        swiglu_kernel,
        (triton.cdiv(weight.shape[-2], tile.rows), slots),
        words(weight),
        weight if weight_scale is None else weight_scale,
        *x.tensors,
        norm.squares,
        norm.eps,
        routing.slots if routing is not None else weight,
        *out.tensors,
        **shape_arguments(x, weight, tile),
        K=norm.width,
        SUMS=sums,
        SUMS_PADDED=triton.next_power_of_2(sums),
        MIXTURE=routing is not None,
        OVERLAP=overlap,
        num_warps=tile.warps,
        launch_pdl=overlap,
    )


def swiglu_reference(
    x: Activation,
    norm: Norm,
    weight: Tensor,
    weight_scale: Tensor | None,
    routing: Routing | None,
    out: Activation,
    tile: Tile,
    overlap: bool = False,
) -> None:
    """The twin of `swiglu`."""
    full = weight.float() if weight_scale is None else weight.float() * weight_scale.float().unsqueeze(-1)
    normalised = x.read() * norm.factor()
    chosen = [full] if routing is None else [full[max(0, expert)] for expert in routing.slots.tolist()]
    hidden = []
    for matrix in chosen:
        gate, value = (normalised @ matrix.T).chunk(2, dim=-1)
        hidden.append(F.silu(gate) * value)
    out.write(torch.cat(hidden))
