"""The weight matrices of the model. Their format (`gptbench.quant`) decides how they are stored and multiplied.

The product has two forms: the library's GEMM, and, in compiled code with a single row, a reduction for which the
compiler generates the kernel. The reduction streams the weight once at full bandwidth whatever its type: on two cores
of an AMD EPYC it reached 31 GB/s where the library's GEMM reached 12 (see docs/log), and on a GPU it is what gpt_fast
gets from `coordinate_descent_tuning`.
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
    """Whether a product with this many rows of activations is written as a reduction."""
    return rows == 1 and torch.compiler.is_compiling()


class Weight(nn.Module):
    """A module whose parameters are one matrix, or one per expert, stored in a weight format.

    Attributes:
        float_shape: shape of the unquantised weight: [N, D], or [E, N, D].
        std: standard deviation of seeded random weights.
        dtype: type of the model's activations.
        format: how the weight is stored.
        tensor_names: names of the format's tensors, which are the module's parameters, in the format's order.
    """

    weight: nn.Parameter
    QUANTISED: ClassVar[bool] = True
    """Whether the model's default format applies to weights of this class where no pattern names them."""

    def __init__(self, *shape: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.float_shape, self.std, self.dtype = shape, std, dtype
        self.tensor_names: tuple[str, ...] = ()
        self.store_as(Unquantised())

    def store_as(self, weight_format: WeightFormat) -> None:
        """Change the format, replacing the parameters with new ones that are still to be filled."""
        *experts, rows, columns = self.float_shape
        tensors = weight_format.tensors(rows, columns, self.dtype)
        for name in self.tensor_names:
            delattr(self, name)
        self.format, self.tensor_names = weight_format, tuple(tensors)
        for name, (shape, dtype) in tensors.items():
            self.register_parameter(name, nn.Parameter(torch.empty(*experts, *shape, dtype=dtype), requires_grad=False))

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Tensors that the format stores, in its order."""
        return tuple(getattr(self, name) for name in self.tensor_names)

    @property
    def matrix(self) -> Matrix:
        """The weight as kernels take it."""
        return Matrix(self.format, tuple(p.detach() for p in self.stored), self.float_shape, self.dtype)

    def assign(self, weight: Tensor, *expert: int, row: int = 0) -> None:
        """Quantise a float weight [n, D] into rows `row` to `row + n`; of the given expert, where there are several."""
        for parameter, packed in zip(self.stored, self.format.pack(weight, self.dtype), strict=True):
            parameter[expert][row : row + len(packed)].copy_(packed)

    def matrices(self) -> Iterator[tuple[int, ...]]:
        """Iterate over the index of each [N, D] matrix within the weight: (), or (expert,)."""
        return iter([()] if len(self.float_shape) == 2 else [(e,) for e in range(self.float_shape[0])])


class Linear(Weight):
    """A linear layer without bias, weight [N, D]: x [..., D] to [..., N]."""

    def forward(self, x: Tensor) -> Tensor:
        if reduces(x.numel() // x.shape[-1]):
            return self.format.reduction(x, *self.stored)
        return self.format.product(x, *self.stored)

    def rows(self, index: Tensor) -> Tensor:
        """Look up rows of the weight, as an embedding does: index [...] to [..., D]."""
        return self.format.rows(index, self.dtype, *self.stored)


class Bias(nn.Module):
    """A bias [N] that is added to x [..., N]. It is small and never quantised.

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
    """An embedding, weight [V, D], that is only ever looked up by row."""

    QUANTISED = False

    def rows(self, index: Tensor) -> Tensor:
        """Look up rows of the weight: index [...] to [..., D]."""
        return self.format.rows(index, self.dtype, *self.stored)


class Router(Linear):
    """A router, weight [E, D]. It is never quantised: it is small, and a wrong expert costs more than its bytes."""

    QUANTISED = False


class ExpertLinear(Weight):
    """Linear layers of all experts, weight [E, N, D]."""

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """Multiply each row of x [P, D] by the matrix of its expert [P]: [P, N]."""
        gathered = (tensor[expert] for tensor in self.stored)
        if torch.compiler.is_compiling():
            return self.format.reduction(x, *gathered)
        return self.format.products(x, *gathered)

    def dense(self, x: Tensor, expert: int) -> Tensor:
        """Multiply all of x [P, D] by the matrix of one expert: [P, N]."""
        return self.format.product(x, *(tensor[expert] for tensor in self.stored))


CONFIGURED = {"blocks": "layers", "ffn": "feed_forward", "head": "lm_head"}
"""Parts of module names and what `quant.weights` calls them. The modules keep their names, as seeds depend on them."""


def weights_by_name(model: nn.Module) -> dict[str, Weight]:
    """Return the matrices whose format can be chosen, by their names in `quant.weights`. A tied embedding is there as
    `lm_head` only."""
    return {
        ".".join(CONFIGURED.get(part, part) for part in name.split(".")): module
        for name, module in model.named_modules()
        if isinstance(module, Weight) and not isinstance(module, Router)
    }


def store_as(model: nn.Module, quant: QuantConfig) -> None:
    """Set the format of each matrix of a model as `QuantConfig.weights` says.

    Raises:
        ConfigError: a pattern matches no matrix, or a matrix does not fit its format.
    """
    weights = weights_by_name(model)
    chosen = {name: quant for name, weight in weights.items() if weight.QUANTISED}
    for pattern, section in quant.by_pattern.items():
        matched = [name for name in weights if fnmatchcase(name, pattern)]
        if not matched:
            names = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in weights))
            raise ConfigError(f"quant.weights.{pattern}", section.name, f"a pattern that matches one of {names}")
        chosen |= dict.fromkeys(matched, section)
    formats: dict[WeightFormat, WeightFormat] = {}  # one instance each: torch.compile guards on identity across layers
    for name, section in chosen.items():
        if (
            quant.weights
            and (expected := section.limits.unsupported_reason([(name, weights[name].float_shape[-1])])) is not None
        ):
            raise ConfigError("quant", quant.full_name, expected)
        weight_format: WeightFormat = instantiate(section)
        weights[name].store_as(formats.setdefault(weight_format, weight_format))
