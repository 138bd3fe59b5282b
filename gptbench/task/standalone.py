"""The base class of tasks that run no engine: they measure something part by part and make another kind of record."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from gptbench.config import Config
from gptbench.device import Device
from gptbench.schema import Measured


class Standalone:
    """A task without an engine; `RUNS_ENGINE` of its section is false.

    Args:
        task: task section of the configuration.
        config: configuration of the run.
        device: device to measure.
    """

    remark: str | None = None
    """Remark shown to the user before the measurement begins."""

    def __init__(self, task: Any, config: Config, device: Device) -> None:
        self.task, self.config, self.device = task, config, device

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        """Return anything besides configuration, versions and gptbench's code that results depend on: see
        `Runner.code_used`."""
        return None

    @property
    def parts(self) -> int:
        """Number of parts that `measure` yields."""
        raise NotImplementedError

    def measure(self, stage: Callable[[str], AbstractContextManager[None]]) -> Iterator[Any]:
        """Measure and yield one part after the other, each within a `stage` of its name."""
        raise NotImplementedError

    def record(self, parts: list[Any], **fields: Any) -> Measured:
        """Return the record of the parts that `measure` yielded before it ended or was interrupted.

        Args:
            parts: measured parts.
            fields: fields of every `Measured`, plus `wall_s`, the seconds that measuring took, and `interrupted`,
                whether Ctrl-C ended it.
        """
        raise NotImplementedError
