"""The Transformer, its weights and its KV cache. `gptbench.build` makes it on `meta` first and allocates it later."""

from gptbench.model.cache import KeyValueCache, Memory
from gptbench.model.linear import Bias, Embedding, ExpertLinear, Linear, Weight
from gptbench.model.transformer import RMSNorm, Transformer

__all__ = ["Bias", "Embedding", "ExpertLinear", "KeyValueCache", "Linear", "Memory", "RMSNorm", "Transformer", "Weight"]
