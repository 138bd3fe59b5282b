"""Schema: what is recorded, as dataclasses, and what they say."""

from gptbench.schema.failure import Failure
from gptbench.schema.kernels import KernelResult
from gptbench.schema.result import Measured, Recorded, Result
from gptbench.schema.sweep import SweepRecord

__all__ = ["Failure", "KernelResult", "Measured", "Recorded", "Result", "SweepRecord"]
