"""Sweeps: which jobs there are, and running them."""

from gptbench.sweep.space import Dimension, Interval, Product, Random, Sobol, Space

__all__ = ["Dimension", "Interval", "Product", "Random", "Sobol", "Space"]
