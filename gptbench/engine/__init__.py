"""Prepare: what turns a model into something that prefills and decodes. One file for each engine.

`gptbench.engine.fused` is imported where it is asked for: it needs Triton, which is not on every platform.
"""

from gptbench.config import ENGINES, EngineConfig, add_option
from gptbench.config.targets import target_of
from gptbench.engine.auto import Auto
from gptbench.engine.base import Engine
from gptbench.engine.eager import Eager
from gptbench.engine.hf import HuggingFace
from gptbench.engine.inductor import Inductor
from gptbench.engine.runner import Runner, Shape

__all__ = ["Auto", "Eager", "Engine", "HuggingFace", "Inductor", "Runner", "Shape", "register_engine"]


def register_engine(name: str, section: type[EngineConfig], engine: type[Runner]) -> None:
    """Makes a plugin's engine one that `engine=NAME` selects, and that `engine.order` of `engine=auto` may name.

    Args:
        section: its settings, a dataclass of its own whose fields have defaults.
        engine: what runs, a subclass of `Runner`, or of `Engine` if it runs gptbench's own model.

    Raises:
        UserError: there is an engine of that name.
    """
    section.TARGETS = (target_of(engine),)
    add_option(name, section.named(name))
    ENGINES[name] = section
