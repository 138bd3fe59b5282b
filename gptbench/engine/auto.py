"""`engine=auto`: the fastest engine that runs here."""

from gptbench.config import AutoConfig, EagerConfig, EngineConfig, InductorConfig
from gptbench.device import Device
from gptbench.engine.base import Engine
from gptbench.engine.eager import Eager
from gptbench.engine.inductor import Inductor


class Auto:
    """Chooses an engine.

    Attributes:
        section: of the engine that is taken, with the settings that it ships with.
        reasons: why each of the faster ones was not.
    """

    section: EngineConfig

    def __init__(self, config: AutoConfig, device: Device) -> None:
        fastest_first: list[tuple[type[Engine], EngineConfig]] = [
            (Inductor, InductorConfig(_target_="gptbench.engine.Inductor", name="inductor")),
            (Eager, EagerConfig(_target_="gptbench.engine.Eager", name="eager")),
        ]
        self.reasons: list[str] = []
        for engine, self.section in fastest_first:
            if (missing := engine.missing(device)) is None:
                self.section.fresh_cache = config.fresh_cache
                self.section.measure_warm_start = config.measure_warm_start
                return
            self.reasons.append(f"{self.section.name} needs {missing}")
