"""What every task is that runs no engine: it measures something part by part, and makes a record of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from gptbench.config import Config
from gptbench.device import Device
from gptbench.schema import Measured


class Standalone:
    """A task without an engine; `RUNS_ENGINE` of its section is false.

    Args:
        task: the task's section.
        config: the run's.
        device: where it runs.
    """

    remark: str | None = None
    """What people should know before it begins."""

    def __init__(self, task: Any, config: Config, device: Device) -> None:
        self.task, self.config, self.device = task, config, device

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        """What else than configuration, versions and gptbench's code a number depends on: see `Runner.code_used`."""
        return None

    @property
    def parts(self) -> int:
        """How many things `measure` gives."""
        raise NotImplementedError

    def measure(self, stage: Callable[[str], AbstractContextManager[None]]) -> Iterator[Any]:
        """What is measured, one part after the other, each within a `stage` of its name."""
        raise NotImplementedError

    def record(self, parts: list[Any], **fields: Any) -> Measured:
        """What is recorded of the parts: all that `measure` gave until it ended, or was interrupted.

        Args:
            fields: those of every `Measured`, with `wall_s`, the seconds that measuring took, and `interrupted`,
                whether Ctrl-C has ended it.
        """
        raise NotImplementedError
