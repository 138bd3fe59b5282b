"""How a matrix is stored: what a format of weights is, and how a model gets its formats."""

import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gptbench.config import FORMATS, FormatLimits, QuantConfig, add_option
from gptbench.config.targets import target_of
from gptbench.kernels.matrix import Encoding, Functions, Matrix
from gptbench.kernels.tile_config import TileKey
from gptbench.private.torch import in_memory

TRITON = importlib.util.find_spec("triton") is not None
"""Whether there is Triton, and device functions can be defined."""

by_kernel: ContextVar[bool] = ContextVar("by_kernel", default=False)
"""Whether `WeightFormat.short_product` is asked before a library."""


class WeightFormat:
    """How a float matrix [N, K] is stored; of several, [E, N, K], all are stored alike.

    A format is one file with one class. It says what it stores (`tensors`), how it comes from floats (`pack`) and what
    it means (`factors`): from these follow the reference, and all that torch's engines compute. What the fused engine's
    kernels need begins with `words`. Each stored tensor begins with N, and no row depends on another: a checkpoint's
    parts of a matrix are packed one after the other, and an embedding is looked up by row.
    """

    encoding: ClassVar[Encoding] = Encoding.plain
    """How the kernels want the numbers that they multiply the weights with."""
    weights_per_word: ClassVar[int] = 1
    """Weights in one element of the first tensor, as `words` gives it."""
    tile_rows: ClassVar[tuple[int, ...]] = (2, 4, 8)
    """Rows of tiles that are worth trying."""
    packing_bytes: ClassVar[int] = 6
    """Bytes that `pack` takes for each weight, beside the weight as it was given and as float32."""
    short: ClassVar[int] = 0
    """Most tokens that `short_product` multiplies; 0 where there is none."""

    def __init__(self, section: QuantConfig | None = None) -> None:
        """From the configuration: the values of what can be set are in `settings`."""
        self.settings: dict[str, Any] = {} if section is None else section.settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightFormat) and type(other) is type(self) and other.settings == self.settings

    def __hash__(self) -> int:
        return hash(type(self))

    def label(self, dtype: torch.dtype) -> str:
        """What it is called where weights are told apart: in the key of a tile, and beside a kernel's time. A plugin's
        has a digest of its source, of which its tiles are, and its settings."""
        name = type(self).__name__.lower()
        if type(self).__module__.startswith("gptbench.quant."):
            return name
        digest = hashlib.sha256(Path(inspect.getfile(type(self))).read_bytes()).hexdigest()[:8]
        return " ".join([f"{name}-{digest}", *(f"{key}={value}" for key, value in self.settings.items())])

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and type of what is stored for a matrix [rows, columns] of a model of type `dtype`; `weight`
        comes first. A model has the tensors by these names."""
        raise NotImplementedError

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Float weight [n, K] as it is stored in a model of type `dtype`: `tensors`, in order."""
        raise NotImplementedError

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is stored [..., N, ...] as a matrix [..., N, K] of any type, and what its rows are multiplied with
        [..., N], if anything: products may be formed with the one and then multiplied with the other."""
        raise NotImplementedError

    def random(self, matrix: Matrix, generator: torch.Generator) -> None:
        """Fills a matrix with random weights, so that products are of the size of what is multiplied: to measure a
        kernel."""
        weight = torch.randn(matrix.shape, generator=generator, device=generator.device) * matrix.columns**-0.5
        for tensor, packed in zip(matrix.tensors, self.pack(weight.flatten(0, -2), matrix.dtype), strict=True):
            tensor.copy_(packed.view_as(tensor))

    def copied_bytes(self, itemsize: int) -> int:
        """Bytes of each weight that a library's product copies, for activations of so many bytes."""
        return itemsize

    def unpack(self, *stored: Tensor) -> Tensor:
        """The numbers that are meant: float32 [..., N, K]."""
        matrix, scale = self.factors(*stored)
        return matrix.float() if scale is None else matrix.float() * scale.float().unsqueeze(-1)

    def rows(self, index: Tensor, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        """Rows, as an embedding looks them up: index [...] to [..., K], of the model's type."""
        matrix, scale = self.factors(*(tensor[index] for tensor in stored))
        return matrix.to(dtype) if scale is None else matrix.to(dtype) * scale.unsqueeze(-1)

    def product(self, x: Tensor, *stored: Tensor) -> Tensor:
        """x [..., K] times one matrix: [..., N], by a library."""
        if not torch.compiler.is_compiling() and by_kernel.get() and x.numel() <= self.short * x.shape[-1]:
            return self.short_product(x, *stored)
        matrix, scale = self.factors(*stored)
        return scaled(F.linear(x, matrix.to(x.dtype)), scale, x.dtype)

    def short_product(self, x: Tensor, *stored: Tensor) -> Tensor:
        """As `product`, of at most `short` tokens, by a kernel of the format's own."""
        raise NotImplementedError

    def products(self, x: Tensor, *stored: Tensor) -> Tensor:
        """Each row of x [P, K] times the matrix of its own, of P: [P, N]."""
        matrix, scale = self.factors(*stored)
        return scaled(torch.bmm(matrix.to(x.dtype), x.unsqueeze(-1)).squeeze(-1), scale, x.dtype)

    def reduction(self, x: Tensor, *stored: Tensor) -> Tensor:
        """x [..., K] times matrices [..., N, K], in compiled code, as a reduction of the compiler's own: [..., N]."""
        matrix, scale = self.factors(*stored)
        y = reduction(x, matrix)
        return y.to(x.dtype) if scale is None else scaled(y, scale, x.dtype)

    def words(self, stored: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is stored, or views of it, with the types that kernels load."""
        return stored

    def functions(self) -> Functions:
        """The device functions. Only called where Triton is."""
        raise NotImplementedError

    def bits(self, dtype: torch.dtype) -> int:
        """Of one weight, in a model of type `dtype`; what is stored beside it left out."""
        raise NotImplementedError

    def cut(self, tile_key: TileKey) -> tuple[int, int, int, int]:
        """What is fastest for a use, as far as is known: warps, 16-byte loads of each thread in a row of a step, rows,
        and steps that are loaded early."""
        return 4, 1, 8, 1


def scaled(product: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """product times scale, if any, multiplied in float32.

    In the activations' type TorchInductor would take it for a pattern that it hands to `_weight_int8pack_mm`, whose
    CUDA kernel took a hundred times as long as reading the weight does (see docs/log).
    """
    return product if scale is None else (product.float() * scale.float()).to(dtype)


def reduction(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., D] times weight [..., N, D] in float32: [..., N]. Only for compiled code.

    x is made to exist in memory first. Left to itself, the compiler would work out what x comes from, a norm or a
    SiLU, again for every one of the N outputs, which took longer than the weight's way from memory (see docs/log).
    """
    return (weight.float() * in_memory(x).float().unsqueeze(-2)).sum(-1)


@contextmanager
def short_products_by_kernel(device: torch.device) -> Iterator[None]:
    """Within, a format's own kernel multiplies few tokens with its weights on a GPU, where it has one."""
    token = by_kernel.set(device.type == "cuda")
    try:
        yield
    finally:
        by_kernel.reset(token)


Format = TypeVar("Format", bound=type[WeightFormat])


def register_format(
    limits: FormatLimits, name: str | None = None, section: type[QuantConfig] = QuantConfig
) -> Callable[[Format], Format]:
    """Decorator: a class of a plugin's is a format that `quant=NAME` and `quant.weights` select.

    Args:
        name: by default the class's own in lower case.
        section: with the settings that it has, a subclass of its own whose fields have defaults.

    Raises:
        UserError: there is a format of that name.
    """

    def register(format_class: Format) -> Format:
        target = target_of(format_class)
        section.add(target, limits)
        own_name = name or format_class.__name__.lower()
        add_option(own_name, made := section(_target_=target, name=own_name))
        FORMATS[own_name] = made
        return format_class

    return register
