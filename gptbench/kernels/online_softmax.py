"""Online softmax: attention over one block of keys and values after the other, and the merge of partial results.

Milakov and Gimelshein, 2018, arXiv:1805.02867. Scores are in units of log 2.
"""

import triton
import triton.language as tl

from gptbench.kernels.launch import INTERPRETED

DOT_IN_FLOAT32 = tl.constexpr(INTERPRETED)


@triton.jit
def online_softmax_step_dot(q, k, mask, m_i, l_i, SM_SCALE_LOG2: tl.constexpr):
    """Update the online softmax of each lane with a block of keys, using `tl.dot`.

    Args:
        q: queries, [LANES, DOT_ROWS, PADDED].
        k: keys, [LANES, X, PADDED].
        mask: which keys are valid, [LANES, X].
        m_i, l_i: running maximum and sum, [LANES, DOT_ROWS].

    Returns:
        m_i and l_i, the weights of the values [LANES, DOT_ROWS, X], and alpha [LANES, DOT_ROWS], which rescales the
            accumulator.
    """
    scores = multiply(q, tl.permute(k, (0, 2, 1)), None) * SM_SCALE_LOG2
    scores = tl.where(mask[:, None, :], scores, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(scores, 2))
    weights, alpha = tl.exp2(scores - m_new[:, :, None]), tl.exp2(m_i - m_new)
    return m_new, l_i * alpha + tl.sum(weights, 2), weights, alpha


@triton.jit
def accumulate_pv_dot(acc, weights, alpha, v):
    """Rescale acc [LANES, DOT_ROWS, PADDED] and accumulate weights times v [LANES, X, PADDED]."""
    return multiply(weights.to(v.dtype), v, acc * alpha[:, :, None])


@triton.jit
def online_softmax_step(q, k, mask, m_i, l_i):
    """`online_softmax_step_dot` for one head, without `tl.dot`: float32 q [1, LANES, PADDED], k [X, LANES, PADDED],
    mask [X, LANES], m_i and l_i [1, LANES]. Return m_i, l_i, weights [X, LANES] and alpha [1, LANES]."""
    scores = tl.where(mask, tl.sum(q * k, 2), float("-inf"))
    m_new = tl.maximum(m_i, tl.max(scores, 0, keep_dims=True))
    weights, alpha = tl.exp2(scores - m_new), tl.exp2(m_i - m_new)
    return m_new, l_i * alpha + tl.sum(weights, 0, keep_dims=True), weights, alpha


@triton.jit
def accumulate_pv(acc, weights, alpha, v):
    """`accumulate_pv_dot` without `tl.dot`: acc [1, LANES, PADDED], v [X, LANES, PADDED]."""
    return acc * alpha[:, :, None] + tl.sum(weights[:, :, None] * v, 0, keep_dims=True)


@triton.jit
def combine(m_i, l_i, other_m, other_l):
    """Combine the m and l of two parts."""
    m_new = tl.maximum(m_i, other_m)
    return m_new, l_i * tl.exp2(m_i - m_new) + other_l * tl.exp2(other_m - m_new)


@triton.jit
def merge_splits(m_i, l_i, acc, AXIS: tl.constexpr):
    """Merge the m_i, l_i and acc of the parts along an axis."""
    m_max, l_i = tl.reduce((m_i, l_i), AXIS, combine)
    weights = tl.exp2(m_i - tl.expand_dims(m_max, AXIS))
    return m_max, l_i, tl.sum(weights[:, :, None] * acc, AXIS)


@triton.jit
def multiply(a, b, c):
    """Return a · b + c, accumulated in float32."""
    if DOT_IN_FLOAT32:  # the interpreter treats bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")
