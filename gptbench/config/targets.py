"""Instantiates what `_target_` names: only targets that a dataclass of `gptbench.config` lists, and nothing nested."""

from typing import Any

from hydra.utils import get_class

from gptbench.config import Section


def target(section: Section) -> Any:
    """The class behind ``section._target_``, which passed the list of its group when it was made."""
    return get_class(section._target_)


def instantiate(section: Section, *args: Any) -> Any:
    """Builds that class from the section and `args`.

    Hydra's own `instantiate` would run any callable, also one hidden in a nested value; here the section is handed over
    as data.
    """
    return target(section)(section, *args)
