"""Tasks: what is measured of a model: speed, quality beside it, or single kernels."""

from gptbench.task.kernels import Kernels
from gptbench.task.quality import Quality
from gptbench.task.speed import Speed

__all__ = ["Kernels", "Quality", "Speed"]
