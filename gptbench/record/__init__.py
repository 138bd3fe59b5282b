"""Record: the result on disk, and where it is logged."""

from gptbench.record.result import Result
from gptbench.record.tracking import MLflowTracker, NoTracker, Tracker

__all__ = ["MLflowTracker", "NoTracker", "Result", "Tracker"]
