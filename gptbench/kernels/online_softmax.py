"""The online softmax: attention over one block of keys and values after the other, and parts of it put together.

Milakov and Gimelshein, 2018, arXiv:1805.02867. Scores are in units of log 2.
"""

import triton
import triton.language as tl

from gptbench.kernels.launch import INTERPRETED

WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def weigh_dots(q, k, there, peak, total, TEMPERATURE: tl.constexpr):
    """The first half of a step, of each lane by itself: goes on with keys [LANES, X, PADDED], where `there`.

    there is [LANES, X], q [LANES, DOT_ROWS, PADDED], peak and total are [LANES, DOT_ROWS]. Gives peak, total, weights
    [LANES, DOT_ROWS, X] of the values, and [LANES, DOT_ROWS] of the sum of those before.
    """
    scores = multiply(q, tl.permute(k, (0, 2, 1)), None) * TEMPERATURE
    scores = tl.where(there[:, None, :], scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 2))
    weights, fading = tl.exp2(scores - higher[:, :, None]), tl.exp2(peak - higher)
    return higher, total * fading + tl.sum(weights, 2), weights, fading


@triton.jit
def gather_dots(value, weights, fading, v):
    """The second half: value [LANES, DOT_ROWS, PADDED] with v [LANES, X, PADDED]."""
    return multiply(weights.to(v.dtype), v, value * fading[:, :, None])


@triton.jit
def weigh(q, k, there, peak, total):
    """`weigh_dots` without dot products, of one head, for k [X, LANES, PADDED] and `there` [X, LANES]: q, float32, is
    [1, LANES, PADDED], peak and total are [1, LANES]. Gives peak, total, weights [X, LANES], and [1, LANES] of the sum
    of those before."""
    scores = tl.where(there, tl.sum(q * k, 2), float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 0, keep_dims=True))
    weights, fading = tl.exp2(scores - higher), tl.exp2(peak - higher)
    return higher, total * fading + tl.sum(weights, 0, keep_dims=True), weights, fading


@triton.jit
def gather(value, weights, fading, v):
    """`gather_dots` without them: value [1, LANES, PADDED] with v [X, LANES, PADDED]."""
    return value * fading[:, :, None] + tl.sum(weights[:, :, None] * v, 0, keep_dims=True)


@triton.jit
def both(peak, total, other_peak, other_total):
    """Largest score and sum of weights of two parts together."""
    higher = tl.maximum(peak, other_peak)
    return higher, total * tl.exp2(peak - higher) + other_total * tl.exp2(other_peak - higher)


@triton.jit
def joined(peak, total, value, AXIS: tl.constexpr):
    """What the parts along an axis come to together."""
    highest, total = tl.reduce((peak, total), AXIS, both)
    weights = tl.exp2(peak - tl.expand_dims(highest, AXIS))
    return highest, total, tl.sum(weights[:, :, None] * value, AXIS)


@triton.jit
def multiply(a, b, c):
    """a times b plus c, added up in float32."""
    if WIDEN:  # the interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")
