"""Checkpoints of every architecture: gptbench computes what the transformers library computes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptbench import architecture
from gptbench.architecture import FULL, SLIDING
from gptbench.base.errors import UserError
from gptbench.config import RopeScaling
from gptbench.model import Transformer
from tests.hf import CASES, LLAMA_3, completed, library_model, loaded, rewrite
from tests.models import prefill, relative_error, step

STEPS = 9
TOLERANCE = 2e-5
"""Relative to the largest logit; measured 4e-6 with three seeds."""

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


IGNORED_KEYS: dict[str, Any] = {
    "attention_dropout": 0.5,
    "chunk_size_feed_forward": 1,
    "dtype": "bfloat16",
    "initializer_range": 0.5,
    "output_hidden_states": True,
    "output_router_logits": True,
    "pad_token_id": 7,
    "pretraining_tp": 2,
    "problem_type": "regression",
    "return_dict": True,  # with False, the library itself fails
    "router_aux_loss_coef": 1.0,
    "router_jitter_noise": 0.5,
    "torch_dtype": "float16",
    "transformers_version": "4.0.0",
    "use_cache": False,
    "id2label": {"0": "a"},
    "label2id": {"a": 0},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def prompts(batch: int, tokens: int, vocabulary: int = 131) -> Tensor:
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def greedy_of_library(model: PreTrainedModel, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """Prefill, then steps through the library's own cache: tokens [B, STEPS] and their logits [B, STEPS, V]."""
    output, tokens, logits = model(prompt, use_cache=True), [], []
    for _ in range(STEPS):
        logits.append(output.logits[:, -1])
        tokens.append(logits[-1].argmax(-1))
        output = model(tokens[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
    return torch.stack(tokens, 1), torch.stack(logits, 1)


def greedy(model: Transformer, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The same of gptbench, which reads its whole cache at every second step, and what is filled at the others."""
    length = model.memory.caches[0].length
    logits = [prefill(model, prompt)]
    tokens = [logits[0].argmax(-1)]
    for position in range(prompt.shape[1], prompt.shape[1] + STEPS - 1):
        logits.append(step(model, tokens[-1][:, None], position, length if position % 2 else position + 1))
        tokens.append(logits[-1].argmax(-1))
    return torch.stack(tokens, 1), torch.stack(logits, 1)


@pytest.mark.parametrize("batch", [1, 3], ids="B={}".format)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_tokens_are_the_librarys(case: str, batch: int, folder: Path) -> None:
    """Against its cached decode, and against all tokens fed at once; the longer prompt passes the windows."""
    library = library_model(case)
    library.save_pretrained(folder)
    model, _ = loaded(folder, batch=batch)
    seen: set[int] = set()
    for length in (1, 7):
        prompt = prompts(batch, length)
        expected, expected_logits = greedy_of_library(library, prompt)
        tokens, logits = greedy(model, prompt)
        assert torch.equal(tokens, expected)
        assert relative_error(logits, expected_logits) < TOLERANCE
        at_once = library(torch.cat((prompt, tokens[:, :-1]), 1), use_cache=False).logits
        assert relative_error(logits, at_once[:, length - 1 :]) < TOLERANCE
        seen.update(tokens.flatten().tolist())
    assert len(seen) > 3, "a model that repeats itself shows little"


@pytest.mark.parametrize("case", ["llama-tied", "qwen2", "qwen3moe"])
def test_shards_hold_the_same_model(case: str, folder: Path) -> None:
    library, prompt = library_model(case), prompts(2, 7)
    library.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    tokens, logits = greedy(loaded(folder, batch=2)[0], prompt)
    expected, expected_logits = greedy_of_library(library, prompt)
    assert torch.equal(tokens, expected)
    assert relative_error(logits, expected_logits) < TOLERANCE


def old_style(folder: Path) -> None:
    """Rewrites config.json as version 4 of the library wrote it; the oldest did not know what follows from others."""
    values = json.loads((folder / "config.json").read_text())
    parameters = values["rope_parameters"]
    theta, kind = parameters.pop("rope_theta"), parameters.pop("rope_type")
    scaling = None if kind == "default" else parameters | {("type" if kind == "linear" else "rope_type"): kind}
    rewrite(folder, rope_parameters=..., rope_theta=theta, rope_scaling=scaling, dtype=..., torch_dtype="float32")
    if values["model_type"] == "qwen3_moe":
        rewrite(folder, num_local_experts=..., num_experts=values["num_local_experts"])
    if values.get("head_dim") == values["hidden_size"] // values["num_attention_heads"]:
        rewrite(folder, head_dim=...)


@pytest.mark.parametrize("case", CASES)
def test_an_old_config_json_is_of_the_same_model(case: str, folder: Path) -> None:
    library, prompt = library_model(case), prompts(1, 7)
    library.save_pretrained(folder)
    new = completed(folder)
    old_style(folder)
    assert completed(folder) == new
    assert torch.equal(greedy(loaded(folder)[0], prompt)[0], greedy_of_library(library, prompt)[0])


LINEAR = {"rope_type": "linear", "factor": 2.0}
STRETCHED = LLAMA_3["rope_parameters"]
CONFIG_FILES: list[tuple[str, dict[str, Any]]] = [
    # case, what config.json has instead. The library reads it as it is, and so do we, or we refuse it.
    *[("llama", {key: value}) for key, value in IGNORED_KEYS.items()],
    *[
        (case, change)
        for case in ("llama", "mistral-window", "mixtral-window", "qwen2", "qwen3moe")
        for change in (
            {"hidden_act": "gelu"},
            {"hidden_act": "swish"},
            {"rms_norm_eps": 0.3},
            {"rms_norm_eps": ...},
            {"max_position_embeddings": ...},
            {"rope_parameters": ..., "rope_theta": 100.0},
            {"rope_parameters": ...},
            {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": STRETCHED},
            {"rope_parameters": {key: value for key, value in STRETCHED.items() if "original" not in key}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 0.01}},
            {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 500.0}}},
            {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ...},
            {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1, "layer_types": ...},
            {"sliding_window": 3, "use_sliding_window": False, "max_window_layers": 0, "layer_types": ...},
            {"sliding_window": 1, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ...},
            {"sliding_window": 0, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ...},
            {"sliding_window": 3, "use_sliding_window": True, "layer_types": [SLIDING, SLIDING]},
            {"sliding_window": 3, "use_sliding_window": True, "layer_types": [FULL, SLIDING]},
            {"sliding_window": 3, "use_sliding_window": True, "layer_types": [FULL, FULL]},
            {"layer_types": [SLIDING, FULL]},
        )
    ],
    *[(case, {"attention_bias": True}) for case in ("llama", "qwen3", "qwen3moe")],
    ("llama", {"mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"is_causal": False}),
    ("llama", {"model_type": "mistral", "sliding_window": 3}),
    ("llama", {"model_type": "mistral", "sliding_window": ...}),
    ("mistral-window", {"model_type": "llama"}),
    ("mistral-window", {"architectures": ["LlamaForCausalLM"]}),
    ("mixtral", {"num_experts_per_tok": 3}),
    ("qwen3moe", {"norm_topk_prob": False}),
    ("qwen3moe", {"num_experts_per_tok": 1}),
    ("qwen3moe", {"mlp_only_layers": [0]}),
    ("qwen3moe", {"decoder_sparse_step": 2}),
]


def test_every_key_of_config_json_is_honoured_or_refused(tmp_path: Path) -> None:
    """Without a cache: the library's own drops what its attention sees, where a model has no window by itself."""
    prompt = prompts(1, 12)
    wrong, ran = [], 0
    assert set(IGNORED_KEYS) == architecture.IGNORED_KEYS
    for case in dict.fromkeys(case for case, _ in CONFIG_FILES):
        folder = tmp_path / case
        library_model(case).save_pretrained(folder)
        original = (folder / "config.json").read_text()
        for change in (change for other, change in CONFIG_FILES if other == case):
            (folder / "config.json").write_text(original)
            rewrite(folder, **change)
            try:
                model, _ = loaded(folder)
            except UserError:
                continue
            library = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            expected = library(prompt, use_cache=False).logits[:, -1]
            ran += 1
            if not relative_error(prefill(model, prompt), expected) < TOLERANCE:
                wrong.append((case, change))
    assert not wrong
    assert ran > 60


CHANGES = [
    ("llama", {"rope_theta": 9000.0}),
    ("llama", {"norm_eps": 0.021}),
    ("llama-linear", {"rope_scaling": None}),
    ("llama-linear", {"rope_scaling": RopeScaling(factor=2.6, original_context=1)}),
    ("llama-llama3", {"rope_scaling": RopeScaling(factor=4.0, original_context=49)}),
    ("llama-llama3", {"rope_scaling": RopeScaling(factor=4.0, original_context=48, high_freq_factor=3.9)}),
    ("mistral-window", {"sliding_window": 6}),
    ("mixtral-window", {"sliding_window": 0}),
    ("mixtral", {"n_active_experts": 3}),
]


@pytest.mark.parametrize(("case", "change"), CHANGES, ids="".join)
def test_the_comparison_notices_another_setting(case: str, change: dict[str, Any], folder: Path) -> None:
    """The tolerance is tight enough to fail for what no shape of a weight tells."""
    library, prompt = library_model(case), prompts(1, 7)
    library.save_pretrained(folder)
    model, _ = loaded(folder)
    other = Transformer(dataclasses.replace(model.config, **change), torch.float32)
    other.load_state_dict(model.state_dict())
    other.memory = other.allocate(1, 24, torch.device("cpu"))
    expected = library(prompt).logits[:, -1]
    assert relative_error(prefill(model, prompt), expected) < TOLERANCE
    assert relative_error(prefill(other, prompt), expected) > 10 * TOLERANCE
