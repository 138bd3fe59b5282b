"""The safetensors file format: https://huggingface.co/docs/safetensors"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptbench.base.errors import CheckpointError
from gptbench.checkpoint.container import Container, TensorInfo

MAX_HEADER_BYTES = 32 * 2**20
"""Size limit of a file's header, whose entries take about a hundred bytes per tensor."""


class Safetensors(Container):
    """A JSON header followed by the tensors."""

    SINGLE = "model.safetensors"
    ERRORS = (SafetensorError, *Container.ERRORS)

    def check(self, file: Path, head: bytes) -> None:
        header = int.from_bytes(head[:8], "little")
        if MAX_HEADER_BYTES < header < file.stat().st_size:
            raise CheckpointError(f"{file}: header of {header:,} bytes: expected at most {MAX_HEADER_BYTES:,}")

    def header(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- not a dict
                tensor = opened.get_slice(name)
                yield name, TensorInfo(file, tuple(tensor.get_shape()), tensor.get_dtype())

    def tensors(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            for name in opened.keys():  # noqa: SIM118 -- not a dict
                yield name, opened.get_tensor(name)
