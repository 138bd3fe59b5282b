"""What a checkpoint's config.json says of a model: every key that counts, what is refused, and how it meets a YAML."""

import copy
import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import DictConfig
from transformers import LlamaConfig, MinistralConfig, PreTrainedConfig

from gptbench.architecture import FULL, IGNORED_KEYS, READ_KEYS, SLIDING, SUPPORTED_VALUES, read_shape
from gptbench.base.errors import UserError
from gptbench.config import Config, RopeScaling, load
from tests.hf import CASES, LLAMA_3, MODELS, rewrite, rope

ONE_EACH = {type(config): case for case, config in reversed(CASES.items())}
"""A case for every architecture."""


def write(folder: Path, config: PreTrainedConfig, **values: Any) -> Path:
    """config.json as the library writes it with a model of that configuration, but for the values that are given."""
    config.save_pretrained(folder)
    rewrite(folder, architectures=[MODELS[type(config)].__name__], **values)
    return folder


def refusal(folder: Path) -> str:
    """What the user is told."""
    with pytest.raises(UserError) as caught:
        read_shape(folder)
    return str(caught.value)


LLAMA = {
    "name": "tiny",
    "vocab_size": 131,
    "dim": 48,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": 80,
    "context": 64,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "norm_eps": 0.02,
    "tied": False,
    "n_experts": 0,
    "n_active_experts": 0,
    "qkv_bias": False,
    "qk_norm": False,
    "sliding_window": 0,
    "attention_pattern": None,
    "ffn_pattern": None,
    "architecture": None,
}
LINEAR = {"factor": 2.5, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 1}
STRETCHED = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 48}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-linear": LLAMA
    | {"dim": 80, "n_heads": 5, "n_kv_heads": 5, "head_dim": 16, "rope_theta": 500.0, "rope_scaling": LINEAR},
    "llama-llama3": LLAMA
    | {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "rope_theta": 500.0, "rope_scaling": STRETCHED},
    "mistral": LLAMA | {"head_dim": 16},
    "mistral-window": LLAMA | {"sliding_window": 5, "tied": True},
    "mixtral-window": LLAMA | {"n_experts": 8, "n_active_experts": 3, "sliding_window": 4, "rope_theta": 1e6},
    "qwen2": LLAMA | {"qkv_bias": True, "rope_theta": 500.0},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 16, "rope_theta": 500.0},
    "qwen3moe": LLAMA
    | {"qk_norm": True, "head_dim": 16, "rope_theta": 500.0, "ffn_dim": 32, "n_experts": 7, "n_active_experts": 3},
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_of_every_architecture(case: str, tmp_path: Path) -> None:
    assert read_shape(write(tmp_path / "tiny", CASES[case])) == SHAPES[case]


@pytest.mark.parametrize("config", [*MODELS, MinistralConfig], ids=lambda config: config.model_type)
def test_every_key_is_honoured_without_effect_or_refused_where_it_counts(config: type[PreTrainedConfig]) -> None:
    known = Counter([*READ_KEYS, *IGNORED_KEYS, *SUPPORTED_VALUES])
    fields = {field.name for field in dataclasses.fields(config)}
    assert not {key: known[key] for key in fields if known[key] != 1}


def of_library(config: PreTrainedConfig) -> dict[str, Any]:
    """What the library itself takes a config.json for, in our words."""
    mixture = hasattr(config, "num_experts_per_tok")
    return {
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "ffn_dim": getattr(config, "moe_intermediate_size", config.intermediate_size),
        "context": config.max_position_embeddings,
        "rope_theta": config.rope_parameters["rope_theta"],
        "norm_eps": config.rms_norm_eps,
        "tied": config.tie_word_embeddings,
        "n_experts": config.num_local_experts if mixture else 0,
        "n_active_experts": config.num_experts_per_tok if mixture else 0,
        "sliding_window": getattr(config, "sliding_window", None) or 0,
    }


@pytest.mark.parametrize("case", ONE_EACH.values())
def test_a_key_that_is_left_out_is_what_the_library_takes_or_is_refused(case: str, tmp_path: Path) -> None:
    """The library's defaults are not the same in every architecture."""
    config, refused = CASES[case], []
    keys = json.loads((write(tmp_path, config) / "config.json").read_text()).keys() - {"model_type"}
    for key in sorted(keys):
        rewrite(write(tmp_path, config), **{key: ...})
        try:
            shape = read_shape(tmp_path)
        except UserError:  # how it is told: see below
            refused.append(key)
        else:
            assert of_library(type(config).from_pretrained(tmp_path)).items() <= shape.items(), key
    defaults = {"num_key_value_heads", "head_dim", "rope_parameters", "sliding_window", "rms_norm_eps"}
    assert not (defaults | {"max_position_embeddings", "hidden_act", "tie_word_embeddings"}) & set(refused)


def test_the_name_is_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "Llama-3.2 1B (mine)", CASES["llama"])
    assert read_shape(folder)["name"] == "Llama-3.2_1B_mine_"
    monkeypatch.chdir(folder)
    assert read_shape(Path())["name"] == "Llama-3.2_1B_mine_"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # case, what config.json has instead, what must be told of it
    *[
        ("llama", {"architectures": names}, f"architectures={json.dumps(names)}: expected one of LlamaForCausalLM, ")
        for names in (["GPT2LMHeadModel"], ["LlamaModel"], [], None, "LlamaForCausalLM", [["LlamaForCausalLM"]], [{}])
    ],
    ("llama", {"architectures": ["LlamaForCausalLM", "LlamaForCausalLM"]}, "architectures="),
    ("llama", {"architectures": ...}, "architectures=null"),
    ("llama", {"hidden_act": "gelu"}, 'hidden_act="gelu": expected "silu"'),
    ("llama", {"attention_bias": True}, "attention_bias=true: expected false"),
    ("qwen3", {"attention_bias": True}, "attention_bias=true: expected false"),
    ("llama", {"mlp_bias": True}, "mlp_bias=true: expected false"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: expected 1"),
    ("llama", rope(rope_type="default", partial_rotary_factor=0.25), "partial_rotary_factor=0.25: expected 1"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config="),
    ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob=false: expected true"),
    ("qwen3moe", {"norm_topk_prob": ...}, "norm_topk_prob=false: expected true"),
    ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2: expected 1"),
    ("qwen3moe", {"mlp_only_layers": [1]}, "mlp_only_layers=[1]: expected []"),
    ("llama", {"model_type": "gpt2"}, 'model_type="gpt2": expected one of llama, mistral, '),
    ("llama", {"model_type": ["llama"]}, 'model_type=["llama"]: expected one of llama, mistral, '),
    ("llama", {"sliding_window": 4}, "sliding_window=4: expected null, or at least max_position_embeddings=64"),
    ("llama", {"attention_chunk_size": 4}, "attention_chunk_size=4: expected null"),
    ("llama", {"is_causal": False}, "is_causal=false: expected true"),
    ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config="),
    ("mistral-window", {"model_type": "llama"}, "sliding_window=5: expected null"),
    ("mistral", {"sliding_window": 0}, "sliding_window=0: expected a whole number of at least 1, or null"),
    *[
        ("mistral-window", {"layer_types": kinds}, "layer_types=")
        for kinds in ([FULL], [FULL] * 3, [FULL, "chunked_attention"], FULL, 2, [[FULL], [FULL]], [])
    ],
    *[
        (
            case,
            {"layer_types": [FULL, SLIDING], **others},
            "the same for every layer (sliding_window=5 applies",
        )
        for case, others in (
            ("mistral-window", {}),
            ("qwen2", {"use_sliding_window": True, "sliding_window": 5}),
            ("qwen3", {"use_sliding_window": True, "sliding_window": 5}),
        )
    ],
    *[
        (case, {"layer_types": [SLIDING, SLIDING]}, f"expected only {FULL}")
        for case in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3moe")
    ],
    ("mixtral-window", {"layer_types": [FULL, FULL]}, f"expected only {SLIDING}"),
    *[
        (
            case,
            {"layer_types": ..., "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "max_window_layers=1: expected the same for every layer (sliding_window=8 applies to 1 of 2)",
        )
        for case in ("qwen2", "qwen3")
    ],
    ("qwen2", {"use_sliding_window": "yes"}, 'use_sliding_window="yes": expected true or false'),
    ("mixtral", {"num_experts": 7}, "num_experts=7: expected 5, the value of num_local_experts"),
    ("llama", {"rope_parameters": {FULL: {"rope_theta": 500.0}}}, f"rope_parameters.{FULL}="),
    ("llama", rope(rope_type="linear", factor=2.0, rope_theta=0.01), "rope_theta=0.01: expected a number of at"),
    *[
        ("llama", change, f'rope_type="{kind}": expected one of default, linear, llama3')
        for kind in ("yarn", "dynamic", "longrope", "su")
        for change in (
            rope(rope_type=kind, factor=2.0),
            {"rope_parameters": ..., "rope_scaling": {"type": kind, "factor": 2.0}},
        )
    ],
    ("llama", {"rope_parameters": [1]}, "=[1]: expected an object"),
    ("llama", {"rope_parameters": ..., "rope_scaling": "linear"}, '="linear": expected an object'),
    ("llama", rope(rope_type=["linear"]), 'rope_type=["linear"]'),
    ("llama", rope(rope_type="linear"), "factor is missing"),
    ("llama", rope(rope_type="linear", factor="2"), 'factor="2": expected a number'),
    ("llama", rope(rope_type="default", rope_theta="1e4"), 'rope_theta="1e4": expected a number'),
    *[
        ("llama", {"rope_parameters": {**LLAMA_3["rope_parameters"], key: None}}, key)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ],
    (
        "llama",
        rope(**LLAMA_3["rope_parameters"] | {"original_max_position_embeddings": 48.5}),
        "=48.5: expected a whole",
    ),
    *[
        (case, {key: value}, f"{key}={json.dumps(value)}: expected a whole number")
        for case, key in (
            ("llama", "vocab_size"),
            ("llama", "hidden_size"),
            ("llama", "num_hidden_layers"),
            ("llama", "num_attention_heads"),
            ("llama", "num_key_value_heads"),
            ("llama", "head_dim"),
            ("llama", "intermediate_size"),
            ("llama", "max_position_embeddings"),
            ("mistral", "sliding_window"),
            ("mixtral", "num_local_experts"),
            ("mixtral", "num_experts_per_tok"),
            ("qwen3moe", "moe_intermediate_size"),
        )
        for value in ("48", 48.0, True, [48])
    ],
    *[
        ("llama", {"rms_norm_eps": value}, f"rms_norm_eps={json.dumps(value)}: expected a number")
        for value in ("1e-5", True, [1], float("nan"), float("inf"), 10**400)
    ],
    *[
        ("llama", {"tie_word_embeddings": value}, f"tie_word_embeddings={json.dumps(value)}: expected true or false")
        for value in ("false", 0, None)
    ],
    *[
        (case, {key: ...}, f"{key} is missing")
        for case, key in (
            ("llama", "vocab_size"),
            ("llama", "hidden_size"),
            ("llama", "num_hidden_layers"),
            ("llama", "num_attention_heads"),
            ("llama", "intermediate_size"),
            ("mixtral", "num_experts_per_tok"),
            ("qwen3moe", "moe_intermediate_size"),
        )
    ],
    ("mixtral", {"num_local_experts": ...}, "num_local_experts or num_experts is missing"),
]


def test_what_the_transformer_cannot_do_is_refused(tmp_path: Path) -> None:
    for case, values, told in REFUSED:
        write(tmp_path, CASES[case])
        read_shape(tmp_path)  # which is right as it was
        rewrite(tmp_path, **values)
        try:
            message = f"{read_shape(tmp_path)} was read"
        except UserError as error:
            message = str(error)
        assert message.startswith(f"{tmp_path / 'config.json'}: ") and told in message, (case, values, message)


@pytest.mark.parametrize(
    ("case", "values"),
    [
        ("qwen2", {"sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28}),
        ("llama", {"sliding_window": 64}),
        ("llama", {"layer_types": [FULL, FULL], "sliding_window": None}),
        ("llama", {"hidden_act": "swish"}),
        ("llama-linear", {"rope_scaling": {"type": "linear", "factor": 2.5, "rope_theta": 500.0}}),
        ("mistral-window", {"layer_types": [SLIDING, SLIDING]}),
        ("mixtral-window", {"layer_types": [SLIDING, SLIDING]}),
        ("qwen2", {"layer_types": ..., "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("qwen3", {"layer_types": [FULL, FULL], "use_sliding_window": True, "sliding_window": 8}),
        ("llama", {"attention_bias": None, "mlp_bias": ..., "quantization_config": None}),
        ("llama", {"head_dim": None, "num_key_value_heads": 2, "pretraining_tp": 2, "model_type": ...}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_means_nothing_is_taken(case: str, values: dict[str, Any], tmp_path: Path) -> None:
    expected = read_shape(write(tmp_path, CASES[case]))
    rewrite(tmp_path, **values)
    assert read_shape(tmp_path) == expected


@functools.cache
def composition(*overrides: str) -> DictConfig:
    return compose("config", ["sampling=greedy", "workload.new_tokens=8", *overrides])


def composed(*overrides: str) -> Config:
    """As from the command line, with a workload that fits the tiny models. What differs in the checkpoint alone is
    composed once."""
    folder = next((given for given in overrides if given.startswith("model.checkpoint=/")), None)
    config = copy.deepcopy(composition(*(given for given in overrides if given != folder)))
    if folder is not None:
        config.model.checkpoint = folder.partition("=")[2]
    return load(config, overrides)


def disagreement(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        composed(*overrides)
    return str(caught.value)


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("case", CASES)
def test_auto_takes_all_from_the_checkpoint(case: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", CASES[case])
    model = composed("model=auto", f"model.checkpoint={folder}").model
    shape = read_shape(folder)
    assert shape.items() <= dataclasses.asdict(model).items()
    assert shape["rope_scaling"] is None or isinstance(model.rope_scaling, RopeScaling)
    assert model.reads_checkpoint
    assert model.checkpoint == str(folder)


@pytest.mark.usefixtures("composing")
def test_a_default_that_is_given_must_agree_too(tmp_path: Path) -> None:
    checkpoint = f"model.checkpoint={write(tmp_path, CASES['mistral-window'])}"
    assert composed("model=auto", checkpoint).model.sliding_window
    assert "model.sliding_window=0: expected" in disagreement("model=auto", checkpoint, "model.sliding_window=0")
    assert "model.checkpoint=: expected the folder" in disagreement("model=auto", "model.checkpoint=''")


@pytest.mark.usefixtures("composing")
def test_the_context_is_the_shorter_one(tmp_path: Path) -> None:
    write(tmp_path, NAMED["stories15m"])
    for stated, context in ((1024, 256), (230, 230)):
        rewrite(tmp_path, max_position_embeddings=stated)
        assert composed("model=stories15m", f"model.checkpoint={tmp_path}").model.context == context


@pytest.mark.usefixtures("composing")
def test_a_context_can_be_given_as_far_as_linear_scaling_stretches_it(tmp_path: Path) -> None:
    """Some files state the one before scaling."""
    linear, plain = write(tmp_path / "linear", CASES["llama-linear"]), write(tmp_path / "plain", CASES["llama"])

    def context(folder: Path, *overrides: str) -> int:
        return composed("model=auto", f"model.checkpoint={folder}", *overrides).model.context

    assert (context(linear), context(linear, "model.context=50")) == (64, 50)
    assert context(linear, "model.context=160") == 160
    for folder, given, most in ((linear, 161, 160), (plain, 65, 64)):
        told = disagreement("model=auto", f"model.checkpoint={folder}", f"model.context={given}")
        assert told == f"model.context={given}: expected at most {most}, the context in {folder / 'config.json'}"


@pytest.mark.parametrize(
    ("folder", "name"),
    [("Qwen3-8B", "Qwen3-8B"), ("models--Qwen--Qwen3-8B/snapshots/1f2e3d", "Qwen3-8B"), ("a b", "a_b")],
)
def test_the_name_is_the_folders_or_the_cached_models(folder: str, name: str, tmp_path: Path) -> None:
    assert read_shape(write(tmp_path / folder, CASES["llama"]))["name"] == name


def test_where_the_library_looks_for_the_original_context(tmp_path: Path) -> None:
    write(tmp_path, CASES["llama-llama3"])
    rewrite(tmp_path, original_max_position_embeddings=20)
    assert read_shape(tmp_path)["rope_scaling"]["original_context"] == 20


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 2**62},
        {"vocab_size": -1},
        {"num_hidden_layers": 5 * 10**7},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_numbers_that_no_model_has_and_two_scalings_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, CASES["llama-llama3"])
    rewrite(tmp_path, **values)
    with pytest.raises(UserError, match=next(iter(values))):
        read_shape(tmp_path)


@pytest.mark.usefixtures("composing")
def test_auto_needs_a_checkpoint() -> None:
    told = disagreement("model=auto")
    assert "model.checkpoint" in told
    assert "folder" in told


@pytest.mark.usefixtures("composing")
def test_what_is_given_beside_auto_must_agree(tmp_path: Path) -> None:
    checkpoint = f"model.checkpoint={write(tmp_path, CASES['llama-llama3'])}"
    model = composed("model=auto", checkpoint, "model.name=mine", "model.dim=48", "model.weights=random").model
    assert (model.name, model.dim, model.reads_checkpoint) == ("mine", 48, False)
    for given in ("dim=64", "norm_eps=0.5", "sliding_window=7", "tied=true", "head_dim=8"):
        told = disagreement("model=auto", checkpoint, f"model.{given}")
        assert told.startswith(f"model.{given}".replace("true", "True"))
        assert str(tmp_path / "config.json") in told


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_checkpoint_without_a_config_is_a_users_mistake(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model in ("auto", "stories15m"):
        assert str(tmp_path / name) in disagreement(f"model={model}", f"model.checkpoint={tmp_path / name}")


STORIES = LlamaConfig(
    vocab_size=32000,
    hidden_size=288,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    intermediate_size=768,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
LLAMA_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=8192,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
NAMED = {"stories15m": STORIES, "llama3_2_1b": LLAMA_1B}


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("name", NAMED)
def test_a_yaml_that_agrees_is_taken(name: str, tmp_path: Path) -> None:
    plain = composed(f"model={name}").model
    folder = str(write(tmp_path / "another-name", NAMED[name]))
    assert composed(f"model={name}", f"model.checkpoint={folder}").model == dataclasses.replace(
        plain, checkpoint=folder
    )


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("stories15m", {"vocab_size": 32001}, "model.vocab_size=32000: expected 32001"),
        ("stories15m", {"hidden_size": 576}, "model.dim=288: expected 576"),
        ("stories15m", {"num_hidden_layers": 7}, "model.n_layers=6: expected 7"),
        ("stories15m", {"num_attention_heads": 12}, "model.n_heads=6: expected 12"),
        ("stories15m", {"num_key_value_heads": 3}, "model.n_kv_heads=6: expected 3"),
        ("stories15m", {"head_dim": 64}, "model.head_dim="),
        ("stories15m", {"intermediate_size": 769}, "model.ffn_dim=768: expected 769"),
        ("stories15m", {"rms_norm_eps": 1e-6}, "model.norm_eps=1e-05: expected 1e-06"),
        ("stories15m", {"tie_word_embeddings": False}, "model.tied=True: expected False"),
        ("stories15m", rope(rope_type="default"), "model.rope_theta=10000.0: expected 500.0"),
        ("stories15m", rope(rope_type="linear", factor=2.0, rope_theta=1e4), "model.rope_scaling=None: expected {"),
        ("stories15m", {"model_type": "qwen2"}, "model.qkv_bias=False: expected True"),
        ("stories15m", {"model_type": "qwen3"}, "model.qk_norm=False: expected True"),
        (
            "stories15m",
            {"model_type": "mistral", "sliding_window": 9},
            "model.sliding_window=0: expected 9",
        ),
        (
            "stories15m",
            {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
            "model.n_experts=0: expected 8",
        ),
        ("llama3_2_1b", rope(rope_type="default", rope_theta=5e5), "model.rope_scaling={'factor': 32.0"),
        (
            "llama3_2_1b",
            {"rope_parameters": LLAMA_1B.rope_parameters | {"factor": 8.0}},
            "model.rope_scaling={'factor': 32.0",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_yaml_that_disagrees_is_refused(name: str, values: dict[str, Any], told: str, tmp_path: Path) -> None:
    """With field, value and file."""
    write(tmp_path, NAMED[name])
    rewrite(tmp_path, **values)
    message = disagreement(f"model={name}", f"model.checkpoint={tmp_path}")
    assert message.startswith(told)
    assert f"the value in {tmp_path / 'config.json'} " in message
