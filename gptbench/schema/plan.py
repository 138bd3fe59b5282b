"""What a sweeper tells its jobs, wherever they run: `plan.json` in the folder that Hydra made for the sweep."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from gptbench.base.errors import InputError, UserError
from gptbench.base.inputs import read_json
from gptbench.base.outputs import write_json
from gptbench.schema.restore import restored

PLAN = "plan.json"
STOP = "stop"
"""A file beside it, once no further job is to begin."""
LOCK = ".sweep.lock"
"""A file beside it, locked by the sweeper."""


@dataclass(kw_only=True)
class Plan:
    """Of one call of a sweep."""

    sweep: str
    """Folder of the sweep that the jobs belong to: an earlier one, where that is resumed."""
    identity: str
    """Hash of what all jobs ask for."""
    resume: bool
    """Whether a job that is recorded is not run again."""
    started: str
    """When, ISO 8601."""
    command: list[str]
    config: dict[str, Any]
    """What all jobs begin with, resolved."""
    jobs: dict[str, list[str]]
    """Folder of each job, in the sweep's, to the overrides that the sweep varies."""

    def save(self, folder: Path) -> None:
        write_json(folder / PLAN, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises UserError if there is none."""
        try:
            return restored(cls, read_json(folder / PLAN))
        except InputError as error:
            raise UserError(f"{folder / PLAN}: not the plan of a sweep: {error}") from error
