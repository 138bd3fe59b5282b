"""int8, weight only: symmetric, one scale for each output row (and expert). Activations keep their type.

The stored integer is round(w / scale) with scale = max|row| / 127. Products are formed with the integers and scaled
afterwards, once for each output.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptbench.model.linear import ExpertLinear, Linear, Weight, reduces, reduction
from gptbench.quant.base import Quantisation


def quantise_rows(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight [N, D] to int8 [N, D] from -127 to 127 and scale [N]. A row of zeros gets scale 1.

    The integers belong to the scale as it is stored, so that rounding the scale adds no error of its own.
    """
    weight = weight.float()
    largest = weight.abs().amax(-1)
    scale = torch.where(largest > 0, largest / 127, 1.0).to(scale_dtype)
    integers = (weight / scale.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return integers.to(torch.int8), scale


def scaled(product: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """product times scale, multiplied in float32.

    In the activations' type TorchInductor would take it for a pattern that it hands to `_weight_int8pack_mm`, whose
    CUDA kernel took a hundred times as long as reading the weight does (see LOG.md).
    """
    return (product.float() * scale.float()).to(dtype)


def cast_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., D] times weight int8 [N, D] times scale [N]: [..., N]. A library's product, with a copy of the weight."""
    return scaled(F.linear(x, weight.to(x.dtype)), scale, x.dtype)


class Int8Weight(Weight):
    """weight int8 [..., N, D] and scale [..., N].

    Attributes:
        product: how x is multiplied where no reduction is compiled; an engine may put a faster way in the place of
            `cast_product`.
    """

    def __init__(self, *shape: int, std: float, dtype: torch.dtype) -> None:
        super().__init__(*shape, std=std, dtype=torch.int8)
        self.product: Callable[[Tensor, Tensor, Tensor], Tensor] = cast_product
        self.scale = nn.Parameter(torch.empty(shape[:-1], dtype=dtype), requires_grad=False)

    def assign(self, weight: Tensor, *expert: int, row: int = 0) -> None:
        integers, scale = quantise_rows(weight, self.scale.dtype)
        super().assign(integers, *expert, row=row)
        self.scale[expert][row : row + len(scale)].copy_(scale)


class Int8Linear(Int8Weight):
    """`gptbench.model.Linear` with int8 weights."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to [..., N]."""
        if reduces(x.numel() // x.shape[-1]):
            return scaled(reduction(x, self.weight), self.scale, x.dtype)
        return self.product(x, self.weight, self.scale)

    def rows(self, index: Tensor) -> Tensor:
        """Dequantised rows, as an embedding looks them up: index [...] to [..., D]."""
        return self.weight[index].to(self.scale.dtype) * self.scale[index].unsqueeze(-1)


class Int8ExpertLinear(Int8Weight):
    """`gptbench.model.ExpertLinear` with int8 weights."""

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """Each row of x [P, D] times the matrix of its own expert [P]: [P, N]."""
        if torch.compiler.is_compiling():
            return scaled(reduction(x, self.weight[expert]), self.scale[expert], x.dtype)
        product = torch.bmm(self.weight[expert].to(x.dtype), x.unsqueeze(-1)).squeeze(-1)
        return scaled(product, self.scale[expert], x.dtype)

    def dense(self, x: Tensor, expert: int) -> Tensor:
        """All of x [P, D] times the matrix of one expert: [P, N]."""
        return self.product(x, self.weight[expert], self.scale[expert])


class Int8(Quantisation):
    """int8 for every matrix but the router's and an untied embedding; norms are left alone."""

    replacements: ClassVar[dict[type[Weight], type[Weight]]] = {Linear: Int8Linear, ExpertLinear: Int8ExpertLinear}
