"""Tiny Hugging Face checkpoints made by transformers, and gptbench's models of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the library is imported: nothing here is to be downloaded

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging

from gptbench.build import build, on_meta
from gptbench.checkpoint import Checkpoint
from gptbench.config import DeviceConfig, DeviceKind, Dtype, ModelConfig, complete_model
from gptbench.device import Device
from gptbench.model import Transformer
from gptbench.schema.result import CheckpointInfo
from tests.models import CONF, quant_section, run_config

logging.disable_progress_bar()

MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    LlamaConfig: LlamaForCausalLM,
    MistralConfig: MistralForCausalLM,
    MixtralConfig: MixtralForCausalLM,
    Qwen2Config: Qwen2ForCausalLM,
    Qwen3Config: Qwen3ForCausalLM,
    Qwen3MoeConfig: Qwen3MoeForCausalLM,
}


def shape(heads: int = 6, kv_heads: int = 2, dim: int = 48, **others: Any) -> dict[str, Any]:
    """Return the fields of all configurations. The epsilon is large enough to matter."""
    return {
        "vocab_size": 131,
        "hidden_size": dim,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": 0.02,
        **others,
    }


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 500.0, **parameters}}


LLAMA_3 = rope(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=48,
)
"""Llama 3's RoPE scaling: of the 8 wavelengths of a head of 16, one is kept, two lie in between, five are stretched."""

CASES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**shape()),
    "llama-tied": LlamaConfig(**shape(heads=3, kv_heads=1, tie_word_embeddings=True)),
    "llama-linear": LlamaConfig(**shape(heads=5, kv_heads=5, dim=80), **rope(rope_type="linear", factor=2.5)),
    "llama-llama3": LlamaConfig(**shape(heads=3, kv_heads=3), **LLAMA_3),
    "mistral": MistralConfig(**shape(head_dim=16), sliding_window=None),
    "mistral-window": MistralConfig(**shape(tie_word_embeddings=True), sliding_window=5),
    "mixtral": MixtralConfig(**shape(heads=4, kv_heads=4, num_local_experts=5), **rope()),
    "mixtral-window": MixtralConfig(**shape(num_local_experts=8, num_experts_per_tok=3), sliding_window=4),
    "qwen2": Qwen2Config(**shape(), **rope()),
    "qwen2-tied": Qwen2Config(**shape(heads=7, kv_heads=1, dim=112, tie_word_embeddings=True)),
    "qwen3": Qwen3Config(**shape(head_dim=16), **rope()),
    "qwen3-tied": Qwen3Config(**shape(heads=3, kv_heads=1, head_dim=32, tie_word_embeddings=True)),
    "qwen3moe": Qwen3MoeConfig(
        **shape(head_dim=16, moe_intermediate_size=32, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True),
        **rope(),
    ),
    "qwen3moe-tied": Qwen3MoeConfig(
        **shape(head_dim=10, moe_intermediate_size=48, num_experts=4, norm_topk_prob=True, tie_word_embeddings=True),
        num_experts_per_tok=1,
    ),
}
"""Configurations of every architecture, with each RoPE scaling, windows, odd ratios of heads, tied and untied."""


def library_model(case: str, seed: int = 3) -> PreTrainedModel:
    """Return transformers' model with seeded parameters, none of which has a value that a wrong program might
    assume."""
    config = CASES[case]
    model = MODELS[type(config)](config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 2, generator=generator)
        elif name.endswith("bias") or "embed" in name:
            parameter.normal_(std=0.5, generator=generator)
        else:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return model


def completed(folder: Path, **fields: Any) -> ModelConfig:
    """Return the model's section for ``model=auto model.checkpoint=FOLDER``."""
    section = OmegaConf.merge(
        OmegaConf.structured(ModelConfig),
        OmegaConf.load(CONF / "model" / "auto.yaml"),
        {"checkpoint": str(folder), **fields},
    )
    complete_model(section)
    config = OmegaConf.to_object(section)
    assert isinstance(config, ModelConfig)
    return config


def loaded(
    folder: Path,
    quant: str = "none",
    dtype: str = "float32",
    batch: int = 1,
    progress: Callable[[str, float], None] = lambda *_: None,
    **fields: Any,
) -> tuple[Transformer, CheckpointInfo]:
    """Return gptbench's model with a checkpoint's weights and a KV cache of 24 positions, checked and built as in a
    run."""
    config = completed(folder, **fields)
    section = DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu, dtype=Dtype(dtype))
    device = Device(section)
    model = on_meta(config, quant_section(quant), device.dtype)
    Checkpoint(config).check(model)
    with torch.no_grad():
        read = build(run_config(config, quant, new_tokens=21, batch=batch), model, device, progress)
    assert read is not None
    model.memory = model.allocate(batch, 24, device.torch)  # as `make_model` gives it
    return model, read


def stored(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint's safetensors files."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def store(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Replace a checkpoint's tensors by others, in one file."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def rewrite(folder: Path, **values: Any) -> None:
    """Change keys of config.json; `...` removes one."""
    file = folder / "config.json"
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not ...}))
