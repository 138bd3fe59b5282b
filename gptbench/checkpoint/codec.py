"""How the numbers of a checkpoint are stored, and how they become a format's tensors."""

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
"""Types that plain weights may have, as safetensors calls them."""


@dataclass(frozen=True)
class Piece:
    """One of the stored tensors that together are a tensor of the model."""

    shape: tuple[int, ...]
    """As it is stored."""
    dtypes: tuple[str, ...]
    """Types that it may have, as safetensors calls them."""


class Codec:
    """Floats: each tensor of the layout is stored under its own name. Other codecs inherit from it, one file each, and
    are registered with `register_codec`.

    Args:
        settings: `quantization_config` of the checkpoint's config.json; empty of floats.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def pieces(self, name: str, target: Target) -> dict[str, Piece]:
        """What is stored of the tensor that the layout calls `name`, by the names in the checkpoint."""
        return {name: Piece(target.shape, tuple(FLOATS))}

    def decode(self, name: str, target: Target, stored: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """What all the pieces of a tensor mean: of the target's shape and the model's type."""
        return stored[name].to(dtype)  # also where it is quantised then: as if it had been saved in that type

    def fill(self, model: Transformer, target: Target, floats: Tensor) -> None:
        """Puts what `decode` gave where it belongs, in each weight's own format. A codec whose numbers a format can
        take as they are gives that format's tensors to the module instead."""
        assign(model, target, floats)


AnyCodec = TypeVar("AnyCodec", bound=type[Codec])


def register_codec(method: str) -> Callable[[AnyCodec], AnyCodec]:
    """Decorator: the class reads checkpoints whose config.json names `method` as `quant_method`.

    Raises:
        UserError: another class does.
    """

    def register(codec: AnyCodec) -> AnyCodec:
        place = f"{codec.__module__}.{codec.__qualname__}"
        if CODECS.setdefault(method, place) != place:
            raise UserError(f"codec {place}: {CODECS[method]} reads quant_method={method}, too")
        return codec

    return register


def codec_of(folder: Path) -> Codec:
    """The codec of the checkpoint in a folder. Raises CheckpointError."""
    settings = quantisation(ConfigFile(folder))
    if settings is None:
        return Codec({})
    module, _, name = CODECS[settings["quant_method"]].rpartition(".")
    codec: Codec = getattr(importlib.import_module(module), name)(settings)
    return codec
