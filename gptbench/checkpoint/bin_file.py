"""PyTorch pickles (`.bin`), restricted to tensors."""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptbench.base.errors import CheckpointError, first_line
from gptbench.checkpoint.codec import FLOATS
from gptbench.checkpoint.container import Container, TensorInfo


class Bin(Container):
    """A pickled dict of tensors."""

    SINGLE = "pytorch_model.bin"
    ERRORS = (pickle.UnpicklingError, zipfile.BadZipFile, *Container.ERRORS)

    def header(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        for name, tensor in load_pickle(file).items():
            kinds = [kind for kind, dtype in FLOATS.items() if dtype == tensor.dtype]
            yield name, TensorInfo(file, tuple(tensor.shape), kinds[0] if kinds else str(tensor.dtype))

    def tensors(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        tensors = load_pickle(file)
        for name in list(tensors):
            yield name, tensors.pop(name).to(device)


def load_pickle(file: Path) -> dict[str, Tensor]:
    """Return the dict of tensors in a `.bin` file, memory-mapped where the file is a zip archive.

    Raises:
        CheckpointError: the file is damaged, holds anything but a dict of tensors, or would run code.
    """
    try:
        loaded: Any = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except Exception as error:  # torch raises whatever its readers do
        raise CheckpointError(f"{file}: cannot be read as tensors alone: {first_line(error)}") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) and dense(t) for name, t in loaded.items()):
        raise CheckpointError(f"{file}: expected a dict of tensors by name, and nothing else")
    return loaded


def dense(value: Any) -> bool:
    """Whether a value is a dense tensor whose elements are in memory."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
