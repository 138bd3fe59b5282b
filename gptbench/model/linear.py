"""The matrices of the model. A quantisation replaces these classes with its own of the same interface.

Two forms of the same product: a library's matrix product, and, in compiled code with a single row, a reduction that
the compiler generates itself. The second reads the weight once at full width whatever its type: on two cores of an
AMD EPYC it reached 31 GB/s where the library's product reached 12 (see LOG.md), and on a GPU it is what the seed gets
from `coordinate_descent_tuning`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptbench.private.torch import in_memory


def reduces(rows: int) -> bool:
    """Whether a product with so many rows of activations is written as a reduction."""
    return rows == 1 and torch.compiler.is_compiling()


def reduction(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., D] times weight [..., N, D] in float32: [..., N]. Only for compiled code.

    x is made to exist in memory first. Left to itself, the compiler would work out what x comes from, a norm or a
    SiLU, again for every one of the N outputs, which took longer than the weight's way from memory (see LOG.md).
    """
    return (weight.float() * in_memory(x).float().unsqueeze(-2)).sum(-1)


class Weight(nn.Module):
    """Something that holds one matrix, or one for each expert.

    Attributes:
        float_shape: shape of the unquantised weight: [N, D], or [E, N, D].
        std: standard deviation of seeded random weights.
    """

    def __init__(self, *shape: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.float_shape, self.std = shape, std
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)

    def assign(self, weight: Tensor, *expert: int, row: int = 0) -> None:
        """Takes over a float weight [n, D] as the rows from `row` on; of the given expert, where there are several."""
        self.weight[expert][row : row + len(weight)].copy_(weight)

    def matrices(self) -> Iterator[tuple[int, ...]]:
        """Index of each [N, D] matrix within the weight: (), or (expert,)."""
        return iter([()] if len(self.float_shape) == 2 else [(e,) for e in range(self.float_shape[0])])


class Linear(Weight):
    """weight [N, D]: x [..., D] to [..., N]."""

    def forward(self, x: Tensor) -> Tensor:
        if reduces(x.numel() // x.shape[-1]):
            return reduction(x, self.weight).to(x.dtype)
        return F.linear(x, self.weight)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight, as an embedding looks them up: index [...] to [..., D]."""
        return self.weight[index]


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

    def rows(self, index: Tensor) -> Tensor:
        """index [...] to [..., D]."""
        return self.weight[index]


class Router(Linear):
    """weight [E, D]. Small, and a wrong choice of expert costs more than its bytes: never quantised."""


class ExpertLinear(Weight):
    """weight [E, N, D]: one matrix for each expert."""

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """Each row of x [P, D] times the matrix of its own expert [P]: [P, N]."""
        if torch.compiler.is_compiling():
            return reduction(x, self.weight[expert]).to(x.dtype)
        return torch.bmm(self.weight[expert], x.unsqueeze(-1)).squeeze(-1)

    def dense(self, x: Tensor, expert: int) -> Tensor:
        """All of x [P, D] times the matrix of one expert: [P, N]."""
        return F.linear(x, self.weight[expert])
