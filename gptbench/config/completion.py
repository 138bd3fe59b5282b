"""What a configuration leaves open, and is filled in from where it points to: a checkpoint, the home folder."""

from collections.abc import Container
from dataclasses import fields
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from gptbench.architecture import CONFIG_FILE, checkpoint_hint, read_shape, stretched_context
from gptbench.base.errors import ConfigError, UserError
from gptbench.base.hub import expanded, find_checkpoint
from gptbench.config.model import ModelConfig

PATHS = ("outputs", "model.tokenizer", "engine.tile_cache", "workload.prompt_file", "task.text_file")
"""Fields that name a file or a folder, in which `~` is the home folder; `model.checkpoint` may be more than that."""


def expand_paths(composed: DictConfig) -> None:
    """Puts the home folder in the place of `~`, in place."""
    for name in PATHS:
        value = OmegaConf.select(composed, name)
        if isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(composed, name, expanded(value))


def complete_model(model: DictConfig, given: Container[str] = ()) -> None:
    """Takes what the model's section leaves open from its checkpoint's `config.json`, in place.

    Where a field without a default is open, as all are in `model=auto`, so is every field that has its default and was
    not `given` on the command line. The context is the shorter of both: it is no shape of any weight. A `given` one may
    be as long as linear scaling stretches the file's: some files state the context before it, others the one behind.

    Raises:
        UserError: the file cannot be read, is of a model that gptbench does not have, or disagrees with the section.
    """
    missing = {str(key) for key in model if OmegaConf.is_missing(model, key)}
    if model.checkpoint:
        model.checkpoint = find_checkpoint(model.checkpoint)
    if model.checkpoint is None:
        if "name" in missing:
            raise ConfigError("model.checkpoint", "null", "the folder of a checkpoint, which tells what model it is")
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
            model.merge_with({key: value})  # makes a RopeScaling of a dict, as assigning would not
        stated = model[key]
        if key == "context":
            longest = max(value, stretched_context(shape)) if key in given else value
            if key in given and stated > longest:
                raise ConfigError("model.context", stated, f"at most {longest}, as {file} has it")
            model[key] = stated = value = min(stated, longest)
        if key == "head_dim" and not stated:
            stated = model.dim // max(1, model.n_heads)
        if key != "name" and stated != value:
            raise ConfigError(f"model.{key}", stated, f"{value}, as {file} has it (model=auto takes all from it)")
