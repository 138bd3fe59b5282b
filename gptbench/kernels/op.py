"""What a kernel of the decode step is: one frozen dataclass with its tensors and settings, which launches it.

A subclass stands in the file of its kernel. Everything else that must be known of a kernel follows from it: the decode
step is a list of them, a breakdown takes names and bytes from it, `task=kernels` and the tests compare `launch` with
`reference`, and the rule of programmatic dependent launch (see `gptbench.kernels.launch`), that nothing read early is
written by the kernel just before, is checked from `reads_early` and `writes`.

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
    """What one launch reads from memory, by what it depends on. What is next to nothing, or comes from the caches on
    the chip, as activations do, is left out."""

    weights: int = 0
    """Bytes of the weights (or logits) that it reads in every step."""
    expert: int = 0
    """Bytes of the weights of one expert."""
    experts: int = 0
    """Experts of a mixture that a step can read at most."""
    position: int = 0
    """Bytes that it reads for each cached position of one row."""
    window: int = 0
    """Cached positions of a row that it reads at most; 0: all."""

    def total(self, cached: Sequence[int] = (), experts: float | None = None) -> int:
        """Bytes of a step whose rows have so many positions in the cache, one number for each row, and of a mixture so
        many experts (None: the most)."""
        read = self.experts if experts is None else experts
        positions = sum(min(count, self.window or count) for count in cached)
        return self.weights + int(self.expert * read) + self.position * positions


@dataclass(frozen=True, eq=False, kw_only=True)
class Op(ABC):
    """A kernel with all that it works on."""

    role: str = ""
    """What it does for the model, such as `qkv`."""
    part: ClassVar[str] = "other"
    """Which part of a step `gptbench explain` counts it to: matrices, attention, sampling or other."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a profiler shows."""

    @property
    def tile_key(self) -> TileKey | None:
        """What its tile is chosen for; None if it has no tile."""
        return None

    def operands(self) -> tuple[Any, ...]:
        """Everything that it works on, settings among it."""
        return tuple(getattr(self, entry.name) for entry in fields(self))

    @abstractmethod
    def launch(self, pdl: bool = False) -> None:
        """Launches the kernel; with `pdl` while the kernel before it may still run."""

    @abstractmethod
    def reference(self) -> None:
        """Writes what `launch` writes, with plain PyTorch, and without waiting for the device."""

    def reads_early(self) -> tuple[Any, ...]:
        """Operands that it may read before it waits for the kernel before it, which must not write them."""
        return ()

    @abstractmethod
    def reads(self) -> tuple[Any, ...]:
        """Operands that it reads, those of `reads_early` among them, and those that it writes in part."""

    @abstractmethod
    def writes(self) -> tuple[Any, ...]:
        """Operands that it writes: as a whole, unless it also reads them."""

    def results(self) -> tuple[Tensor, ...]:
        """What of that is compared with what the reference has written: numbers, whatever they are encoded in."""
        return tuple(operand if isinstance(operand, Tensor) else operand.read() for operand in self.writes())

    def bytes_read(self) -> Bytes:
        """What it reads from memory."""
        return Bytes()

    @abstractmethod
    def bytes_beside(self) -> int:
        """Bytes that it reads and writes beside those of `bytes_read`: in a decode step mostly caches hold them."""

    @abstractmethod
    def shape(self) -> dict[str, int]:
        """Sizes by letter, as `task=kernels` lists them."""

    @abstractmethod
    def flops(self, positions: int) -> int:
        """Operations, a multiply-add counting as two, where a token attends to so many positions."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """What it reads most of: the name of a type, or of a weight's format."""

    def example(self, position: int, launches: int) -> Self:
        """Like this one, as small as it may be, and so that it can be launched so often from a position on."""
        return self

    def fill(self, generator: Generator, position: int) -> None:
        """Fills what it reads with random numbers, for tokens at a position: integers other than int8, which mean
        something, stay as they are."""
        for operand in self.reads():
            fill(operand, generator)


def tensors(*operands: Any) -> Iterator[Tensor]:
    """All tensors in operands."""
    for operand in operands:
        if isinstance(operand, Tensor):
            yield operand
        elif isinstance(operand, tuple):
            yield from tensors(*operand)
        elif is_dataclass(operand) and not isinstance(operand, type):
            yield from tensors(*(getattr(operand, entry.name) for entry in fields(operand)))


def nbytes(*operands: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors(*operands))


def own_memory(operand: Any, device: torch.device) -> Any:
    """A copy with tensors of its own on a device: zeros for those without memory."""
    if isinstance(operand, Tensor):
        return torch.zeros(operand.shape, dtype=operand.dtype, device=device) if operand.is_meta else operand.clone()
    if isinstance(operand, tuple):
        return tuple(own_memory(inner, device) for inner in operand)
    if is_dataclass(operand) and not isinstance(operand, type):
        return replace(
            operand, **{entry.name: own_memory(getattr(operand, entry.name), device) for entry in fields(operand)}
        )
    return operand


def fill(operand: Any, generator: Generator) -> None:
    """Random numbers: as an operand does itself, or else normal ones, and int8 of all values but -128."""
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
    """As labels have it."""
    return str(dtype).removeprefix("torch.")
