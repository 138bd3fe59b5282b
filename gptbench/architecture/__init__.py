"""What a Hugging Face checkpoint's `config.json` says of a model, in the words of `gptbench.config.ModelConfig`.

The file is data: nothing that it names is imported or run. What the one Transformer cannot do is refused here, by name.
Keys as in https://huggingface.co/docs/transformers (main_classes/configuration, and each model's own page); version 5
of the library writes `rope_parameters` where earlier ones wrote `rope_theta` and `rope_scaling`.
"""

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from gptbench.base.errors import CheckpointError, InputError
from gptbench.base.hub import expanded
from gptbench.base.inputs import is_finite_number, read_json

CONFIG_FILE = "config.json"
MAX_NAME = 100
"""Characters of a model's name, and of any other section's: it is part of names of files and runs."""
MAX_CONFIG_BYTES = 4 * 2**20
"""A thousand times what a config.json has."""


class Window(Enum):
    """Where the library's model takes its sliding window from."""

    none = "none"
    """It has none."""
    all_layers = "all layers"
    """`sliding_window` holds for every layer."""
    by_layer = "by layer"
    """As `all_layers`, unless `layer_types` says otherwise."""
    all_if_used = "all layers, if used"
    """As `all_layers`, where `use_sliding_window` is true."""
    by_layer_if_used = "by layer, if used"
    """As `by_layer`, where `use_sliding_window` is true; without `layer_types` from layer `max_window_layers` on."""


@dataclass(frozen=True)
class Architecture:
    """How one of the library's models differs from Llama.

    Attributes:
        model_type: the library's name of it, by which it chooses the model's code.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys are normalised.
        window: where its sliding window comes from.
        ffn_key: key of the inner width of the feed-forward network, or of one expert.
        router: name of the router's matrix within a layer; empty where there are no experts.
        expert: names of an expert's matrices within a layer: gate, up and down; `{}` is its number.
        defaults: what the library takes for a key that the file does not have. A width that is missing is refused.
    """

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    window: Window = Window.none
    ffn_key: str = "intermediate_size"
    router: str = ""
    expert: tuple[str, str, str] = ("", "", "")
    defaults: dict[str, Any] = field(default_factory=dict)


QWEN = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28}

ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
    "MistralForCausalLM": Architecture(
        "mistral",
        window=Window.by_layer,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
    ),
    "MixtralForCausalLM": Architecture(
        "mixtral",
        window=Window.all_layers,
        router="block_sparse_moe.gate.weight",
        expert=(
            "block_sparse_moe.experts.{}.w1.weight",
            "block_sparse_moe.experts.{}.w3.weight",
            "block_sparse_moe.experts.{}.w2.weight",
        ),
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
        },
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2", qkv_bias=True, window=Window.by_layer_if_used, defaults=QWEN | {"num_key_value_heads": 32}
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3",
        qk_norm=True,
        window=Window.by_layer_if_used,
        defaults=QWEN | {"num_key_value_heads": 32, "head_dim": 128},
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe",
        qk_norm=True,
        window=Window.all_if_used,
        ffn_key="moe_intermediate_size",
        router="mlp.gate.weight",
        expert=(
            "mlp.experts.{}.gate_proj.weight",
            "mlp.experts.{}.up_proj.weight",
            "mlp.experts.{}.down_proj.weight",
        ),
        defaults=QWEN | {"num_key_value_heads": 4, "norm_topk_prob": False},
    ),
}

ROPE_TYPES = ("default", "linear", "llama3")
LINEAR = 1
"""Original context that stands for linear scaling: every wavelength is longer, so that all are stretched in full."""
FULL, SLIDING = "full_attention", "sliding_attention"

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "norm_topk_prob": (True,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "attention_chunk_size": (None,),
    "is_causal": (True, None),
    "is_encoder_decoder": (False, None),
    "num_kv_shared_layers": (0, None),
    "per_layer_config": ({}, None),
}
"""Keys that change the arithmetic, and the values under which it is the Transformer's own. Not every file has each."""

HONOURED = frozenset(
    {
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "original_max_position_embeddings",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "bos_token_id",
        "eos_token_id",
    }
)
"""Keys that are read; those of tokens with the tokenizer."""

WITHOUT_EFFECT = frozenset(
    {
        "attention_dropout",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "label2id",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that change no logit: of training, of what else is returned, of the library. A key that is in neither of the
three is none of these models': no code of theirs reads it."""


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
            self.values = read_json(self.path, MAX_CONFIG_BYTES)
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise CheckpointError(f"{self.path}: not there; a Hugging Face checkpoint has one") from None
            raise
        if not isinstance(self.values, dict):
            raise CheckpointError(f"{self.path}: expected a JSON object")

    def error(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {key}={json.dumps(value)}: expected {expected}")

    def integer(self, *keys: str, default: int | None = None, most: int = 2**24) -> int:
        """Of the first key that is there and not null; others must agree."""
        given = {key: self.values[key] for key in keys if self.values.get(key) is not None}
        value = next(iter(given.values()), default)
        if value is None:
            raise CheckpointError(f"{self.path}: {' or '.join(keys)} is missing")
        for key, other in given.items():
            if other != value:
                raise self.error(key, other, f"{json.dumps(value)}, as {next(iter(given))} has it")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.error(keys[0], value, f"a whole number from 0 to {most}")
        return value

    def number(self, values: dict[str, Any], key: str, default: float | None = None) -> float:
        """Of a key in `values`, which are this file's or an object in it."""
        value = values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path}: {key} is missing")
        if not is_finite_number(value) or not abs(value) < 1e30:
            raise self.error(key, value, "a number under 1e30")
        return float(value)

    def architecture(self) -> Architecture:
        """Of the model whose code the library takes: `model_type` says which, whatever `architectures` beside it says.

        Raises CheckpointError for one that gptbench does not have.
        """
        names, kind = self.values.get("architectures"), self.values.get("model_type")
        if not (isinstance(names, list) and len(names) == 1 and names[0] in tuple(ARCHITECTURES)):  # it may be any JSON
            raise self.error("architectures", names, f"one of {', '.join(ARCHITECTURES)}")
        if kind is None:
            return ARCHITECTURES[names[0]]
        kinds = {architecture.model_type: architecture for architecture in ARCHITECTURES.values()}
        if not isinstance(kind, str) or kind not in kinds:
            raise self.error("model_type", kind, f"one of {', '.join(kinds)}")
        return kinds[kind]


def read_architecture(folder: Path) -> Architecture:
    """Of the checkpoint in a folder. Raises CheckpointError."""
    return ConfigFile(folder).architecture()


def of_checkpoint(given: str) -> str | None:
    """What to give in the place of a file of a checkpoint, or why a folder is none; None of anything else."""
    if not given or "\0" in given:
        return None
    path = Path(expanded(given))
    try:
        if path.is_file() and (path.parent / CONFIG_FILE).is_file():
            return f"a file of a checkpoint; give the folder: {path.parent}"
        if path.is_dir() and not (path / CONFIG_FILE).is_file():
            return f"a folder with no {CONFIG_FILE} in it, which a checkpoint has"
    except OSError:  # such as of a name that is too long
        return None
    return None


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
    layers = file.integer("num_hidden_layers", most=10_000)
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
        "n_experts": file.integer("num_local_experts", "num_experts") if experts else 0,
        "n_active_experts": file.integer("num_experts_per_tok") if experts else 0,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "sliding_window": sliding_window(file, architecture.window, layers),
        "attention_pattern": None,
        "ffn_pattern": None,
    }


def sliding_window(file: ConfigFile, window: Window, layers: int) -> int:
    """Positions that a token attends to in every layer; 0 is all before it.

    Raises:
        CheckpointError: layers differ, `layer_types` and `sliding_window` disagree, or the library's own model takes
            one of them in its cache and not in its attention.
    """
    values = file.values
    size = file.integer("sliding_window", default=0)
    if size == 0 and values.get("sliding_window") is not None:
        raise file.error("sliding_window", 0, "a whole number of at least 1, or null for no window")
    used = values.get("use_sliding_window")
    if used not in (True, False, None):
        raise file.error("use_sliding_window", used, "true or false")
    if window in (Window.all_if_used, Window.by_layer_if_used) and not used:
        size = 0
    if window is Window.none:
        context = file.integer("max_position_embeddings")
        if 0 < size < context:
            expected = f"null, or at least max_position_embeddings={context}: its model_type has no window"
            raise file.error("sliding_window", size, expected)
        size = 0
    kinds = values.get("layer_types")
    if kinds is None:
        first = file.integer("max_window_layers") if window is Window.by_layer_if_used else 0
        sliding = max(0, layers - first) if size else 0
    else:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
            raise file.error("layer_types", kinds, f"a list of num_hidden_layers={layers} times {FULL} or {SLIDING}")
        sliding = kinds.count(SLIDING)
        if sliding and not size:
            raise file.error("layer_types", kinds, f"{FULL} alone, as sliding_window is null, unused or without effect")
        if size and not sliding and window in (Window.all_layers, Window.all_if_used):
            raise file.error("layer_types", kinds, f"{SLIDING} alone, as sliding_window={size} holds everywhere")
    if 0 < sliding < layers:
        key = "layer_types" if kinds is not None else "max_window_layers"
        expected = f"the same for every layer (sliding_window={size} holds for {sliding} of {layers})"
        raise file.error(key, values[key], f"{expected}: gptbench has one window for all layers")
    return size if sliding else 0


def stretched_context(shape: dict[str, Any]) -> int:
    """The longest sequence for which `read_shape`'s model has been stretched linearly, if its context is the one before
    that; else its context."""
    scaling = shape["rope_scaling"]
    linear = scaling is not None and scaling["original_context"] == LINEAR
    return int(shape["context"] * scaling["factor"]) if linear else shape["context"]


def model_name(folder: Path) -> str:
    """A folder's own name, or, in the library's download cache (models--ORGANISATION--NAME/snapshots/COMMIT), the
    model's."""
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    return re.sub(r"[^\w.-]+", "_", folder.name.rpartition("--")[2]).lstrip(".")[:MAX_NAME] or "checkpoint"


def rope(file: ConfigFile) -> tuple[float, dict[str, Any] | None]:
    """Base of the rotary wavelengths, and fields of `RopeScaling` or None."""
    given = {key: file.values[key] for key in ("rope_parameters", "rope_scaling") if file.values.get(key)}
    readings = [rope_reading(file, parameters) for parameters in given.values()]
    if readings[1:] and readings[0] != readings[1]:
        raise file.error("rope_scaling", given["rope_scaling"], "what rope_parameters beside it says, or null")
    return readings[0] if readings else rope_reading(file, {})


def rope_reading(file: ConfigFile, parameters: Any) -> tuple[float, dict[str, Any] | None]:
    """`rope` of the one object that describes it."""
    values = file.values
    if not isinstance(parameters, dict):
        raise file.error("rope_scaling", parameters, "an object")
    for key, value in parameters.items():
        if isinstance(value, dict):
            raise file.error(f"rope_parameters.{key}", value, "no object: gptbench has one rope for all layers")
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
        if theta < 1:
            raise file.error("rope_theta", theta, "a number of at least 1 beside rope_type=linear")
        return theta, scaling | {"original_context": LINEAR}
    key = "original_max_position_embeddings"  # the library prefers it outside of the object
    original = values.get(key, parameters.get(key, file.integer("max_position_embeddings")))
    if isinstance(original, bool) or not isinstance(original, int) or not 0 < original <= 2**24:
        raise file.error(key, original, f"a whole number from 1 to {2**24}")
    return theta, scaling | {
        "low_freq_factor": file.number(parameters, "low_freq_factor"),
        "high_freq_factor": file.number(parameters, "high_freq_factor"),
        "original_context": original,
    }
