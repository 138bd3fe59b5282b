"""What a kernel of the decode step is: one frozen dataclass with its tensors and settings, which launches it.

A subclass stands in the file of its kernel. Everything else that must be known of a kernel follows from it: the decode
step is a list of them, a breakdown takes names and bytes from it, `task=kernels` and the tests compare `launch` with
`reference`, and the rule of programmatic dependent launch (see `gptbench.kernels.launch`), that nothing read early is
written by the kernel just before, is checked from `reads_early` and `writes`.

An operand is a tensor, a dataclass of operands (`Activation`, `Routing`), or None.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from gptbench.kernels.tile import Use


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
    """Bytes that it reads for each cached position."""

    def total(self, positions: int, experts: float | None = None) -> int:
        """Bytes of a step that reads so many cached positions, and of a mixture so many experts (None: the most)."""
        return (
            self.weights + int(self.expert * (self.experts if experts is None else experts)) + self.position * positions
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Op(ABC):
    """A kernel with all that it works on."""

    role: str = ""
    """What it does for the model, such as `qkv`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a profiler shows."""

    @property
    def use(self) -> Use | None:
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
        """Operands whose values decide what it writes; those of `reads_early` among them."""

    @abstractmethod
    def writes(self) -> tuple[Any, ...]:
        """Operands that it writes: as a whole, unless it also reads them."""

    def bytes_read(self) -> Bytes:
        """What it reads from memory."""
        return Bytes()


def tensors(*operands: Any) -> Iterator[Tensor]:
    """All tensors in operands."""
    for operand in operands:
        if isinstance(operand, Tensor):
            yield operand
        elif is_dataclass(operand) and not isinstance(operand, type):
            yield from tensors(*(getattr(operand, entry.name) for entry in fields(operand)))
