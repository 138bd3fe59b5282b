"""`WeightFormat`, the base class of weight formats, and their registration."""

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

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed, so that device functions can be defined."""

use_own_kernel: ContextVar[bool] = ContextVar("by_kernel", default=False)
"""Whether products of few tokens use `WeightFormat.skinny_product` instead of a library."""


class WeightFormat:
    """How a float matrix [N, K] is stored; for a stack of experts [E, N, K], each of them.

    A format is one file with one class. It defines what is stored (`tensors`), how floats are packed (`pack`) and what
    the stored tensors mean (`factors`); the reference, and all that the engines on torch compute, follow from these.
    The rest, from `words` on, is for the fused engine's kernels. Dimension N comes first in each stored tensor, and no
    row depends on another: a checkpoint's parts of a matrix are packed one after the other, and an embedding is looked
    up by row.
    """

    encoding: ClassVar[Encoding] = Encoding.plain
    """Encoding of the activations that the kernels multiply the weights with."""
    weights_per_word: ClassVar[int] = 1
    """Weights per element of the first tensor of `words`."""
    tile_rows: ClassVar[tuple[int, ...]] = (2, 4, 8)
    """Rows of the tiles that autotuning tries."""
    packing_bytes: ClassVar[int] = 6
    """Peak bytes per weight that `pack` allocates, beyond the given weight and its float32 copy."""
    max_skinny_tokens: ClassVar[int] = 0
    """Maximum number of tokens that `skinny_product` multiplies; 0 if the format has none."""

    def __init__(self, section: QuantConfig | None = None) -> None:
        """Create the format from its configuration section, whose values are kept in `settings`."""
        self.settings: dict[str, Any] = {} if section is None else section.settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightFormat) and type(other) is type(self) and other.settings == self.settings

    def __hash__(self) -> int:
        return hash(type(self))

    def label(self, dtype: torch.dtype) -> str:
        """Return the name that distinguishes weights in the key of a tile and beside a kernel's time. For a plugin's
        format it includes a digest of its source, to which its tiles belong, and its settings."""
        name = type(self).__name__.lower()
        if type(self).__module__.startswith("gptbench.quant."):
            return name
        digest = hashlib.sha256(Path(inspect.getfile(type(self))).read_bytes()).hexdigest()[:8]
        return " ".join([f"{name}-{digest}", *(f"{key}={value}" for key, value in self.settings.items())])

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return name, shape and type of the stored tensors of a matrix [rows, columns] in a model of type `dtype`;
        `weight` comes first. The model's tensors have these names."""
        raise NotImplementedError

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Pack a float weight [n, K] for a model of type `dtype`: return the stored tensors, in the order of
        `tensors`."""
        raise NotImplementedError

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the stored tensors as a matrix [..., N, K] of any type, and a scale of its rows [..., N] or None:
        products may be formed with the matrix and then multiplied with the scale."""
        raise NotImplementedError

    def random(self, matrix: Matrix, generator: torch.Generator) -> None:
        """Fill a matrix with random weights for measuring kernels, scaled so that products are of the size of the
        activations."""
        weight = torch.randn(matrix.shape, generator=generator, device=generator.device) * matrix.columns**-0.5
        for tensor, packed in zip(matrix.tensors, self.pack(weight.flatten(0, -2), matrix.dtype), strict=True):
            tensor.copy_(packed.view_as(tensor))

    def copied_bytes(self, itemsize: int) -> int:
        """Return the bytes per weight that a library's product copies, for activations of `itemsize` bytes."""
        return itemsize

    def unpack(self, *stored: Tensor) -> Tensor:
        """Return the unpacked weights, float32 [..., N, K]."""
        matrix, scale = self.factors(*stored)
        return matrix.float() if scale is None else matrix.float() * scale.float().unsqueeze(-1)

    def rows(self, index: Tensor, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        """Look up rows of an embedding: index [...] to [..., K], in the model's type."""
        matrix, scale = self.factors(*(tensor[index] for tensor in stored))
        return matrix.to(dtype) if scale is None else matrix.to(dtype) * scale.unsqueeze(-1)

    def product(self, x: Tensor, *stored: Tensor) -> Tensor:
        """Return x [..., K] times one matrix, [..., N], computed by a library."""
        if (
            not torch.compiler.is_compiling()
            and use_own_kernel.get()
            and x.numel() <= self.max_skinny_tokens * x.shape[-1]
        ):
            return self.skinny_product(x, *stored)
        matrix, scale = self.factors(*stored)
        return scaled(F.linear(x, matrix.to(x.dtype)), scale, x.dtype)

    def skinny_product(self, x: Tensor, *stored: Tensor) -> Tensor:
        """Return `product` for at most `max_skinny_tokens` tokens, computed by the format's own kernel."""
        raise NotImplementedError

    def products(self, x: Tensor, *stored: Tensor) -> Tensor:
        """Return each row of x [P, K] times its own matrix of P, [P, N]."""
        matrix, scale = self.factors(*stored)
        return scaled(torch.bmm(matrix.to(x.dtype), x.unsqueeze(-1)).squeeze(-1), scale, x.dtype)

    def reduction(self, x: Tensor, *stored: Tensor) -> Tensor:
        """Return x [..., K] times matrices [..., N, K] as a reduction generated by the compiler, [..., N]. Only for
        compiled code."""
        matrix, scale = self.factors(*stored)
        y = reduction(x, matrix)
        return y.to(x.dtype) if scale is None else scaled(y, scale, x.dtype)

    def words(self, stored: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the stored tensors, or views of them, in the types that kernels load."""
        return stored

    def functions(self) -> Functions:
        """Return the device functions. Called only where Triton is installed."""
        raise NotImplementedError

    def bits(self, dtype: torch.dtype) -> int:
        """Return the bits of one weight in a model of type `dtype`, without what is stored beside it."""
        raise NotImplementedError

    def tile_hint(self, tile_key: TileKey) -> tuple[int, int, int, int]:
        """Return the built-in tile for a key: warps, 16-byte loads of each thread in a row per step, rows, and
        prefetched steps."""
        return 4, 1, 8, 1


def scaled(product: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return product times scale, if there is one, multiplied in float32.

    In the activations' type, TorchInductor would match the pattern and call `_weight_int8pack_mm`, whose CUDA kernel
    took a hundred times as long as reading the weight does (see docs/log).
    """
    return product if scale is None else (product.float() * scale.float()).to(dtype)


def reduction(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., D] times weight [..., N, D] in float32, [..., N]. Only for compiled code.

    x is materialised in memory first. Otherwise the compiler recomputes what x comes from, a norm or a SiLU, for every
    one of the N outputs, which took longer than reading the weight from memory (see docs/log).
    """
    return (weight.float() * in_memory(x).float().unsqueeze(-2)).sum(-1)


@contextmanager
def skinny_products_by_kernel(device: torch.device) -> Iterator[None]:
    """Context in which a format's own kernel, if it has one, multiplies few tokens with its weights on a GPU."""
    token = use_own_kernel.set(device.type == "cuda")
    try:
        yield
    finally:
        use_own_kernel.reset(token)


Format = TypeVar("Format", bound=type[WeightFormat])


def register_format(
    limits: FormatLimits, name: str | None = None, section: type[QuantConfig] = QuantConfig
) -> Callable[[Format], Format]:
    """Return a decorator that registers a plugin's class as a format that `quant=NAME` and `quant.weights` select.

    Args:
        limits: models and data types that the format supports.
        name: name of the option; by default the class's name in lower case.
        section: configuration section with the format's settings, a subclass whose fields have defaults.

    Raises:
        UserError: a format of that name exists already.
    """

    def register(format_class: Format) -> Format:
        target = target_of(format_class)
        section.add(target, limits)
        option_name = name or format_class.__name__.lower()
        add_option(option_name, option := section(_target_=target, name=option_name))
        FORMATS[option_name] = option
        return format_class

    return register
