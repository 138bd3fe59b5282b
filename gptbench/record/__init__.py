"""Record: the result on disk, and where it is logged."""

from gptbench.record.kernels import KernelResult
from gptbench.record.result import Recorded, Result
from gptbench.record.tracking import MLflowTracker, NoTracker, Tracker

__all__ = ["KernelResult", "MLflowTracker", "NoTracker", "Recorded", "Result", "Tracker"]
