"""Measure: samples, compile time, bytes, the read roof, the machine; and, as a task beside speed, quality."""

from gptbench.measure.quality import Quality, Speed

__all__ = ["Quality", "Speed"]
