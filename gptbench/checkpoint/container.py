"""Containers: file formats that store tensors by name."""

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
    """File, shape and type of a stored tensor, from the header of the file."""

    file: Path
    """File that holds the tensor."""
    shape: tuple[int, ...]
    """Shape of the tensor in the file."""
    dtype: str
    """Type of the tensor, by its name in safetensors."""


class Container:
    """A file format. To add one, subclass it in a new file and add it to `gptbench.checkpoint.reader.CONTAINERS`."""

    SINGLE: ClassVar[str]
    """File name of an unsharded checkpoint; with `.index.json` appended, the name of the index of a sharded one."""
    ERRORS: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    """Exceptions that the library raises for a bad file."""

    def check(self, file: Path, head: bytes) -> None:
        """Raise CheckpointError if the first bytes show that a file must not be opened."""

    def header(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        """Iterate over name and metadata of every tensor in a file, without reading values."""
        raise NotImplementedError

    def tensors(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Iterate over name and value of every tensor in a file; on a CPU they are memory-mapped."""
        raise NotImplementedError

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """Convert exceptions that the library raises for a bad file to a CheckpointError that names the file."""
        try:
            yield
        except self.ERRORS as error:
            raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
