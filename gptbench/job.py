"""One job of Hydra's: a single run, or one of a sweep."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gptbench.config import load
from gptbench.guard import redact_files
from gptbench.prompt import make_tokenizer, with_prompt

if TYPE_CHECKING:
    from gptbench.record.outcome import Outcome
    from gptbench.run import Job


def job(composed: DictConfig) -> "Outcome | None":
    """Validates what Hydra composed, and runs it. Of a job of a sweep, it gives what came of it.

    Raises:
        UserError, BadResultError, JobError: of a single run.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.output_subdir is not None:
        redact_files(folder / hydra_config.output_subdir)
    if hydra_config.mode is not RunMode.MULTIRUN:
        read = read_job(composed, hydra_config, folder)
    from gptbench import attempt  # after validation: importing torch takes seconds

    if hydra_config.mode is not RunMode.MULTIRUN:
        attempt.alone(read)
        return None
    return attempt.of_sweep(folder, Path(hydra_config.sweep.dir), lambda: read_job(composed, hydra_config, folder))


def read_job(composed: DictConfig, hydra_config: HydraConf, folder: Path) -> "Job":
    """The run that a configuration asks for."""
    config = load(composed, hydra_config.overrides.task)
    tokenizer = make_tokenizer(config.model)
    config = with_prompt(config, tokenizer)
    # A job on another machine may have another working directory.
    config = dataclasses.replace(config, outputs=str(Path(hydra_config.runtime.cwd) / config.outputs))
    from gptbench.run import Job  # after validation

    resolved = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    return Job(
        config,
        {str(group): values for group, values in resolved.items()},
        ["python", "-m", "gptbench", *own_configs(hydra_config), *hydra_config.overrides.task],
        folder,
    )


def own_configs(hydra_config: HydraConf) -> list[str]:
    """The option for a folder of the user's own configurations, as it was given."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return ["--config-dir", folders[0]] if folders else []
