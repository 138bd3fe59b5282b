"""Refuses a configuration that would run something, before Hydra acts on it.

Hydra builds callbacks, launchers, sweepers and log handlers from what it composed, imports the packages that a search
path names, and sets environment variables, all before our code sees the configuration. `install` puts a loader into its
place that checks whatever was composed, for one run and for each job of a sweep, on whatever machine, and gives it out
only then. Errors: `ConfigError`.

What is trusted all the same is what the user chose to run or to be in: Python's own path, installed packages, the
environment, and any server that an address names.
"""

import functools
import logging
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from gptbench.base.errors import ConfigError, InputError, UserError
from gptbench.base.inputs import read_yaml, yaml_fault
from gptbench.base.outputs import atomic_write
from gptbench.base.redaction import redacted, redacted_message
from gptbench.config import Config
from gptbench.config.plugins import Plugins
from gptbench.config.refusal import check, environment_variable
from gptbench.private import hydra as private
from gptbench.private import version

SEARCH_PATHS = ("pkg://hydra.conf", "structured://")
"""Hydra's own, which are in every search path. A plugin's are in `hydra_plugins`, which Hydra imports anyhow."""


def install() -> None:
    """Puts the guard into Hydra's and OmegaConf's place; again, where it is there already.

    From then on a loader that Hydra makes raises ConfigError for what it must not compose.

    Raises:
        UserError: it does not, as another version of Hydra has another name for what is replaced.
    """
    private.replace_loader(GuardedLoader)
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)
    verify()


HOSTILE = ("+guard._target_=builtins.print", "+guard=${oc.env:PATH}")
"""What each alone has to be refused."""


@functools.cache
def verify() -> None:
    """Has Hydra compose, the way it does for a command line, what must be refused. Raises UserError if it is not."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        hydra = private.main_hydra("guard", private.search_path(None))
        for override in HOSTILE:
            try:
                hydra.config_loader.load_configuration(None, [override], RunMode.RUN)
            except ConfigError as error:
                if error.field.startswith("guard"):
                    continue
            raise UserError(
                f"hydra-core {version('hydra')}: gptbench cannot guard it against "
                "configurations that run code: install a version that its requirements allow "
                "(pip install 'hydra-core>=1.3.8,<1.4')"
            )
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def check_arguments(arguments: list[str]) -> None:
    """Refuses options of Hydra's command line that unpickle a file or import a package.

    Raises:
        ConfigError: one of them is there.
        SystemExit: as Hydra's own parser does.
    """
    options, _ = private.arguments_parser().parse_known_args(arguments)  # which knows abbreviations
    if (file := options.experimental_rerun) is not None:
        raise ConfigError("--experimental-rerun", file, "no such option: it unpickles the file, which runs its code")
    if (folder := options.config_path) is not None and not (Path(folder).is_absolute() and Path(folder).is_dir()):
        raise ConfigError("--config-path", folder, "the absolute path of a folder")
    if options.config_dir is not None:
        require_folder(options.config_dir)


def require_folder(config_dir: str) -> None:
    """Raises ConfigError for a folder of the user's own configurations that is not there."""
    if not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", config_dir, "a folder with configurations, such as model/mine.yaml in it")


def save_config(config: DictConfig | ListConfig, filename: str, output_dir: Path) -> None:
    """Hydra's own `_save_config`, without secrets: it keeps overrides as they were typed."""
    without = OmegaConf.create(redacted(OmegaConf.to_container(config, resolve=False)))
    atomic_write(output_dir / filename, OmegaConf.to_yaml(without))


def log_record(*args: Any, **options: Any) -> logging.LogRecord:
    """One of logging's own records, without secrets: Hydra logs the overrides of each job, and libraries what they ask
    a server for."""
    record = logging.LogRecord(*args, **options)
    try:
        record.msg, record.args = redacted_message(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redacted_message(logging.Formatter().formatException(record.exc_info))
    except Exception:  # arguments that do not fit the message, which logging tells of
        return record
    return record


private.replace_saving(save_config)
logging.setLogRecordFactory(log_record)


class GuardedRepository(private.ConfigRepository):
    """Hydra's sources of configurations: folders only."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        for element in config_search_path.get_path():
            scheme, separator, _ = str(element.path).partition("://")
            known = element.path in SEARCH_PATHS or str(element.path).startswith("pkg://hydra_plugins.")
            if separator and scheme != "file" and not known:
                raise ConfigError("hydra.searchpath", element.path, "folders: a package would be imported")
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        if (file := private.yaml_file(self, config_path)) is not None:
            read_yaml(file)
        try:
            return super().load_config(config_path)
        except YAMLError as error:
            raise InputError(f"{file or config_path}, {yaml_fault(error)}") from error


class GuardedLoader(private.ConfigLoaderImpl):
    """Hydra's loader, which gives out nothing that `check` refuses."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.plugins = Plugins()  # where a worker of a launcher unpickles the loader, it imports them
        self.config_search_path = config_search_path
        self.repository = GuardedRepository(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        composed = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if config_name is not None and OmegaConf.get_type(composed) is not Config:
            raise ConfigError("--config-name", config_name, "a file whose defaults begin with schema, as config.yaml's")
        job = OmegaConf.to_container(composed.hydra.job, resolve=False)
        assert isinstance(job, dict)
        composed.hydra.job.override_dirname = redacted(
            job["override_dirname"]
        )  # the name of a folder can be made of it
        check(composed)
        return composed
