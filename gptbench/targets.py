"""Instantiates what `_target_` names: only targets that a dataclass of `gptbench.config` lists, and nothing nested."""

from typing import Any

from hydra.utils import get_class

from gptbench.config import Section


def instantiate(section: Section, *args: Any) -> Any:
    """Builds the class behind ``section._target_`` from the section and `args`.

    Hydra's own `instantiate` would run any callable, also one hidden in a nested value; here the section has passed
    its own list (`Section.TARGETS`) when it was made, and is handed over as data.
    """
    return get_class(section._target_)(section, *args)
