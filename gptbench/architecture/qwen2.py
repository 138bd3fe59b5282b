"""Qwen 2. Yang et al., 2024, arXiv:2407.10671."""

from gptbench.architecture.row import Architecture, Window, register_architecture

QWEN = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28}
"""Defaults that transformers uses for keys missing from the config.json of a Qwen model."""

QWEN2 = register_architecture(
    Architecture(
        "Qwen2ForCausalLM",
        "qwen2",
        qkv_bias=True,
        window=Window.by_layer_if_used,
        defaults=QWEN | {"num_key_value_heads": 32},
        hf_class_prefix="Qwen2",
        hf_fields=frozenset({"head_dim", "qkv_bias"}),
    )
)
