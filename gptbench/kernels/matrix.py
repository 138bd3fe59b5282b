"""Weight matrices as kernels see them, and encodings of activations. Does not need Triton, as formats do not."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from gptbench.kernels.op import Bytes


class Encoding(Enum):
    """Encoding of the activations that a weight is multiplied with."""

    plain = "plain"
    """Numbers in the model's type."""
    int16 = "int16"
    """Blocks of four 16-bit integers with a float32 scale (see `gptbench.kernels.activation`)."""


class Functions(NamedTuple):
    """Device functions of a weight format (`triton.jit`) that the linear kernels call; see `gptbench.kernels.mainloop`.

    SHAPE is a `mainloop.GemvShape`; `tensors` are pointers to `WeightFormat.words`.
    """

    load: Any
    """load(tensors, first, offsets, step, SHAPE): weights of one step of the K loop, for rows first + offsets [ROWS],
    and whatever else `multiply` needs of them: a tensor, or a tuple of tensors. Columns past the end have weight 0, or
    are multiplied with an activation of 0."""
    multiply: Any
    """multiply(tile, x, at, mask): what `load` returned times x (`activation.Buffers`, in the format's encoding),
    float32 [ROWS, WIDTH]. `at` [WIDTH] counts words of weights from the beginning of x; `mask` is false beyond the end
    of x."""
    row_scale: Any
    """row_scale(tensors, rows, mask): factor of each row's sum, float32 [ROWS]."""
    row: Any
    """row(tensors, row, columns, mask, K): numbers in `columns` of one row, for the embedding lookup."""


class WeightArgument(NamedTuple):
    """Weight as a kernel argument."""

    tensors: tuple[Tensor, ...]
    functions: Functions


@dataclass(frozen=True)
class Matrix:
    """Weight matrix [N, K], or a stack of experts [E, N, K]."""

    format: Any
    """Format in which the weight is stored, a `gptbench.quant.WeightFormat`."""
    tensors: tuple[Tensor, ...]
    """Stored tensors, in the order of the format's `tensors`."""
    shape: tuple[int, ...]
    """Shape of the unpacked weight, [N, K] or [E, N, K]."""
    dtype: torch.dtype
    """Data type of the model."""

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return self.shape[-2]

    @property
    def columns(self) -> int:
        """Number of columns K."""
        return self.shape[-1]

    @property
    def experts(self) -> int:
        """Number of experts E; 0 for a single matrix."""
        return self.shape[0] if len(self.shape) == 3 else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def sizes(self, batch: int, active: int = 0) -> dict[str, int]:
        """Return the sizes of a product with this weight, by letter; `active` is the number of experts per token."""
        experts = {"E": self.experts, "A": active} if self.experts else {}
        return {"B": batch} | experts | {"N": self.rows, "K": self.columns}

    @property
    def words(self) -> tuple[Tensor, ...]:
        """Stored tensors, viewed as the types that kernels load."""
        return self.format.words(self.tensors)

    def bytes_read(self, max_experts: int = 0, extra: int = 0) -> Bytes:
        """Return the bytes that a product with this weight reads from memory: all of it, or up to `max_experts` of its
        experts; plus `extra`."""
        if not max_experts:
            return Bytes(weights=self.nbytes + extra)
        return Bytes(weights=extra, expert=self.nbytes // self.experts, experts=max_experts)

    def read(self) -> Tensor:
        """Return the unpacked weight, float32, in the matrix's shape. Used by references."""
        return self.format.unpack(*self.tensors)

    def first(self, count: int) -> "Matrix":
        """Return a view of at most `count` entries of the first dimension."""
        tensors = tuple(tensor[:count] for tensor in self.tensors)
        return replace(self, tensors=tensors, shape=(len(tensors[0]), *self.shape[1:]))

    def fill(self, generator: Generator) -> None:
        """Fill with random weights, scaled so that products are of the size of the activations."""
        self.format.random(self, generator)

    @property
    def label(self) -> str:
        """Label of the weights, such as `int8`."""
        return self.format.label(self.dtype)

    def lookup(self, index: Tensor) -> Tensor:
        """Return the unpacked entries `index` of the first dimension (rows of a matrix, or experts), float32. Used by
        references."""
        return self.format.unpack(*(tensor[index] for tensor in self.tensors))
