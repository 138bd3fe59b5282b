"""Tasks: what a run measures, which is speed, speed and quality, or single kernels."""

from gptbench.base.errors import UserError
from gptbench.config import TaskConfig, add_option
from gptbench.config.targets import target_of
from gptbench.schema import Measured
from gptbench.schema.files import KINDS
from gptbench.task.kernels import Kernels
from gptbench.task.quality import Quality
from gptbench.task.speed import Speed
from gptbench.task.standalone import Standalone

__all__ = ["Kernels", "Quality", "Speed", "Standalone", "register_task"]


def register_task(
    name: str, section: type[TaskConfig], task: type[Speed] | type[Standalone], record: type[Measured] | None = None
) -> None:
    """Register a plugin's task, which `task=NAME` then selects.

    Args:
        name: name of the task.
        section: settings of the task, a dataclass whose fields have defaults; its `RUNS_ENGINE` says whether the task
            runs an engine.
        task: class that measures: a subclass of `Speed` if the task runs an engine, else of `Standalone`.
        record: class of the record that a `Standalone` task makes.

    Raises:
        UserError: another task, or another kind of record, has that name.
    """
    if record is not None and KINDS.get(record.FILE, record) is not record:
        raise UserError(f"{record.FILE}: another kind of record already has this name")
    section.TARGETS = (target_of(task),)
    add_option(name, section.named(name))
    if record is not None:
        KINDS[record.FILE] = record
