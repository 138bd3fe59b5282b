"""The online softmax: attention over one block of keys and values after the other, and parts of it put together.

Milakov and Gimelshein, 2018, arXiv:1805.02867. Scores are in units of log 2.
"""

import triton
import triton.language as tl

from gptbench.kernels.launch import INTERPRETED

WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def online_softmax_step_dot(q, k, there, m_i, l_i, SM_SCALE_LOG2: tl.constexpr):
    """The first half of a step, of each lane by itself: goes on with keys [LANES, X, PADDED], where `there`.

    there is [LANES, X], q [LANES, DOT_ROWS, PADDED], peak and total are [LANES, DOT_ROWS]. Gives peak, total, weights
    [LANES, DOT_ROWS, X] of the values, and [LANES, DOT_ROWS] of the sum of those before.
    """
    scores = multiply(q, tl.permute(k, (0, 2, 1)), None) * SM_SCALE_LOG2
    scores = tl.where(there[:, None, :], scores, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(scores, 2))
    weights, alpha = tl.exp2(scores - m_new[:, :, None]), tl.exp2(m_i - m_new)
    return m_new, l_i * alpha + tl.sum(weights, 2), weights, alpha


@triton.jit
def accumulate_pv_dot(acc, weights, alpha, v):
    """The second half: value [LANES, DOT_ROWS, PADDED] with v [LANES, X, PADDED]."""
    return multiply(weights.to(v.dtype), v, acc * alpha[:, :, None])


@triton.jit
def online_softmax_step(q, k, there, m_i, l_i):
    """`online_softmax_step_dot` without dot products, of one head, for k [X, LANES, PADDED] and `there` [X, LANES]: q,
    float32, is [1, LANES, PADDED], peak and total are [1, LANES]. Gives peak, total, weights [X, LANES], and [1,
    LANES] of the sum of those before."""
    scores = tl.where(there, tl.sum(q * k, 2), float("-inf"))
    m_new = tl.maximum(m_i, tl.max(scores, 0, keep_dims=True))
    weights, alpha = tl.exp2(scores - m_new), tl.exp2(m_i - m_new)
    return m_new, l_i * alpha + tl.sum(weights, 0, keep_dims=True), weights, alpha


@triton.jit
def accumulate_pv(acc, weights, alpha, v):
    """`accumulate_pv_dot` without them: value [1, LANES, PADDED] with v [X, LANES, PADDED]."""
    return acc * alpha[:, :, None] + tl.sum(weights[:, :, None] * v, 0, keep_dims=True)


@triton.jit
def combine(m_i, l_i, other_m, other_l):
    """Largest score and sum of weights of two parts together."""
    m_new = tl.maximum(m_i, other_m)
    return m_new, l_i * tl.exp2(m_i - m_new) + other_l * tl.exp2(other_m - m_new)


@triton.jit
def merge_splits(m_i, l_i, acc, AXIS: tl.constexpr):
    """What the parts along an axis come to together."""
    m_max, l_i = tl.reduce((m_i, l_i), AXIS, combine)
    weights = tl.exp2(m_i - tl.expand_dims(m_max, AXIS))
    return m_max, l_i, tl.sum(weights[:, :, None] * acc, AXIS)


@triton.jit
def multiply(a, b, c):
    """a times b plus c, added up in float32."""
    if WIDEN:  # the interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")
