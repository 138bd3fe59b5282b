"""Instantiates the class that `_target_` names: only those listed by a dataclass of `gptbench.config`, and never nested
ones."""

from typing import Any

from hydra.utils import get_class

from gptbench.base.errors import UserError
from gptbench.config.plugins import file_of
from gptbench.config.section import Section

PLUGINS: dict[str, type] = {}
"""`_target_` of each class that a plugin registered, mapped to the class."""


def target_of(plugin: type) -> str:
    """Return the `_target_` of a plugin's class: the name of its file (without folders) or module, and the class's
    name.

    Raises:
        UserError: another plugin already has a class of that name."""
    file = file_of(plugin.__module__)
    name = f"{plugin.__module__ if file is None else file.stem}.{plugin.__qualname__}"
    if PLUGINS.setdefault(name, plugin) is not plugin:
        raise UserError(f"{name}: another plugin already has a class of that name")
    return name


def target(section: Section) -> Any:
    """Return the class that ``section._target_`` names; it was checked against its group's list when the section was
    made."""
    return PLUGINS.get(section._target_) or get_class(section._target_)


def instantiate(section: Section, *args: Any) -> Any:
    """Return an object of the class that ``section._target_`` names, built from the section and `args`.

    Hydra's `instantiate` would call anything that is named, even in a nested value; here the section is passed as data.
    """
    return target(section)(section, *args)
