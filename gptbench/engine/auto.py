"""`engine=auto`: the first of an ordered list of engines, the fastest first, that can do what is asked for, here."""

from dataclasses import replace

from gptbench.base.errors import ConfigError
from gptbench.config import ENGINES, AutoConfig, Config, EngineConfig
from gptbench.config.targets import target
from gptbench.device.group import DeviceGroup
from gptbench.engine.runner import Runner


class Auto:
    """Chooses an engine.

    Attributes:
        section: of the engine that is taken, with the settings that it ships with.
        reasons: why each of those before it was not.

    Raises:
        ConfigError: none of the list can do the run.
    """

    section: EngineConfig

    def __init__(self, section: AutoConfig, config: Config, devices: DeviceGroup) -> None:
        self.reasons: list[str] = []
        for name in section.order:
            candidate = ENGINES[name].named(name)
            # Its module may need what is not there, such as Triton: the configuration's own reasons come first.
            needed = candidate.unsupported_reason(config)
            if needed is None:
                engine: type[Runner] = target(candidate)
                needed = engine.unsupported_reason(replace(config, engine=candidate), devices)
            if needed is None:
                shipped = engine.shipped(candidate, config)
                self.section = replace(
                    shipped, fresh_cache=section.fresh_cache, measure_warm_start=section.measure_warm_start
                )
                return
            self.reasons.append(f"{name} needs {needed}")
        raise ConfigError(
            "engine.order", ",".join(section.order), f"an engine that runs here: {'; '.join(self.reasons)}"
        )
