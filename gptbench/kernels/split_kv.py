"""Split-KV: how CTAs divide the cached positions of a decode step's attention, and the partials they exchange.

Shapes: B batch, H query heads, G key-value heads, K head width, S cached positions.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

MIN_DOT = 16
"""Minimum rows, and minimum columns, of an operand of `tl.dot`."""
TILE_BYTES = 16384
"""Bytes of a block of keys, and of values: small enough for several CTAs per SM."""
SINGLE_CTA_TILE_BYTES = 2 * TILE_BYTES
"""Bytes of a block of keys, and of values, where a single CTA reads a whole context. Two such blocks take most of an
SM's registers, but most SMs have no such CTA and stay free for the next kernel."""
SINGLE_CTA_BYTES_PER_WARP = 4096
"""Bytes of keys per warp where a single CTA reads a whole context: 32 registers per thread."""
MAX_SINGLE_CTA_BLOCKS = 2
"""Maximum number of blocks that a single CTA reads without split-KV. So few blocks are fully unrolled: a loop with
prefetch would do work for the next block even where there is none."""
MERGE_ELEMENTS = 16384
"""Elements of partials loaded at once in the merge: each further iteration costs another round trip to memory."""
CTAS_PER_SM = 3
"""CTAs with a chunk per SM, in a long context."""
DOT_CTAS_PER_SM = 2
"""CTAs with a chunk per SM where `tl.dot` is used: as many as fit into the register file."""
MAX_BLOCK = 128
"""Positions that a CTA loads at once at most, in a long context."""
MIN_CHUNK = 128
"""Minimum positions of a chunk: below it, the merge costs more than further splitting saves."""


@dataclass(frozen=True)
class SplitKVPlan:
    """How one launch of the attention kernel is divided among CTAs."""

    splits: int
    """CTAs for each key-value head (for each query head, if `per_query_head`) of each sequence."""
    block: int
    """Positions per block, prefetched while the block before it is processed; a power of two, at least 16."""
    warps: int
    """Warps per CTA."""
    per_query_head: bool = False
    """Whether each query head has its own CTA even where several share a key-value head: in a short context the others
    find keys and values in L2."""

    def vector_lanes(self, sharing: int, padded: int, itemsize: int) -> int:
        """Return the number of independent accumulators of a CTA, so that they need not wait for one another.

        Without `tl.dot` that is the number of rows that its threads load at once, 16 bytes each; with `tl.dot`, where
        heads share keys, one per warp.

        Args:
            sharing: query heads of each CTA.
            padded: head width, rounded up to a power of two.
            itemsize: bytes of a cache element.
        """
        if sharing == 1:
            return max(min(self.warps * 32 * 16 // (padded * itemsize), self.block), 1)
        return max(min(self.warps, self.block // MIN_DOT), 1)

    @classmethod
    def choose(
        cls, batch: int, heads: int, kv_heads: int, width: int, length: int, window: int, itemsize: int, processors: int
    ) -> "SplitKVPlan":
        """Choose a plan for `heads` query heads and caches [batch, kv_heads, length, width].

        Args:
            window: sliding window in positions; 0 means none.
            itemsize: bytes of a cache element.
            processors: SMs of the device.
        """
        visible = min(length, window) if window else length
        row_bytes = triton.next_power_of_2(width) * itemsize
        context_block = max(triton.next_power_of_2(visible), MIN_DOT)
        if context_block * row_bytes <= SINGLE_CTA_TILE_BYTES * MAX_SINGLE_CTA_BLOCKS:
            block = min(context_block, max(SINGLE_CTA_TILE_BYTES // row_bytes, MIN_DOT))
            return cls(1, block, warps=max(block * row_bytes // SINGLE_CTA_BYTES_PER_WARP, 1), per_query_head=True)
        use_dot = heads > kv_heads
        programs = (DOT_CTAS_PER_SM if use_dot else CTAS_PER_SM) * processors // (batch * kv_heads)
        splits = max(min(programs, visible // MIN_CHUNK), 1)
        remainder = splits % chunks_per_merge(heads // kv_heads, width)
        if remainder <= splits // 8:  # a few more chunks would take another iteration of the merge
            splits -= remainder
        block = min(max(TILE_BYTES // row_bytes, MIN_DOT), MAX_BLOCK)
        # float32 dot products do not use tensor cores, and need more registers.
        return cls(splits, block, warps=8 if use_dot and itemsize == 4 else 4)

    def sharing(self, heads: int, kv_heads: int) -> int:
        """Return the number of query heads of each CTA."""
        return 1 if self.per_query_head else heads // kv_heads


def padded_width(width: int) -> int:
    """Return the head width, rounded up to a power of two of at least `MIN_DOT`."""
    return max(triton.next_power_of_2(width), MIN_DOT)


def chunks_per_merge(sharing: int, width: int) -> int:
    """Return how many chunks' partials are loaded at once in the merge: a power of two.

    Args:
        sharing: query heads of each CTA.
        width: head width.
    """
    return max(MERGE_ELEMENTS // (triton.next_power_of_2(sharing) * padded_width(width)), 1)


@dataclass(frozen=True)
class SplitKVScratch:
    """Partials that CTAs leave for the one that merges them. All layers share one instance, as they run one after the
    other."""

    plan: SplitKVPlan
    acc_partials: Tensor
    """Unnormalised weighted values of each chunk, float32 [B·H/Q, splits, Q, K] for Q query heads per CTA; the last two
    dimensions are rounded up to powers of two, K to at least 16."""
    m_partials: Tensor
    """Maximum score of each chunk in units of log 2, float32 [B·H/Q, splits, Q], Q rounded up."""
    l_partials: Tensor
    """Sum of the weights of each chunk, float32 [B·H/Q, splits, Q], Q rounded up."""
    counters: Tensor
    """Number of CTAs that have finished, int32 [B·H/Q]; zero between launches."""

    @classmethod
    def empty(
        cls, plan: SplitKVPlan, batch: int, heads: int, kv_heads: int, width: int, device: torch.device
    ) -> "SplitKVScratch":
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
