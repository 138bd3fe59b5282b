"""int8, weight only: symmetric, one scale for each output row (and expert). Activations keep their type.

The stored integer is round(w / scale) with scale = max|row| / 127. Products are formed with the integers and scaled
afterwards, once for each output.
"""

import torch
from torch import Tensor

from gptbench.kernels.matrix import Encoding
from gptbench.quant.base import WeightFormat

UNIFORM_STD = 73
"""Standard deviation of integers from -127 to 127, all equally likely."""


def quantise_rows(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight [N, D] to int8 [N, D] from -127 to 127 and scale [N]. A row of zeros gets scale 1.

    The integers belong to the scale as it is stored, so that rounding the scale adds no error of its own.
    """
    weight = weight.float()
    largest = weight.abs().amax(-1)
    scale = torch.where(largest > 0, largest / 127, 1.0).to(scale_dtype)
    integers = (weight / scale.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return integers.to(torch.int8), scale


class Int8(WeightFormat):
    """weight int8 [N, K] and scale [N], of the model's type."""

    encoding = Encoding.int16
    short = 64

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns), torch.int8), "scale": ((rows,), dtype)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return quantise_rows(weight, dtype)

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, scale = stored
        return weight, scale

    def random(self, stored: tuple[Tensor, ...], columns: int, generator: torch.Generator) -> None:
        weight, scale = stored
        weight.random_(-127, 128, generator=generator)
        mean = columns**-0.5 / UNIFORM_STD
        scale.uniform_(0.5 * mean, 1.5 * mean, generator=generator)

    def short_product(self, x: Tensor, *stored: Tensor) -> Tensor:
        from gptbench.kernels.int8_matmul import int8_matmul  # needs Triton

        weight, scale = stored
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty(len(flat), len(weight), dtype=x.dtype, device=x.device)
        int8_matmul(flat, weight, scale, out)
        return out.view(*x.shape[:-1], -1)
