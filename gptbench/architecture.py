"""What a Hugging Face checkpoint's `config.json` says of a model, in the words of `gptbench.config.ModelConfig`.

The file is data: nothing that it names is imported or run. What the one Transformer cannot do is refused here, by name.
Keys as in https://huggingface.co/docs/transformers (main_classes/configuration, and each model's own page); version 5
of the library writes `rope_parameters` where earlier ones wrote `rope_theta` and `rope_scaling`.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptbench.errors import CheckpointError

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Architecture:
    """How one of the library's models differs from Llama.

    Attributes:
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys are normalised.
        window: whether `sliding_window` holds for every layer; else it must not be used.
        ffn_key: key of the inner width of the feed-forward network, or of one expert.
        router: name of the router's matrix within a layer; empty where there are no experts.
        expert: names of an expert's matrices within a layer: gate, up and down; `{}` is its number.
        defaults: what the library takes for a key that the file does not have, where that is not Llama's.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    window: bool = False
    ffn_key: str = "intermediate_size"
    router: str = ""
    expert: tuple[str, str, str] = ("", "", "")
    defaults: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(window=True, defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "MixtralForCausalLM": Architecture(
        window=True,
        router="block_sparse_moe.gate.weight",
        expert=(
            "block_sparse_moe.experts.{}.w1.weight",
            "block_sparse_moe.experts.{}.w3.weight",
            "block_sparse_moe.experts.{}.w2.weight",
        ),
        defaults={"num_key_value_heads": 8, "rope_theta": 1e6},
    ),
    "Qwen2ForCausalLM": Architecture(qkv_bias=True, defaults={"num_key_value_heads": 32}),
    "Qwen3ForCausalLM": Architecture(qk_norm=True, defaults={"num_key_value_heads": 32, "head_dim": 128}),
    "Qwen3MoeForCausalLM": Architecture(
        qk_norm=True,
        ffn_key="moe_intermediate_size",
        router="mlp.gate.weight",
        expert=(
            "mlp.experts.{}.gate_proj.weight",
            "mlp.experts.{}.up_proj.weight",
            "mlp.experts.{}.down_proj.weight",
        ),
        defaults={"num_key_value_heads": 4, "norm_topk_prob": False},
    ),
}

ROPE_TYPES = ("default", "linear", "llama3")

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "norm_topk_prob": (True,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "use_sliding_window": (False, None),
}
"""Keys that change the arithmetic, and the values under which it is the Transformer's own. Not every file has each."""


class ConfigFile:
    """A `config.json`, whose errors name the file.

    Raises:
        CheckpointError: not there, not JSON, or not an object.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"model.checkpoint={folder}: no such folder")
        self.path = folder / CONFIG_FILE
        try:
            self.values = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: not there; a Hugging Face checkpoint has one") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from error
        if not isinstance(self.values, dict):
            raise CheckpointError(f"{self.path}: expected a JSON object")

    def error(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {key}={json.dumps(value)}: expected {expected}")

    def integer(self, *keys: str, default: int | None = None, most: int = 2**24) -> int:
        """Of the first key that is there and not null."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), default)
        if value is None:
            raise CheckpointError(f"{self.path}: {' or '.join(keys)} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.error(keys[0], value, f"a whole number from 0 to {most}")
        return value

    def number(self, values: dict[str, Any], key: str, default: float | None = None) -> float:
        """Of a key in `values`, which are this file's or an object in it."""
        value = values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path}: {key} is missing")
        if (
            isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30
        ):  # NaN is refused, too
            raise self.error(key, value, "a number under 1e30")
        return float(value)

    def architecture(self) -> Architecture:
        """Raises CheckpointError for one that gptbench does not have."""
        names = self.values.get("architectures")
        if isinstance(names, list) and len(names) == 1 and names[0] in tuple(ARCHITECTURES):  # it may be any JSON
            return ARCHITECTURES[names[0]]
        raise self.error("architectures", names, f"one of {', '.join(ARCHITECTURES)}")


def read_architecture(folder: Path) -> Architecture:
    """Of the checkpoint in a folder. Raises CheckpointError."""
    return ConfigFile(folder).architecture()


def read_shape(folder: Path) -> dict[str, Any]:
    """Fields of `ModelConfig`, by name, for the checkpoint in a folder; `name` is the folder's.

    Raises:
        CheckpointError: there is no readable config.json, it lacks something, or the model is of a kind that gptbench
            does not have.
    """
    file = ConfigFile(folder)
    architecture = file.architecture()
    file.values = values = architecture.defaults | file.values
    for key, allowed in UNSUPPORTED.items():
        if key in values and values[key] not in allowed:
            raise file.error(key, values[key], f"{json.dumps(allowed[0])}: gptbench has no other")
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise file.error("tie_word_embeddings", tied, "true or false")
    theta, scaling = rope(file)
    heads, dim = file.integer("num_attention_heads"), file.integer("hidden_size")
    experts = bool(architecture.router)
    return {
        "name": model_name(folder.resolve()),
        "vocab_size": file.integer("vocab_size"),
        "dim": dim,
        "n_layers": file.integer("num_hidden_layers", most=10_000),
        "n_heads": heads,
        "n_kv_heads": file.integer("num_key_value_heads", default=heads),
        "head_dim": file.integer("head_dim", default=dim // max(heads, 1)),
        "ffn_dim": file.integer(architecture.ffn_key),
        "context": file.integer("max_position_embeddings"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": file.number(values, "rms_norm_eps"),
        "tied": tied,
        "n_experts": file.integer("num_local_experts", "num_experts") if experts else 0,
        "n_active_experts": file.integer("num_experts_per_tok") if experts else 0,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "sliding_window": file.integer("sliding_window", default=0) if architecture.window else 0,
    }


def model_name(folder: Path) -> str:
    """A folder's own name, or, in the library's download cache (models--ORGANISATION--NAME/snapshots/COMMIT), the
    model's."""
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    return re.sub(r"[^\w.-]+", "_", folder.name.rpartition("--")[2]) or "checkpoint"


def rope(file: ConfigFile) -> tuple[float, dict[str, Any] | None]:
    """Base of the rotary wavelengths, and fields of `RopeScaling` or None."""
    values = file.values
    if values.get("rope_parameters") and values.get("rope_scaling"):
        raise file.error("rope_scaling", values["rope_scaling"], "nothing beside rope_parameters, which says the same")
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise file.error("rope_scaling", parameters, "an object")
    theta = file.number(parameters if "rope_theta" in parameters else values, "rope_theta", 10000.0)
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise file.error("partial_rotary_factor", parameters["partial_rotary_factor"], "1: gptbench has no other")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise file.error("rope_type", kind, f"one of {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return theta, None
    scaling = {"factor": file.number(parameters, "factor"), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "linear":
        return theta, scaling | {"original_context": 1}  # every wavelength is longer than 1: all are stretched in full
    key = "original_max_position_embeddings"  # the library prefers it outside of the object
    original = values.get(key, parameters.get(key))
    if isinstance(original, bool) or not isinstance(original, int) or not 0 < original <= 2**24:
        raise file.error(key, original, f"a whole number from 1 to {2**24}")
    return theta, scaling | {
        "low_freq_factor": file.number(parameters, "low_freq_factor"),
        "high_freq_factor": file.number(parameters, "high_freq_factor"),
        "original_context": original,
    }
