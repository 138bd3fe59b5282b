"""What kernels take for a weight, and how what it is multiplied with is stored. Needs no Triton, as formats do not."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor


class Encoding(Enum):
    """How the numbers are stored that a weight is multiplied with."""

    plain = "plain"
    """As they are, in the model's type."""
    int16 = "int16"
    """Blocks of four 16-bit integers with a float32 scale (see `gptbench.kernels.activation`)."""


@dataclass(frozen=True)
class Matrix:
    """A weight [N, K], or several: [E, N, K]."""

    format: Any
    """A `gptbench.quant.WeightFormat`."""
    tensors: tuple[Tensor, ...]
    """As it stores them, by the order of its `tensors`."""
    shape: tuple[int, ...]
    """[N, K] or [E, N, K]."""

    @property
    def rows(self) -> int:
        """N."""
        return self.shape[-2]

    @property
    def columns(self) -> int:
        """K."""
        return self.shape[-1]

    @property
    def experts(self) -> int:
        """E, or 0 of a single matrix."""
        return self.shape[0] if len(self.shape) == 3 else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def read(self) -> Tensor:
        """The numbers that are meant: float32, of the matrix's shape. For references."""
        return self.format.unpack(*self.tensors)

    def lookup(self, index: Tensor) -> Tensor:
        """Rows of a single matrix: float32 [*index, K]. For references."""
        return self.format.unpack(*(tensor[index] for tensor in self.tensors))
