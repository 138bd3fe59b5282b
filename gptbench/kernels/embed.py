"""The start of a decode step: each token's row of the embedding becomes the residual stream."""

import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation, store
from gptbench.kernels.launch import follow, launch

WARPS = 8


@triton.jit
def embed_kernel(
    token,
    weight,
    weight_scale,
    residual,
    gain,
    low,
    high,
    scale,
    squares,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    SCALED: tl.constexpr,
    FIXED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    b = tl.program_id(0)
    column = tl.arange(0, D_PADDED)
    there = column < D
    gains = tl.load(gain + column, mask=there, other=0.0).to(tl.float32)
    follow(OVERLAP)
    row = tl.load(token + b)
    x = tl.load(weight + row * D + column, mask=there, other=0)
    if SCALED:
        x = x.to(tl.float32) * tl.load(weight_scale + row).to(tl.float32)
    x = x.to(residual.dtype.element_ty)
    tl.store(residual + b * D + column, x, mask=there)
    numbers = x.to(tl.float32)
    tl.store(squares + b, tl.sum(numbers * numbers, 0))
    store(numbers * gains, low, high, scale, b * D, D, D_PADDED, FIXED)


def embed(
    token: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    residual: Tensor,
    gain: Tensor,
    following: Activation,
    squares: Tensor,
    overlap: bool = False,
) -> None:
    """Looks up one row for each token.

    Args:
        token: int64 [B, 1].
        weight: [V, D]; weight_scale: [V] for int8 weights.
        residual: [B, D]. All of it is written.
        gain: [D], of the first norm.
        following: the residual stream times gain, [B, D]. All of it is written.
        squares: float32 [B, 1]: sum of squares of the residual stream. All of it is written.
        overlap: launched while the kernel before it still runs (see `launch`).
    """
    width = weight.shape[1]
    launch(
        embed_kernel,
        (token.shape[0],),
        token,
        weight,
        weight if weight_scale is None else weight_scale,
        residual,
        gain,
        *following.tensors,
        squares,
        D=width,
        D_PADDED=max(4, triton.next_power_of_2(width)),
        SCALED=weight_scale is not None,
        FIXED=following.fixed,
        OVERLAP=overlap,
        num_warps=WARPS,
        launch_pdl=overlap,
    )


def embed_reference(
    token: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    residual: Tensor,
    gain: Tensor,
    following: Activation,
    squares: Tensor,
    overlap: bool = False,
) -> None:
    """The twin of `embed`."""
    index = token.squeeze(1)
    rows = weight[index].float()
    residual.copy_(rows if weight_scale is None else rows * weight_scale[index].float().unsqueeze(-1))
    following.write(residual.float() * gain.float())
    squares.copy_(residual.float().square().sum(-1, keepdim=True))
