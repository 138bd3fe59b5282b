"""Recording: identities, the ledger of jobs, and logging of records to a tracker."""

from gptbench.record.tracking import MLflowTracker, NoTracker, Tracker

__all__ = ["MLflowTracker", "NoTracker", "Tracker"]
