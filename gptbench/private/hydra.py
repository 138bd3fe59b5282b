"""What gptbench relies on of Hydra beyond what Hydra promises to keep (its version is held below 1.4).

- The loader of configurations, and its repository of files: `gptbench.config.guard` derives from them
  (`load_configuration`, `initialize_sources`, `load_config`), and Hydra takes what stands in their place
  (`replace_loader`): the guard itself tries whether it does. `yaml_file` finds the file of a configuration.
- Hydra composes without a run (`main_hydra`), and saves what a job was given by one function (`replace_saving`).
- Its parser of the command line (`arguments_parser`), its parsed values (`element`), its function for sorting values
  (`sort`), and its list of plugins (`register_plugin`).

The classes to derive from are looked up with this module, everything else where it is used.
"""

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
"""Hydra's own launcher, by name: Hydra loads the files of its plugins anew, and has another class than an import of
ours."""


def replace_loader(loader: type[ConfigLoaderImpl]) -> None:
    """Has Hydra load configurations through a class of ours."""
    internals: Any = importlib.import_module("hydra._internal.hydra")
    internals.ConfigLoaderImpl = loader


def replace_saving(save: "Callable[[DictConfig, str, Path], None]") -> None:
    """Has Hydra write what it composed for a job through a function of ours: configuration, file, folder."""
    utils: Any = importlib.import_module("hydra.core.utils")
    utils._save_config = save


def search_path(folder: str | None) -> "ConfigSearchPath":
    """Where Hydra looks for configurations. Raises UserError."""
    return part("hydra._internal.utils", "create_config_search_path")(folder)


def main_hydra(name: str, path: "ConfigSearchPath") -> "Hydra":
    """Hydra as a command line has it, which becomes the global one. Raises UserError."""
    return part("hydra._internal.hydra", "Hydra").create_main_hydra2(name, path)


def arguments_parser() -> ArgumentParser:
    """Of Hydra's own options, abbreviations included. Raises UserError."""
    return part("hydra._internal.utils", "get_args_parser")()


def yaml_file(repository: ConfigRepository, name: str) -> Path | None:
    """The file from which a repository takes a configuration; None where it is from none."""
    from hydra.core.object_type import ObjectType

    source = repository._find_object_source(name, ObjectType.CONFIG)
    if source is None or source.scheme() != "file":
        return None
    return Path(source.path, source._normalize_file_name(name))


def options(parser: ArgumentParser) -> list[Action]:
    """Options of a parser, which argparse itself has no list of; what has no name is none."""
    return [action for action in parser._actions if action.option_strings]


def arguments(parser: ArgumentParser) -> list[Action]:
    """What a parser takes beside options."""
    return [action for action in parser._actions if not action.option_strings]


def sort(*values: Any, **options: Any) -> Any:
    """Hydra's function `sort` of a sweep's values. Raises UserError."""
    return part("hydra._internal.grammar.grammar_functions", "sort")(*values, **options)


def element(override: "Override") -> Any:
    """The parsed value of an override."""
    return override._value


def register_plugin(name: str, plugin: type) -> None:
    """Makes a class known to Hydra, which takes plugins from its own package and from `hydra_plugins` alone, and looks
    them up by name."""
    from hydra.core.plugins import Plugins

    Plugins.instance().class_name_to_class[name] = plugin
