"""One job of Hydra's: a single run, or one of a sweep."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gptbench.base.errors import UserError
from gptbench.base.outputs import check_folder
from gptbench.base.streams import lasting
from gptbench.config import Config, FusedConfig, load, plugins
from gptbench.text.prompt import make_tokenizer, with_prompt

if TYPE_CHECKING:
    from gptbench.execute.run import Job
    from gptbench.schema.outcome import Outcome


class RaisedError(BaseException):
    """What a single run has raised. It passes by Hydra, which prints a line of its own about every Exception.

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


def of_hydra(composed: DictConfig, hydra_config: HydraConf) -> "Outcome | None":
    """The same."""
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode is RunMode.MULTIRUN:
        from gptbench.execute import attempt

        return attempt.of_sweep(folder, Path(hydra_config.sweep.dir), lambda: read_job(composed, hydra_config, folder))
    try:
        read = read_job(composed, hydra_config, folder)
        from gptbench.execute import attempt  # after validation: importing torch takes seconds

        attempt.alone(read)
    except Exception as error:
        if isinstance(error, UserError):
            forget(folder, hydra_config.output_subdir)
        raise RaisedError(error) from error
    return None


def read_job(composed: DictConfig, hydra_config: HydraConf, folder: Path) -> "Job":
    """The run that a configuration asks for."""
    config = load(composed, hydra_config.overrides.task)
    tokenizer = make_tokenizer(config.model)
    config = with_prompt(config, tokenizer)
    config = from_folder(config, Path(hydra_config.runtime.cwd))
    check_folder("outputs", config.outputs)
    from gptbench.execute.run import Job  # after validation
    from gptbench.present.console import console

    console.quiet = config.quiet
    resolved = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    return Job(
        config,
        {str(group): values for group, values in resolved.items()},
        ["python", "-m", "gptbench", *own_options(hydra_config), *hydra_config.overrides.task],
        folder,
    )


def from_folder(config: Config, folder: Path) -> Config:
    """The same with what it keeps below the folder in which the command was typed: a job on another machine may have
    another working directory."""
    config = dataclasses.replace(config, outputs=str(folder / config.outputs))
    if isinstance(config.engine, FusedConfig):
        engine = dataclasses.replace(config.engine, tiles=str(folder / config.engine.tiles))
        config = dataclasses.replace(config, engine=engine)
    return config


def own_options(hydra_config: HydraConf) -> list[str]:
    """The options for plugins, and for a folder of the user's own configurations."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return [*plugins.options(), *(["--config-dir", folders[0]] if folders else [])]
