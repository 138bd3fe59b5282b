"""The K loop of the matrix-vector products (GEMV), shared by all kernels that multiply a weight.

Each CTA multiplies ROWS rows of the weight with x, in steps of a tile's width along K, and every thread loads 16 bytes
at once. The weights of the first PRELOAD steps are prefetched before the PDL wait (`launch.pdl_wait_and_trigger`), so
that the stream from memory does not stop at kernel boundaries. CTAs are small, and many of them are resident on an SM:
while one of them reduces, others load.

How weights are loaded and multiplied is up to their format, whose device `Functions` come with the pointers in a
`WeightArgument`. Columns are counted in words, the unit of a format's loads: four int8, or one bfloat16.

Shapes: B batch, K columns, N rows of the weight, E experts.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from gptbench.kernels.activation import Activation
from gptbench.kernels.matrix import Matrix, WeightArgument
from gptbench.kernels.tile_config import TileConfig

MAX_UNROLLED = tl.constexpr(32)
"""Maximum number of K-loop steps that are fully unrolled: the compiler then hoists loads as far as registers allow.
Used for batch 1 alone, as larger batches would make too much code."""
LOADED_BYTES = 16
"""Bytes that a thread loads at once."""


class GemvShape(NamedTuple):
    """Compile-time shape of a product with a weight [N, K]."""

    N: int
    K: int
    COLUMNS: int
    """Words in a row of the weight."""
    WIDTH: int
    """Words of a row per step."""
    LOADED: int
    """Words that a thread loads at once."""
    ROWS: int
    """Rows of the weight per CTA."""
    PRELOAD: int
    """Steps whose weights are prefetched before the PDL wait."""
    BATCH: int
    PADDED: int
    """BATCH, rounded up to a power of two."""
    STRIDES: tuple[int, ...]
    """Elements of one expert in each stored tensor; empty for a single matrix."""

    @classmethod
    def of(cls, x: Activation, weight: Matrix, tile: TileConfig, batch: int | None = None) -> "GemvShape":
        """Return the shape for x [B, K] times a weight. Where x holds a row per expert slot, `batch` is the batch of
        one slot."""
        batch = x.batch if batch is None else batch
        per_word, words = weight.format.weights_per_word, weight.words
        assert weight.columns == x.width and all(tensor.is_contiguous() for tensor in words)
        # Offsets within an expert, and within activations, are 32-bit integers in the kernels.
        assert weight.rows * weight.columns // per_word < 2**31 and x.batch * x.width < 2**31
        return cls(
            N=weight.rows,
            K=weight.columns,
            COLUMNS=weight.columns // per_word,
            WIDTH=tile.block // per_word,
            LOADED=LOADED_BYTES // words[0].itemsize,
            ROWS=tile.rows,
            PRELOAD=min(tile.preload, triton.cdiv(weight.columns, tile.block)),
            BATCH=batch,
            PADDED=triton.next_power_of_2(batch),
            STRIDES=tuple(tensor[0].numel() for tensor in words) if weight.experts else (),
        )


def weight_argument(weight: Matrix) -> WeightArgument:
    """Return a weight as a kernel argument."""
    return WeightArgument(weight.words, weight.format.functions())


@triton.jit
def load_words(tensors, first, offsets, step, SHAPE: tl.constexpr):
    """Load one step's weights of the first tensor, rows first + offsets: [ROWS, WIDTH], 0 where masked off.

    Offsets known at compile time are encoded in the instructions and take no registers. Weights are read once per
    token, so they are evicted first: L2 is to keep what is read again, activations and short contexts.
    """
    N: tl.constexpr = SHAPE.N
    COLUMNS: tl.constexpr = SHAPE.COLUMNS
    WIDTH: tl.constexpr = SHAPE.WIDTH
    ROWS: tl.constexpr = SHAPE.ROWS
    columns = step * WIDTH + tl.arange(0, WIDTH)
    pointers = tensors[0] + first.to(tl.int64) * COLUMNS + (offsets * COLUMNS)[:, None] + columns[None, :]
    if N % ROWS == 0:
        if COLUMNS % WIDTH == 0:
            return tl.load(pointers, eviction_policy="evict_first")
        return tl.load(pointers, mask=(columns < COLUMNS)[None, :], other=0, eviction_policy="evict_first")
    mask = (first + offsets < N)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(pointers, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def preload_tiles(tensors, functions, first, offsets, SHAPE: tl.constexpr):
    """Prefetch the weights of the first PRELOAD steps."""
    PRELOAD: tl.constexpr = SHAPE.PRELOAD
    tiles = ()
    for step in tl.static_range(PRELOAD):
        tiles = tiles + (functions.load(tensors, first, offsets, step, SHAPE),)
    return tiles


@triton.jit
def mainloop(tiles, tensors, functions, first, offsets, x, row, SHAPE: tl.constexpr):
    """Return the products of weight rows first + offsets [ROWS] with rows `row` to row + BATCH - 1 of x.

    Each thread accumulates in its own registers what it loaded; threads are reduced once, after the K loop.

    Args:
        tiles: prefetched tiles of the first steps, from `preload_tiles`.
        tensors, functions: as in `WeightArgument`.
        x: `Buffers`.

    Returns:
        float32 [PADDED, ROWS], 0 in the padding, before the format's `row_scale`.
    """
    COLUMNS: tl.constexpr = SHAPE.COLUMNS
    WIDTH: tl.constexpr = SHAPE.WIDTH
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    LOADED: tl.constexpr = SHAPE.LOADED
    PRELOAD: tl.constexpr = len(tiles)
    acc = ()
    for _ in tl.static_range(BATCH):
        acc = acc + (tl.zeros([ROWS, WIDTH // LOADED], tl.float32),)
    STEPS: tl.constexpr = (COLUMNS + WIDTH - 1) // WIDTH
    UNROLLED: tl.constexpr = STEPS if BATCH == 1 and STEPS <= MAX_UNROLLED else PRELOAD
    for step in tl.static_range(UNROLLED):
        if step < PRELOAD:
            tile = tiles[step]
        else:
            tile = functions.load(tensors, first, offsets, step, SHAPE)
        acc = accumulate_step(acc, tile, functions, step, x, row, SHAPE)
    for step in range(UNROLLED, STEPS):
        tile = functions.load(tensors, first, offsets, step, SHAPE)
        acc = accumulate_step(acc, tile, functions, step, x, row, SHAPE)
    batch = tl.arange(0, PADDED)
    y = tl.zeros([PADDED, ROWS], tl.float32)
    for b in tl.static_range(BATCH):
        y = tl.where((batch == b)[:, None], tl.sum(acc[b], 1)[None, :], y)
    return y


@triton.jit
def accumulate_step(acc, tile, functions, step, x, row, SHAPE: tl.constexpr):
    """Add the products of one step to the accumulators, one [ROWS, WIDTH / LOADED] for each row of the batch."""
    COLUMNS: tl.constexpr = SHAPE.COLUMNS
    WIDTH: tl.constexpr = SHAPE.WIDTH
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    LOADED: tl.constexpr = SHAPE.LOADED
    columns = step * WIDTH + tl.arange(0, WIDTH)
    mask = columns < COLUMNS
    new_acc = ()
    for b in tl.static_range(BATCH):
        products = functions.multiply(tile, x, (row + b) * COLUMNS + columns, mask)
        new_acc = new_acc + (acc[b] + tl.sum(tl.reshape(products, [ROWS, WIDTH // LOADED, LOADED]), 2),)
    return new_acc


@triton.jit
def expert_slice(tensors, expert, SHAPE: tl.constexpr):
    """Return pointers to one expert's stored tensors; `expert` is int64."""
    STRIDES: tl.constexpr = SHAPE.STRIDES
    sliced = ()
    for i in tl.static_range(len(STRIDES)):
        sliced = sliced + (tensors[i] + expert * STRIDES[i],)
    return sliced


@triton.jit
def unit_scale(tensors, rows, mask):
    """`Functions.row_scale` of formats without a scale per row."""
    return tl.full(rows.shape, 1.0, tl.float32)
