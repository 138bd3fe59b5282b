"""Rejects a configuration that would run code, before Hydra acts on it.

Hydra builds callbacks, launchers, sweepers and log handlers from the configuration that it composed, imports the
packages that a search path names, and sets environment variables, all before gptbench's code sees the configuration.
`install` replaces Hydra's loader by one that checks every composed configuration (of a run, and of each job of a sweep,
on any machine) before it returns it. A rejected one raises `ConfigError`.

Python's path, installed packages, the environment, and any server that an address names are trusted.
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
from gptbench.config.run_folder import remember
from gptbench.private import hydra as private
from gptbench.private import version

SEARCH_PATHS = ("pkg://hydra.conf", "structured://")
"""Hydra's entries, which every search path has. Those of plugins are in `hydra_plugins`, which Hydra imports anyway."""


def install() -> None:
    """Installs the guard in Hydra and OmegaConf; it can be called more than once.

    From then on a loader that Hydra creates raises ConfigError for a configuration that is not allowed.

    Raises:
        UserError: the guard has no effect, because another version of Hydra names its loader differently.
    """
    private.replace_loader(GuardedLoader)
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)
    verify()


HOSTILE = ("+guard._target_=builtins.print", "+guard=${oc.env:PATH}")
"""Overrides each of which the guard has to reject."""


@functools.cache
def verify() -> None:
    """Has Hydra compose the `HOSTILE` overrides as for a command line. Raises UserError if one of them is not
    rejected."""
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
                f"hydra-core {version('hydra')}: gptbench cannot guard this version against "
                "configurations that run code; install one that gptbench's requirements allow "
                "(pip install 'hydra-core>=1.3.8,<1.4')"
            )
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def check_arguments(arguments: list[str]) -> None:
    """Rejects options of Hydra's command line that unpickle a file or import a package.

    Raises:
        ConfigError: the arguments have one of these options.
        SystemExit: the arguments cannot be parsed; raised by Hydra's parser.
    """
    options, _ = private.arguments_parser().parse_known_args(arguments)  # this also finds abbreviated options
    if (file := options.experimental_rerun) is not None:
        raise ConfigError(
            "--experimental-rerun", file, "this option not to be used: it unpickles the file, which can run code"
        )
    if (folder := options.config_path) is not None and not (Path(folder).is_absolute() and Path(folder).is_dir()):
        raise ConfigError("--config-path", folder, "the absolute path of a folder")
    if options.config_dir is not None:
        require_folder(options.config_dir)


def require_folder(config_dir: str) -> None:
    """Raises ConfigError if the folder of the user's configurations does not exist."""
    if not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", config_dir, "a folder that has configurations in it, such as model/mine.yaml")


def save_config(config: DictConfig | ListConfig, filename: str, output_dir: Path) -> None:
    """Writes a configuration as Hydra's `_save_config` does, but without secrets: overrides are saved as they were
    typed."""
    redacted_config = OmegaConf.create(redacted(OmegaConf.to_container(config, resolve=False)))
    atomic_write(output_dir / filename, OmegaConf.to_yaml(redacted_config))


def log_record(*args: Any, **options: Any) -> logging.LogRecord:
    """Return a log record without secrets: Hydra logs the overrides of each job, and libraries log their requests to
    servers."""
    record = logging.LogRecord(*args, **options)
    try:
        record.msg, record.args = redacted_message(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redacted_message(logging.Formatter().formatException(record.exc_info))
    except Exception:  # arguments that do not fit the message; logging reports that
        return record
    return record


private.replace_saving(save_config)
logging.setLogRecordFactory(log_record)


class GuardedRepository(private.ConfigRepository):
    """Hydra's repository of configurations, limited to folders."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        for element in config_search_path.get_path():
            scheme, separator, _ = str(element.path).partition("://")
            known = element.path in SEARCH_PATHS or str(element.path).startswith("pkg://hydra_plugins.")
            if separator and scheme != "file" and not known:
                raise ConfigError("hydra.searchpath", element.path, "folders only, because a package would be imported")
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        if (file := private.yaml_file(self, config_path)) is not None:
            read_yaml(file)
        try:
            return super().load_config(config_path)
        except YAMLError as error:
            raise InputError(f"{file or config_path}, {yaml_fault(error)}") from error


class GuardedLoader(private.ConfigLoaderImpl):
    """Hydra's loader, which returns only configurations that pass `check`."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.plugins = Plugins()  # a launcher's worker imports them when it unpickles the loader
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
            raise ConfigError(
                "--config-name", config_name, "a file whose defaults begin with schema, as in config.yaml"
            )
        job = OmegaConf.to_container(composed.hydra.job, resolve=False)
        assert isinstance(job, dict)
        # It can become the name of a folder.
        composed.hydra.job.override_dirname = redacted(job["override_dirname"])
        check(composed)
        if config_name is not None and run_mode is RunMode.RUN:
            remember(composed)
        return composed
