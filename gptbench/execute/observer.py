"""Observers of a measurement, such as the terminal: what they are notified of, never inside a timed region."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from gptbench.build import MemoryNeed
from gptbench.config import Config
from gptbench.device import Device
from gptbench.schema import Measured, Recorded, SweepRecord
from gptbench.schema.machine import Roof
from gptbench.schema.sample import Sample, Traffic


class Stages(Protocol):
    """Observer of the stages of a run, one after the other."""

    def stage(self, what: str, *, long: bool = False, counted: bool = True) -> AbstractContextManager[None]:
        """Return a context manager that lasts as long as one stage.

        Args:
            long: whether it may take long without progress, which a thread then reports. Never set it for samples,
                which the thread would disturb.
            counted: whether it is included in the announced total.
        """

    def reading(self, what: str, share: float) -> None:
        """Report the share of a checkpoint that has been read, from 0 to 1."""

    def sampled(self, sample: Sample) -> None:
        """Report a sample that was taken."""


class Observer(Protocol):
    """Observer of a run."""

    def planned(self, config: Config, device: Device, need: MemoryNeed) -> None:
        """Report what will be run, once it is known to fit into memory."""

    def stages(self, total: int | None, samples: int = 0) -> AbstractContextManager[Stages]:
        """Return a context manager for the stages of the run: their total number, samples included, or None if it is
        unknown."""

    def limit(self, traffic: Traffic, roof: Roof | None, config: Config) -> None:
        """Report the highest rate that the device's memory allows; `roof` is None if none was measured yet."""

    def remark(self, text: str, style: str | None = None) -> None:
        """Report a piece of information."""

    def warn(self, text: str, style: str = "yellow") -> None:
        """Report something that went wrong."""

    def measured(self, record: Measured, config: Config, path: Path | None) -> None:
        """Report a measurement and its file; None if the file could not be written, and this report is all that
        remains."""

    def swept(self, record: SweepRecord) -> None:
        """Report the outcomes of the jobs of a sweep."""

    def recorded(self, record: Recorded, path: Path, logged: str | None) -> None:
        """Report where a record lies, and where it is logged, if it is."""

    def concluded(self, record: Recorded, path: Path, config: Config, outputs: Path, logged: str | None) -> None:
        """Report the end of the run, and what can be done with the record now."""
