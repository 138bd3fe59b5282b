"""Read and reduce a buffer once: a pure stream of loads, to measure the peak rate at which memory can be read.

Each CTA reads tiles that lie a whole grid apart, so that the device reads one contiguous front. 528 CTAs of 8 warps (4
for each of an H200's 132 SMs), with 4 loads of 2048 numbers in flight, were fastest of the configurations tried.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
UNROLL = 4
WARPS = 8


@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)  # 64 bits: offsets exceed 2^31
    stride = tl.num_programs(0).to(tl.int64) * (BLOCK * UNROLL)
    columns = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.int32)
    for start in range(program * (BLOCK * UNROLL), n, stride):
        for i in tl.static_range(UNROLL):
            offsets = start + i * BLOCK + columns
            acc += tl.load(x + offsets, mask=offsets < n, other=0)
    tl.store(out + program, tl.sum(acc, axis=0))


def read_reduce(x: Tensor, out: Tensor) -> None:
    """Write to out[p] the sum of the tiles of x that CTA p reads.

    Args:
        x: int32 [n], contiguous.
        out: int32 [CTAs]; sums wrap around. All of it is written.
    """
    kernel[(out.numel(),)](x, out, x.numel(), BLOCK=BLOCK, UNROLL=UNROLL, num_warps=WARPS)


def read_reduce_reference(x: Tensor, out: Tensor) -> None:
    """Plain PyTorch version of `read_reduce`."""
    tile, programs = BLOCK * UNROLL, out.numel()
    rounds = -(-x.numel() // (tile * programs))
    padded = torch.zeros(rounds * programs * tile, dtype=torch.int64, device=x.device)
    padded[: x.numel()] = x
    out.copy_(padded.view(rounds, programs, tile).sum(dim=(0, 2)))
