"""Build: the Transformer, on `meta` first, and its weights."""

from gptbench.model.linear import Embedding, ExpertLinear, Linear, Weight
from gptbench.model.transformer import Transformer

__all__ = ["Embedding", "ExpertLinear", "Linear", "Transformer", "Weight"]
