"""The matrices of the model. How each is stored is its format's (`gptbench.quant`), which multiplies with it.

Two forms of the same product: a library's matrix product, and, in compiled code with a single row, a reduction that
the compiler generates itself. The second reads the weight once at full width whatever its type: on two cores of an
AMD EPYC it reached 31 GB/s where the library's product reached 12 (see docs/log), and on a GPU it is what the seed gets
from `coordinate_descent_tuning`.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from gptbench.base.errors import ConfigError
from gptbench.config import QuantConfig
from gptbench.config.targets import instantiate
from gptbench.kernels.matrix import Matrix
from gptbench.quant import Unquantised, WeightFormat


def reduces(rows: int) -> bool:
    """Whether a product with so many rows of activations is written as a reduction."""
    return rows == 1 and torch.compiler.is_compiling()


class Weight(nn.Module):
    """Something that holds one matrix, or one for each expert, in a format: as its parameters.

    Attributes:
        float_shape: shape of the unquantised weight: [N, D], or [E, N, D].
        std: standard deviation of seeded random weights.
        dtype: the model's type.
        format: how it is stored.
        names: of the format's tensors, which are the parameters, in its order.
    """

    weight: nn.Parameter
    QUANTISED: ClassVar[bool] = True
    """Whether the format of a model is that of such a weight, too, where no pattern names it."""

    def __init__(self, *shape: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.float_shape, self.std, self.dtype = shape, std, dtype
        self.names: tuple[str, ...] = ()
        self.store_as(Unquantised())

    def store_as(self, weight_format: WeightFormat) -> None:
        """Makes it one of another format, with parameters that have yet to be filled."""
        *experts, rows, columns = self.float_shape
        tensors = weight_format.tensors(rows, columns, self.dtype)
        for name in self.names:
            delattr(self, name)
        self.format, self.names = weight_format, tuple(tensors)
        for name, (shape, dtype) in tensors.items():
            self.register_parameter(name, nn.Parameter(torch.empty(*experts, *shape, dtype=dtype), requires_grad=False))

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """What the format stores, in its order."""
        return tuple(getattr(self, name) for name in self.names)

    @property
    def matrix(self) -> Matrix:
        """As kernels take it."""
        return Matrix(self.format, tuple(p.detach() for p in self.stored), self.float_shape, self.dtype)

    def assign(self, weight: Tensor, *expert: int, row: int = 0) -> None:
        """Takes over a float weight [n, D] as the rows from `row` on; of the given expert, where there are several."""
        for own, packed in zip(self.stored, self.format.pack(weight, self.dtype), strict=True):
            own[expert][row : row + len(packed)].copy_(packed)

    def matrices(self) -> Iterator[tuple[int, ...]]:
        """Index of each [N, D] matrix within the weight: (), or (expert,)."""
        return iter([()] if len(self.float_shape) == 2 else [(e,) for e in range(self.float_shape[0])])


class Linear(Weight):
    """weight [N, D]: x [..., D] to [..., N]."""

    def forward(self, x: Tensor) -> Tensor:
        if reduces(x.numel() // x.shape[-1]):
            return self.format.reduction(x, *self.stored)
        return self.format.product(x, *self.stored)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight, as an embedding looks them up: index [...] to [..., D]."""
        return self.format.rows(index, self.dtype, *self.stored)


class Bias(nn.Module):
    """bias [N], added to x [..., N]. Small: never quantised.

    Attributes:
        std: standard deviation of a seeded random bias.
    """

    def __init__(self, size: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Embedding(Weight):
    """weight [V, D], only ever looked up by row."""

    QUANTISED = False

    def rows(self, index: Tensor) -> Tensor:
        """index [...] to [..., D]."""
        return self.format.rows(index, self.dtype, *self.stored)


class Router(Linear):
    """weight [E, D]. Small, and a wrong choice of expert costs more than its bytes: never quantised."""

    QUANTISED = False


class ExpertLinear(Weight):
    """weight [E, N, D]: one matrix for each expert."""

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """Each row of x [P, D] times the matrix of its own expert [P]: [P, N]."""
        own = (tensor[expert] for tensor in self.stored)
        return self.format.reduction(x, *own) if torch.compiler.is_compiling() else self.format.products(x, *own)

    def dense(self, x: Tensor, expert: int) -> Tensor:
        """All of x [P, D] times the matrix of one expert: [P, N]."""
        return self.format.product(x, *(tensor[expert] for tensor in self.stored))


CONFIGURED = {"blocks": "layers", "ffn": "feed_forward", "head": "lm_head"}
"""What parts of the modules' names are called in `quant.weights`. The modules keep theirs: seeds are made of them."""


def weights_by_name(model: nn.Module) -> dict[str, Weight]:
    """The matrices whose format can be chosen, by the names that a configuration has for them. Of a tied embedding
    there is `lm_head` alone."""
    return {
        ".".join(CONFIGURED.get(part, part) for part in name.split(".")): module
        for name, module in model.named_modules()
        if isinstance(module, Weight) and not isinstance(module, Router)
    }


def store_as(model: nn.Module, quant: QuantConfig) -> None:
    """Gives each matrix of a model its format: see `QuantConfig.weights`.

    Raises:
        ConfigError: a pattern matches no matrix, or a matrix cannot have its format.
    """
    weights = weights_by_name(model)
    chosen = {name: quant for name, weight in weights.items() if weight.QUANTISED}
    for pattern, section in quant.by_pattern.items():
        matched = [name for name in weights if fnmatchcase(name, pattern)]
        if not matched:
            names = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in weights))
            raise ConfigError(f"quant.weights.{pattern}", section.name, f"a pattern that matches one of {names}")
        chosen |= dict.fromkeys(matched, section)
    formats: dict[WeightFormat, WeightFormat] = {}  # one of each: compiled code that layers share goes by identity
    for name, section in chosen.items():
        if (
            quant.weights
            and (expected := section.limits.unsupported_reason([(name, weights[name].float_shape[-1])])) is not None
        ):
            raise ConfigError("quant", quant.full_name, expected)
        own: WeightFormat = instantiate(section)
        weights[name].store_as(formats.setdefault(own, own))
