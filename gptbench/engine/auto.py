"""`engine=auto`: the fastest engine that supports what is asked for, here."""

from importlib.util import find_spec

from gptbench.config import AutoConfig, Config, EagerConfig, EngineConfig, FusedConfig, InductorConfig, Tuning
from gptbench.config.targets import target
from gptbench.device import Device
from gptbench.engine.base import Engine
from gptbench.engine.inductor import has_candidates


class Auto:
    """Chooses an engine.

    Attributes:
        section: of the engine that is taken, with the settings that it ships with.
        reasons: why each of the faster ones was not.
    """

    section: EngineConfig

    def __init__(self, section: AutoConfig, config: Config, device: Device) -> None:
        fastest_first: list[EngineConfig] = [
            FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused", tiles=f"{config.outputs}/tiles"),
            InductorConfig(
                _target_="gptbench.engine.Inductor",
                name="inductor",
                tuning=Tuning.candidates if has_candidates() else Tuning.descent,
            ),
            EagerConfig(_target_="gptbench.engine.Eager", name="eager"),
        ]
        self.reasons: list[str] = []
        for candidate in fastest_first:
            if (needed := needs(candidate, config, device)) is None:
                break
            self.reasons.append(f"{candidate.name} needs {needed}")
        self.section = candidate  # the last one runs everywhere
        self.section.fresh_cache = section.fresh_cache
        self.section.measure_warm_start = section.measure_warm_start


def needs(section: EngineConfig, config: Config, device: Device) -> str | None:
    """What an engine lacks for a run, or None if nothing."""
    if isinstance(section, FusedConfig) and not device.is_cuda:
        return "an NVIDIA GPU"  # asked here, as its module needs Triton
    if isinstance(section, FusedConfig) and find_spec("triton") is None:
        return "Triton"
    engine: type[Engine] = target(section)
    return engine.missing(device) or section.refuse(config)
