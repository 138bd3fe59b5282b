"""Private parts of Hydra that gptbench relies on (its version is held below 1.4).

- The loader of configurations and its repository of files: `gptbench.config.guard` subclasses them
  (`load_configuration`, `initialize_sources`, `load_config`) and makes Hydra use the subclasses (`replace_loader`),
  which the guard verifies. `yaml_file` finds the file of a configuration. - Hydra composes without a run
  (`main_hydra`), and one function saves a job's configuration (`replace_saving`). - Its parser of the command line
  (`arguments_parser`), its parsed values (`element`), its function for sorting values (`sort`), and its list of plugins
  (`register_plugin`).

The base classes are looked up when this module is imported, everything else where it is used."""

import importlib
from argparse import Action, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbench.private import part

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from hydra._internal.hydra import Hydra
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig
else:
    ConfigLoaderImpl = part("hydra._internal.config_loader_impl", "ConfigLoaderImpl")
    ConfigRepository = part("hydra._internal.config_repository", "ConfigRepository")

__all__ = ["ConfigLoaderImpl", "ConfigRepository"]

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""Name of Hydra's default launcher. Hydra loads its plugins' files anew, so that its class is not the one that an
import would give."""


def replace_loader(loader: type[ConfigLoaderImpl]) -> None:
    """Makes Hydra load configurations through another class."""
    internals: Any = importlib.import_module("hydra._internal.hydra")
    internals.ConfigLoaderImpl = loader


def replace_saving(save: "Callable[[DictConfig, str, Path], None]") -> None:
    """Makes Hydra save the configuration of a job through another function, which takes configuration, file and
    folder."""
    utils: Any = importlib.import_module("hydra.core.utils")
    utils._save_config = save


def search_path(folder: str | None) -> "ConfigSearchPath":
    """Return Hydra's search path for configurations. Raises UserError."""
    return part("hydra._internal.utils", "create_config_search_path")(folder)


def main_hydra(name: str, path: "ConfigSearchPath") -> "Hydra":
    """Return a Hydra object as for a command line; it becomes the global one. Raises UserError."""
    return part("hydra._internal.hydra", "Hydra").create_main_hydra2(name, path)


def arguments_parser() -> ArgumentParser:
    """Return the parser of Hydra's options, which accepts abbreviations. Raises UserError."""
    return part("hydra._internal.utils", "get_args_parser")()


def yaml_file(repository: ConfigRepository, name: str) -> Path | None:
    """Return the file from which a repository reads a configuration; None if it is not from a file."""
    from hydra.core.object_type import ObjectType

    source = repository._find_object_source(name, ObjectType.CONFIG)
    if source is None or source.scheme() != "file":
        return None
    return Path(source.path, source._normalize_file_name(name))


def options(parser: ArgumentParser) -> list[Action]:
    """Return the options of a parser, of which argparse has no public list."""
    return [action for action in parser._actions if action.option_strings]


def arguments(parser: ArgumentParser) -> list[Action]:
    """Return the positional arguments of a parser."""
    return [action for action in parser._actions if not action.option_strings]


def sort(*values: Any, **options: Any) -> Any:
    """Return what Hydra's function `sort` makes of swept values. Raises UserError."""
    return part("hydra._internal.grammar.grammar_functions", "sort")(*values, **options)


def element(override: "Override") -> Any:
    """Return the parsed value of an override."""
    return override._value


def register_plugin(name: str, plugin: type) -> None:
    """Registers a class as a plugin of Hydra, which otherwise finds plugins only in its package and `hydra_plugins`."""
    from hydra.core.plugins import Plugins

    Plugins.instance().class_name_to_class[name] = plugin
