"""One job of Hydra's: a single run, or one of a sweep."""

import contextlib
import dataclasses
import datetime
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gptbench.base.errors import UserError
from gptbench.base.outputs import check_folder
from gptbench.base.streams import lasting
from gptbench.config import Config, load, plugins
from gptbench.text.prompt import make_tokenizer, with_prompt

if TYPE_CHECKING:
    from gptbench.execute.reuse import Session
    from gptbench.schema import Recorded
    from gptbench.schema.outcome import Outcome


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run as it was asked for, as plain data that can go to another process."""

    asked: Config
    """Validated: what is recorded of it."""
    config: Config
    """The same ready to run: its prompt as tokens, its folders wherever it runs."""
    command: list[str]
    """Command line that repeats it."""
    folder: Path
    """For its record."""
    sweep: Path | None = None
    """Folder of the sweep that it belongs to."""
    swept: list[str] = dataclasses.field(default_factory=list)
    """The overrides that the sweep varies."""
    resume: bool = False
    """Whether an earlier measurement of the same identity will do."""
    started: str = dataclasses.field(default_factory=now)
    """When, ISO 8601."""

    @property
    def outputs(self) -> Path:
        return Path(self.config.outputs)


class Header(TypedDict):
    """Fields of every record of a job."""

    command: list[str]
    sweep: str | None
    swept: list[str]
    identity: str | None


@dataclasses.dataclass
class Attempt:
    """What has come of a job so far."""

    job: Job
    identity: str | None = None
    """See `gptbench.record.identity`; known once it is known on which device it runs."""
    record: "Recorded | None" = None
    """What was measured, or why that failed, once it is in a file."""
    path: Path | None = None
    """The file."""
    found: bool = False
    """Whether it was there before."""

    def header(self) -> Header:
        job = self.job
        sweep = None if job.sweep is None else str(job.sweep)
        return Header(command=job.command, sweep=sweep, swept=job.swept, identity=self.identity)

    def save(self, record: "Recorded") -> Path:
        """Writes the record to the job's folder, and keeps it."""
        self.path = record.save(self.job.folder)
        self.record = record
        return self.path


class RaisedError(BaseException):
    """What a single run, or a sweep, has raised. It passes by Hydra, which prints a line of its own about every
    Exception, and tells it from what Hydra itself raises, which is `NotBegunError`.

    Args:
        error: that.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def forget(folder: Path, subfolder: str | None) -> None:
    """Removes a run's folder in which there is nothing but what Hydra put there before the run began, and the folders
    above it that it leaves empty."""
    known = {folder / subfolder / name for name in HYDRAS} if subfolder else set()
    logs = {file for file in folder.glob("*.log") if not file.stat().st_size}
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    if not set(files) <= known | logs:
        return
    for file in files:
        file.unlink()
    with contextlib.suppress(OSError):  # not empty
        for empty in ([folder / subfolder] if subfolder else []) + [folder, *folder.parents[:MAX_EMPTY]]:
            empty.rmdir()


HYDRAS = ("config.yaml", "hydra.yaml", "overrides.yaml")
"""Files that Hydra puts into a run's folder."""
MAX_EMPTY = 2
"""Folders above a run's that can have been made for it: the day's, and the outputs."""


def job(composed: DictConfig) -> "Outcome | None":
    """Validates what Hydra composed, and runs it. Of a job of a sweep, it gives what came of it.

    Raises:
        RaisedError: whatever a single run raises. Where it was refused, its folder is gone.
    """
    with lasting():  # in a launcher's process nobody else has begun
        return of_hydra(composed, HydraConfig.get())


session: "Session | None" = None
"""Of this process: Hydra calls `job` once for each of its jobs, and hands nothing from one to the next."""


def of_hydra(composed: DictConfig, hydra_config: HydraConf) -> "Outcome | None":
    """The same."""
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode is RunMode.MULTIRUN:
        from gptbench.execute import attempt
        from gptbench.execute.reuse import Session
        from gptbench.present.terminal import Terminal

        global session
        session = session or Session()
        read = functools.partial(read_job, composed, hydra_config, folder)
        return attempt.of_sweep(folder, Path(hydra_config.sweep.dir), read, session, Terminal)
    try:
        asked = read_job(composed, hydra_config, folder)
        from gptbench.execute import attempt  # after validation: importing torch takes seconds
        from gptbench.execute.reuse import Session
        from gptbench.present.terminal import Terminal

        attempt.alone(asked, Session(), Terminal(asked.config.quiet))
    except Exception as error:
        if isinstance(error, UserError):
            forget(folder, hydra_config.output_subdir)
        raise RaisedError(error) from error
    return None


def read_job(composed: DictConfig, hydra_config: HydraConf, folder: Path, **of_sweep: Any) -> Job:
    """The run that a configuration asks for, and what its sweep says of it."""
    asked = load(composed, hydra_config.overrides.task)
    config = from_folder(with_prompt(asked, make_tokenizer(asked.model)), Path(hydra_config.runtime.cwd))
    check_folder("outputs", config.outputs)
    command = ["python", "-m", "gptbench", *own_options(hydra_config), *hydra_config.overrides.task]
    return Job(asked, config, command, folder, **of_sweep)


def from_folder(config: Config, folder: Path) -> Config:
    """The same with what it keeps below the folder in which the command was typed: a job on another machine may have
    another working directory."""
    config = dataclasses.replace(config, outputs=str(folder / config.outputs))
    folders: dict[str, Any] = {name: str(folder / getattr(config.engine, name)) for name in config.engine.FOLDERS}
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, **folders))


def own_options(hydra_config: HydraConf) -> list[str]:
    """The options for plugins, and for a folder of the user's own configurations."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return [*plugins.options(), *(["--config-dir", folders[0]] if folders else [])]
