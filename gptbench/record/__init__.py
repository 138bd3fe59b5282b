"""Record: what was measured goes to disk, and where it is logged."""

from gptbench.record.tracking import MLflowTracker, NoTracker, Tracker

__all__ = ["MLflowTracker", "NoTracker", "Tracker"]
