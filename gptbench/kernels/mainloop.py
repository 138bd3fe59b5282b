"""Matrix times vector at the memory's speed: the main loop that the kernels around a weight share.

A program multiplies ROWS rows of the weight with x, walking along them in steps of a tile's width, and every thread
loads 16 bytes at once. The first PRELOAD steps' weights are loaded before the program waits for the kernel before it
(`launch.pdl_wait_and_trigger`): so the stream from memory does not stop where one kernel follows another. Programs are
small, and many of them fit on a processor: while one of them adds up, the others load.

How weights are loaded and multiplied is their format's: its `Functions` come with the pointers, as a `Stored`. Columns
are counted in words, what a format loads with one number: four int8, or one bfloat16.

Shapes: B batch, K columns, N rows of the weight, E experts.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from gptbench.kernels.activation import Activation
from gptbench.kernels.matrix import Matrix, Stored
from gptbench.kernels.tile_config import TileConfig

MAX_UNROLLED = tl.constexpr(32)
"""Steps with code of their own: the compiler then loads as far ahead as registers reach. With several rows in the batch
that would be more code than it is worth."""
LOADED_BYTES = 16
"""That a thread loads at once."""


class Shape(NamedTuple):
    """Compile-time shape of a product with a weight [N, K]."""

    N: int
    K: int
    COLUMNS: int
    """Words of a row."""
    WIDTH: int
    """Words of a step."""
    LOADED: int
    """Words that a thread loads at once."""
    ROWS: int
    """Rows of a program."""
    PRELOAD: int
    """Steps whose weights are loaded before the program waits."""
    BATCH: int
    PADDED: int
    """The power of two from the batch on."""
    STRIDES: tuple[int, ...]
    """Elements of one expert in each tensor; empty of a single matrix."""

    @classmethod
    def of(cls, x: Activation, weight: Matrix, tile: TileConfig, batch: int | None = None) -> "Shape":
        """For x [B, K] times a weight; of several experts' x, `batch` is that of one."""
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


def stored(weight: Matrix) -> Stored:
    """A weight as the kernels' argument."""
    return Stored(weight.words, weight.format.functions())


@triton.jit
def load_words(tensors, first, offsets, step, SHAPE: tl.constexpr):
    """Weights of a step, [ROWS, WIDTH]: those of the first tensor, rows first + offsets [ROWS], 0 where there is none.

    Offsets that are known when it is compiled become part of the instructions, and take no registers. A token
    takes each weight once: what is read again, activations and short contexts, is to stay in the caches instead.
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
    there = (first + offsets < N)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(pointers, mask=there, other=0, eviction_policy="evict_first")


@triton.jit
def preloaded(tensors, functions, first, offsets, SHAPE: tl.constexpr):
    """The weights of the first PRELOAD steps."""
    PRELOAD: tl.constexpr = SHAPE.PRELOAD
    tiles = ()
    for step in tl.static_range(PRELOAD):
        tiles = tiles + (functions.load(tensors, first, offsets, step, SHAPE),)
    return tiles


@triton.jit
def mainloop(tiles, tensors, functions, first, offsets, x, row, SHAPE: tl.constexpr):
    """Products of rows first + offsets [ROWS] with rows `row` to row + BATCH - 1 of x: float32 [PADDED, ROWS], 0 in the
    padding; the format's `row_scale` is left out.

    tiles: of the first steps, as many as are `preloaded`; tensors, functions: as in `Stored`; x: `Buffers`. What a
    thread loads at once is added up in its own registers; what the threads have, once all columns are done.
    """
    COLUMNS: tl.constexpr = SHAPE.COLUMNS
    WIDTH: tl.constexpr = SHAPE.WIDTH
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    PADDED: tl.constexpr = SHAPE.PADDED
    LOADED: tl.constexpr = SHAPE.LOADED
    PRELOAD: tl.constexpr = len(tiles)
    totals = ()
    for _ in tl.static_range(BATCH):
        totals = totals + (tl.zeros([ROWS, WIDTH // LOADED], tl.float32),)
    STEPS: tl.constexpr = (COLUMNS + WIDTH - 1) // WIDTH
    UNROLLED: tl.constexpr = STEPS if BATCH == 1 and STEPS <= MAX_UNROLLED else PRELOAD
    for step in tl.static_range(UNROLLED):
        if step < PRELOAD:
            tile = tiles[step]
        else:
            tile = functions.load(tensors, first, offsets, step, SHAPE)
        totals = add_step(totals, tile, functions, step, x, row, SHAPE)
    for step in range(UNROLLED, STEPS):
        tile = functions.load(tensors, first, offsets, step, SHAPE)
        totals = add_step(totals, tile, functions, step, x, row, SHAPE)
    batch = tl.arange(0, PADDED)
    y = tl.zeros([PADDED, ROWS], tl.float32)
    for b in tl.static_range(BATCH):
        y = tl.where((batch == b)[:, None], tl.sum(totals[b], 1)[None, :], y)
    return y


@triton.jit
def add_step(totals, tile, functions, step, x, row, SHAPE: tl.constexpr):
    """Adds a step's products to the totals, one [ROWS, WIDTH / LOADED] for each row of the batch."""
    COLUMNS: tl.constexpr = SHAPE.COLUMNS
    WIDTH: tl.constexpr = SHAPE.WIDTH
    ROWS: tl.constexpr = SHAPE.ROWS
    BATCH: tl.constexpr = SHAPE.BATCH
    LOADED: tl.constexpr = SHAPE.LOADED
    columns = step * WIDTH + tl.arange(0, WIDTH)
    there = columns < COLUMNS
    added = ()
    for b in tl.static_range(BATCH):
        parts = functions.multiply(tile, x, (row + b) * COLUMNS + columns, there)
        added = added + (totals[b] + tl.sum(tl.reshape(parts, [ROWS, WIDTH // LOADED, LOADED]), 2),)
    return added


@triton.jit
def of_expert(tensors, expert, SHAPE: tl.constexpr):
    """Pointers to what is stored of one expert, int64, of several."""
    STRIDES: tl.constexpr = SHAPE.STRIDES
    own = ()
    for i in tl.static_range(len(STRIDES)):
        own = own + (tensors[i] + expert * STRIDES[i],)
    return own


@triton.jit
def unit_scale(tensors, rows, there):
    """For `Functions.row_scale`: of a format that has no scale for whole rows."""
    return tl.full(rows.shape, 1.0, tl.float32)
