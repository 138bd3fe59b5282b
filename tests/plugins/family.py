"""A family of models in a file of one's own: its architecture, how its checkpoints store numbers, and a metric."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptbench.architecture import Architecture, LlamaLayer, OuterNames, Target, register_architecture
from gptbench.architecture.spec import LayerSpec
from gptbench.checkpoint import Codec, Piece, register_codec
from gptbench.schema.metrics import SPEED, Direction, Metric, View, at, register


class Layer(LlamaLayer):
    """Llama's, under other names, each matrix as [in, out]."""

    def __call__(self, spec: LayerSpec) -> dict[str, Target]:
        targets = super().__call__(spec).items()
        return {f"mine.{name}": transposed(target) if len(target.shape) == 2 else target for name, target in targets}


def transposed(target: Target) -> Target:
    return replace(target, shape=target.shape[::-1], transposed=True)


register_architecture(
    Architecture(
        "MineForCausalLM", "mine", layer=Layer(), outer_names=OuterNames("in.weight", "out.weight", "norm", "h.{}.")
    )
)


@register_codec("steps")
class Steps(Codec):
    """A layer's numbers are counts of `step`, which config.json has."""

    def pieces(self, name: str, target: Target) -> dict[str, Piece]:
        if ".mine." not in name:
            return super().pieces(name, target)
        return {f"{name}.count": Piece(target.shape, ("I32",))}

    def decode(self, name: str, target: Target, stored: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        if ".mine." not in name:
            return super().decode(name, target, stored, dtype)
        return (stored[f"{name}.count"] * self.settings["step"]).to(dtype)


def worst_step(result: Any) -> float | None:
    """Of all valid samples, in seconds."""
    return max((max(sample.step_s) for sample in result.samples if sample.step_s), default=None)


register(
    Metric(
        "worst_step_s", "worst step", "ms", 1e3, "longest decode step", Direction.lower, SPEED,
        of=worst_step, views=at(View.run, View.report),
    )
)  # fmt: skip
