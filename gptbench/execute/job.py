"""One of Hydra's jobs: a single run, or a job of a sweep."""

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
from gptbench.config.run_folder import forget
from gptbench.text.prompt import make_tokenizer, with_prompt

if TYPE_CHECKING:
    from gptbench.execute.reuse import Session
    from gptbench.schema import Recorded
    from gptbench.schema.outcome import Outcome


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to be done, as plain data that can go to another process."""

    asked: Config
    """Validated configuration as it was given, which is recorded."""
    config: Config
    """The same, ready to run: with its prompt as tokens, and absolute folders."""
    command: list[str]
    """Command line that repeats it."""
    folder: Path
    """Folder for its record."""
    sweep: Path | None = None
    """Folder of the sweep that it belongs to."""
    swept: list[str] = dataclasses.field(default_factory=list)
    """Overrides of the job for the keys that the sweep varies."""
    resume: bool = False
    """Whether an earlier measurement of the same identity serves as well."""
    started: str = dataclasses.field(default_factory=now)
    """Start of the job, ISO 8601."""

    @property
    def outputs(self) -> Path:
        """Folder of all outputs."""
        return Path(self.config.outputs)


class Header(TypedDict):
    """Fields of every record of a job."""

    command: list[str]
    sweep: str | None
    swept: list[str]
    identity: str | None


@dataclasses.dataclass
class Attempt:
    """Progress of a job."""

    job: Job
    identity: str | None = None
    """Hash of what is measured, see `gptbench.record.identity`; known once the device is known."""
    record: "Recorded | None" = None
    """Measurement, or record of a failure, once it is in a file."""
    path: Path | None = None
    """File of the record."""
    found: bool = False
    """Whether the record existed before."""

    def header(self) -> Header:
        """Return the fields of every record of the job."""
        job = self.job
        sweep = None if job.sweep is None else str(job.sweep)
        return Header(command=job.command, sweep=sweep, swept=job.swept, identity=self.identity)

    def save(self, record: "Recorded") -> Path:
        """Write the record to the job's folder, keep it, and return its path."""
        self.path = record.save(self.job.folder)
        self.record = record
        return self.path


class RaisedError(BaseException):
    """An error that a single run, or a sweep, has raised. As a BaseException it passes through Hydra, which prints a
    line about every Exception, and it is distinguishable from Hydra's own errors (`NotBegunError`).

    Args:
        error: the error that was raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def job(composed: DictConfig) -> "Outcome | None":
    """Validate the configuration that Hydra composed, and run it. Return the outcome for a job of a sweep.

    Raises:
        RaisedError: the error of a single run. If the run was refused, its folder is removed.
    """
    with lasting():  # nothing else sets it in a launcher's process
        return of_hydra(composed, HydraConfig.get())


session: "Session | None" = None
"""Session of this process: Hydra calls `job` for each of its jobs, and passes nothing from one to the next."""


def of_hydra(composed: DictConfig, hydra_config: HydraConf) -> "Outcome | None":
    """Run the configuration, given Hydra's own."""
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
    """Return the run that a configuration asks for, with the fields that its sweep adds."""
    asked = load(composed, hydra_config.overrides.task)
    config = from_folder(with_prompt(asked, make_tokenizer(asked.model)), Path(hydra_config.runtime.cwd))
    check_folder("outputs", config.outputs)
    command = ["python", "-m", "gptbench", *own_options(hydra_config), *hydra_config.overrides.task]
    return Job(asked, config, command, folder, **of_sweep)


def from_folder(config: Config, folder: Path) -> Config:
    """Return the configuration with the folders below the one in which the command was typed made absolute: a job on
    another machine may have another working directory."""
    config = dataclasses.replace(config, outputs=str(folder / config.outputs))
    folders: dict[str, Any] = {name: str(folder / getattr(config.engine, name)) for name in config.engine.FOLDERS}
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, **folders))


def own_options(hydra_config: HydraConf) -> list[str]:
    """Return the command-line options for plugins and for a folder of the user's own configurations."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return [*plugins.options(), *(["--config-dir", folders[0]] if folders else [])]
