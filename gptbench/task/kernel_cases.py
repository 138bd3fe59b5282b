"""What `task=kernels` measures: kernels with their shapes, bytes and twins.

`model_cases` are the kernels of a model's decode step, `micro_cases` the four micro-benchmarks of PyTorch's gpt_fast
benchmark. Letters of shapes: B batch, D model width, F inner width, E experts, A active experts, R rows, N and K rows
and columns of a weight, V vocabulary, H heads, G key-value heads, W width of a head, S positions attended to.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gptbench.config import INT8, Config, FusedConfig, KernelsConfig, QuantConfig
from gptbench.device import Device

if TYPE_CHECKING:  # they need Triton, which is not everywhere
    from gptbench.engine.decode_step import Launch
    from gptbench.engine.fused import Fused
    from gptbench.kernels.activation import Activation
    from gptbench.kernels.linear import Norm
    from gptbench.kernels.op import Op
    from gptbench.kernels.route import Routing

INNER = 14336
"""F of `mlp_layer_norm_gelu`."""
EXPERTS, ACTIVE = 8, 2
"""E and A of `gather_gemv`."""
ROWS = 4096
"""R of `layer_norm`."""
EPS = 1e-5
TABLE_ROWS = 64
"""Of the table that `embed` looks up tokens in."""
ROUNDED_TWICE = 2e-2
"""Tolerance where others round to bfloat16 between two steps of what is one kernel of ours."""
INT8_STD = 73
"""Standard deviation of int8 from -127 to 127, all equally likely."""


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
    plain: tuple[Any, ...] | None = None
    """What `Case.plain` takes, where that is not the arguments."""
    library: tuple[Any, ...] | None = None
    """What `Case.library` takes, where that is not the arguments."""

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
    """Plain PyTorch: the reference, and where there is no `plain` what Inductor compiles."""
    kernel: Callable[..., Callable[[], None]] | None = None
    """Ours: given the arguments, returns what launches it on them. What is done once is not timed."""
    plain: Callable[..., tuple[Tensor, ...] | None] | None = None
    """The same work over tensors alone, as one would write it with torch: for Inductor, where it cannot take the twin.
    It returns what `Call.results` gives, or None where it leaves its results there."""
    library: Callable[..., Tensor] | None = None
    """The vendor's: returns what is first of the results."""
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


def fill_weight(weight: Tensor, generator: Generator) -> Tensor:
    """With int8 of all values but -128, or normal numbers that keep the scale of what they are multiplied with."""
    if weight.dtype == torch.int8:
        return weight.random_(-127, 128, generator=generator)
    return weight.normal_(generator=generator).div_(math.sqrt(weight.shape[-1]))


def random_weight(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    return fill_weight(torch.empty(shape, dtype=dtype, device=generator.device), generator)


def normal(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)


def kernels_run(device: Device) -> bool:
    """Whether our kernels do: on an NVIDIA GPU, or in Triton's interpreter."""
    try:
        from gptbench.kernels.launch import INTERPRETED
    except ImportError:  # no Triton here
        return False
    return (device.is_cuda and not device.is_amd) or INTERPRETED


def fused_section(config: Config) -> FusedConfig:
    """The settings of `engine=fused`: the run's, or its defaults."""
    if isinstance(config.engine, FusedConfig):
        return config.engine
    return FusedConfig.named("fused", tiles=str(Path(config.outputs) / "tiles"))


def model_cases(config: Config, device: Device) -> Iterator[Case]:
    """Every kernel of the fused engine's decode step, at the model's shapes, with the engine's tiles; and what measures
    the read roof. None where our kernels do not run; the latter alone where the engine refuses the run.

    The engine is made over a model without memory, and says what it would launch: so what is measured is what it runs.
    """
    if not kernels_run(device):
        return
    yield read_reduce_case(device, rounds=64 if device.is_cuda else 1)
    if no_model_cases(config, device) is not None:
        return
    from gptbench.engine.decode_step import Launch
    from gptbench.engine.fused import Fused

    engine = Fused.planned(fused_section(config), config, device)
    position = len(config.workload.prompt) + config.workload.new_tokens // 2
    assert isinstance(config.task, KernelsConfig)
    launches = 2 * (config.task.replays + 10)  # by two implementations, and a few beside what is timed
    makers: dict[str, Callable[[Launch], Case]] = {
        "linear": linear_case,
        "add_linear": partial(add_linear_case, config.model.n_active_experts),
        "swiglu": partial(swiglu_case, config.model.n_active_experts),
    }
    for launch in {op.role: op for op in engine.ops}.values():  # of each role the last counts
        if not isinstance(launch, Launch):
            yield op_case(launch, engine, position, launches)
            continue
        kernel = launch.kernel.__name__
        yield replace(
            makers[kernel](launch),
            name=kernel if kernel == launch.role else f"{launch.role}/{kernel}",
            kernel=partial(partial, launch.kernel, overlap=engine.overlap),
        )


def no_model_cases(config: Config, device: Device) -> str | None:
    """Why `model_cases` has none of the model's kernels, or None where it has them."""
    if not kernels_run(device):
        return "they need an NVIDIA GPU and Triton"
    needed = fused_section(config).unsupported_by_kernels(config) or config.quant.refuse(
        config.model, config.device.dtype
    )
    return None if needed is None else f"they need {needed}"


def memory_like(argument: Any, device: torch.device) -> Any:
    """A kernel's argument with memory of its own, zeroed."""
    if isinstance(argument, Tensor):
        return torch.zeros(argument.shape, dtype=argument.dtype, device=device)
    if is_dataclass(argument) and not isinstance(argument, type):
        own = {entry.name: memory_like(getattr(argument, entry.name), device) for entry in fields(argument)}
        return replace(argument, **own)
    return argument


def tensors_of(*arguments: Any) -> Iterator[Tensor]:
    """All that there are in kernels' arguments."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif is_dataclass(argument) and not isinstance(argument, type):
            yield from tensors_of(*(getattr(argument, entry.name) for entry in fields(argument)))


def nbytes(*arguments: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(*arguments))


OP_NAMES = {"attention": "attention/attend", "maxima": "maxima/chunk_maxima"}
"""What the kernels of a role are called in records."""


def op_case(op: "Op", engine: "Fused", position: int, launches: int) -> Case:
    """A kernel of the decode step, on copies of what it works on there, each launched so often at most."""
    from gptbench.kernels.op import nbytes, own_memory, tensors, type_name

    example = op.example(position, launches)
    read = engine.positions_read(position, engine.model.caches[0]) if op.bytes_read().position else 0
    moved = op.bytes_read().total(read) + op.bytes_beside()

    def call(generator: Generator) -> Call:
        own = own_memory(example, generator.device)
        own.fill(generator, position)
        kept = {id(tensor) for tensor in tensors(own.reads())}
        written = tuple(tensors(own.writes()))
        return Call(
            (own,),
            outputs=tuple(tensor for tensor in written if id(tensor) not in kept),
            updated=tuple(tensor for tensor in written if id(tensor) in kept),
            read=own.results,
        )

    return Case(
        name=OP_NAMES.get(op.role, op.role),
        shape=op.shape() | ({"S": read} if read else {}),
        dtype=type_name(op.dtype),
        moved_bytes=moved,
        flops=op.flops(read),
        call=call,
        twin=lambda own: own.reference(),
        kernel=lambda own: partial(own.launch, engine.overlap),
        tolerance=ROUNDED_TWICE,
        workspace_bytes=8 * nbytes(*example.reads()),
        unread_bytes=max(nbytes(*example.operands()) - moved, 0),
    )


class Maker:
    """Memory like that of a launch's arguments, filled with random numbers of the size that they have in a model."""

    def __init__(self, arguments: tuple[Any, ...], generator: Generator) -> None:
        self.generator = generator
        self.arguments = tuple(memory_like(argument, generator.device) for argument in arguments)

    def normal(self, tensor: Tensor | None) -> None:
        if tensor is not None:
            tensor.normal_(generator=self.generator)

    def positive(self, tensor: Tensor, mean: float = 1.0) -> None:
        tensor.uniform_(0.5 * mean, 1.5 * mean, generator=self.generator)

    def weight(self, weight: Tensor, scale: Tensor | None) -> None:
        """So that products with it are of order one."""
        fill_weight(weight, self.generator)
        if scale is not None:
            self.positive(scale, weight.shape[-1] ** -0.5 / INT8_STD)

    def activation(self, x: "Activation", dtype: torch.dtype) -> Tensor:
        """Returns the same numbers in a tensor [B, K]."""
        plain = normal((x.batch, x.width), dtype, self.generator)
        x.write(plain)
        return plain

    def norm(self, norm: "Norm") -> Tensor:
        """Returns its factor."""
        self.positive(norm.squares, norm.width / norm.squares.shape[1])
        return norm.factor()

    def routing(self, routing: "Routing | None", experts: int, active: int) -> tuple[Tensor | None, Tensor | None]:
        """Every slot gets an expert, every token `active` of these. Returns slots, int64, and gates."""
        if routing is None:
            return None, None
        count, batch = routing.gates.shape
        chosen = torch.randperm(experts, device=self.generator.device, generator=self.generator)[:count].sort().values
        routing.slots.copy_(chosen)
        for b in range(batch):
            for place in range(b * active, (b + 1) * active):
                routing.gates[place % count, b] = 1 / active
        return chosen, routing.gates


def product(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """x [..., B, K] times weight [..., N, K], for int8 times scale [..., N]: float32 [..., B, N]. For one row as a
    reduction, from which Inductor makes a loop of its own (see `gptbench.model.linear`); for several by the library."""
    one = x.shape[-2] == 1
    y = (weight.float() * x.float()).sum(-1).unsqueeze(-2) if one else (x @ weight.to(x.dtype).mT).float()
    return y if scale is None else y * scale.float().unsqueeze(-2)


def of_experts(tensor: Tensor | None, slots: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or slots is None else tensor[slots]


def plain_linear(
    x: Tensor, factor: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    y = product(x, weight, scale) * factor
    return ((y if bias is None else y + bias.float()).to(dtype),)


def linear_case(launch: "Launch") -> Case:
    x, norm, weight, scale, bias, out, _ = launch.arguments

    def call(generator: Generator) -> Call:
        made = Maker(launch.arguments, generator)
        x, norm, weight, scale, bias, out, _ = made.arguments
        made.weight(weight, scale)
        made.normal(bias)
        plain, factor = made.activation(x, float_type(weight, scale)), made.norm(norm)
        return Call(
            made.arguments,
            outputs=(out,),
            plain=(plain, factor, weight, scale, bias, out.dtype),
            library=((plain * factor).to(plain.dtype), weight, bias),
        )

    return Case(
        name=launch.role,
        shape=weight_shape(weight, out.shape[0]),
        dtype=name_of(weight),
        moved_bytes=launch.read.total(0) + nbytes(x, norm, bias, out),
        flops=2 * out.shape[0] * weight.numel(),
        call=call,
        twin=launch.twin,
        plain=plain_linear,
        library=F.linear if scale is None else None,
        workspace_bytes=8 * weight.numel(),
    )


def plain_swiglu(
    x: Tensor, factor: Tensor, weight: Tensor, scale: Tensor | None, slots: Tensor | None
) -> tuple[Tensor, ...]:
    matrix = of_experts(weight, slots)
    assert matrix is not None
    gate, value = (product(x, matrix, of_experts(scale, slots)) * factor).chunk(2, dim=-1)
    return ((F.silu(gate) * value).flatten(0, -2).to(x.dtype),)


def library_swiglu(x: Tensor, weight: Tensor) -> Tensor:
    gate, value = F.linear(x, weight).chunk(2, dim=-1)
    return F.silu(gate) * value


def swiglu_case(active: int, launch: "Launch") -> Case:
    """The library has no mixtures; for a dense network it is `F.linear`, and two of torch's kernels after it."""
    x, norm, weight, scale, routing, out, _ = launch.arguments

    def call(generator: Generator) -> Call:
        made = Maker(launch.arguments, generator)
        x, norm, weight, scale, routing, out, _ = made.arguments
        made.weight(weight, scale)
        slots, _ = made.routing(routing, weight.shape[0], active)
        plain, factor = made.activation(x, float_type(weight, scale)), made.norm(norm)
        return Call(
            made.arguments,
            outputs=tuple(tensors_of(out)),
            read=lambda: (out.read(),),
            plain=(plain, factor, weight, scale, slots),
            library=((plain * factor).to(plain.dtype), weight),
        )

    return Case(
        name=launch.role,
        shape=weight_shape(weight, x.batch, active),
        dtype=name_of(weight),
        moved_bytes=launch.read.total(0) + nbytes(x, norm, None if routing is None else routing.slots, out),
        flops=2 * x.batch * max(active, 1) * math.prod(weight.shape[-2:]),
        call=call,
        twin=launch.twin,
        plain=plain_swiglu,
        library=library_swiglu if scale is None and routing is None else None,
        tolerance=ROUNDED_TWICE,
        workspace_bytes=8 * weight.numel(),
        unread_bytes=nbytes(weight, scale) - launch.read.total(0),
    )


def plain_add_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    slots: Tensor | None,
    gates: Tensor | None,
    residual: Tensor,
    gain: Tensor,
    router: Tensor | None,
) -> tuple[Tensor, ...]:
    matrix = of_experts(weight, slots)
    assert matrix is not None
    y = product(x, matrix, of_experts(scale, slots))
    if gates is not None:
        y = (y * gates.unsqueeze(-1)).sum(0)
    new = (residual.float() + y).to(residual.dtype)
    scaled = new.float() * gain.float()
    logits = () if router is None else (scaled @ router.float().T,)
    return new, scaled.to(new.dtype), new.float().square().sum(-1, keepdim=True), *logits


def library_add_linear(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return torch.addmm(residual, x, weight.T)


def add_linear_case(active: int, launch: "Launch") -> Case:
    """The library has no mixtures; for one matrix it adds the residual stream, and leaves the norm to others."""
    x, weight, scale, routing, residual, gain, following, squares, votes, _ = launch.arguments
    router, votes_told = (None, None) if votes is None else (votes.weight, votes.parts)

    def call(generator: Generator) -> Call:
        made = Maker(launch.arguments, generator)
        x, weight, scale, routing, residual, gain, following, squares, votes, _ = made.arguments
        made.weight(weight, scale)
        if votes is not None:
            made.weight(votes.weight, None)
        slots, gates = made.routing(routing, weight.shape[0], active)
        plain = made.activation(x, residual.dtype)
        made.normal(residual)
        made.positive(gain)
        before = residual.clone()
        own = plain if gates is None else plain.view(*gates.shape, -1)
        return Call(
            made.arguments,
            outputs=(*tensors_of(following), squares, *(() if votes is None else (votes.parts,))),
            updated=(residual,),
            read=lambda: (
                residual,
                following.read(),
                squares.sum(-1, keepdim=True),
                *(() if votes is None else (votes.parts.sum(1),)),
            ),
            plain=(own, weight, scale, slots, gates, before, gain, None if votes is None else votes.weight),
            library=(plain, weight, before),
        )

    batch = residual.shape[0]
    return Case(
        name=launch.role,
        shape=weight_shape(weight, batch, active if routing is not None else 0),
        dtype=name_of(weight),
        moved_bytes=launch.read.total(0) + nbytes(x, routing, residual, residual, gain, following, squares, votes_told),
        flops=2 * batch * (active if routing is not None else 1) * math.prod(weight.shape[-2:])
        + (0 if router is None else 2 * batch * router.numel()),
        call=call,
        twin=launch.twin,
        plain=plain_add_linear,
        library=library_add_linear if scale is None and routing is None else None,
        tolerance=ROUNDED_TWICE,
        workspace_bytes=8 * weight.numel(),
        unread_bytes=nbytes(weight, scale, router) - launch.read.total(0),
    )


def name_of(tensor: Tensor) -> str:
    """Of its type, as labels have it."""
    return str(tensor.dtype).removeprefix("torch.")


def float_type(weight: Tensor, scale: Tensor | None) -> torch.dtype:
    """The model's type."""
    return weight.dtype if scale is None else scale.dtype


def weight_shape(weight: Tensor, batch: int, active: int = 0) -> dict[str, int]:
    rows, columns = weight.shape[-2:]
    experts = {"E": weight.shape[0], "A": active} if weight.dim() == 3 else {}
    return {"B": batch} | experts | {"N": rows, "K": columns}


def micro_cases(
    sizes: list[int], batch: int, kernel: Callable[..., Callable[[], None]] | None = None
) -> Iterator[Case]:
    """The micro-benchmarks at each size; the batch is that of `mlp_layer_norm_gelu`, the others have one vector.

    Args:
        kernel: ours for `gemv`, if it runs here: see `gemv_kernel`.
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


def tiles_used(config: Config, device: Device) -> dict[str, dict[str, int]]:
    """The tile of each of the cases' kernels that has one, by its use; empty where our kernels do not run."""
    if not kernels_run(device) or not isinstance(config.task, KernelsConfig):
        return {}
    from gptbench.engine.fused import Fused
    from gptbench.engine.tiles import Tiles
    from gptbench.kernels.tile import Use

    section = fused_section(config)
    tiles = Tiles.of(Path(section.tiles), device)
    uses = [Use("linear", size, size, dtype, 1) for size in config.task.sizes for dtype in (torch.bfloat16, torch.int8)]
    of_model = {} if no_model_cases(config, device) is not None else Fused.planned(section, config, device).tiles_used
    return {str(use): asdict(tiles[use]) for use in uses} | of_model


def gemv_kernel(config: Config, device: Device) -> Callable[..., Callable[[], None]] | None:
    """`linear` as the kernel of `gemv`: given its arguments, what launches it, with scales of 1 and a norm that divides
    by 1. None where our kernels do not run."""
    if not kernels_run(device):
        return None
    from gptbench.engine.tiles import Tiles
    from gptbench.kernels.activation import Activation
    from gptbench.kernels.launch import can_overlap
    from gptbench.kernels.linear import Norm, linear
    from gptbench.kernels.tile import Use

    section = fused_section(config)
    tiles, overlap = Tiles.of(Path(section.tiles), device), section.overlap and can_overlap(device.torch)

    def kernel(weight: Tensor, x: Tensor, out: Tensor) -> Callable[[], None]:
        size, int8 = x.numel(), weight.dtype == torch.int8
        row = Activation.empty(1, size, x.dtype, x.device, fixed=int8)
        row.write(x.unsqueeze(0))
        norm = Norm(torch.full((1, 1), float(size), device=x.device), size, eps=0.0)
        scale = torch.ones_like(out) if int8 else None
        tile = tiles[Use.of(linear, weight, 1)]
        return partial(linear, row, norm, weight, scale, None, out.unsqueeze(0), tile, overlap=overlap)

    return kernel


def gemv_case(size: int, dtype: torch.dtype, kernel: Callable[..., Callable[[], None]] | None = None) -> Case:
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
        kernel=kernel if dtype != torch.int8 or size % QuantConfig.LIMITS[INT8].multiple == 0 else None,
        library=(lambda weight, x, _: torch.mv(weight, x)) if dtype == torch.bfloat16 else None,
        workspace_bytes=2 * 4 * size * size,
    )


def gather_gemv(weight: Tensor, expert: Tensor, x: Tensor, out: Tensor) -> None:
    """Of weight [E, D, D] the matrices of expert int64 [A], each times x [D], to out [A, D]; no scales either.

    There is no kernel of ours for it: `swiglu` puts a SiLU between two halves, `add_linear` adds the experts up.
    """
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
