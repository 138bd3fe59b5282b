"""Dataclasses of everything that is recorded, and statistics computed from them. Nothing here imports torch."""

from gptbench.schema.failure import Failure
from gptbench.schema.kernels import KernelResult
from gptbench.schema.record import Measured, Recorded
from gptbench.schema.result import Result
from gptbench.schema.sweep import SweepRecord

__all__ = ["Failure", "KernelResult", "Measured", "Recorded", "Result", "SweepRecord"]
