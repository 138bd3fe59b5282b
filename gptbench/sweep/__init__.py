"""Sweep: which jobs there are, and what becomes of them."""

from gptbench.sweep.space import Dimension, Interval, Product, Random, Sobol, Space

__all__ = ["Dimension", "Interval", "Product", "Random", "Sobol", "Space"]
