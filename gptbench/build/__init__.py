"""Builds a model: made on `meta`, checked against free memory, allocated, and filled with weights."""

from gptbench.build.filling import build, fill
from gptbench.build.memory import (
    MemoryNeed,
    alternatives,
    cache_bytes,
    check_memory,
    memory_need,
    memory_need_of,
    nbytes,
)
from gptbench.build.meta import CACHE_MULTIPLE, cache_length, on_meta

__all__ = [
    "CACHE_MULTIPLE",
    "MemoryNeed",
    "alternatives",
    "build",
    "cache_bytes",
    "cache_length",
    "check_memory",
    "fill",
    "memory_need",
    "memory_need_of",
    "nbytes",
    "on_meta",
]
