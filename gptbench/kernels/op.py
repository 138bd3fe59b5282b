"""`Op`: one kernel launch of the decode step, a frozen dataclass of its tensors and settings.

Each kernel's file defines a subclass, and everything else about the kernel follows from it: the decode step is a list
of ops; a breakdown takes names and bytes from them; `task=kernels` and the tests compare `launch` with `reference`; and
the rule of programmatic dependent launch (see `gptbench.kernels.launch`), that nothing read early is written by the
kernel just before, is checked from `reads_early` and `writes`.

An operand is a tensor, a dataclass of operands (`Activation`, `Routing`), or None.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from gptbench.kernels.tile_config import TileKey


@dataclass(frozen=True)
class Bytes:
    """Bytes that one launch reads from memory, by what they depend on.

    Small reads, and those that hit caches, such as activations, are left out.
    """

    weights: int = 0
    """Bytes of weights (or logits) that every step reads."""
    expert: int = 0
    """Bytes of the weights of one expert."""
    experts: int = 0
    """Maximum number of distinct experts that a step reads."""
    position: int = 0
    """Bytes read for each cached position of one row."""
    window: int = 0
    """Maximum cached positions of a row that are read; 0 for all."""

    def total(self, cached: Sequence[int] = (), experts: float | None = None) -> int:
        """Return the bytes of one step.

        Args:
            cached: cached positions of each row.
            experts: distinct experts read, for a mixture; None for the maximum.
        """
        read = self.experts if experts is None else experts
        positions = sum(min(count, self.window or count) for count in cached)
        return self.weights + int(self.expert * read) + self.position * positions


@dataclass(frozen=True, eq=False, kw_only=True)
class Op(ABC):
    """Kernel launch with all of its operands."""

    role: str = ""
    """Role in the model, such as `qkv`."""
    part: ClassVar[str] = "other"
    """Part of a step under which `gptbench explain` counts it: matrices, attention, sampling or other."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name that a profiler shows."""

    @property
    def tile_key(self) -> TileKey | None:
        """Key of the kernel's tile; None if it has no tile."""
        return None

    def operands(self) -> tuple[Any, ...]:
        """Return all operands, settings among them."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @abstractmethod
    def launch(self, pdl: bool = False) -> None:
        """Launch the kernel; with `pdl`, while the kernel before it may still run."""

    @abstractmethod
    def reference(self) -> None:
        """Write what `launch` writes, with plain PyTorch, and without synchronising with the device."""

    def reads_early(self) -> tuple[Any, ...]:
        """Return operands that may be read before the PDL wait; the kernel just before must not write them."""
        return ()

    @abstractmethod
    def reads(self) -> tuple[Any, ...]:
        """Return operands that are read, including those of `reads_early`, and those that are written in part."""

    @abstractmethod
    def writes(self) -> tuple[Any, ...]:
        """Return operands that are written: entirely, unless `reads` has them too."""

    def results(self) -> tuple[Tensor, ...]:
        """Return the results to compare with the reference's, decoded to plain numbers."""
        return tuple(operand if isinstance(operand, Tensor) else operand.read() for operand in self.writes())

    def bytes_read(self) -> Bytes:
        """Return the bytes that are read from memory."""
        return Bytes()

    @abstractmethod
    def other_bytes(self) -> int:
        """Return the bytes read and written beyond `bytes_read`; in a decode step most of them hit caches."""

    @abstractmethod
    def shape(self) -> dict[str, int]:
        """Return sizes by letter, as `task=kernels` lists them."""

    @abstractmethod
    def flops(self, positions: int) -> int:
        """Return the operations, a multiply-add counting as two, where a token attends to `positions` positions."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """Name of the data type, or weight format, that makes up most of the reads."""

    def example(self, position: int, launches: int) -> Self:
        """Return an equivalent op with as little memory as possible, which can be launched `launches` times from
        `position` on."""
        return self

    def fill(self, generator: Generator, position: int) -> None:
        """Fill what is read with random numbers, for tokens at `position`. Integers other than int8 have meaning and
        are kept."""
        for operand in self.reads():
            fill(operand, generator)


def tensors(*operands: Any) -> Iterator[Tensor]:
    """Yield all tensors in operands."""
    for operand in operands:
        if isinstance(operand, Tensor):
            yield operand
        elif isinstance(operand, tuple):
            yield from tensors(*operand)
        elif is_dataclass(operand) and not isinstance(operand, type):
            yield from tensors(*(getattr(operand, field.name) for field in fields(operand)))


def nbytes(*operands: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors(*operands))


def clone_operands(operand: Any, device: torch.device) -> Any:
    """Return a copy of an operand with newly allocated tensors; meta tensors become zeros on `device`."""
    if isinstance(operand, Tensor):
        return torch.zeros(operand.shape, dtype=operand.dtype, device=device) if operand.is_meta else operand.clone()
    if isinstance(operand, tuple):
        return tuple(clone_operands(item, device) for item in operand)
    if is_dataclass(operand) and not isinstance(operand, type):
        return replace(
            operand, **{field.name: clone_operands(getattr(operand, field.name), device) for field in fields(operand)}
        )
    return operand


def fill(operand: Any, generator: Generator) -> None:
    """Fill an operand with random numbers: by its own `fill`, or else normal ones, and for int8 all values but -128."""
    if hasattr(operand, "fill") and not isinstance(operand, Tensor):
        operand.fill(generator)
    elif isinstance(operand, Tensor):
        if operand.is_floating_point():
            operand.normal_(generator=generator)
        elif operand.dtype == torch.int8:
            operand.random_(-127, 128, generator=generator)
    else:
        for tensor in tensors(operand):
            fill(tensor, generator)


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a data type without `torch.`."""
    return str(dtype).removeprefix("torch.")
