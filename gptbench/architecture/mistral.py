"""Mistral. Jiang et al., 2023, arXiv:2310.06825."""

from gptbench.architecture.row import Architecture, Window, register_architecture

MISTRAL = register_architecture(
    Architecture(
        "MistralForCausalLM",
        "mistral",
        window=Window.by_layer,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
        hf_class_prefix="Mistral",
        hf_fields=frozenset({"head_dim", "sliding_window"}),
    )
)
