"""Matrix product of a few tokens with an int8 weight: the prefill of a short prompt.

The weight is read once, in int8, and converted in registers. A library needs a converted copy in memory, which costs
two to three times as much traffic to write and to read back; only with many tokens does that not matter.
"""

import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.launch import INTERPRETED, launch

ROWS, COLUMNS, WARPS = 64, 128, 4
STAGES = 4
"""Pipeline stages for 2-byte activations; wider ones leave shared memory for fewer."""
MIN_DOT = 16

DOT_IN_FLOAT32 = tl.constexpr(INTERPRETED)


@triton.jit
def int8_matmul_kernel(
    x,
    weight,
    scale,
    out,
    T,
    N: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.arange(0, TOKENS)
    acc = tl.zeros([ROWS, TOKENS], tl.float32)
    pointers = weight + rows[:, None].to(tl.int64) * K
    for start in tl.range(0, K, COLUMNS, num_stages=STAGES):
        columns = start + tl.arange(0, COLUMNS)
        w = tl.load(pointers + columns[None, :], mask=(rows < N)[:, None] & (columns < K)[None, :], other=0)
        offsets = tokens[None, :] * K + columns[:, None]
        x_tile = tl.load(x + offsets, mask=(tokens < T)[None, :] & (columns < K)[:, None], other=0.0)
        w = w.to(x_tile.dtype)
        if DOT_IN_FLOAT32:  # the interpreter treats bfloat16 as integers
            w, x_tile = w.to(tl.float32), x_tile.to(tl.float32)
        acc = tl.dot(w, x_tile, acc, input_precision="ieee")
    y = acc * tl.load(scale + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
    tl.store(
        out + tokens[None, :] * N + rows[:, None],
        y.to(out.dtype.element_ty),
        mask=(rows < N)[:, None] & (tokens < T)[None, :],
    )


def int8_matmul(x: Tensor, weight: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write to out the product of x and the weight, times scale.

    Args:
        x: [T, K], contiguous, of a float type. All T tokens are held in registers, so T must be small.
        weight: int8 [N, K], contiguous.
        scale: [N].
        out: [T, N], contiguous. All of it is written.
    """
    (tokens, columns), rows = x.shape, weight.shape[0]
    assert x.is_contiguous() and weight.is_contiguous()
    launch(
        int8_matmul_kernel,
        (triton.cdiv(rows, ROWS),),
        x,
        weight,
        scale,
        out,
        tokens,
        N=rows,
        K=columns,
        TOKENS=max(MIN_DOT, triton.next_power_of_2(tokens)),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        STAGES=STAGES if x.element_size() <= 2 else 2,
        num_warps=WARPS,
    )


def int8_matmul_reference(x: Tensor, weight: Tensor, scale: Tensor, out: Tensor) -> None:
    """Plain PyTorch version of `int8_matmul`."""
    out.copy_(x.float() @ weight.float().T * scale.float())
