"""Fills in what a configuration leaves open: the model's shape from a checkpoint, and the home folder in paths."""

from collections.abc import Container
from dataclasses import fields
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from gptbench.architecture import CONFIG_FILE, checkpoint_hint, read_shape, stretched_context
from gptbench.base.errors import ConfigError, UserError
from gptbench.base.hub import expanded, find_checkpoint
from gptbench.config.model import ModelConfig

PATHS = ("outputs", "model.tokenizer", "engine.tile_cache", "workload.prompt_file", "task.text_file")
"""Fields that name a file or a folder, in which `~` is the home folder. `model.checkpoint` may also be a model's
name."""


def expand_paths(composed: DictConfig) -> None:
    """Replaces `~` at the start of every path in the configuration, in place."""
    for name in PATHS:
        value = OmegaConf.select(composed, name)
        if isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(composed, name, expanded(value))


def complete_model(model: DictConfig, given: Container[str] = ()) -> None:
    """Fills in the fields that the model's section leaves open from its checkpoint's `config.json`, in place.

    If any required field is open (in `model=auto` all are), then every field that still has its default and was not
    `given` on the command line is filled in, too. The context becomes the shorter one of the two, as no weight's shape
    depends on it. A `given` context may be as long as linear RoPE scaling makes the file's: some files state the
    context before scaling, others the one after it.

    Raises:
        UserError: the file cannot be read, describes a model that gptbench does not support, or contradicts the
    section."""
    missing = {str(key) for key in model if OmegaConf.is_missing(model, key)}
    if model.checkpoint:
        model.checkpoint = find_checkpoint(model.checkpoint)
    if model.checkpoint is None:
        if "name" in missing:
            raise ConfigError(
                "model.checkpoint", "null", "the folder of a checkpoint, whose config.json describes the model"
            )
        return
    if not model.checkpoint:
        raise ConfigError("model.checkpoint", "", "the folder of a checkpoint, or null")
    if Path(model.checkpoint).is_file() and (said := checkpoint_hint(model.checkpoint)) is not None:
        raise UserError(f"model.checkpoint={model.checkpoint}: {said}")
    file = Path(model.checkpoint) / CONFIG_FILE
    defaults = {entry.name: entry.default for entry in fields(ModelConfig)} if missing else {}
    shape = read_shape(file.parent)
    for key, value in shape.items():
        if key in missing or (key not in given and model[key] == defaults.get(key, MISSING)):
            model.merge_with({key: value})  # unlike an assignment, this turns a dict into a RopeScaling
        stated = model[key]
        if key == "context":
            longest = max(value, stretched_context(shape)) if key in given else value
            if key in given and stated > longest:
                raise ConfigError("model.context", stated, f"at most {longest}, the context in {file}")
            model[key] = stated = value = min(stated, longest)
        if key == "head_dim" and not stated:
            stated = model.dim // max(1, model.n_heads)
        if key != "name" and stated != value:
            raise ConfigError(
                f"model.{key}", stated, f"{value}, the value in {file} (model=auto takes all fields from it)"
            )
