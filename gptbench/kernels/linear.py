"""Matrix times vector at the memory's speed: one decode step's `linear`, and what the other linear kernels share.

A program multiplies ROWS rows of the weight with x, walking along them in steps of BLOCK columns, and every thread
loads 16 bytes at once. The first PRELOAD steps' weights are loaded before the program waits for the kernel before it
(`launch.follow`): so the stream from memory does not stop where one kernel follows another. Programs are small, and
many of them fit on a processor: while one of them adds up, the others load.

The RMS norm before a matrix needs no pass of its own. Its gain is already in x (whoever writes the residual stream
multiplies it with the gain of the norm that comes next, see `add_linear`), and its divisor, one number for each row of
the batch, is applied to the product.

Shapes: B batch, K columns, N rows of the weight, E experts, P partial sums.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.activation import Activation, dot4
from gptbench.kernels.launch import follow, launch, sized
from gptbench.kernels.tile import Tile

MOST_UNROLLED = tl.constexpr(32)
"""Steps with code of their own: the compiler then loads as far ahead as registers reach. With several rows in the batch
that would be more code than it is worth."""


@dataclass(frozen=True)
class Norm:
    """The divisor of an RMS norm over x [B, K]: the root of the mean square plus eps."""

    squares: Tensor
    """float32 [B, P]: sums of squares of parts of x."""
    width: int
    """K."""
    eps: float

    def factor(self) -> Tensor:
        """What to multiply with: float32 [B, 1]."""
        return torch.rsqrt(self.squares.sum(-1, keepdim=True) / self.width + self.eps)

    def fill(self, generator: Generator) -> None:
        """Of numbers of order one."""
        mean = self.width / self.squares.shape[1]
        self.squares.uniform_(0.5 * mean, 1.5 * mean, generator=generator)


@triton.jit
def weights_of(
    weight, first, offsets, step, N: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """The step's tile [ROWS, WIDTH] of weight [N, COLUMNS]: rows first + offsets [ROWS], 0 where there is none.

    Offsets that are known when it is compiled become part of the instructions, and take no registers. A token
    takes each weight once: what is read again, activations and short contexts, is to stay in the caches instead.
    """
    columns = step * WIDTH + tl.arange(0, WIDTH)
    pointers = weight + first.to(tl.int64) * COLUMNS + (offsets * COLUMNS)[:, None] + columns[None, :]
    if N % ROWS == 0:
        if COLUMNS % WIDTH == 0:
            return tl.load(pointers, eviction_policy="evict_first")
        return tl.load(pointers, mask=(columns < COLUMNS)[None, :], other=0, eviction_policy="evict_first")
    there = (first + offsets < N)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(pointers, mask=there, other=0, eviction_policy="evict_first")


@triton.jit
def preloaded(
    weight,
    first,
    offsets,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRELOAD: tl.constexpr,
):
    """The tiles of the first PRELOAD steps."""
    tiles = ()
    for step in tl.static_range(PRELOAD):
        tiles = tiles + (weights_of(weight, first, offsets, step, N, COLUMNS, WIDTH, ROWS),)
    return tiles


@triton.jit
def product(
    tiles,
    weight,
    first,
    offsets,
    low,
    high,
    scale,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRELOAD: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    FIXED: tl.constexpr,
):
    """Products of rows first + offsets [ROWS] with x [BATCH, K]: float32 [PADDED, ROWS], 0 in the padding.

    COLUMNS and WIDTH count what the weight's pointer points to: words of four int8 with FIXED, numbers else. low, high,
    scale: `Activation.tensors`. What a thread loads at once is added up in its own registers; what the threads have,
    once all columns are done.
    """
    LOADED: tl.constexpr = 4 if FIXED else 16 // (weight.dtype.element_ty.primitive_bitwidth // 8)
    totals = ()
    for _ in tl.static_range(BATCH):
        totals = totals + (tl.zeros([ROWS, WIDTH // LOADED], tl.float32),)
    STEPS: tl.constexpr = (COLUMNS + WIDTH - 1) // WIDTH
    UNROLLED: tl.constexpr = STEPS if BATCH == 1 and STEPS <= MOST_UNROLLED else PRELOAD
    for step in tl.static_range(UNROLLED):
        if step < PRELOAD:
            tile = tiles[step]
        else:
            tile = weights_of(weight, first, offsets, step, N, COLUMNS, WIDTH, ROWS)
        totals = add_step(totals, tile, step, low, high, scale, COLUMNS, WIDTH, ROWS, LOADED, BATCH, FIXED)
    for step in range(UNROLLED, STEPS):
        tile = weights_of(weight, first, offsets, step, N, COLUMNS, WIDTH, ROWS)
        totals = add_step(totals, tile, step, low, high, scale, COLUMNS, WIDTH, ROWS, LOADED, BATCH, FIXED)
    batch = tl.arange(0, PADDED)
    y = tl.zeros([PADDED, ROWS], tl.float32)
    for b in tl.static_range(BATCH):
        y = tl.where((batch == b)[:, None], tl.sum(totals[b], 1)[None, :], y)
    return y


@triton.jit
def add_step(
    totals,
    tile,
    step,
    low,
    high,
    scale,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    LOADED: tl.constexpr,
    BATCH: tl.constexpr,
    FIXED: tl.constexpr,
):
    """Adds a step's products to the totals, one [ROWS, WIDTH / LOADED] for each row of the batch."""
    columns = step * WIDTH + tl.arange(0, WIDTH)
    there = columns < COLUMNS
    added = ()
    for b in tl.static_range(BATCH):
        at = b * COLUMNS + columns
        if FIXED:
            low_words = tl.load(low + at, mask=there, other=0)
            high_words = tl.load(high + at, mask=there, other=0)
            units = tl.load(scale + at, mask=there, other=0.0)
            parts = dot4(tile, low_words[None, :], high_words[None, :]).to(tl.float32) * units[None, :]
        else:
            x = tl.load(low + at, mask=there, other=0.0).to(tl.float32)
            parts = tile.to(tl.float32) * x[None, :]
        added = added + (totals[b] + tl.sum(tl.reshape(parts, [ROWS, WIDTH // LOADED, LOADED]), 2),)
    return added


@triton.jit
def norm_parts(squares, SUMS: tl.constexpr, SUMS_PADDED: tl.constexpr, BATCH: tl.constexpr, PADDED: tl.constexpr):
    """`Norm.squares`: float32 [PADDED, SUMS_PADDED]. To be loaded early, and added up late: others need not wait."""
    batch, part = tl.arange(0, PADDED), tl.arange(0, SUMS_PADDED)
    there = (batch < BATCH)[:, None] & (part < SUMS)[None, :]
    return tl.load(squares + batch[:, None] * SUMS + part[None, :], mask=there, other=0.0)


@triton.jit
def norm_factor(parts, eps, K: tl.constexpr):
    """`Norm.factor` of `norm_parts`: float32 [PADDED]."""
    return tl.math.rsqrt(tl.sum(parts, 1) / K + eps)


@triton.jit(repr=sized("linear"))
def linear_kernel(
    weight,
    weight_scale,
    bias,
    low,
    high,
    scale,
    squares,
    eps,
    out,
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
    BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    first, offsets = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    rows = first + offsets
    tiles = preloaded(weight, first, offsets, N, COLUMNS, WIDTH, ROWS, PRELOAD)
    if FIXED:
        row_scale = tl.load(weight_scale + rows, mask=rows < N, other=0.0).to(tl.float32)
    if BIAS:
        row_bias = tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32)
    follow(OVERLAP)
    parts = norm_parts(squares, SUMS, SUMS_PADDED, BATCH, PADDED)
    y = product(tiles, weight, first, offsets, low, high, scale, N, COLUMNS, WIDTH, ROWS, PRELOAD, BATCH, PADDED, FIXED)
    y = y * norm_factor(parts, eps, K)[:, None]
    if FIXED:
        y = y * row_scale[None, :]
    if BIAS:
        y = y + row_bias[None, :]
    batch = tl.arange(0, PADDED)
    there = (batch < BATCH)[:, None] & (rows < N)[None, :]
    tl.store(out + batch[:, None] * N + rows[None, :], y.to(out.dtype.element_ty), mask=there)


def shape_arguments(x: Activation, weight: Tensor, tile: Tile, batch: int | None = None) -> dict[str, int | bool]:
    """Compile-time arguments of a linear kernel over weight [..., N, K], int8 or of the model's type."""
    batch = x.batch if batch is None else batch
    rows, columns = weight.shape[-2:]
    assert columns == x.width and weight.is_contiguous() and (weight.dtype == torch.int8) == x.fixed
    word = 4 if x.fixed else 1
    steps = triton.cdiv(columns, tile.block)
    return {
        "N": rows,
        "COLUMNS": columns // word,
        "WIDTH": tile.block // word,
        "ROWS": tile.rows,
        "PRELOAD": min(tile.preload, steps),
        "BATCH": batch,
        "PADDED": triton.next_power_of_2(batch),
        "FIXED": x.fixed,
    }


def words(weight: Tensor) -> Tensor:
    """int8 [..., K] as int32 [..., K/4], what a kernel loads; other types as they are."""
    return weight.view(torch.int32) if weight.dtype == torch.int8 else weight


def linear(
    x: Activation,
    norm: Norm,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    tile: Tile,
    overlap: bool = False,
) -> None:
    """Writes to out the norm of x times weight, plus bias.

    Args:
        x: [B, K], the norm's gain already in it; in fixed point for int8 weights.
        norm: its divisor.
        weight: [N, K]; weight_scale: [N] for int8 weights.
        bias: [N], if any.
        out: [B, N], of any float type. All of it is written.
        tile: how the work is cut up.
        overlap: launched while the kernel before it still runs (see `launch`).
    """
    shape = shape_arguments(x, weight, tile)
    sums = norm.squares.shape[1]
    launch(
        linear_kernel,
        (triton.cdiv(weight.shape[0], tile.rows),),
        words(weight),
        weight if weight_scale is None else weight_scale,
        weight if bias is None else bias,
        *x.tensors,
        norm.squares,
        norm.eps,
        out,
        **shape,
        K=norm.width,
        SUMS=sums,
        SUMS_PADDED=triton.next_power_of_2(sums),
        BIAS=bias is not None,
        OVERLAP=overlap,
        num_warps=tile.warps,
        launch_pdl=overlap,
    )


def linear_reference(
    x: Activation,
    norm: Norm,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    tile: Tile,
    overlap: bool = False,
) -> None:
    """The twin of `linear`."""
    y = x.read() @ weight.float().T * norm.factor()
    if weight_scale is not None:
        y = y * weight_scale.float()
    if bias is not None:
        y = y + bias.float()
    out.copy_(y)
