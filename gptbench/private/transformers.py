"""Private parts of the transformers library that gptbench relies on (its version is held below 6).

- A model has `get_compiled_call`, which compiles a decode step as `generate` does, and `get_experts_implementation` and
  `set_experts_implementation`, whose two products of experts are called ``grouped_mm`` and ``batched_mm``.
- Caches have `early_initialization`, `reset`, and `layers` with keys and values; a static cache calls `get_seq_length`
  to find out whether it is empty (`static_cache`). A dynamic cache never changes a tensor in place, so that shallow
  copies of it can be used (`copied`).
- ``model.rotary_emb`` computes the RoPE frequencies from the configuration alone (`make_rotary`); a router in
  ``model.layers[…].mlp.gate`` returns logits, weights and the selected experts (`routers`).

transformers takes seconds to import and is optional: this module does not import it.
"""

import copy
import importlib
from typing import Any

import torch

GROUPED, BATCHED = "grouped_mm", "batched_mm"
"""transformers' names for the products of all experts: grouped, as in prefill, and batched, as in a decode step."""


def library() -> Any:
    """Return the module `transformers`."""
    return importlib.import_module("transformers")


def static_cache(config: Any, length: int) -> Any:
    """Return transformers' static cache, with an attribute `empty` that marks it as empty."""
    library_cache: Any = library().StaticCache

    class StaticCache(library_cache):
        """A static cache that is reused. `generate` creates one for each prefill; this one is emptied instead, so that
        its addresses stay the same for compiled code, and is marked as empty: otherwise transformers would have to wait
        for the GPU to find out."""

        empty = False

        def get_seq_length(self, layer_idx: int = 0) -> Any:
            return 0 if self.empty else super().get_seq_length(layer_idx)

    return StaticCache(config=config, max_cache_len=length)


def dynamic_cache(config: Any) -> Any:
    """Return transformers' dynamic cache, which grows by copying."""
    return library().DynamicCache(config=config)


def allocate(cache: Any, batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Allocates the tensors of a cache before there are keys and values."""
    cache.early_initialization(batch_size=batch, num_heads=heads, head_dim=width, dtype=dtype, device=device)


def copied(cache: Any) -> Any:
    """Return a shallow copy of a dynamic cache, which can be filled without changing the original; creating a new cache
    may wait for the GPU."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def make_rotary(hf: Any, config: Any, device: torch.device) -> None:
    """Computes the RoPE frequencies, which no checkpoint holds, on the CPU, as transformers does."""
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config).to(device)


def compiled_call(hf: Any) -> Any:
    """Return the decode step, compiled as `generate` compiles it."""
    return hf.get_compiled_call(None)


def uses_grouped_experts(hf: Any) -> bool:
    """Whether the model uses `GROUPED` products for its experts."""
    return GROUPED in hf.get_experts_implementation().values()


def use_experts(hf: Any, implementation: str) -> None:
    """Sets the implementation of the experts' products."""
    hf.set_experts_implementation(implementation)


def routers(hf: Any) -> list[Any]:
    """Return the routers, modules that return logits [N, E], weights [N, A] and the selected experts [N, A]."""
    return [layer.mlp.gate for layer in hf.model.layers]
