"""Finds out which engines run on this machine, and what the others need. Imports torch."""

from collections.abc import Mapping
from dataclasses import replace

from gptbench.commands.ab import composed
from gptbench.config import AutoConfig, EngineConfig, load
from gptbench.config.targets import target
from gptbench.device.group import DeviceGroup
from gptbench.engine import Runner


def lacking(sections: Mapping[str, type[EngineConfig]]) -> dict[str, str | None]:
    """Return what each engine lacks for the default run on the default device; None for an engine that runs."""
    config = load(composed(["engine=eager", "tracking=none"], None))
    devices = DeviceGroup.of(config.device)
    reasons: dict[str, str | None] = {}
    for name, section in sections.items():
        if issubclass(section, AutoConfig):
            reasons[name] = None
            continue
        engine_config = section.named(name)
        # The engine's module may import what is missing, such as Triton, so that the section is asked first.
        if (needed := engine_config.unsupported_reason(config)) is None:
            engine: type[Runner] = target(engine_config)
            needed = engine.unsupported_reason(replace(config, engine=engine_config), devices)
        reasons[name] = needed
    return reasons
