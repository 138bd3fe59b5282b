"""What `task=kernels` measures: kernels with their shapes, bytes and twins.

`model_cases` are the kernels of a model's decode step, `micro_cases` the four micro-benchmarks of PyTorch's gpt_fast
benchmark. Letters of shapes: B batch, D model width, F inner width, E experts, A active experts, R rows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gptbench.config import Config
from gptbench.device import Device

INNER = 14336
"""F of `mlp_layer_norm_gelu`."""
EXPERTS, ACTIVE = 8, 2
"""E and A of `gather_gemv`."""
ROWS = 4096
"""R of `layer_norm`."""
EPS = 1e-5


@dataclass(frozen=True)
class Call:
    """What one call works on."""

    arguments: tuple[Any, ...]
    """As kernel and twin take them, what they write among them."""
    outputs: tuple[Tensor, ...]
    """Of the arguments, the tensors that are written as a whole: poisoned before a check."""
    updated: tuple[Tensor, ...] = ()
    """Those that are read and written."""
    read: Callable[[], tuple[Tensor, ...]] | None = None
    """What is to be compared, where that is not outputs and updated as they are."""

    def results(self) -> tuple[Tensor, ...]:
        return self.read() if self.read is not None else self.outputs + self.updated


@dataclass(frozen=True)
class Case:
    """A kernel at a shape."""

    name: str
    shape: dict[str, int]
    dtype: str
    """Of what it reads most of."""
    moved_bytes: int
    """Read and written by one call."""
    flops: int
    """Of one call, a multiply-add counting as two."""
    call: Callable[[Generator], Call]
    """Makes random arguments, on the generator's device."""
    twin: Callable[..., None]
    """Plain PyTorch. As it is, it is the reference; compiled by Inductor, an implementation."""
    kernel: Callable[..., Callable[[], None]] | None = None
    """Ours: given the arguments, returns what launches it on them. What is done once is not timed."""
    library: Callable[..., Tensor] | None = None
    """The vendor's: given the arguments, returns what belongs into the one output."""
    tolerance: float = 1e-2
    """Largest difference from the reference over the reference's largest magnitude; 0 where it must be the same."""
    workspace_bytes: int = 0
    """That the reference needs beside the arguments."""
    unread_bytes: int = 0
    """Of arguments that are there and are not read."""

    @property
    def label(self) -> str:
        """`gemv/D4096/int8`."""
        return "/".join((self.name, *(f"{letter}{size}" for letter, size in self.shape.items()), self.dtype))

    @property
    def set_bytes(self) -> int:
        """Of the arguments of one call."""
        return self.moved_bytes + self.unread_bytes


def random_weight(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    """int8 of all values but -128, or normal numbers that keep the scale of what they are multiplied with."""
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device=generator.device, generator=generator)
    return normal(shape, dtype, generator).div_(math.sqrt(shape[-1]))


def normal(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)


def model_cases(config: Config, device: Device) -> Iterator[Case]:  # noqa: ARG001
    """Every kernel of ours at every shape that the model's decode step has; none where our kernels do not run."""
    try:
        from gptbench.kernels.launch import INTERPRETED
    except ImportError:  # no Triton here
        return
    if device.is_cuda or INTERPRETED:
        yield read_reduce_case(device, rounds=64 if device.is_cuda else 1)


def micro_cases(sizes: list[int], batch: int) -> Iterator[Case]:
    """The micro-benchmarks at each size; the batch is that of `mlp_layer_norm_gelu`, the others have one vector."""
    for dtype in (torch.int8, torch.bfloat16):
        for size in sizes:
            yield gemv_case(size, dtype)
    for dtype in (torch.int8, torch.bfloat16):
        for size in sizes:
            yield gather_gemv_case(size, dtype)
    for size in sizes:
        yield layer_norm_case(size)
    for size in sizes:
        yield mlp_case(size, batch)


def read_reduce_case(device: Device, rounds: int) -> Case:
    """x int32 [n] to out int32 [P]. With `rounds` times 32 KB for each of the P programs."""
    from gptbench.kernels.read_reduce import BLOCK, UNROLL, read_reduce

    processors = torch.cuda.get_device_properties(device.torch).multi_processor_count if device.is_cuda else 1
    programs, tile = 4 * processors, BLOCK * UNROLL
    n = rounds * programs * tile

    def twin(x: Tensor, out: Tensor) -> None:
        out.copy_(x.view(rounds, programs, tile).sum(dim=(0, 2), dtype=torch.int32))

    def call(generator: Generator) -> Call:
        on = device.torch
        x = torch.randint(-(2**15), 2**15, (n,), dtype=torch.int32, device=on, generator=generator)
        out = torch.empty(programs, dtype=torch.int32, device=on)
        return Call((x, out), (out,))

    return Case(
        name="read_reduce",
        shape={"n": n},
        dtype="int32",
        moved_bytes=4 * (n + programs),
        flops=n,
        call=call,
        twin=twin,
        kernel=lambda *arguments: partial(read_reduce, *arguments),
        tolerance=0,
        workspace_bytes=8 * n,
    )


def gemv(weight: Tensor, x: Tensor, out: Tensor) -> None:
    """weight [D, D] times x [D] to out [D]; int8 weights have no scale."""
    out.copy_((weight.float() * x.float()).sum(-1))


def gemv_case(size: int, dtype: torch.dtype) -> Case:
    def call(generator: Generator) -> Call:
        weight, x = random_weight((size, size), dtype, generator), normal((size,), torch.bfloat16, generator)
        out = torch.empty_like(x)
        return Call((weight, x, out), (out,))

    return Case(
        name="gemv",
        shape={"D": size},
        dtype=str(dtype).removeprefix("torch."),
        moved_bytes=size * size * dtype.itemsize + 2 * size * 2,
        flops=2 * size * size,
        call=call,
        twin=gemv,
        library=(lambda weight, x, _: torch.mv(weight, x)) if dtype == torch.bfloat16 else None,
        workspace_bytes=2 * 4 * size * size,
    )


def gather_gemv(weight: Tensor, expert: Tensor, x: Tensor, out: Tensor) -> None:
    """Of weight [E, D, D] the matrices of expert int64 [A], each times x [D], to out [A, D]; no scales either."""
    out.copy_((weight[expert].float() * x.float()).sum(-1))


def gather_gemv_case(size: int, dtype: torch.dtype) -> Case:
    def call(generator: Generator) -> Call:
        weight = random_weight((EXPERTS, size, size), dtype, generator)
        expert = torch.randperm(EXPERTS, device=generator.device, generator=generator)[:ACTIVE].clone()
        x = normal((size,), torch.bfloat16, generator)
        out = x.new_empty(ACTIVE, size)
        return Call((weight, expert, x, out), (out,))

    return Case(
        name="gather_gemv",
        shape={"D": size},
        dtype=str(dtype).removeprefix("torch."),
        moved_bytes=ACTIVE * size * size * dtype.itemsize + (1 + ACTIVE) * size * 2,
        flops=2 * ACTIVE * size * size,
        call=call,
        twin=gather_gemv,
        unread_bytes=(EXPERTS - ACTIVE) * size * size * dtype.itemsize,
        workspace_bytes=ACTIVE * (4 + 4 + dtype.itemsize) * size * size,
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Each row of x [R, D] normalised, times weight [D], plus bias [D], to out [R, D]."""
    rows = x.float()
    centred = rows - rows.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    out.copy_(scaled * weight.float() + bias.float())


def layer_norm_case(size: int) -> Case:
    def call(generator: Generator) -> Call:
        x, weight, bias = (normal(shape, torch.bfloat16, generator) for shape in ((ROWS, size), (size,), (size,)))
        out = torch.empty_like(x)
        return Call((x, weight, bias, out), (out,))

    return Case(
        name="layer_norm",
        shape={"R": ROWS, "D": size},
        dtype="bfloat16",
        moved_bytes=2 * (2 * ROWS * size + 2 * size),
        flops=8 * ROWS * size,
        call=call,
        twin=layer_norm,
        library=lambda x, weight, bias, _: F.layer_norm(x, (size,), weight, bias, EPS),
        workspace_bytes=4 * 4 * ROWS * size,
    )


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    norm1: Tensor,
    shift1: Tensor,
    w2: Tensor,
    b2: Tensor,
    norm2: Tensor,
    shift2: Tensor,
) -> Tensor:
    """x [B, D], w1 [F, D], w2 [D, F]: Linear, LayerNorm, GELU, Linear, LayerNorm, to [B, D]. (What the seed measures
    under this name has no GELU.)"""
    hidden = F.gelu(F.layer_norm(F.linear(x, w1, b1), norm1.shape, norm1, shift1, EPS))
    return F.layer_norm(F.linear(hidden, w2, b2), norm2.shape, norm2, shift2, EPS)


def mlp_layer_norm_gelu(*tensors: Tensor) -> None:
    """`mlp` with its output as the last argument."""
    *inputs, out = tensors
    out.copy_(mlp(*inputs))


def mlp_case(size: int, batch: int) -> Case:
    kind = torch.bfloat16

    def call(generator: Generator) -> Call:
        tensors = [normal((batch, size), kind, generator)]
        for rows, columns in ((INNER, size), (size, INNER)):
            tensors.append(random_weight((rows, columns), kind, generator))
            tensors += [normal((rows,), kind, generator) for _ in range(3)]
        out = torch.empty_like(tensors[0])
        return Call((*tensors, out), (out,))

    return Case(
        name="mlp_layer_norm_gelu",
        shape={"B": batch, "D": size, "F": INNER},
        dtype="bfloat16",
        moved_bytes=2 * (2 * size * INNER + 3 * (size + INNER) + 2 * batch * size),
        flops=4 * batch * size * INNER,
        call=call,
        twin=mlp_layer_norm_gelu,
        library=lambda *tensors: mlp(*tensors[:-1]),
        tolerance=4e-2,  # between the two norms all is rounded, and compiled code rounds elsewhere
        workspace_bytes=8 * batch * (size + INNER),
    )
