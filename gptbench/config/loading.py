"""Turns the configuration that Hydra composed into the validated tree of dataclasses."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptbench.base.errors import ConfigError, UserError
from gptbench.config.completion import complete_model, expand_paths
from gptbench.config.explanation import explain, no_such_field
from gptbench.config.tree import Config


def refuse_unknown(node: DictConfig, path: str = "") -> None:
    """Raises UserError for a key that is not a field of its dataclass: `+key=value` adds such keys despite the
    schema."""
    known = OmegaConf.get_type(node)
    if not is_dataclass(known):
        return
    for key in map(str, node):
        if key not in {entry.name for entry in fields(known)}:
            raise UserError(no_such_field(f"{path}{key}", known))
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            refuse_unknown(node[key], f"{path}{key}.")


def load(composed: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """Return the validated tree for the configuration that Hydra composed, with the model's shape from its checkpoint.

    Args:
        overrides: overrides of the command line, as they were typed.

    Raises:
        UserError: a field is missing or unknown, or has an invalid value.
    """
    try:
        return validated(composed, overrides)
    except OmegaConfBaseException as error:  # an interpolation is resolved only when its value is read
        raise UserError(explain(error)) from error


def validated(composed: DictConfig, overrides: Sequence[str]) -> Config:
    """Does what `load` does, but raises OmegaConfBaseException if an interpolation cannot be resolved."""
    for section in fields(Config):
        if section.name not in composed:
            raise UserError(f"~{section.name}: a run needs the group {section.name}")
    refuse_unknown(composed)
    expand_paths(composed)
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    complete_model(composed.model, {name.removeprefix("model.") for name in given if name.startswith("model.")})
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(missing[0], "???", "a value")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    if config.task.RUNS_ENGINE:  # other tasks skip what is unsupported, and say why
        validate_combination(config)
    return config


def validate_combination(config: Config) -> None:
    """Raises ConfigError if the engine or the quantisation does not support the run, as far as the configuration
    shows."""
    if (expected := config.quant.unsupported_reason(config.model, config.device.dtype)) is not None:
        raise ConfigError("quant", f"{config.quant.full_name} (model={config.model.name})", expected)
    if (expected := config.engine.unsupported_reason(config)) is not None:
        raise ConfigError("engine", config.engine.name, f"another engine, or {expected}")
