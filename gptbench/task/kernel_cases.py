"""The kernels that `task=kernels` measures, with their shapes, bytes and references.

`model_cases` are the kernels of a model's decode step, `micro_cases` the four micro-benchmarks of PyTorch's gpt_fast
benchmark. Letters of shapes: B batch, D model width, F inner width, E experts, A active experts, R rows, N and K rows
and columns of a weight, V vocabulary, H heads, G key-value heads, W width of a head, S positions attended to.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gptbench.config import ENGINES, INT8, Config, KernelsConfig, QuantConfig
from gptbench.config.targets import target
from gptbench.device import Device
from gptbench.quant import Int8, Unquantised, WeightFormat

if TYPE_CHECKING:  # these need Triton, which may not be installed
    from gptbench.engine.fused import Fused
    from gptbench.kernels.op import Op

INNER = 14336
"""F of `mlp_layer_norm_gelu`."""
EXPERTS, ACTIVE = 8, 2
"""E and A of `gather_gemv`."""
ROWS = 4096
"""R of `layer_norm`."""
EPS = 1e-5
"""Epsilon of the norms."""
ROUNDED_TWICE = 2e-2
"""Tolerance where another implementation rounds to bfloat16 between two steps that gptbench's kernel fuses."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    arguments: tuple[Any, ...]
    """Arguments of kernel and reference, including those that they write to."""
    outputs: tuple[Tensor, ...]
    """Arguments that are completely overwritten; they are poisoned before a check."""
    updated: tuple[Tensor, ...] = ()
    """Arguments that are both read and written."""
    read: Callable[[], tuple[Tensor, ...]] | None = None
    """Function that returns the results to compare, if these are not just `outputs` and `updated`."""

    def results(self) -> tuple[Tensor, ...]:
        """Return the results to compare."""
        return self.read() if self.read is not None else self.outputs + self.updated


@dataclass(frozen=True)
class Case:
    """A kernel at a shape."""

    name: str
    """Name of the kernel."""
    shape: dict[str, int]
    """Sizes by letter, such as D."""
    dtype: str
    """Type of the tensor that accounts for most of the bytes read."""
    moved_bytes: int
    """Bytes read and written by one call."""
    flops: int
    """Floating-point operations of one call, a multiply-add counting as two."""
    call: Callable[[Generator], Call]
    """Function that makes random arguments on the generator's device."""
    reference: Callable[..., None]
    """Plain PyTorch implementation, with which the others are compared, and which Inductor compiles."""
    kernel: Callable[..., Callable[[], None]] | None = None
    """Function from the arguments to a launch of gptbench's kernel, so that its setup is not timed; None if there is no
    kernel."""
    library: Callable[..., Tensor] | None = None
    """The vendor's implementation, which returns the first of the results; None if there is none."""
    tolerance: float = 1e-2
    """Largest allowed difference from the reference, relative to the reference's largest magnitude; 0 means equal."""
    workspace_bytes: int = 0
    """Bytes that the reference needs besides the arguments."""
    unread_bytes: int = 0
    """Bytes of arguments that exist and are not read."""

    @property
    def label(self) -> str:
        """Label such as `gemv/D4096/int8`."""
        return "/".join((self.name, *(f"{letter}{size}" for letter, size in self.shape.items()), self.dtype))

    @property
    def set_bytes(self) -> int:
        """Bytes of the arguments of one call."""
        return self.moved_bytes + self.unread_bytes


def fill_weight(weight: Tensor, generator: Generator) -> Tensor:
    """Fill a weight with int8 values other than -128, or with normal numbers that preserve the scale of activations."""
    if weight.dtype == torch.int8:
        return weight.random_(-127, 128, generator=generator)
    return weight.normal_(generator=generator).div_(math.sqrt(weight.shape[-1]))


def random_weight(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    """Return a new weight, filled as `fill_weight` does."""
    return fill_weight(torch.empty(shape, dtype=dtype, device=generator.device), generator)


def normal(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    """Return a new tensor of standard normal numbers."""
    return torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)


def kernels_run(device: Device) -> bool:
    """Whether gptbench's kernels run on the device: on an NVIDIA GPU, or in Triton's interpreter."""
    try:
        from gptbench.kernels.launch import INTERPRETED
    except ImportError:  # Triton is not installed
        return False
    return (device.is_cuda and not device.is_amd) or INTERPRETED


def kernels_section(config: Config) -> Any:
    """Return the section of the engine with gptbench's kernels: the run's, or else the first such engine's defaults."""
    if config.engine.OWN_KERNELS:
        return config.engine
    name, section = next((name, section) for name, section in ENGINES.items() if section.OWN_KERNELS)
    return section.named(name, tile_cache=str(Path(config.outputs) / "tiles"))


def planned(config: Config, device: Device) -> "Fused":
    """Return the engine with gptbench's kernels, over a model on `meta`."""
    section = kernels_section(config)
    engine: type[Fused] = target(section)
    return engine.planned(section, config, device)


def model_cases(config: Config, device: Device) -> Iterator[Case]:
    """Iterate over the kernel that measures the read roof and every kernel of the fused engine's decode step, at the
    model's shapes and with the engine's tiles.

    There is none if gptbench's kernels do not run on the device, and only the first if the engine does not support the
    run. The engine itself, made over a model on `meta`, lists its launches, so exactly what it runs is measured.
    """
    if not kernels_run(device):
        return
    yield read_reduce_case(device, rounds=64 if device.is_cuda else 1)
    if no_model_cases(config, device) is not None:
        return
    engine = planned(config, device)
    position = len(config.workload.prompt) + config.workload.new_tokens // 2
    assert isinstance(config.task, KernelsConfig)
    launches = 2 * (config.task.replays + 10)  # two implementations, and a few untimed launches
    # Keeps the last of several kernels that do the same at the same shape.
    for op in {(op.role, op.name, str(op.shape()), op.bytes_read()): op for op in engine.ops}.values():
        yield op_case(op, engine, position, launches)


def no_model_cases(config: Config, device: Device) -> str | None:
    """Return the reason that `model_cases` has no kernels of the model, or None if it has them."""
    if not kernels_run(device):
        return "they need an NVIDIA GPU and Triton"
    needed = kernels_section(config).unsupported_by_kernels(config) or config.quant.unsupported_reason(
        config.model, config.device.dtype
    )
    return None if needed is None else f"they need {needed}"


OP_NAMES = {"attention": "attention/attend", "maxima": "maxima/chunk_maxima"}
"""Names in records of kernels without a tile, by role, where the name differs from the role."""


def op_case(op: "Op", engine: "Fused", position: int, launches: int) -> Case:
    """Return the case of a kernel of the decode step, on copies of its operands for up to `launches` launches."""
    from gptbench.kernels.op import clone_operands, nbytes, tensors

    example = op.example(position, launches)
    known = op.bytes_read()
    read = min(position + 1, known.window or position + 1) if known.position else 0
    moved = known.total([read] * engine.batch) + op.other_bytes()

    def call(generator: Generator) -> Call:
        copy = clone_operands(example, generator.device)
        copy.fill(generator, position)
        read_ids = {id(tensor) for tensor in tensors(copy.reads())}
        written = tuple(tensors(copy.writes()))
        return Call(
            (copy,),
            outputs=tuple(tensor for tensor in written if id(tensor) not in read_ids),
            updated=tuple(tensor for tensor in written if id(tensor) in read_ids),
            read=copy.results,
        )

    return Case(
        name=f"{op.role}/{op.tile_key.kernel}" if op.tile_key is not None else OP_NAMES.get(op.role, op.role),
        shape=op.shape() | ({"S": read} if read else {}),
        dtype=op.dtype,
        moved_bytes=moved,
        flops=op.flops(read),
        call=call,
        reference=lambda copy: copy.reference(),
        kernel=lambda copy: partial(copy.launch, engine.pdl),
        tolerance=ROUNDED_TWICE,
        workspace_bytes=8 * nbytes(*example.reads()),
        unread_bytes=max(nbytes(*example.operands()) - moved, 0),
    )


def micro_cases(
    sizes: list[int], batch: int, kernel: Callable[..., Callable[[], None]] | None = None
) -> Iterator[Case]:
    """Iterate over the micro-benchmarks at each size.

    Args:
        sizes: values of D.
        batch: B of `mlp_layer_norm_gelu`; the others have a single vector.
        kernel: gptbench's kernel for `gemv`, if it runs on the device: see `gemv_kernel`.
    """
    for dtype in (torch.int8, torch.bfloat16):
        for size in sizes:
            yield gemv_case(size, dtype, kernel)
    for dtype in (torch.int8, torch.bfloat16):
        for size in sizes:
            yield gather_gemv_case(size, dtype)
    for size in sizes:
        yield layer_norm_case(size)
    for size in sizes:
        yield mlp_case(size, batch)


def read_reduce_case(device: Device, rounds: int) -> Case:
    """Return the case of the read kernel, x int32 [n] to out int32 [P], with `rounds` times 32 KB per program."""
    from gptbench.kernels.read_reduce import BLOCK, UNROLL, read_reduce

    processors = torch.cuda.get_device_properties(device.torch).multi_processor_count if device.is_cuda else 1
    programs, tile = 4 * processors, BLOCK * UNROLL
    n = rounds * programs * tile

    def reference(x: Tensor, out: Tensor) -> None:
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
        reference=reference,
        kernel=lambda *arguments: partial(read_reduce, *arguments),
        tolerance=0,
        workspace_bytes=8 * n,
    )


def gemv(weight: Tensor, x: Tensor, out: Tensor) -> None:
    """Multiply weight [D, D] by x [D], to out [D]; int8 weights have no scale."""
    out.copy_((weight.float() * x.float()).sum(-1))


def tiles_used(config: Config, device: Device) -> dict[str, dict[str, int]]:
    """Return the tile of each kernel among the cases that has one, by its key; empty if gptbench's kernels do not run
    on the device."""
    if not kernels_run(device) or not isinstance(config.task, KernelsConfig):
        return {}
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileKey

    tiles = TileCache.of(Path(kernels_section(config).tile_cache), device)
    of_sizes = itertools.product(config.task.sizes, (Unquantised(), Int8()))
    tile_keys = [TileKey("linear", size, size, weight_format, torch.bfloat16, 1) for size, weight_format in of_sizes]
    of_model = {} if no_model_cases(config, device) is not None else planned(config, device).tiles_used
    return {str(tile_key): asdict(tiles[tile_key]) for tile_key in tile_keys} | of_model


def gemv_kernel(config: Config, device: Device) -> Callable[..., Callable[[], None]] | None:
    """Return a function from the arguments of `gemv` to a launch of the `linear` kernel, with scales of 1 and a norm
    that divides by 1; None if gptbench's kernels do not run on the device."""
    if not kernels_run(device):
        return None
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.activation import Activation
    from gptbench.kernels.launch import supports_pdl
    from gptbench.kernels.linear import Linear
    from gptbench.kernels.matrix import Matrix
    from gptbench.kernels.norm import Norm

    section = kernels_section(config)
    tiles, pdl = TileCache.of(Path(section.tile_cache), device), section.pdl and supports_pdl(device.torch)

    def kernel(weight: Tensor, x: Tensor, out: Tensor) -> Callable[[], None]:
        weight_format: WeightFormat = Int8() if weight.dtype == torch.int8 else Unquantised()
        tensors = (weight, torch.ones_like(out)) if weight.dtype == torch.int8 else (weight,)
        matrix = Matrix(weight_format, tensors, tuple(weight.shape), x.dtype)
        row = Activation.empty(1, matrix.columns, x.dtype, x.device, weight_format.encoding)
        row.write(x.unsqueeze(0))
        norm = Norm(torch.full((1, 1), float(matrix.columns), device=x.device), matrix.columns, eps=0.0)
        tile = tiles[Linear.tile_key_of(matrix, 1)]
        return partial(Linear(row, norm, matrix, None, out.unsqueeze(0), tile).launch, pdl)

    return kernel


def gemv_case(size: int, dtype: torch.dtype, kernel: Callable[..., Callable[[], None]] | None = None) -> Case:
    """Return the case of `gemv`."""

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
        reference=gemv,
        kernel=kernel if dtype != torch.int8 or size % QuantConfig.LIMITS[INT8].multiple == 0 else None,
        library=(lambda weight, x, _: torch.mv(weight, x)) if dtype == torch.bfloat16 else None,
        workspace_bytes=2 * 4 * size * size,
    )


def gather_gemv(weight: Tensor, expert: Tensor, x: Tensor, out: Tensor) -> None:
    """Multiply the matrices of expert int64 [A] in weight [E, D, D] by x [D], to out [A, D], without scales.

    gptbench has no kernel for it: `swiglu` applies SiLU between two halves, and `add_linear` sums over the experts.
    """
    out.copy_((weight[expert].float() * x.float()).sum(-1))


def gather_gemv_case(size: int, dtype: torch.dtype) -> Case:
    """Return the case of `gather_gemv`."""

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
        reference=gather_gemv,
        unread_bytes=(EXPERTS - ACTIVE) * size * size * dtype.itemsize,
        workspace_bytes=ACTIVE * (4 + 4 + dtype.itemsize) * size * size,
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Normalise each row of x [R, D], multiply by weight [D] and add bias [D], to out [R, D]."""
    rows = x.float()
    centred = rows - rows.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    out.copy_(scaled * weight.float() + bias.float())


def layer_norm_case(size: int) -> Case:
    """Return the case of `layer_norm`."""

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
        reference=layer_norm,
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
    """Apply Linear, LayerNorm, GELU, Linear and LayerNorm to x [B, D] with w1 [F, D] and w2 [D, F]: [B, D]. (gpt_fast's
    benchmark of this name has no GELU.)"""
    hidden = F.gelu(F.layer_norm(F.linear(x, w1, b1), norm1.shape, norm1, shift1, EPS))
    return F.layer_norm(F.linear(hidden, w2, b2), norm2.shape, norm2, shift2, EPS)


def mlp_layer_norm_gelu(*tensors: Tensor) -> None:
    """`mlp` with its output as the last argument."""
    *inputs, out = tensors
    out.copy_(mlp(*inputs))


def mlp_case(size: int, batch: int) -> Case:
    """Return the case of `mlp_layer_norm_gelu`."""
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
        reference=mlp_layer_norm_gelu,
        library=lambda *tensors: mlp(*tensors[:-1]),
        tolerance=4e-2,  # values between the two norms are rounded, and compiled code rounds elsewhere
        workspace_bytes=8 * batch * (size + INNER),
    )
