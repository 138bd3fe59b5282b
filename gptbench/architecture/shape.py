"""Translates a checkpoint's `config.json` to fields of `gptbench.config.ModelConfig`.

A setting that the Transformer does not support is an error that names it.
"""

import json
import re
from pathlib import Path
from typing import Any

from gptbench.architecture.config_json import ConfigFile
from gptbench.architecture.keys import SUPPORTED_VALUES
from gptbench.architecture.rope import LINEAR, rope
from gptbench.architecture.row import Architecture
from gptbench.architecture.stored import quantisation
from gptbench.architecture.window import sliding_window

MAX_NAME = 100
"""Maximum length, in characters, of the name of a model or of any other section: it is part of file and run names."""


def read_architecture(folder: Path) -> Architecture:
    """Return the architecture of the checkpoint in a folder. Raises CheckpointError as `ConfigFile` does."""
    return ConfigFile(folder).architecture()


def read_shape(folder: Path) -> dict[str, Any]:
    """Return the fields of `ModelConfig`, by name, for the checkpoint in a folder; `name` comes from the folder.

    Raises:
        CheckpointError: config.json cannot be read, lacks a key, or describes a model that gptbench does not support.
    """
    file = ConfigFile(folder)
    architecture = file.architecture()
    file.values = values = dict(architecture.defaults) | file.values
    for key, allowed in SUPPORTED_VALUES.items():
        if key in values and values[key] not in allowed:
            raise file.error(key, values[key], f"{json.dumps(allowed[0])}: gptbench supports no other")
    quantisation(file)
    layers = file.integer("num_hidden_layers", maximum=10_000)
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise file.error("tie_word_embeddings", tied, "true or false")
    theta, scaling = rope(file)
    heads, dim = file.integer("num_attention_heads"), file.integer("hidden_size")
    return {
        "name": model_name(folder.resolve()),
        "vocab_size": file.integer("vocab_size"),
        "dim": dim,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": file.integer("num_key_value_heads", default=heads),
        "head_dim": file.integer("head_dim", default=dim // max(heads, 1)),
        "ffn_dim": file.integer(architecture.ffn_key),
        "context": file.integer("max_position_embeddings"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": file.number(values, "rms_norm_eps"),
        "tied": tied,
        "n_experts": file.integer("num_local_experts", "num_experts") if architecture.experts else 0,
        "n_active_experts": file.integer("num_experts_per_tok") if architecture.experts else 0,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "sliding_window": sliding_window(file, architecture.window, layers),
        "attention_pattern": None,
        "ffn_pattern": None,
        "architecture": architecture.name if architecture.layers is not None else None,
    }


def stretched_context(shape: dict[str, Any]) -> int:
    """Return the context in tokens of a model of `read_shape`, multiplied by its linear RoPE scaling factor if any."""
    scaling = shape["rope_scaling"]
    linear = scaling is not None and scaling["original_context"] == LINEAR
    return int(shape["context"] * scaling["factor"]) if linear else shape["context"]


def model_name(folder: Path) -> str:
    """Return the name of a folder, or the model's name for a folder in the Hugging Face cache
    (models--ORGANISATION--NAME/snapshots/COMMIT)."""
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    return re.sub(r"[^\w.-]+", "_", folder.name.rpartition("--")[2]).lstrip(".")[:MAX_NAME] or "checkpoint"
