"""Which engines run on this machine, and what the others lack. Imports torch."""

from collections.abc import Mapping
from dataclasses import replace

from gptbench.commands.ab import composed
from gptbench.config import AutoConfig, EngineConfig, load
from gptbench.config.targets import target
from gptbench.device.group import DeviceGroup
from gptbench.engine import Runner


def lacking(sections: Mapping[str, type[EngineConfig]]) -> dict[str, str | None]:
    """What each engine would need to do the default run on the default device; None where it needs nothing more."""
    config = load(composed(["engine=eager", "tracking=none"], None))
    devices = DeviceGroup.of(config.device)
    found: dict[str, str | None] = {}
    for name, section in sections.items():
        if issubclass(section, AutoConfig):
            found[name] = None
            continue
        engine_config = section.named(name)
        # Its module may need what is not there, such as Triton: the configuration's own reasons come first.
        if (needed := engine_config.unsupported_reason(config)) is None:
            engine: type[Runner] = target(engine_config)
            needed = engine.unsupported_reason(replace(config, engine=engine_config), devices)
        found[name] = needed
    return found
