"""Who looks on while something is measured: what it is told, never inside a timed region."""

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
    """Is told of the parts of a run, one after the other."""

    def stage(self, what: str, *, long: bool = False, counted: bool = True) -> AbstractContextManager[None]:
        """One part, from its beginning to its end.

        Args:
            long: whether it may take long without a word. Not of what is sampled: a thread wakes up now and then.
            counted: whether it is one of those that were announced.
        """

    def reading(self, what: str, share: float) -> None:
        """How much of a checkpoint is read."""

    def sampled(self, sample: Sample) -> None:
        """A sample was taken."""


class Observer(Protocol):
    """Is told of a run as a whole."""

    def planned(self, config: Config, device: Device, need: MemoryNeed) -> None:
        """What will be run, once it is known to fit."""

    def stages(self, total: int | None, samples: int = 0) -> AbstractContextManager[Stages]:
        """Its parts, so many of them, samples included; None where nobody knows."""

    def limit(self, traffic: Traffic, roof: Roof | None, config: Config) -> None:
        """What the device's memory allows at best; `roof` is None where none was measured yet."""

    def remark(self, text: str, style: str | None = None) -> None:
        """Something to know."""

    def warn(self, text: str, style: str = "yellow") -> None:
        """Something that went wrong."""

    def measured(self, record: Measured, config: Config, path: Path | None) -> None:
        """What was measured, and its file; None where that could not be written, so that this is all there is."""

    def swept(self, record: SweepRecord) -> None:
        """What the jobs of a sweep have come to."""

    def recorded(self, record: Recorded, path: Path, logged: str | None) -> None:
        """Where a record lies, and where it is logged, if it is."""

    def concluded(self, record: Recorded, path: Path, config: Config, outputs: Path, logged: str | None) -> None:
        """That was the last of it: what can be done with the record now."""
