"""Record: the result on disk, and where it is logged."""

from gptbench.record.failure import Failure
from gptbench.record.kernels import KernelResult
from gptbench.record.result import Measured, Recorded, Result
from gptbench.record.sweep import SweepRecord
from gptbench.record.tracking import MLflowTracker, NoTracker, Tracker

__all__ = [
    "Failure",
    "KernelResult",
    "MLflowTracker",
    "Measured",
    "NoTracker",
    "Recorded",
    "Result",
    "SweepRecord",
    "Tracker",
]
