"""What is known of a run before anything takes time: its engine, its model on `meta`, whether all of it fits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gptbench.base.errors import DoesNotFitError
from gptbench.build import alternatives, build, check_memory, on_meta
from gptbench.checkpoint import Checkpoint
from gptbench.config import AutoConfig, Config, Dtype, EagerConfig, QuantConfig, validate_combination
from gptbench.config.targets import instantiate, target
from gptbench.device.group import DeviceGroup
from gptbench.engine import Auto, Runner
from gptbench.model import Transformer
from gptbench.schema.result import CheckpointInfo


def with_engine(config: Config, devices: DeviceGroup, tell: Callable[[str], None]) -> tuple[Config, list[str] | None]:
    """The same with the engine that `engine=auto` stands for here, and why that was not a faster one, which is told;
    None where an engine was asked for by name."""
    if not isinstance(config.engine, AutoConfig):
        return config, None
    auto: Auto = instantiate(config.engine, config, devices)
    tell(f"engine=auto takes {'; '.join([auto.section.name, *auto.reasons])}")
    return replace(config, engine=auto.section), auto.reasons


def as_recorded(asked: Config, config: Config) -> dict[str, Any]:
    """What a record holds of a configuration: what was asked for, with the engine that `engine=auto` stood for."""
    return (replace(asked, engine=config.engine) if isinstance(asked.engine, AutoConfig) else asked).as_dict()


def plan(config: Config, devices: DeviceGroup, kept: int = 0) -> Transformer:
    """The model on `meta`, once it is sure that it can be built and fits, `kept` bytes in use being its own."""
    validate_combination(config)
    engine: type[Runner] = target(config.engine)
    engine.require(config, devices)
    model = on_meta(config.model, config.quant, devices.local.dtype)
    if config.model.reads_checkpoint:
        Checkpoint(config.model).check(model)
    if engine.BUILDS_MODEL:
        check_memory(config, model, devices, alternatives(config, devices), kept)
    return model


def plan_reference(config: Config, kept: int) -> None:
    """Raises DoesNotFitError if what quality is compared with does not fit."""
    try:
        plan(*reference_of(config), kept)
    except DoesNotFitError as error:
        told = "task.reference=true: the unquantised model does not fit; task.reference=false leaves it out"
        raise DoesNotFitError(f"{told}\n{error}") from error


def reference_of(config: Config) -> tuple[Config, DeviceGroup]:
    """What quality is compared with: the same model unquantised, in bfloat16, under the eager engine."""
    config = replace(
        config,
        quant=QuantConfig.named("none"),
        engine=EagerConfig.named("eager"),
        device=replace(config.device, dtype=Dtype.bfloat16),
    )
    return config, DeviceGroup.of(config.device)


def make_engine(
    config: Config, devices: DeviceGroup, model: Transformer, progress: Callable[[str, float], None] = lambda *_: None
) -> tuple[Runner, CheckpointInfo | None]:
    """The engine over a model that is still on `meta`, nothing compiled yet; and the checkpoint that was read."""
    if not target(config.engine).BUILDS_MODEL:
        return engine_over(config, devices, model), None
    with torch.no_grad():
        loaded = build(config, model, devices.local, progress)
    return engine_over(config, devices, model), loaded


@torch.no_grad()
def engine_over(config: Config, devices: DeviceGroup, model: Transformer) -> Runner:
    """The engine over a model that has its weights."""
    engine: type[Runner] = target(config.engine)
    return engine.make(config, model, devices)
