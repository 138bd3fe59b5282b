"""Prepare: what turns a model into something that prefills and decodes. One file for each engine.

`gptbench.engine.fused` is imported where it is asked for: it needs Triton, which is not on every platform.
"""

from gptbench.engine.auto import Auto
from gptbench.engine.base import Engine
from gptbench.engine.eager import Eager
from gptbench.engine.hf import HuggingFace
from gptbench.engine.inductor import Inductor

__all__ = ["Auto", "Eager", "Engine", "HuggingFace", "Inductor"]
