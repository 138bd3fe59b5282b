"""Comparing recorded results with each other, and with the targets of baselines."""

from gptbench.compare.baseline import Baseline

__all__ = ["Baseline"]
