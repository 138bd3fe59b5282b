"""What gptbench relies on of the transformers library beyond what it promises to keep (its version is held below 6).

- A model has `get_compiled_call`, which compiles a decode step as `generate` does, and `get_experts_implementation` and
  `set_experts_implementation`, whose two products of experts are called ``grouped_mm`` and ``batched_mm``.
- Caches have `early_initialization`, `reset`, and `layers` with keys and values; a static one asks `get_seq_length`
  whether it is empty (`static_cache`). A dynamic one changes no tensor, so that shallow copies of it can be used
  (`copied`).
- A model's wavelengths are made by ``model.rotary_emb``, from its configuration alone (`make_rotary`); a router in
  ``model.layers[…].mlp.gate`` gives logits, weights and the chosen experts (`routers`).

The library takes seconds to import, and need not be installed: nothing is imported with this module.
"""

import copy
import importlib
from typing import Any

import torch

GROUPED, BATCHED = "grouped_mm", "batched_mm"
"""The library's names for products of all experts: by group, as in a prefill, and one by one, as in a decode step."""


def library() -> Any:
    """The library."""
    return importlib.import_module("transformers")


def static_cache(config: Any, length: int) -> Any:
    """The library's static cache, which can be told that it is empty."""
    library_cache: Any = library().StaticCache

    class StaticCache(library_cache):
        """`generate` makes a new one for each prefill. This one is emptied, so that compiled code finds it where it
        was, and says itself that it is empty: else the library would ask the GPU, and wait for the answer."""

        empty = False

        def get_seq_length(self, layer_idx: int = 0) -> Any:
            return 0 if self.empty else super().get_seq_length(layer_idx)

    return StaticCache(config=config, max_cache_len=length)


def dynamic_cache(config: Any) -> Any:
    """The library's cache that grows by copying."""
    return library().DynamicCache(config=config)


def allocate(cache: Any, batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Makes the tensors of a cache, before there are keys and values."""
    cache.early_initialization(batch_size=batch, num_heads=heads, head_dim=width, dtype=dtype, device=device)


def copied(cache: Any) -> Any:
    """A dynamic cache that can be filled while the first stays as it is; a new one may wait for the GPU."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def make_rotary(hf: Any, config: Any, device: torch.device) -> None:
    """Makes the wavelengths, which are in no checkpoint; on the CPU, as the library does."""
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config).to(device)


def compiled_call(hf: Any) -> Any:
    """A decode step, compiled as `generate` compiles it."""
    return hf.get_compiled_call(None)


def uses_grouped_experts(hf: Any) -> bool:
    """Whether the model multiplies with its experts' matrices by `GROUPED`."""
    return GROUPED in hf.get_experts_implementation().values()


def use_experts(hf: Any, implementation: str) -> None:
    """Sets how the model multiplies with its experts' matrices."""
    hf.set_experts_implementation(implementation)


def routers(hf: Any) -> list[Any]:
    """Modules that give logits, weights and the chosen experts [N, A]."""
    return [layer.mlp.gate for layer in hf.model.layers]
