"""The one way in: `python -m gptbench [overrides]`, and `python -m gptbench COMMAND` for what needs no run."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gptbench.config import explain, load, register
from gptbench.errors import BadResultError, UserError
from gptbench.paths import conf_folder
from gptbench.prompt import make_tokenizer, with_prompt


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def job(composed: DictConfig) -> None:
    """One job of Hydra's: validates what it composed, and runs it."""
    hydra_config = HydraConfig.get()
    config = load(composed, hydra_config.overrides.task)
    tokenizer = make_tokenizer(config.model)
    config = with_prompt(config, tokenizer)
    from gptbench.run import run  # after validation: importing torch takes seconds

    resolved = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    run(
        config,
        tokenizer,
        {str(group): values for group, values in resolved.items()},
        ["python", "-m", "gptbench", *own_configs(hydra_config), *hydra_config.overrides.task],
        Path(hydra_config.runtime.output_dir),
        Path(hydra_config.sweep.dir).resolve() if hydra_config.mode is RunMode.MULTIRUN else None,
    )


def own_configs(hydra_config: HydraConf) -> list[str]:
    """The option for a folder of the user's own configurations, as it was given."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return ["--config-dir", folders[0]] if folders else []


def log(arguments: list[str]) -> int:
    """Logs recorded results to a tracking server."""
    from gptbench.record.tracking import log_command

    return log_command(arguments)


def cache(arguments: list[str]) -> int:
    """Saves what was compiled to a file, or loads it."""
    from gptbench.compile_cache import cache_command

    return cache_command(arguments)


MULTIRUN = ("-m", "--multirun")


def flags_first(arguments: list[str]) -> list[str]:
    """The same, a sweep's flag before what it sweeps over: argparse refuses one between Hydra's overrides."""
    return sorted(arguments, key=lambda argument: argument not in MULTIRUN)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"log": log, "cache": cache}


def main() -> int:
    """Runs what the command line asks for; the exit code is 2 where the user can put it right."""
    tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would end the process with exit code 1 and a traceback of its own; we tell its errors from ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if sys.argv[1:] and sys.argv[1] in COMMANDS:
            return COMMANDS[sys.argv[1]](sys.argv[2:])
        sys.argv[1:] = flags_first(sys.argv[1:])
        register()
        job()
        return 0
    except BadResultError as error:
        print(f"gptbench: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        # Whatever goes wrong before the job began is about what was asked for; after that, only a UserError is.
        if tracebacks or not (isinstance(error, UserError) or is_composing(error)):
            raise
        print(f"gptbench: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gptbench: interrupted", file=sys.stderr)
        return 130


def is_composing(error: Exception) -> bool:
    """Whether Hydra raised it before it called `job`."""
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return "decorated_main" in names and job.__name__ not in names


if __name__ == "__main__":
    sys.exit(main())
