"""Makes the model of a run on `meta`, and computes the length of its KV cache."""

import torch

from gptbench.config import Config, ModelConfig, QuantConfig
from gptbench.config.targets import instantiate
from gptbench.model import Transformer
from gptbench.model.linear import store_as

CACHE_MULTIPLE = 8
"""The length of the KV cache is a multiple of this number of positions, as in gpt_fast."""


def cache_length(config: Config) -> int:
    """Return S, the number of cached positions that a run needs: prompt and new tokens, rounded up."""
    length = len(config.workload.prompt) + config.workload.new_tokens
    return -(-length // CACHE_MULTIPLE) * CACHE_MULTIPLE


def on_meta(config: ModelConfig, quant: QuantConfig, dtype: torch.dtype) -> Transformer:
    """Return the quantised model on `meta`. Raises ConfigError as `store_as` does."""
    with torch.device("meta"):
        model: Transformer = instantiate(config, dtype)
        store_as(model, quant)
    return model.eval()
