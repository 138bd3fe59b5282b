"""The table of architectures: what a row contains, and how to register one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gptbench.architecture.layout import LLAMA_LAYER, LLAMA_OUTER_NAMES, LayerLayout, OuterNames
from gptbench.architecture.spec import LayerSpec
from gptbench.base.errors import UserError


class Window(Enum):
    """Which keys of config.json decide about the sliding window of a model in transformers."""

    none = "none"
    """The model has no sliding window."""
    all_layers = "all layers"
    """`sliding_window` applies to every layer."""
    by_layer = "by layer"
    """`sliding_window` applies to every layer, unless `layer_types` says otherwise."""
    all_if_used = "all layers, if used"
    """`sliding_window` applies to every layer if `use_sliding_window` is true."""
    by_layer_if_used = "by layer, if used"
    """If `use_sliding_window` is true, `sliding_window` applies to the layers that `layer_types` names, or without it
    to those from `max_window_layers` on."""


@dataclass(frozen=True)
class Architecture:
    """A model of the transformers library and how it differs from Llama."""

    name: str
    """Name of the architecture under `architectures` in config.json."""
    model_type: str
    """Name by which transformers chooses the model's code, `model_type` in config.json."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    qk_norm: bool = False
    """Whether each head's query and key are normalised before RoPE."""
    window: Window = Window.none
    """Which keys of config.json decide about the sliding window."""
    ffn_key: str = "intermediate_size"
    """Key of the inner width of the feed-forward network, or of one expert."""
    experts: bool = False
    """Whether the layers have experts."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults that transformers uses for missing keys. There is none for widths: a missing width is an error."""
    layer: LayerLayout = LLAMA_LAYER
    """Layout of the tensors of a layer."""
    outer_names: OuterNames = LLAMA_OUTER_NAMES
    """Names of the tensors outside the layers, and the prefix of those inside."""
    layers: Callable[[Any], tuple[LayerSpec, ...]] | None = None
    """Function from a `ModelConfig` to the spec of each layer, for layers that its fields cannot describe;
    `model.architecture` is then the name of this row."""
    hf_class_prefix: str = ""
    """Prefix of the model's class names in transformers; empty if `engine=hf` cannot run the model."""
    hf_fields: frozenset[str] = frozenset()
    """Fields of `ModelConfig` that these classes support and not every architecture does."""


ARCHITECTURES: dict[str, Architecture] = {}
"""Every supported architecture, by its name in config.json."""


def register_architecture(architecture: Architecture) -> Architecture:
    """Add a row to `ARCHITECTURES` and return it.

    Raises:
        UserError: another row has the same name or model_type.
    """
    for other in ARCHITECTURES.values():
        for key in ("name", "model_type"):
            if other != architecture and getattr(other, key) == getattr(architecture, key):
                raise UserError(
                    f"architecture {architecture.name}: {key}={getattr(other, key)} is already registered"
                    f" by {other.name}"
                )
    ARCHITECTURES[architecture.name] = architecture
    return architecture
