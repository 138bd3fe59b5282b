"""Tasks: what is measured of a model: speed, quality beside it, or single kernels."""

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
    """Makes a plugin's task one that `task=NAME` selects.

    Args:
        section: its settings, a dataclass of its own whose fields have defaults; `RUNS_ENGINE` says which of the two
            kinds of task it is.
        task: what measures: a subclass of `Speed` beside an engine, else of `Standalone`.
        record: what a `Standalone` makes, a kind of its own.

    Raises:
        UserError: there is a task, or a kind of record, of that name.
    """
    if record is not None and KINDS.get(record.FILE, record) is not record:
        raise UserError(f"{record.FILE}: there is a kind of record of that name")
    section.TARGETS = (target_of(task),)
    add_option(name, section.named(name))
    if record is not None:
        KINDS[record.FILE] = record
