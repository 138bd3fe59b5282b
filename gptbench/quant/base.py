"""What a quantisation is: a replacement for each class that holds a weight."""

from typing import ClassVar

import torch
from torch import nn

from gptbench.config import QuantConfig
from gptbench.model import Transformer, Weight


class Quantisation:
    """Base of all: replaces nothing.

    Attributes:
        replacements: class of the model (not its subclasses) to the class that takes its place.
    """

    replacements: ClassVar[dict[type[Weight], type[Weight]]] = {}

    def __init__(self, config: QuantConfig) -> None:
        self.config = config

    def convert(self, model: Transformer) -> Transformer:
        """Replaces the weights of a model on `meta`, in place; what is shared stays shared."""
        new: dict[int, Weight] = {}
        for module in list(model.modules()):
            for name, child in list(named_children(module)):
                replacement = self.replacements.get(type(child))
                if replacement is None:
                    continue
                if id(child) not in new:
                    with torch.device("meta"):
                        new[id(child)] = replacement(*child.float_shape, std=child.std, dtype=child.weight.dtype)
                setattr(module, name, new[id(child)])
        return model


def named_children(module: nn.Module) -> list[tuple[str, Weight]]:
    """Children that hold a weight, each name of a shared one included (`nn.Module.named_children` gives one)."""
    below = module.named_modules(remove_duplicate=False)
    return [(name, child) for name, child in below if name and "." not in name and isinstance(child, Weight)]


class Unquantised(Quantisation):
    """Weights as they are."""
