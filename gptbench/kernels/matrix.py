"""What kernels take for a weight, and how what it is multiplied with is stored. Needs no Triton, as formats do not."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from gptbench.kernels.op import Bytes


class Encoding(Enum):
    """How the numbers are stored that a weight is multiplied with."""

    plain = "plain"
    """As they are, in the model's type."""
    int16 = "int16"
    """Blocks of four 16-bit integers with a float32 scale (see `gptbench.kernels.activation`)."""


class Functions(NamedTuple):
    """The device functions of a format, each of `triton.jit`, with which kernels multiply; see
    `gptbench.kernels.mainloop`. SHAPE is a `mainloop.Shape`; tensors are pointers to `WeightFormat.words`."""

    load: Any
    """load(tensors, first, offsets, step, SHAPE): a step's weights of rows first + offsets [ROWS], and what else
    `multiply` needs of them: a tensor, or a tuple of tensors. Columns past the end have weight 0, or go with an
    activation of 0."""
    multiply: Any
    """multiply(tile, x, at, there): what `load` gave times x (`activation.Buffers`, of the format's encoding), float32
    [ROWS, WIDTH]. `at` [WIDTH] counts the words of weights from the beginning of x on; where not `there`, x ends."""
    row_scale: Any
    """row_scale(tensors, rows, there): what the sum of each row is multiplied with, float32 [ROWS]."""
    row: Any
    """row(tensors, row, columns, there, K): the numbers in `columns` of a row, as an embedding looks them up."""


class Stored(NamedTuple):
    """A weight as a kernel's argument."""

    tensors: tuple[Tensor, ...]
    functions: Functions


@dataclass(frozen=True)
class Matrix:
    """A weight [N, K], or several: [E, N, K]."""

    format: Any
    """A `gptbench.quant.WeightFormat`."""
    tensors: tuple[Tensor, ...]
    """As it stores them, by the order of its `tensors`."""
    shape: tuple[int, ...]
    """[N, K] or [E, N, K]."""
    dtype: torch.dtype
    """The model's type."""

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

    def sizes(self, batch: int, active: int = 0) -> dict[str, int]:
        """By letter, for kernels that multiply it; `active` experts for each token."""
        experts = {"E": self.experts, "A": active} if self.experts else {}
        return {"B": batch} | experts | {"N": self.rows, "K": self.columns}

    @property
    def words(self) -> tuple[Tensor, ...]:
        """The tensors, with the types that kernels load."""
        return self.format.words(self.tensors)

    def bytes_read(self, max_experts: int = 0, more: int = 0) -> Bytes:
        """What a product with it reads of memory: all of it, or that of so many experts; and `more`."""
        if not max_experts:
            return Bytes(weights=self.nbytes + more)
        return Bytes(weights=more, expert=self.nbytes // self.experts, experts=max_experts)

    def read(self) -> Tensor:
        """The numbers that are meant: float32, of the matrix's shape. For references."""
        return self.format.unpack(*self.tensors)

    def first(self, count: int) -> "Matrix":
        """Of the first dimension so many at most."""
        tensors = tuple(tensor[:count] for tensor in self.tensors)
        return replace(self, tensors=tensors, shape=(len(tensors[0]), *self.shape[1:]))

    def fill(self, generator: Generator) -> None:
        """Random weights with which products are of the size of what is multiplied."""
        self.format.random(self, generator)

    @property
    def label(self) -> str:
        """What its weights are called."""
        return self.format.label(self.dtype)

    def lookup(self, index: Tensor) -> Tensor:
        """Of the first dimension these: rows of a matrix, or some experts: float32. For references."""
        return self.format.unpack(*(tensor[index] for tensor in self.tensors))
