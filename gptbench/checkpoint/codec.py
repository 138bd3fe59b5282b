"""Codecs: how a checkpoint stores numbers, and how they become the tensors of a weight format."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gptbench.architecture import ConfigFile, Target
from gptbench.architecture.stored import CODECS, quantisation
from gptbench.base.errors import UserError
from gptbench.checkpoint.place import assign
from gptbench.model import Transformer

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""Types that unquantised weights may have, by their names in safetensors."""


@dataclass(frozen=True)
class Piece:
    """One of the stored tensors that together make up a tensor of the layout, such as values and scales."""

    shape: tuple[int, ...]
    """Shape of the tensor in the file."""
    dtypes: tuple[str, ...]
    """Types that the tensor may have, by their names in safetensors."""


class Codec:
    """Codec of floats: each tensor of the layout is stored under its name. To add another codec, subclass it in a new
    file and decorate the class with `register_codec`.

    Args:
        settings: `quantization_config` of the checkpoint's config.json; empty for floats.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def pieces(self, name: str, target: Target) -> dict[str, Piece]:
        """Return the stored tensors that make up tensor `name` of the layout, by their names in the checkpoint."""
        return {name: Piece(target.shape, tuple(FLOATS))}

    def decode(self, name: str, target: Target, stored: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Decode a tensor from all its pieces, to the target's shape and the model's type."""
        return stored[name].to(dtype)  # even if it is quantised next: as if it had been saved in that type

    def fill(self, model: Transformer, target: Target, floats: Tensor) -> None:
        """Copy a decoded tensor into the model, quantising it to the format of each weight. A codec whose numbers a
        format can take unchanged overrides this to copy that format's tensors."""
        assign(model, target, floats)


AnyCodec = TypeVar("AnyCodec", bound=type[Codec])


def register_codec(method: str) -> Callable[[AnyCodec], AnyCodec]:
    """Return a decorator that registers a codec for checkpoints with `quant_method` `method` in config.json.

    Raises:
        UserError: another class is registered for `method`.
    """

    def register(codec: AnyCodec) -> AnyCodec:
        path = f"{codec.__module__}.{codec.__qualname__}"
        if CODECS.setdefault(method, path) != path:
            raise UserError(f"codec {path}: quant_method={method} is already registered by {CODECS[method]}")
        return codec

    return register


def codec_of(folder: Path) -> Codec:
    """Return the codec of the checkpoint in a folder. Raises CheckpointError as `quantisation` does."""
    settings = quantisation(ConfigFile(folder))
    if settings is None:
        return Codec({})
    module, _, name = CODECS[settings["quant_method"]].rpartition(".")
    codec: Codec = getattr(importlib.import_module(module), name)(settings)
    return codec
