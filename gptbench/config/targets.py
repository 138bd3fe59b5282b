"""Instantiates what `_target_` names: only targets that a dataclass of `gptbench.config` lists, and nothing nested."""

from typing import Any

from hydra.utils import get_class

from gptbench.base.errors import UserError
from gptbench.config.plugins import file_of
from gptbench.config.section import Section

PLUGINS: dict[str, type] = {}
"""Classes that plugins registered, by their `_target_`."""


def target_of(plugin: type) -> str:
    """The `_target_` of a class of a plugin's: the name of its file (wherever that lies) or module, and its own.

    Raises:
        UserError: another plugin has a class of that name.
    """
    file = file_of(plugin.__module__)
    name = f"{plugin.__module__ if file is None else file.stem}.{plugin.__qualname__}"
    if PLUGINS.setdefault(name, plugin) is not plugin:
        raise UserError(f"{name}: there is another plugin's class of that name")
    return name


def target(section: Section) -> Any:
    """The class behind ``section._target_``, which passed the list of its group when it was made."""
    return PLUGINS.get(section._target_) or get_class(section._target_)


def instantiate(section: Section, *args: Any) -> Any:
    """Builds that class from the section and `args`.

    Hydra's own `instantiate` would run any callable, also one hidden in a nested value; here the section is handed over
    as data.
    """
    return target(section)(section, *args)
