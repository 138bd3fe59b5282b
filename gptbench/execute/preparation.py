"""What is known of a run before anything takes time: its engine, its model on `meta`, and whether it fits into
memory."""

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


def with_engine(config: Config, devices: DeviceGroup, report: Callable[[str], None]) -> tuple[Config, list[str] | None]:
    """Return the configuration with the engine that `engine=auto` selects here, and the reasons against each faster
    one, which are reported; None if an engine was named."""
    if not isinstance(config.engine, AutoConfig):
        return config, None
    auto: Auto = instantiate(config.engine, config, devices)
    report(f"engine=auto takes {'; '.join([auto.section.name, *auto.reasons])}")
    return replace(config, engine=auto.section), auto.reasons


def as_recorded(asked: Config, config: Config) -> dict[str, Any]:
    """Return the configuration as a record holds it: as it was given, but with the engine that `engine=auto`
    selected."""
    return (replace(asked, engine=config.engine) if isinstance(asked.engine, AutoConfig) else asked).as_dict()


def plan(config: Config, devices: DeviceGroup, kept: int = 0) -> Transformer:
    """Return the model on `meta`, after checking that it can be built and fits. `kept` bytes of the memory in use are
    its own."""
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
    """Raise DoesNotFitError if the reference of a quality evaluation does not fit."""
    try:
        plan(*reference_of(config), kept)
    except DoesNotFitError as error:
        advice = "task.reference=true: the unquantised model does not fit; task.reference=false leaves it out"
        raise DoesNotFitError(f"{advice}\n{error}") from error


def reference_of(config: Config) -> tuple[Config, DeviceGroup]:
    """Return the reference of a quality evaluation: the same model unquantised, in bfloat16, under the eager engine."""
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
    """Return the engine of a model that is still on `meta`, with nothing compiled yet, and the checkpoint that was
    read."""
    if not target(config.engine).BUILDS_MODEL:
        return engine_over(config, devices, model), None
    with torch.no_grad():
        loaded = build(config, model, devices.local, progress)
    return engine_over(config, devices, model), loaded


@torch.no_grad()
def engine_over(config: Config, devices: DeviceGroup, model: Transformer) -> Runner:
    """Return the engine of a model that has its weights."""
    engine: type[Runner] = target(config.engine)
    return engine.make(config, model, devices)
