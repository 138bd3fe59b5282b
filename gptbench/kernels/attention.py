"""Attention of one decode step of one layer: everything between the QKV projection and the output projection.

Split-KV flash-decoding (Dao et al., 2023, https://pytorch.org/blog/flash-decoding): the cached positions of each
key-value head are split into chunks, one CTA each, which read keys and values once for all query heads that share them;
the last CTA of a head to finish merges the partial results. The grid is fixed when the kernel is launched (or captured
in a CUDA graph); each CTA derives its chunk from its row's position on the device, and CTAs without a chunk exit.

Before the PDL wait (`launch.pdl_wait_and_trigger`) a CTA prefetches the first block of keys and values (the whole
context, if it is short), the position, and the RoPE table. That is safe: the kernel just before this one writes only
queries, key and value, and since every kernel waits before it triggers, all earlier kernels, among them those that
wrote the position and the cache below it, have finished. The token's own key and value are never read from the cache.

Shapes: B batch, H query heads, G key-value heads, K head width, S cached positions.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.activation import Activation, store
from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.online_softmax import (
    accumulate_pv,
    accumulate_pv_dot,
    merge_splits,
    online_softmax_step,
    online_softmax_step_dot,
)
from gptbench.kernels.op import Bytes, Op, nbytes, type_name
from gptbench.kernels.split_kv import (
    MAX_SINGLE_CTA_BLOCKS,
    MIN_DOT,
    SplitKVScratch,
    chunks_per_merge,
)

CHUNK_STEP = tl.constexpr(16)
"""Granularity of a chunk's length, in positions. Rounding up to whole blocks would load some SMs more than others."""
LOG2_E = 1.4426950408889634


class Norms(NamedTuple):
    """RMSNorm weights of query and key heads."""

    q: Any
    """RMSNorm weight of query heads, [K]; None where heads are not normalised. `k` likewise for key heads."""
    k: Any
    eps: Any


class Rotation(NamedTuple):
    """RoPE table, by position; see `Attend.cos`."""

    cos: Any
    sin: Any


class KVCache(NamedTuple):
    """Cached keys and values, each [B, G, S, K]. (Fields cannot be called `values`: Triton's tuples have a `values` of
    their own.)"""

    k: Any
    v: Any
    length: Any
    """Cached positions S."""


class Partials(NamedTuple):
    """`SplitKVScratch` as a kernel argument."""

    acc_partials: Any
    m_partials: Any
    l_partials: Any
    counters: Any


class AttendShape(NamedTuple):
    """Compile-time shape of the attention kernel."""

    H: int
    G: int
    K: int
    SHARING: int
    """Query heads of each CTA."""
    ROWS: int
    """SHARING, rounded up to a power of two."""
    PADDED: int
    """K, rounded up to a power of two."""
    DOT_ROWS: int
    """ROWS, rounded up to the minimum that `tl.dot` takes."""
    WINDOW: int
    """Sliding window in positions; 0 means no window."""
    SM_SCALE_LOG2: float
    """Softmax scale times log2(e): scores are exponentiated with exp2."""


class KernelPlan(NamedTuple):
    """`SplitKVPlan` as compile-time constants."""

    SPLITS: int
    BLOCK: int
    BLOCKS: int
    """Maximum number of blocks of a CTA where the K loop is fully unrolled; 0 where it is a loop."""
    LANES: int
    AT_ONCE: int
    """Chunks whose partials are loaded at once in the merge."""
    VECTOR: bool
    """Whether a CTA handles a single query head, without `tl.dot`."""


@triton.jit
def load_norm_weights(weight, columns, partners, mask):
    """Load the RMSNorm weights of some components and of their RoPE partners; zeros where there is no norm."""
    if weight is None:
        return 0.0, 0.0
    else:
        w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
        return w, tl.load(weight + partners, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def apply_rope(
    x, partner, norm_weight, partner_norm_weight, eps, cosine, sine, columns, K: tl.constexpr, NORM: tl.constexpr
):
    """Apply RMSNorm (if NORM) and RoPE (NeoX-style rotate-half) to heads x [..., PADDED].

    The result is in x's type, and 0 beyond K. `partner` holds, for each component of x, the component it is rotated
    with. Operands broadcast.
    """
    DTYPE: tl.constexpr = x.dtype
    x, partner = x.to(tl.float32), partner.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, -1, keep_dims=True) / K + eps)
        # Rounded twice, as `RMSNorm` does: the product of two numbers of the model's type is exact in float32.
        x = ((x * scale).to(DTYPE).to(tl.float32) * norm_weight).to(DTYPE).to(tl.float32)
        partner = ((partner * scale).to(DTYPE).to(tl.float32) * partner_norm_weight).to(DTYPE).to(tl.float32)
    return (x * cosine + tl.where(columns < K // 2, -partner, partner) * sine).to(DTYPE)


class KVStream(NamedTuple):
    """A CTA's view of one head's cache, up to `end`, in 32-bit words: one float32 or two 16-bit numbers each."""

    k: Any
    v: Any
    positions: Any
    """Positions within a block, [..., 1]."""
    words: Any
    """Word offsets within a row, [..., PADDED] or [..., PADDED / 2]."""
    end: Any


@triton.jit
def kv_stream(keys, values, positions, end, PADDED: tl.constexpr, VECTOR: tl.constexpr):
    """Return a `KVStream` over pointers to a head's keys and values.

    16-bit types are loaded as 32-bit words and unpacked only when used: unpacking at the load would force a wait for
    it.
    """
    if tl.float32 != keys.dtype.element_ty:
        keys = keys.to(tl.pointer_type(tl.int32), bitcast=True)
        values = values.to(tl.pointer_type(tl.int32), bitcast=True)
        word_index = tl.arange(0, PADDED // 2)
    else:
        word_index = tl.arange(0, PADDED)
    return KVStream(keys, values, positions, word_index[None, :] if VECTOR else word_index[None, None, :], end)


@triton.jit
def load_kv_block(cache, start, stream, WORDS: tl.constexpr):
    """Load a block of keys or values from position `start` on: [..., PADDED], 0 beyond the end.

    A row has WORDS words. Loads bypass L1 (.cg), which may still hold what an earlier step left at these addresses.
    """
    positions = start + stream.positions
    mask = (positions < stream.end) & (stream.words < WORDS)
    return tl.load(cache + positions * WORDS + stream.words, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def unpack_to_float32(words, DTYPE: tl.constexpr, LANES: tl.constexpr):
    """Convert a block of rows in 32-bit words (one float32 or two 16-bit numbers each) to float32 [X, LANES, PADDED].
    Neighbouring rows go to different lanes, as neighbouring threads loaded them."""
    X: tl.constexpr = words.shape[0] // LANES
    if tl.float32 == DTYPE:
        return tl.reshape(words, [X, LANES, words.shape[1]])
    else:
        if tl.bfloat16 == DTYPE:
            lo, hi = (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
        else:
            lo = words.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
            hi = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
        return tl.reshape(tl.join(lo, hi), [X, LANES, words.shape[1] * 2])


@triton.jit
def unpack(words, DTYPE: tl.constexpr):
    """Unpack 32-bit words (one float32 or two 16-bit numbers each) to [..., PADDED] in the cache's type."""
    if tl.float32 == DTYPE:
        return words
    else:
        lo = words.to(tl.int16).to(DTYPE, bitcast=True)
        hi = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True)
        return tl.reshape(tl.join(lo, hi), [words.shape[0], words.shape[1], words.shape[2] * 2])


@triton.jit
def store_output(y, out, offset, S: tl.constexpr):
    """Store the first SHARING rows and K columns of y, float32 [ROWS, PADDED], one row after the other."""
    if S.PADDED == S.K:
        row = tl.reshape(y, [S.ROWS * S.K])
        store(row, out, offset, S.SHARING * S.K, S.ROWS * S.K)
    else:
        rows = tl.arange(0, S.ROWS)[:, None]
        SHARING: tl.constexpr = S.SHARING
        for row in tl.static_range(SHARING):
            head = tl.sum(tl.where(rows == row, y, 0.0), 0)
            store(head, out, offset + row * S.K, S.K, S.PADDED)


@triton.jit
def chunk_bounds(position, split, WINDOW: tl.constexpr, CUT: tl.constexpr):
    """Return the begin and end of a CTA's chunk of the visible positions, and the number of chunks."""
    first = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else 0
    visible = position + 1 - first
    chunk = tl.maximum(tl.cdiv(tl.cdiv(visible, CUT.SPLITS), CHUNK_STEP) * CHUNK_STEP, CUT.BLOCK)
    begin = first + split * chunk
    # The token's own position is not read from the cache.
    return begin, tl.minimum(begin + chunk, position), tl.cdiv(visible, chunk)


@triton.jit
def attend_one_head(
    q,
    new_key,
    new_value,
    k,
    v,
    preloaded_k,
    preloaded_v,
    stream,
    begin,
    is_last_chunk,
    S: tl.constexpr,
    CUT: tl.constexpr,
):
    """Attend to a chunk with one query head, without `tl.dot`: return m_i [1], l_i [1] and acc [1, PADDED].

    Blocks stay in the layout in which they were loaded, rows of a block across lanes, and each lane keeps a copy of the
    query in its threads' registers. The CTA of the last chunk also accounts for the token's own key and value, which no
    other CTA does. The token's own score initialises m_i everywhere: it takes part in the softmax wherever it is
    summed.

    Args:
        q: query, [1, LANES, PADDED], of the heads' type, as are `new_key` and `new_value`.
        k: prefetched first block of keys, in words; `preloaded_k` holds further blocks if the loop is unrolled. v and
            `preloaded_v` likewise.
    """
    DTYPE: tl.constexpr = new_key.dtype
    WORDS: tl.constexpr = S.K if tl.float32 == DTYPE else S.K // 2
    block_positions = tl.arange(0, CUT.BLOCK // CUT.LANES)[:, None] * CUT.LANES + tl.arange(0, CUT.LANES)[None, :]
    in_first_lane = is_last_chunk & (tl.arange(0, CUT.LANES)[None, :] == 0)
    q = q.to(tl.float32) * S.SM_SCALE_LOG2
    m_i = tl.sum(q * new_key.to(tl.float32), 2)
    l_i = tl.where(in_first_lane, 1.0, 0.0)
    acc = tl.where(in_first_lane[:, :, None], new_value.to(tl.float32), 0.0)
    if CUT.BLOCKS > 0:
        mask = begin + block_positions < stream.end
        m_i, l_i, weights, alpha = online_softmax_step(q, unpack_to_float32(k, DTYPE, CUT.LANES), mask, m_i, l_i)
        acc = accumulate_pv(acc, weights, alpha, unpack_to_float32(v, DTYPE, CUT.LANES))
        BLOCKS: tl.constexpr = CUT.BLOCKS
        for i in tl.static_range(1, BLOCKS):
            start = begin + i * CUT.BLOCK
            if start < stream.end:
                mask, k = start + block_positions < stream.end, preloaded_k[i - 1]
                m_i, l_i, weights, alpha = online_softmax_step(
                    q, unpack_to_float32(k, DTYPE, CUT.LANES), mask, m_i, l_i
                )
                acc = accumulate_pv(acc, weights, alpha, unpack_to_float32(preloaded_v[i - 1], DTYPE, CUT.LANES))
    else:
        for start in range(begin, stream.end, CUT.BLOCK):
            mask, next_start = start + block_positions < stream.end, start + CUT.BLOCK
            # The next block of keys reuses the registers of this one, and is in flight while values are accumulated.
            m_i, l_i, weights, alpha = online_softmax_step(q, unpack_to_float32(k, DTYPE, CUT.LANES), mask, m_i, l_i)
            k = load_kv_block(stream.k, next_start, stream, WORDS)
            acc = accumulate_pv(acc, weights, alpha, unpack_to_float32(v, DTYPE, CUT.LANES))
            v = load_kv_block(stream.v, next_start, stream, WORDS)
    return merge_splits(tl.trans(m_i), tl.trans(l_i), tl.permute(acc, (1, 0, 2)), 0)


@triton.jit
def attend_several_heads(q, new_key, new_value, k, v, stream, begin, is_last_chunk, S: tl.constexpr, CUT: tl.constexpr):
    """Attend to a chunk with ROWS query heads that share a key-value head, with `tl.dot`: return m_i [ROWS], l_i [ROWS]
    and acc [ROWS, PADDED]. q is [1, ROWS, PADDED]; other arguments as in `attend_one_head`."""
    DTYPE: tl.constexpr = new_key.dtype
    WORDS: tl.constexpr = S.K if tl.float32 == DTYPE else S.K // 2
    LANES: tl.constexpr = CUT.LANES
    ROWS: tl.constexpr = S.ROWS
    DOT_ROWS: tl.constexpr = S.DOT_ROWS
    PADDED: tl.constexpr = S.PADDED
    block_positions = tl.arange(0, LANES)[:, None] * (CUT.BLOCK // LANES) + tl.arange(0, CUT.BLOCK // LANES)[None, :]
    in_first_lane = is_last_chunk & (tl.arange(0, LANES)[:, None] == 0)
    m_i = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 2) * S.SM_SCALE_LOG2  # [1, ROWS]
    # Rows that pad the tile to the minimum of `tl.dot` repeat the heads.
    REPEATS: tl.constexpr = DOT_ROWS // ROWS
    PARTS: tl.constexpr = LANES * REPEATS
    q = tl.reshape(tl.broadcast_to(q, [PARTS, ROWS, PADDED]), [LANES, DOT_ROWS, PADDED])
    new_value = tl.broadcast_to(new_value, [PARTS, ROWS, PADDED])
    new_value = tl.reshape(new_value, [LANES, DOT_ROWS, PADDED]).to(tl.float32)
    m_i = tl.reshape(tl.broadcast_to(m_i, [PARTS, ROWS]), [LANES, DOT_ROWS])
    l_i = tl.where(in_first_lane, 1.0, 0.0) + tl.zeros([LANES, DOT_ROWS], tl.float32)
    acc = tl.where(in_first_lane[:, :, None], new_value, 0.0)
    for start in range(begin, stream.end, CUT.BLOCK):
        mask, next_start = start + block_positions < stream.end, start + CUT.BLOCK
        m_i, l_i, weights, alpha = online_softmax_step_dot(q, unpack(k, DTYPE), mask, m_i, l_i, S.SM_SCALE_LOG2)
        k = load_kv_block(stream.k, next_start, stream, WORDS)
        acc = accumulate_pv_dot(acc, weights, alpha, unpack(v, DTYPE))
        v = load_kv_block(stream.v, next_start, stream, WORDS)
    # Repeated rows count equally in l_i and in acc, so they cancel.
    m_i, l_i = tl.reshape(m_i, [PARTS, ROWS]), tl.reshape(l_i, [PARTS, ROWS])
    return merge_splits(m_i, l_i, tl.reshape(acc, [PARTS, ROWS, PADDED]), 0)


@triton.jit
def merge_partials(
    m_i,
    l_i,
    acc,
    partials,
    out,
    group,
    split,
    n_chunks,
    offset,
    S: tl.constexpr,
    CUT: tl.constexpr,
):
    """Store a chunk's partials (m, l, acc); the last of `n_chunks` CTAs to finish merges all of them."""
    ROWS: tl.constexpr = S.ROWS
    PADDED: tl.constexpr = S.PADDED
    head_rows, columns = tl.arange(0, ROWS), tl.arange(0, PADDED)[None, :]
    slot = (group * CUT.SPLITS + split) * ROWS + head_rows
    tl.store(partials.m_partials + slot, m_i)
    tl.store(partials.l_partials + slot, l_i)
    tl.store(partials.acc_partials + slot[:, None] * PADDED + columns, acc)
    tl.debug_barrier()  # all threads' stores happen before the release by one thread
    finished = tl.atomic_add(partials.counters + group, 1, sem="acq_rel")
    if finished == n_chunks - 1:
        # Merged in a fixed order, whichever CTA finished last, so that results are bitwise reproducible.
        m_all = tl.full([ROWS], float("-inf"), tl.float32)
        l_all = tl.zeros([ROWS], tl.float32)
        acc_all = tl.zeros([ROWS, PADDED], tl.float32)
        for start in range(0, n_chunks, CUT.AT_ONCE):
            chunks = start + tl.arange(0, CUT.AT_ONCE)
            valid = (chunks < n_chunks)[:, None]
            at = (group * CUT.SPLITS + chunks)[:, None] * ROWS + head_rows[None, :]
            # Bypass L1 (.cg): it does not see what other SMs write.
            m_part = tl.load(partials.m_partials + at, mask=valid, other=float("-inf"), cache_modifier=".cg")
            l_part = tl.load(partials.l_partials + at, mask=valid, other=0.0, cache_modifier=".cg")
            acc_part = tl.load(
                partials.acc_partials + at[:, :, None] * PADDED + columns[None, :, :],
                mask=valid[:, :, None],
                other=0.0,
                cache_modifier=".cg",
            )
            m_new = tl.maximum(m_all, tl.max(m_part, 0))
            beta = tl.exp2(m_part - m_new[None, :])
            alpha = tl.exp2(m_all - m_new)
            l_all = l_all * alpha + tl.sum(beta * l_part, 0)
            acc_all = acc_all * alpha[:, None] + tl.sum(beta[:, :, None] * acc_part, 0)
            m_all = m_new
        store_output(acc_all / l_all[:, None], out, offset, S)
        tl.store(partials.counters + group, 0)


@triton.jit
def attend_kernel(
    qkv,
    norms,
    rotation,
    positions_by_row,
    cache,
    partials,
    out,
    S: tl.constexpr,
    CUT: tl.constexpr,
    PDL: tl.constexpr,
):
    DTYPE: tl.constexpr = cache.k.dtype.element_ty
    WORDS: tl.constexpr = S.K if tl.float32 == DTYPE else S.K // 2
    H: tl.constexpr = S.H
    G: tl.constexpr = S.G
    K: tl.constexpr = S.K
    PADDED: tl.constexpr = S.PADDED
    group, split = tl.program_id(0), tl.program_id(1)
    batch, head = group // (H // S.SHARING), group % (H // S.SHARING) * S.SHARING
    kv_head = head // (H // G)
    position = tl.load(positions_by_row + batch, cache_modifier=".cg").to(tl.int32)
    begin, end, n_chunks = chunk_bounds(position, split, S.WINDOW, CUT)
    if split >= n_chunks:
        return
    is_last_chunk = split == n_chunks - 1

    # Prologue, before the PDL wait: RoPE table, norm weights, and the first block of keys and values (all blocks, if
    # the loop is unrolled).
    base = (batch * G + kv_head).to(tl.int64) * cache.length * K  # 64 bits: offsets pass 2^31
    keys, values = cache.k + base, cache.v + base
    components = tl.arange(0, PADDED)[None, None, :]
    if CUT.VECTOR:
        positions = tl.arange(0, CUT.BLOCK)[:, None]
        rows = tl.arange(0, CUT.LANES)[None, :, None]
        columns = tl.broadcast_to(components, [1, CUT.LANES, PADDED])
    else:
        lane_start = tl.arange(0, CUT.LANES)[:, None] * (CUT.BLOCK // CUT.LANES)
        positions = (lane_start + tl.arange(0, CUT.BLOCK // CUT.LANES)[None, :])[:, :, None]
        rows = tl.arange(0, S.ROWS)[None, :, None]
        columns = tl.broadcast_to(components, [1, S.ROWS, PADDED])
    mask = columns < K
    partners = tl.where(columns < K // 2, columns + K // 2, columns - K // 2)
    cosine = tl.load(rotation.cos + position * K + columns, mask=mask, other=0.0)
    sine = tl.load(rotation.sin + position * K + columns, mask=mask, other=0.0)
    q_norm_weight, q_partner_norm_weight = load_norm_weights(norms.q, columns, partners, mask)
    k_norm_weight, k_partner_norm_weight = load_norm_weights(norms.k, columns, partners, mask)
    stream = kv_stream(keys, values, positions, end, PADDED, CUT.VECTOR)
    k = load_kv_block(stream.k, begin, stream, WORDS)
    v = load_kv_block(stream.v, begin, stream, WORDS)
    preloaded_k, preloaded_v = (), ()
    AHEAD: tl.constexpr = CUT.BLOCKS if CUT.VECTOR else 1
    for i in tl.static_range(1, AHEAD):  # masked off past the end
        preloaded_k = preloaded_k + (load_kv_block(stream.k, begin + i * CUT.BLOCK, stream, WORDS),)
        preloaded_v = preloaded_v + (load_kv_block(stream.v, begin + i * CUT.BLOCK, stream, WORDS),)
    pdl_wait_and_trigger(PDL)

    # After the wait: the token's own queries, key and value.
    heads = qkv + batch * ((H + 2 * G) * K)
    q_pointer = heads + head * K
    k_pointer = heads + (H + kv_head) * K
    if CUT.VECTOR:
        q = tl.load(q_pointer + columns, mask=mask, other=0.0, cache_modifier=".cg")
        q_partner = tl.load(q_pointer + partners, mask=mask, other=0.0, cache_modifier=".cg")
    else:
        q_mask = mask & (rows < S.SHARING)
        q = tl.load(q_pointer + rows * K + columns, mask=q_mask, other=0.0, cache_modifier=".cg")
        q_partner = tl.load(q_pointer + rows * K + partners, mask=q_mask, other=0.0, cache_modifier=".cg")
    new_key = tl.load(k_pointer + columns, mask=mask, other=0.0, cache_modifier=".cg")
    new_key_partner = tl.load(k_pointer + partners, mask=mask, other=0.0, cache_modifier=".cg")
    new_value = tl.load(k_pointer + G * K + columns, mask=mask, other=0.0, cache_modifier=".cg")
    NORM: tl.constexpr = norms.k is not None
    new_key = apply_rope(
        new_key, new_key_partner, k_norm_weight, k_partner_norm_weight, norms.eps, cosine, sine, columns, K, NORM
    )
    # One of the CTAs that share the key-value head writes it.
    write_mask = mask & is_last_chunk & (rows == 0) & (head % (H // G) == 0)
    tl.store(keys + position * K + columns, new_key, mask=write_mask)
    tl.store(values + position * K + columns, new_value, mask=write_mask)
    q = apply_rope(q, q_partner, q_norm_weight, q_partner_norm_weight, norms.eps, cosine, sine, columns, K, NORM)

    if CUT.VECTOR:
        m_i, l_i, acc = attend_one_head(
            q, new_key, new_value, k, v, preloaded_k, preloaded_v, stream, begin, is_last_chunk, S, CUT
        )
    else:
        m_i, l_i, acc = attend_several_heads(q, new_key, new_value, k, v, stream, begin, is_last_chunk, S, CUT)
    offset = batch * (H * K) + head * K
    if (CUT.SPLITS == 1) or (n_chunks == 1):
        store_output(acc / l_i[:, None], out, offset, S)
    else:
        merge_partials(m_i, l_i, acc, partials, out, group, split, n_chunks, offset, S, CUT)


@dataclass(frozen=True, eq=False)
class Attend(Op):
    """Applies RoPE to queries and key, appends key and value to the cache, and attends to all cached positions."""

    qkv: Tensor
    """Queries, keys and values with bias, [B, (H + 2G)·K], in the model's type."""
    q_norm: Tensor | None
    """RMSNorm weight of each query head, [K]; None where heads are not normalised."""
    k_norm: Tensor | None
    """RMSNorm weight of each key head, [K]; None exactly where `q_norm` is."""
    eps: float
    """Epsilon of both norms."""
    cos: Tensor
    """Cosines by position, float32 [S, K]; the second half of a row repeats the first."""
    sin: Tensor
    """Sines, laid out as `cos`."""
    position: Tensor
    """Position of each row's token, int64 [B, 1], below S."""
    k_cache: Tensor
    """Key cache [B, G, S, K], contiguous. Each row's own position is written, those before it are read, those after it
    are never touched."""
    v_cache: Tensor
    """Value cache, laid out and used as `k_cache`."""
    window: int
    """Sliding window in positions, the token's own included; 0 means no window."""
    scratch: SplitKVScratch
    """Partials of the chunks, allocated for these shapes."""
    out: Activation
    """Attention output [B, H·K]."""

    name = "attend_kernel"
    part = "attention"

    def launch(self, pdl: bool = False) -> None:
        batch, kv_heads, length, width = self.k_cache.shape
        assert self.position.numel() == batch  # the kernel reads one position per row
        heads = self.qkv.shape[1] // width - 2 * kv_heads
        scratch, plan = self.scratch, self.scratch.plan
        sharing = plan.sharing(heads, kv_heads)
        blocks = triton.cdiv(min(length, self.window or length), plan.splits * plan.block)
        _, _, rows, padded = scratch.acc_partials.shape
        shape = AttendShape(
            H=heads,
            G=kv_heads,
            K=width,
            SHARING=sharing,
            ROWS=rows,
            PADDED=padded,
            DOT_ROWS=max(rows, MIN_DOT),
            WINDOW=self.window if self.window < length else 0,
            SM_SCALE_LOG2=width**-0.5 * LOG2_E,
        )
        cut = KernelPlan(
            SPLITS=plan.splits,
            BLOCK=plan.block,
            BLOCKS=blocks if blocks <= MAX_SINGLE_CTA_BLOCKS else 0,
            LANES=plan.vector_lanes(sharing, padded, self.qkv.element_size()),
            AT_ONCE=min(chunks_per_merge(sharing, width), triton.next_power_of_2(plan.splits)),
            VECTOR=sharing == 1,
        )
        launch(
            attend_kernel,
            (scratch.counters.numel(), plan.splits),
            self.qkv,
            Norms(self.q_norm, self.k_norm, self.eps),
            Rotation(self.cos, self.sin),
            self.position,
            KVCache(self.k_cache, self.v_cache, length),
            Partials(scratch.acc_partials, scratch.m_partials, scratch.l_partials, scratch.counters),
            self.out.buffers,
            S=shape,
            CUT=cut,
            PDL=pdl,
            num_warps=plan.warps,
            num_stages=1,  # blocks are prefetched into registers: a shared-memory pipeline would reduce occupancy
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        """Compute in float32 between the cache and the output."""
        batch, kv_heads, length, width = self.k_cache.shape
        heads = self.qkv.shape[1] // width - 2 * kv_heads
        at, rows = self.position, torch.arange(batch, device=self.position.device).unsqueeze(1)
        cos, sin = self.cos[at], self.sin[at]
        q, k, v = self.qkv.view(batch, -1, width).split([heads, kv_heads, kv_heads], dim=1)
        self.k_cache[rows, :, at] = apply_rope_reference(k, self.k_norm, self.eps, cos, sin).unsqueeze(1)
        self.v_cache[rows, :, at] = v.unsqueeze(1)
        positions = torch.arange(length, device=at.device)
        mask = ((positions <= at) & (positions > at - (self.window or length)))[:, None, None]  # [B, 1, 1, S]
        grouped = apply_rope_reference(q, self.q_norm, self.eps, cos, sin).float().view(batch, kv_heads, -1, width)
        scores = (grouped @ self.k_cache.float().mT * width**-0.5).masked_fill(~mask, -torch.inf)
        values = self.v_cache.float().masked_fill(~mask.mT, 0.0)
        self.out.write((scores.softmax(-1) @ values).reshape(batch, -1))

    def reads_early(self) -> tuple[Any, ...]:
        return self.q_norm, self.k_norm, self.cos, self.sin, self.position, self.k_cache, self.v_cache

    def reads(self) -> tuple[Any, ...]:
        return *self.reads_early(), self.qkv, self.scratch.counters

    def writes(self) -> tuple[Any, ...]:
        return self.k_cache, self.v_cache, self.scratch, self.out

    def results(self) -> tuple[Tensor, ...]:
        at = self.position.squeeze(1)
        rows = torch.arange(len(at), device=at.device)
        return self.out.read(), self.k_cache[rows, :, at], self.v_cache[rows, :, at]

    def bytes_read(self) -> Bytes:
        return Bytes(position=self.k_cache[0, :, 0].nbytes + self.v_cache[0, :, 0].nbytes, window=self.window)

    def other_bytes(self) -> int:
        rotation = 2 * self.out.batch * self.cos[0].nbytes
        return rotation + nbytes(self.qkv, self.q_norm, self.k_norm, self.out)

    def shape(self) -> dict[str, int]:
        batch, kv_heads, _, width = self.k_cache.shape
        return {"B": batch, "H": self.out.width // width, "G": kv_heads, "W": width}

    def flops(self, positions: int) -> int:
        return 4 * self.out.batch * self.out.width * positions

    @property
    def dtype(self) -> str:
        return type_name(self.k_cache.dtype)

    def fill(self, generator: Generator, position: int) -> None:
        """Fill inputs with random numbers, and the cache from the position on with NaN."""
        super().fill(generator, position)
        self.position.fill_(position)
        for cache in (self.k_cache, self.v_cache):
            cache[:, :, position:] = torch.nan


def apply_rope_reference(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Plain PyTorch version of `apply_rope`, for x [B, heads, K], cos and sin [B, 1, K]."""
    x32 = x.float()
    if weight is not None:
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        x32 = (x32.to(x.dtype) * weight).float()
    left, right = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
