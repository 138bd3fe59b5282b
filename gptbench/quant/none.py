"""Weights as they are."""

import torch
from torch import Tensor

from gptbench.quant.base import WeightFormat


class Unquantised(WeightFormat):
    """Weights of the model's own type."""

    casts = False

    def label(self, dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    def tensors(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns), dtype)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (weight.to(dtype),)

    def factors(self, *stored: Tensor) -> tuple[Tensor, Tensor | None]:
        (weight,) = stored
        return weight, None

    def random(self, stored: tuple[Tensor, ...], columns: int, generator: torch.Generator) -> None:
        stored[0].normal_(generator=generator).div_(columns**0.5)
