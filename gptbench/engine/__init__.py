"""Engines: what turns a model into something that prefills and decodes. One file for each engine.

`gptbench.engine.fused` is imported where it is selected: it needs Triton, which not every platform has.
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
    """Register a plugin's engine, so that `engine=NAME` selects it and `engine.order` of `engine=auto` may name it.

    Args:
        name: name of the option.
        section: configuration section with the engine's settings, a dataclass whose fields have defaults.
        engine: a subclass of `Runner`, or of `Engine` if it runs gptbench's own model.

    Raises:
        UserError: an engine of that name exists already.
    """
    section.TARGETS = (target_of(engine),)
    add_option(name, section.named(name))
    ENGINES[name] = section
