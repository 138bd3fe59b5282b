"""What one row of the table of architectures says, and how a row gets into it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gptbench.architecture.layout import LLAMA_LAYER, LLAMA_OUTSIDE, LayerLayout, Outside
from gptbench.architecture.spec import LayerSpec
from gptbench.base.errors import UserError


class Window(Enum):
    """Where the library's model takes its sliding window from."""

    none = "none"
    """It has none."""
    all_layers = "all layers"
    """`sliding_window` holds for every layer."""
    by_layer = "by layer"
    """As `all_layers`, unless `layer_types` says otherwise."""
    all_if_used = "all layers, if used"
    """As `all_layers`, where `use_sliding_window` is true."""
    by_layer_if_used = "by layer, if used"
    """As `by_layer`, where `use_sliding_window` is true; without `layer_types` from layer `max_window_layers` on."""


@dataclass(frozen=True)
class Architecture:
    """One of the library's models, and how it differs from Llama."""

    name: str
    """What `architectures` in config.json calls it."""
    model_type: str
    """The library's name of it, by which it chooses the model's code."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalised."""
    window: Window = Window.none
    """Where its sliding window comes from."""
    ffn_key: str = "intermediate_size"
    """Key of the inner width of the feed-forward network, or of one expert."""
    experts: bool = False
    """Whether its layers have experts."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the library takes for a key that the file does not have. A width that is missing is refused."""
    layer: LayerLayout = LLAMA_LAYER
    """The tensors of a layer, by their names within it."""
    outside: Outside = LLAMA_OUTSIDE
    """The names of what belongs to no layer, and what stands before those of a layer."""
    layers: Callable[[Any], tuple[LayerSpec, ...]] | None = None
    """What each layer of a `ModelConfig` is, where its own fields do not tell that; `model.architecture` is then the
    name of this row."""
    library: str = ""
    """What the library's classes of it begin with; empty where `engine=hf` cannot run it."""
    library_fields: frozenset[str] = frozenset()
    """Fields of `ModelConfig` that these classes have, and not every one of the others."""


ARCHITECTURES: dict[str, Architecture] = {}
"""Every architecture that can be read, by its name in config.json."""


def register_architecture(architecture: Architecture) -> Architecture:
    """Adds a row, of gptbench's own or of a plugin's.

    Raises:
        UserError: another row has its name, or its model_type.
    """
    for other in ARCHITECTURES.values():
        for key in ("name", "model_type"):
            if other != architecture and getattr(other, key) == getattr(architecture, key):
                raise UserError(f"architecture {architecture.name}: {other.name} has {key}={getattr(other, key)}, too")
    ARCHITECTURES[architecture.name] = architecture
    return architecture
