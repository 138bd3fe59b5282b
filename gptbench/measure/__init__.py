"""Measure: samples, compile time, bytes, the read roof, the machine; quality beside speed; single kernels."""

from gptbench.measure.kernels import Kernels
from gptbench.measure.quality import Quality, Speed

__all__ = ["Kernels", "Quality", "Speed"]
