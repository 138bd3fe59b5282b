"""Attention of one decode step of one layer: everything between the QKV projection and the output projection.

Flash-decoding (Dao et al., 2023, https://pytorch.org/blog/flash-decoding): the cached positions of each key-value head
are split into chunks, one program each, which read keys and values once for all query heads that share them; whichever
program of a head ends last combines what the others have left. How many programs there are is fixed when the kernel is
launched (or captured in a CUDA graph), how many of them have a chunk follows from each row's position, on the device.

The first block of keys and values (of a short context all), the position, and the rotation are loaded before the
program waits for the kernel that it follows (`launch.pdl_wait_and_trigger`), which makes queries, key and value. All
kernels before that one are done by then, as it has waited for them, and with them whatever wrote the position and the
cache before the position. The token's own key and value are never read from the cache.

Shapes: B batch, H heads, G key-value heads, K head width, S cached positions.
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
    Scratch,
    combined_at_once,
)

CHUNK_STEP = tl.constexpr(16)
"""Positions: chunks grow by so many. By whole blocks, the programs of some processors would get more than others."""
LOG2_E = 1.4426950408889634


class Norms(NamedTuple):
    """Of query and key heads."""

    q: Any
    """[K], weight; None where heads are not normalised. Likewise `k`."""
    k: Any
    eps: Any


class Rotation(NamedTuple):
    """By position: see `Attend.cos`."""

    cos: Any
    sin: Any


class Cache(NamedTuple):
    """Keys and values [B, G, S, K]. (A tuple of Triton's has `values` of its own.)"""

    k: Any
    v: Any
    length: Any
    """S."""


class Parts(NamedTuple):
    """`Scratch`, as the kernel takes it."""

    acc_partials: Any
    m_partials: Any
    l_partials: Any
    counters: Any


class Shape(NamedTuple):
    """Known when the kernel is compiled."""

    H: int
    G: int
    K: int
    SHARING: int
    """Query heads for each program."""
    ROWS: int
    """SHARING, padded to a power of two."""
    PADDED: int
    """K, padded to a power of two."""
    DOT_ROWS: int
    """ROWS, padded to what dot products take."""
    WINDOW: int
    """Positions that a token attends to at most; 0: all."""
    SM_SCALE_LOG2: float
    """What scores are multiplied with, in units of log 2."""


class Cut(NamedTuple):
    """`SplitKVPlan`, as the kernel takes it."""

    SPLITS: int
    BLOCK: int
    BLOCKS: int
    """Blocks that a program reads at most, if each has code of its own; 0: there is a loop over them."""
    LANES: int
    AT_ONCE: int
    """Chunks that are combined at once."""
    VECTOR: bool
    """Whether a program has one head, and no dot products."""


@triton.jit
def load_norm_weights(weight, columns, partners, inside):
    """Of a norm: the weights of some components and of their partners; anything where there is no norm."""
    if weight is None:
        return 0.0, 0.0
    else:
        own = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        return own, tl.load(weight + partners, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def apply_rope(
    own, partner, norm_weight, partner_norm_weight, eps, cosine, sine, columns, K: tl.constexpr, NORM: tl.constexpr
):
    """Heads [..., PADDED], normalised with NORM, and rotated by cosine and sine: in the type of the heads, 0 beyond K.
    `partner` holds for each component the one that it is rotated with. Operands broadcast."""
    DTYPE: tl.constexpr = own.dtype
    own, partner = own.to(tl.float32), partner.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(own * own, -1, keep_dims=True) / K + eps)
        # Rounded twice, as by `RMSNorm`: the product of two numbers of the model's type is exact in float32.
        own = ((own * scale).to(DTYPE).to(tl.float32) * norm_weight).to(DTYPE).to(tl.float32)
        partner = ((partner * scale).to(DTYPE).to(tl.float32) * partner_norm_weight).to(DTYPE).to(tl.float32)
    return (own * cosine + tl.where(columns < K // 2, -partner, partner) * sine).to(DTYPE)


class Stream(NamedTuple):
    """What a program reads of the cache of one head: up to `end`, in words of 32 bits, one float32 each or two numbers
    of a shorter type."""

    k: Any
    v: Any
    places: Any
    """[..., 1]: positions of a block, from its start."""
    words: Any
    """[..., PADDED], or half as many: of a row."""
    end: Any


@triton.jit
def stream_of(keys, values, places, end, PADDED: tl.constexpr, VECTOR: tl.constexpr):
    """Blocks wait for their turn as they come: halves of words would be taken apart, and waited for, before."""
    if tl.float32 != keys.dtype.element_ty:
        keys = keys.to(tl.pointer_type(tl.int32), bitcast=True)
        values = values.to(tl.pointer_type(tl.int32), bitcast=True)
        word = tl.arange(0, PADDED // 2)
    else:
        word = tl.arange(0, PADDED)
    return Stream(keys, values, places, word[None, :] if VECTOR else word[None, None, :], end)


@triton.jit
def block_of(cache, start, stream, WORDS: tl.constexpr):
    """Rows from `start` on of a stream's keys or values, of WORDS words each: [..., PADDED], 0 beyond. Past the
    first-level cache, which may still hold what was there some steps ago."""
    at = start + stream.places
    inside = (at < stream.end) & (stream.words < WORDS)
    return tl.load(cache + at * WORDS + stream.words, mask=inside, other=0.0, cache_modifier=".cg")


@triton.jit
def widened(words, DTYPE: tl.constexpr, LANES: tl.constexpr):
    """float32 [X, LANES, PADDED]: a block of rows that lie in words of 32 bits, one float32 each or two of a shorter
    type. Neighbouring rows are in different lanes, as neighbouring threads have loaded them."""
    X: tl.constexpr = words.shape[0] // LANES
    if tl.float32 == DTYPE:
        return tl.reshape(words, [X, LANES, words.shape[1]])
    else:
        if tl.bfloat16 == DTYPE:
            low, high = (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
        else:
            low = words.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
            high = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
        return tl.reshape(tl.join(low, high), [X, LANES, words.shape[1] * 2])


@triton.jit
def unpacked(words, DTYPE: tl.constexpr):
    """The numbers [..., PADDED] that lie in words of 32 bits, one float32 each or two of a shorter type."""
    if tl.float32 == DTYPE:
        return words
    else:
        low = words.to(tl.int16).to(DTYPE, bitcast=True)
        high = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True)
        return tl.reshape(tl.join(low, high), [words.shape[0], words.shape[1], words.shape[2] * 2])


@triton.jit
def write(y, out, offset, S: tl.constexpr):
    """Writes the first SHARING rows and K columns of y, float32 [ROWS, PADDED], one row after the other."""
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
def chunk_of(position, split, WINDOW: tl.constexpr, CUT: tl.constexpr):
    """A program's chunk, of the positions that are visible: its begin and end, and how many there are."""
    first = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else 0
    visible = position + 1 - first
    chunk = tl.maximum(tl.cdiv(tl.cdiv(visible, CUT.SPLITS), CHUNK_STEP) * CHUNK_STEP, CUT.BLOCK)
    begin = first + split * chunk
    # The token's own position is not read from the cache.
    return begin, tl.minimum(begin + chunk, position), tl.cdiv(visible, chunk)


@triton.jit
def attend_one_head(
    q, new_key, new_value, k, v, more_k, more_v, stream, begin, newest, S: tl.constexpr, CUT: tl.constexpr
):
    """A chunk's largest score [1], sum of weights [1] and weighted values [1, PADDED], without dot products. Blocks
    are loaded as rows, and each row meets a copy of the query that the same threads hold.

    The program of the newest chunk starts with the token's own key and value, which no other one reads. Its score is
    where all start to look for the largest: it takes part in the sum, wherever that is made.

    Args:
        q: [1, LANES, PADDED], of the heads' type, as `new_key` and `new_value`.
        k: the first block's, in words, and `more_k` those of further ones, if each has code of its own; v likewise.
    """
    DTYPE: tl.constexpr = new_key.dtype
    WORDS: tl.constexpr = S.K if tl.float32 == DTYPE else S.K // 2
    place_of = tl.arange(0, CUT.BLOCK // CUT.LANES)[:, None] * CUT.LANES + tl.arange(0, CUT.LANES)[None, :]
    takes = newest & (tl.arange(0, CUT.LANES)[None, :] == 0)
    q = q.to(tl.float32) * S.SM_SCALE_LOG2
    m_i = tl.sum(q * new_key.to(tl.float32), 2)
    l_i = tl.where(takes, 1.0, 0.0)
    acc = tl.where(takes[:, :, None], new_value.to(tl.float32), 0.0)
    if CUT.BLOCKS > 0:
        there = begin + place_of < stream.end
        m_i, l_i, weights, alpha = online_softmax_step(q, widened(k, DTYPE, CUT.LANES), there, m_i, l_i)
        acc = accumulate_pv(acc, weights, alpha, widened(v, DTYPE, CUT.LANES))
        BLOCKS: tl.constexpr = CUT.BLOCKS
        for number in tl.static_range(1, BLOCKS):
            start = begin + number * CUT.BLOCK
            if start < stream.end:
                there, k = start + place_of < stream.end, more_k[number - 1]
                m_i, l_i, weights, alpha = online_softmax_step(q, widened(k, DTYPE, CUT.LANES), there, m_i, l_i)
                acc = accumulate_pv(acc, weights, alpha, widened(more_v[number - 1], DTYPE, CUT.LANES))
    else:
        for start in range(begin, stream.end, CUT.BLOCK):
            there, next_start = start + place_of < stream.end, start + CUT.BLOCK
            # The next keys take the registers of these, and come while values are added up.
            m_i, l_i, weights, alpha = online_softmax_step(q, widened(k, DTYPE, CUT.LANES), there, m_i, l_i)
            k = block_of(stream.k, next_start, stream, WORDS)
            acc = accumulate_pv(acc, weights, alpha, widened(v, DTYPE, CUT.LANES))
            v = block_of(stream.v, next_start, stream, WORDS)
    return merge_splits(tl.trans(m_i), tl.trans(l_i), tl.permute(acc, (1, 0, 2)), 0)


@triton.jit
def attend_several_heads(q, new_key, new_value, k, v, stream, begin, newest, S: tl.constexpr, CUT: tl.constexpr):
    """`attend_one_head` with dot products, for ROWS heads that share a key: [ROWS], [ROWS] and [ROWS, PADDED].
    q is [1, ROWS, PADDED]."""
    DTYPE: tl.constexpr = new_key.dtype
    WORDS: tl.constexpr = S.K if tl.float32 == DTYPE else S.K // 2
    LANES: tl.constexpr = CUT.LANES
    ROWS: tl.constexpr = S.ROWS
    DOT_ROWS: tl.constexpr = S.DOT_ROWS
    PADDED: tl.constexpr = S.PADDED
    place_of = tl.arange(0, LANES)[:, None] * (CUT.BLOCK // LANES) + tl.arange(0, CUT.BLOCK // LANES)[None, :]
    takes = newest & (tl.arange(0, LANES)[:, None] == 0)
    m_i = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 2) * S.SM_SCALE_LOG2  # [1, ROWS]
    # The rows that the dot products need more than there are heads repeat these.
    REPEATS: tl.constexpr = DOT_ROWS // ROWS
    PARTS: tl.constexpr = LANES * REPEATS
    q = tl.reshape(tl.broadcast_to(q, [PARTS, ROWS, PADDED]), [LANES, DOT_ROWS, PADDED])
    new_value = tl.broadcast_to(new_value, [PARTS, ROWS, PADDED])
    new_value = tl.reshape(new_value, [LANES, DOT_ROWS, PADDED]).to(tl.float32)
    m_i = tl.reshape(tl.broadcast_to(m_i, [PARTS, ROWS]), [LANES, DOT_ROWS])
    l_i = tl.where(takes, 1.0, 0.0) + tl.zeros([LANES, DOT_ROWS], tl.float32)
    acc = tl.where(takes[:, :, None], new_value, 0.0)
    for start in range(begin, stream.end, CUT.BLOCK):
        there, next_start = start + place_of < stream.end, start + CUT.BLOCK
        m_i, l_i, weights, alpha = online_softmax_step_dot(q, unpacked(k, DTYPE), there, m_i, l_i, S.SM_SCALE_LOG2)
        k = block_of(stream.k, next_start, stream, WORDS)
        acc = accumulate_pv_dot(acc, weights, alpha, unpacked(v, DTYPE))
        v = block_of(stream.v, next_start, stream, WORDS)
    # Repeated rows count as often in the sum of weights as in the weighted values.
    m_i, l_i = tl.reshape(m_i, [PARTS, ROWS]), tl.reshape(l_i, [PARTS, ROWS])
    return merge_splits(m_i, l_i, tl.reshape(acc, [PARTS, ROWS, PADDED]), 0)


@triton.jit
def merge_partials(
    m_i,
    l_i,
    acc,
    parts,
    out,
    group,
    split,
    filled,
    offset,
    S: tl.constexpr,
    CUT: tl.constexpr,
):
    """Leaves what a chunk came to, one of `filled`; and whichever program is last combines all of them."""
    ROWS: tl.constexpr = S.ROWS
    PADDED: tl.constexpr = S.PADDED
    heads_of, columns_of_row = tl.arange(0, ROWS), tl.arange(0, PADDED)[None, :]
    here = (group * CUT.SPLITS + split) * ROWS + heads_of
    tl.store(parts.m_partials + here, m_i)
    tl.store(parts.l_partials + here, l_i)
    tl.store(parts.acc_partials + here[:, None] * PADDED + columns_of_row, acc)
    tl.debug_barrier()  # all threads' stores come before the one thread's release
    done = tl.atomic_add(parts.counters + group, 1, sem="acq_rel")
    if done == filled - 1:
        # Always in the same order, whoever ended last: the same bits each time.
        m_all = tl.full([ROWS], float("-inf"), tl.float32)
        l_all = tl.zeros([ROWS], tl.float32)
        acc_all = tl.zeros([ROWS, PADDED], tl.float32)
        for start in range(0, filled, CUT.AT_ONCE):
            chunks = start + tl.arange(0, CUT.AT_ONCE)
            valid = (chunks < filled)[:, None]
            at = (group * CUT.SPLITS + chunks)[:, None] * ROWS + heads_of[None, :]
            # Past the first-level cache, which does not see what other processors write.
            p = tl.load(parts.m_partials + at, mask=valid, other=float("-inf"), cache_modifier=".cg")
            t = tl.load(parts.l_partials + at, mask=valid, other=0.0, cache_modifier=".cg")
            y = tl.load(
                parts.acc_partials + at[:, :, None] * PADDED + columns_of_row[None, :, :],
                mask=valid[:, :, None],
                other=0.0,
                cache_modifier=".cg",
            )
            m_new = tl.maximum(m_all, tl.max(p, 0))
            part = tl.exp2(p - m_new[None, :])
            rest = tl.exp2(m_all - m_new)
            l_all = l_all * rest + tl.sum(part * t, 0)
            acc_all = acc_all * rest[:, None] + tl.sum(part[:, :, None] * y, 0)
            m_all = m_new
        write(acc_all / l_all[:, None], out, offset, S)
        tl.store(parts.counters + group, 0)


@triton.jit
def attend_kernel(
    qkv,
    norms,
    rotation,
    position_of,
    cache,
    parts,
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
    position = tl.load(position_of + batch, cache_modifier=".cg").to(tl.int32)
    begin, end, filled = chunk_of(position, split, S.WINDOW, CUT)
    if split >= filled:
        return
    newest = split == filled - 1

    # Before it waits: rotation, norms, and of keys and values the first block, or all that have code of their own.
    base = (batch * G + kv_head).to(tl.int64) * cache.length * K  # 64 bits: offsets pass 2^31
    keys, values = cache.k + base, cache.v + base
    components = tl.arange(0, PADDED)[None, None, :]
    if CUT.VECTOR:
        places = tl.arange(0, CUT.BLOCK)[:, None]
        rows = tl.arange(0, CUT.LANES)[None, :, None]
        columns = tl.broadcast_to(components, [1, CUT.LANES, PADDED])
    else:
        place_of = tl.arange(0, CUT.LANES)[:, None] * (CUT.BLOCK // CUT.LANES)
        places = (place_of + tl.arange(0, CUT.BLOCK // CUT.LANES)[None, :])[:, :, None]
        rows = tl.arange(0, S.ROWS)[None, :, None]
        columns = tl.broadcast_to(components, [1, S.ROWS, PADDED])
    inside = columns < K
    partners = tl.where(columns < K // 2, columns + K // 2, columns - K // 2)
    cosine = tl.load(rotation.cos + position * K + columns, mask=inside, other=0.0)
    sine = tl.load(rotation.sin + position * K + columns, mask=inside, other=0.0)
    q_norm_weight, q_partner_norm_weight = load_norm_weights(norms.q, columns, partners, inside)
    k_norm_weight, k_partner_norm_weight = load_norm_weights(norms.k, columns, partners, inside)
    stream = stream_of(keys, values, places, end, PADDED, CUT.VECTOR)
    k = block_of(stream.k, begin, stream, WORDS)
    v = block_of(stream.v, begin, stream, WORDS)
    more_k, more_v = (), ()
    AHEAD: tl.constexpr = CUT.BLOCKS if CUT.VECTOR else 1
    for number in tl.static_range(1, AHEAD):  # nothing is read past the end
        more_k = more_k + (block_of(stream.k, begin + number * CUT.BLOCK, stream, WORDS),)
        more_v = more_v + (block_of(stream.v, begin + number * CUT.BLOCK, stream, WORDS),)
    pdl_wait_and_trigger(PDL)

    # The token's own queries, key and value.
    heads = qkv + batch * ((H + 2 * G) * K)
    own_q = heads + head * K
    own_k = heads + (H + kv_head) * K
    if CUT.VECTOR:
        q = tl.load(own_q + columns, mask=inside, other=0.0, cache_modifier=".cg")
        q_partner = tl.load(own_q + partners, mask=inside, other=0.0, cache_modifier=".cg")
    else:
        asked = inside & (rows < S.SHARING)
        q = tl.load(own_q + rows * K + columns, mask=asked, other=0.0, cache_modifier=".cg")
        q_partner = tl.load(own_q + rows * K + partners, mask=asked, other=0.0, cache_modifier=".cg")
    new_key = tl.load(own_k + columns, mask=inside, other=0.0, cache_modifier=".cg")
    new_key_partner = tl.load(own_k + partners, mask=inside, other=0.0, cache_modifier=".cg")
    new_value = tl.load(own_k + G * K + columns, mask=inside, other=0.0, cache_modifier=".cg")
    NORM: tl.constexpr = norms.k is not None
    new_key = apply_rope(
        new_key, new_key_partner, k_norm_weight, k_partner_norm_weight, norms.eps, cosine, sine, columns, K, NORM
    )
    # It is written by one of the programs that share it.
    writes = inside & newest & (rows == 0) & (head % (H // G) == 0)
    tl.store(keys + position * K + columns, new_key, mask=writes)
    tl.store(values + position * K + columns, new_value, mask=writes)
    q = apply_rope(q, q_partner, q_norm_weight, q_partner_norm_weight, norms.eps, cosine, sine, columns, K, NORM)

    if CUT.VECTOR:
        m_i, l_i, acc = attend_one_head(q, new_key, new_value, k, v, more_k, more_v, stream, begin, newest, S, CUT)
    else:
        m_i, l_i, acc = attend_several_heads(q, new_key, new_value, k, v, stream, begin, newest, S, CUT)
    offset = batch * (H * K) + head * K
    if (CUT.SPLITS == 1) or (filled == 1):
        write(acc / l_i[:, None], out, offset, S)
    else:
        merge_partials(m_i, l_i, acc, parts, out, group, split, filled, offset, S, CUT)


@dataclass(frozen=True, eq=False)
class Attend(Op):
    """Rotates queries and key, appends key and value to the cache, and attends to what is cached so far."""

    qkv: Tensor
    """[B, (H + 2G)·K], of the model's type: queries, keys and values, bias included."""
    q_norm: Tensor | None
    """[K], weight of the RMSNorm of each query head; None: not normalised."""
    k_norm: Tensor | None
    """[K], of each key head; None where q_norm is."""
    eps: float
    """Of both norms."""
    cos: Tensor
    """float32 [S, K], by position; the second half repeats the first."""
    sin: Tensor
    """As cos."""
    position: Tensor
    """int64 [B, 1], of each row's token, below S."""
    k_cache: Tensor
    """[B, G, S, K], contiguous; what is at each row's position is written, what is before it read, and what comes after
    it is not."""
    v_cache: Tensor
    """As k_cache."""
    window: int
    """Positions that the token attends to at most, itself included; 0: all."""
    scratch: Scratch
    """Made for these shapes."""
    out: Activation
    """[B, H·K]."""

    name = "attend_kernel"
    part = "attention"

    def launch(self, pdl: bool = False) -> None:
        batch, kv_heads, length, width = self.k_cache.shape
        assert self.position.numel() == batch  # the kernel reads one for each row
        heads = self.qkv.shape[1] // width - 2 * kv_heads
        scratch, plan = self.scratch, self.scratch.plan
        sharing = plan.sharing(heads, kv_heads)
        blocks = triton.cdiv(min(length, self.window or length), plan.splits * plan.block)
        _, _, rows, padded = scratch.acc_partials.shape
        shape = Shape(
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
        cut = Cut(
            SPLITS=plan.splits,
            BLOCK=plan.block,
            BLOCKS=blocks if blocks <= MAX_SINGLE_CTA_BLOCKS else 0,
            LANES=plan.vector_lanes(sharing, padded, self.qkv.element_size()),
            AT_ONCE=min(combined_at_once(sharing, width), triton.next_power_of_2(plan.splits)),
            VECTOR=sharing == 1,
        )
        launch(
            attend_kernel,
            (scratch.counters.numel(), plan.splits),
            self.qkv,
            Norms(self.q_norm, self.k_norm, self.eps),
            Rotation(self.cos, self.sin),
            self.position,
            Cache(self.k_cache, self.v_cache, length),
            Parts(scratch.acc_partials, scratch.m_partials, scratch.l_partials, scratch.counters),
            self.out.buffers,
            S=shape,
            CUT=cut,
            PDL=pdl,
            num_warps=plan.warps,
            num_stages=1,  # blocks are loaded ahead into registers: a pipeline in shared memory would keep others off
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        """In float32 between the cache and the output."""
        batch, kv_heads, length, width = self.k_cache.shape
        heads = self.qkv.shape[1] // width - 2 * kv_heads
        at, rows = self.position, torch.arange(batch, device=self.position.device).unsqueeze(1)
        cos, sin = self.cos[at], self.sin[at]
        q, k, v = self.qkv.view(batch, -1, width).split([heads, kv_heads, kv_heads], dim=1)
        self.k_cache[rows, :, at] = apply_rope_reference(k, self.k_norm, self.eps, cos, sin).unsqueeze(1)
        self.v_cache[rows, :, at] = v.unsqueeze(1)
        positions = torch.arange(length, device=at.device)
        there = ((positions <= at) & (positions > at - (self.window or length)))[:, None, None]  # [B, 1, 1, S]
        grouped = apply_rope_reference(q, self.q_norm, self.eps, cos, sin).float().view(batch, kv_heads, -1, width)
        scores = (grouped @ self.k_cache.float().mT * width**-0.5).masked_fill(~there, -torch.inf)
        values = self.v_cache.float().masked_fill(~there.mT, 0.0)
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

    def bytes_beside(self) -> int:
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
        """What comes after the position is NaN."""
        super().fill(generator, position)
        self.position.fill_(position)
        for cache in (self.k_cache, self.v_cache):
            cache[:, :, position:] = torch.nan


def apply_rope_reference(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rope` in plain PyTorch: x [B, heads, K], cos and sin [B, 1, K]."""
    x32 = x.float()
    if weight is not None:
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        x32 = (x32.to(x.dtype) * weight).float()
    left, right = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
