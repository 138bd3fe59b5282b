"""What a sweeper passes to its jobs, wherever they run: `plan.json` in the folder that Hydra made for the sweep."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from gptbench.base.errors import InputError, UserError
from gptbench.base.inputs import read_json
from gptbench.base.outputs import write_json
from gptbench.schema.restore import restored

PLAN = "plan.json"
STOP = "stop"
"""File beside the plan, present once no further job is to begin."""
LOCK = ".sweep.lock"
"""File beside the plan that is locked by the sweeper."""


@dataclass(kw_only=True)
class Plan:
    """Plan of one call of a sweep."""

    sweep: str
    """Folder of the sweep that the jobs belong to: that of an earlier call, if it is resumed."""
    identity: str
    """Hash of what all jobs measure."""
    resume: bool
    """Whether jobs that are already recorded are skipped."""
    started: str
    """Start of the call, ISO 8601."""
    command: list[str]
    """Command line that repeats the call."""
    config: dict[str, Any]
    """Resolved configuration of the first job."""
    jobs: dict[str, list[str]]
    """Folder of each job below that of the sweep, and its overrides for the keys that the sweep varies."""

    def save(self, folder: Path) -> None:
        write_json(folder / PLAN, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the plan in a folder. Raises UserError if there is none."""
        try:
            return restored(cls, read_json(folder / PLAN))
        except InputError as error:
            raise UserError(f"{folder / PLAN}: not the plan of a sweep: {error}") from error
