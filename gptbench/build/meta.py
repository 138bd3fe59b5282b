"""The model of a run before it has memory, and how long its caches will be."""

import torch

from gptbench.config import Config, ModelConfig, QuantConfig
from gptbench.config.targets import instantiate
from gptbench.model import Transformer
from gptbench.model.linear import store_as

CACHE_MULTIPLE = 8
"""The KV cache holds a multiple of so many positions, as in the seed."""


def cache_length(config: Config) -> int:
    """S, cached positions that the run needs: prompt and new tokens, rounded up."""
    length = len(config.workload.prompt) + config.workload.new_tokens
    return -(-length // CACHE_MULTIPLE) * CACHE_MULTIPLE


def on_meta(config: ModelConfig, quant: QuantConfig, dtype: torch.dtype) -> Transformer:
    """The quantised model without any memory. Raises ConfigError as `store_as` does."""
    with torch.device("meta"):
        model: Transformer = instantiate(config, dtype)
        store_as(model, quant)
    return model.eval()
