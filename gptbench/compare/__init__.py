"""Compare: recorded results beside targets."""

from gptbench.compare.baseline import Baseline

__all__ = ["Baseline"]
