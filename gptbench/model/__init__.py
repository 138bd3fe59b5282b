"""Build: the Transformer, on `meta` first, and its weights."""

from gptbench.model.linear import Bias, Embedding, ExpertLinear, Linear, Weight
from gptbench.model.transformer import RMSNorm, Transformer

__all__ = ["Bias", "Embedding", "ExpertLinear", "Linear", "RMSNorm", "Transformer", "Weight"]
