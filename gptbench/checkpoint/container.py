"""A kind of file that tensors are stored in: name, shape and type of each, and their numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from gptbench.base.errors import CheckpointError, first_line


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a file's header has it."""

    file: Path
    """The file that holds it."""
    shape: tuple[int, ...]
    """As it is stored."""
    dtype: str
    """As safetensors calls it."""


class Container:
    """One kind of file. A second one is a file with a class, and a row in `gptbench.checkpoint.reader.CONTAINERS`."""

    SINGLE: ClassVar[str]
    """The file of a checkpoint that has one; that of one with several is called so with `.index.json` behind."""
    ERRORS: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    """What its readers raise of a bad file."""

    def check(self, file: Path, head: bytes) -> None:
        """Raises CheckpointError for a file that is not to be opened, by its first bytes."""

    def header(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        """Name and kind of every tensor in a file; their values are not read."""
        raise NotImplementedError

    def tensors(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of a file, one at a time; on a CPU its pages are the file's own."""
        raise NotImplementedError

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """Turns what a reader says of a bad file into an error that names the file."""
        try:
            yield
        except self.ERRORS as error:
            raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
