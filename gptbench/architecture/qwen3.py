"""Qwen 3. Yang et al., 2025, arXiv:2505.09388."""

from gptbench.architecture.qwen2 import QWEN
from gptbench.architecture.row import Architecture, Window, register_architecture

QWEN3 = register_architecture(
    Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        qk_norm=True,
        window=Window.by_layer_if_used,
        defaults=QWEN | {"num_key_value_heads": 32, "head_dim": 128},
        hf_class_prefix="Qwen3",
        hf_fields=frozenset({"head_dim", "qk_norm"}),
    )
)
