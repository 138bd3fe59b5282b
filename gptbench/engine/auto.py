"""`engine=auto`: the first engine of an ordered list, fastest first, that can do the run here."""

from dataclasses import replace

from gptbench.base.errors import ConfigError
from gptbench.config import ENGINES, AutoConfig, Config, EngineConfig
from gptbench.config.targets import target
from gptbench.device.group import DeviceGroup
from gptbench.engine.runner import Runner


class Auto:
    """Selects an engine.

    Attributes:
        section: section of the selected engine, with its default settings.
        reasons: why each engine before it was not selected.

    Raises:
        ConfigError: no engine of the list can do the run.
    """

    section: EngineConfig

    def __init__(self, section: AutoConfig, config: Config, devices: DeviceGroup) -> None:
        self.reasons: list[str] = []
        for name in section.order:
            candidate = ENGINES[name].named(name)
            # The engine's module may need what is not installed, such as Triton: ask the configuration first.
            reason = candidate.unsupported_reason(config)
            if reason is None:
                engine: type[Runner] = target(candidate)
                reason = engine.unsupported_reason(replace(config, engine=candidate), devices)
            if reason is None:
                auto_section = engine.auto_section(candidate, config)
                self.section = replace(
                    auto_section, fresh_cache=section.fresh_cache, measure_warm_start=section.measure_warm_start
                )
                return
            self.reasons.append(f"{name} needs {reason}")
        raise ConfigError(
            "engine.order", ",".join(section.order), f"an engine that runs here: {'; '.join(self.reasons)}"
        )
