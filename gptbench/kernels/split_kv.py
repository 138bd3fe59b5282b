"""How programs share the cached positions of one decode step's attention, and what they leave for one another.

Shapes: B batch, H heads, G key-value heads, K head width, S cached positions.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

MIN_DOT = 16
"""Fewest rows, and fewest numbers in a row, that `tl.dot` multiplies."""
TILE_BYTES = 16384
"""Of keys, and of values, that a program loads at once: small enough for several programs to share a processor."""
SINGLE_CTA_TILE_BYTES = 2 * TILE_BYTES
"""Of keys, and of values, that a program loads at once which reads a whole context. Two such blocks take most of a
processor's registers, but most processors have no such program, and are left to those of the next kernel."""
SINGLE_CTA_BYTES_PER_WARP = 4096
"""Of keys: 32 registers of each thread."""
MAX_SINGLE_CTA_BLOCKS = 2
"""Blocks that a program reads alone rather than that several do and combine. Each of so few has code of its own: a loop
that reads ahead does something for the next block even where there is none."""
COMBINED = 16384
"""Numbers that are loaded at once when chunks are combined: each further round waits for memory once more."""
PER_PROCESSOR = 3
"""Programs with a chunk, in a long context."""
DOTS_PER_PROCESSOR = 2
"""Programs with a chunk and dot products: as many as its registers have room for."""
MIN_CHUNK = 128
"""Positions. To share shorter ones would take longer, as they have to be combined, than to read on."""


@dataclass(frozen=True)
class SplitKVPlan:
    """How the work is divided."""

    splits: int
    """Programs for each key-value head (for each head, if they are apart) of each sequence."""
    block: int
    """Positions that a program loads at once, while it computes with those before; a power of two, at least 16."""
    warps: int
    """Of each program."""
    per_query_head: bool = False
    """Whether each query head has a program of its own, though others read the same keys. In a short context they find
    them in the cache on the chip."""

    def vector_lanes(self, sharing: int, padded: int, itemsize: int) -> int:
        """Parts of a program that add up by themselves, so that they need not wait for one another: as many as rows
        that the threads load at once, 16 bytes each; with dot products, where heads share keys, its warps.

        Args:
            sharing: query heads for each program.
            padded: width of a head, in memory on the chip.
            itemsize: bytes of a number in the cache.
        """
        if sharing == 1:
            return max(min(self.warps * 32 * 16 // (padded * itemsize), self.block), 1)
        return max(min(self.warps, self.block // MIN_DOT), 1)

    @classmethod
    def choose(
        cls, batch: int, heads: int, kv_heads: int, width: int, length: int, window: int, itemsize: int, processors: int
    ) -> "SplitKVPlan":
        """For `heads` query heads and caches [batch, kv_heads, length, width] of so many bytes an element, on a device
        of so many processors.

        Args:
            window: positions that a token attends to at most; 0: all.
        """
        visible = min(length, window) if window else length
        row = triton.next_power_of_2(width) * itemsize
        whole = max(triton.next_power_of_2(visible), MIN_DOT)
        if whole * row <= SINGLE_CTA_TILE_BYTES * MAX_SINGLE_CTA_BLOCKS:
            block = min(whole, max(SINGLE_CTA_TILE_BYTES // row, MIN_DOT))
            return cls(1, block, warps=max(block * row // SINGLE_CTA_BYTES_PER_WARP, 1), per_query_head=True)
        dots = heads > kv_heads
        programs = (DOTS_PER_PROCESSOR if dots else PER_PROCESSOR) * processors // (batch * kv_heads)
        splits = max(min(programs, visible // MIN_CHUNK), 1)
        rest = splits % combined_at_once(heads // kv_heads, width)
        if rest <= splits // 8:  # a few more would take another round to combine
            splits -= rest
        block = min(max(TILE_BYTES // row, MIN_DOT), 128)
        # Without tensor cores the dot products of float32 need more registers.
        return cls(splits, block, warps=8 if dots and itemsize == 4 else 4)

    def sharing(self, heads: int, kv_heads: int) -> int:
        """Query heads for each program."""
        return 1 if self.per_query_head else heads // kv_heads


def padded_width(width: int) -> int:
    """Of a head, in memory on the chip."""
    return max(triton.next_power_of_2(width), MIN_DOT)


def combined_at_once(sharing: int, width: int) -> int:
    """Chunks of so many heads: a power of two."""
    return max(COMBINED // (triton.next_power_of_2(sharing) * padded_width(width)), 1)


@dataclass(frozen=True)
class Scratch:
    """What programs leave for the one that combines. One will do for all layers: they run one after the other."""

    plan: SplitKVPlan
    acc_partials: Tensor
    """float32 [B·H/Q, splits, Q, K], Q query heads for each program; the last two padded to powers of two, K to at
    least 16: weighted values."""
    m_partials: Tensor
    """float32 [B·H/Q, splits, Q], padded: largest scores, in units of log 2."""
    l_partials: Tensor
    """float32 [B·H/Q, splits, Q], padded: sums of weights."""
    counters: Tensor
    """int32 [B·H/Q]: programs that are done. Zero between launches."""

    @classmethod
    def empty(
        cls, plan: SplitKVPlan, batch: int, heads: int, kv_heads: int, width: int, device: torch.device
    ) -> "Scratch":
        sharing = plan.sharing(heads, kv_heads)
        groups, rows = batch * heads // sharing, triton.next_power_of_2(sharing)
        chunks = groups, plan.splits, rows
        padded = padded_width(width)
        return cls(
            plan=plan,
            acc_partials=torch.empty(*chunks, padded, dtype=torch.float32, device=device),
            m_partials=torch.empty(chunks, dtype=torch.float32, device=device),
            l_partials=torch.empty(chunks, dtype=torch.float32, device=device),
            counters=torch.zeros(groups, dtype=torch.int32, device=device),
        )
