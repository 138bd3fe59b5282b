"""Mixtral. Jiang et al., 2024, arXiv:2401.04088."""

from gptbench.architecture.layout import LlamaLayer
from gptbench.architecture.row import Architecture, Window, register_architecture

MIXTRAL = register_architecture(
    Architecture(
        "MixtralForCausalLM",
        "mixtral",
        window=Window.all_layers,
        experts=True,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
        },
        layer=LlamaLayer(
            "block_sparse_moe.gate.weight",
            (
                "block_sparse_moe.experts.{}.w1.weight",
                "block_sparse_moe.experts.{}.w3.weight",
                "block_sparse_moe.experts.{}.w2.weight",
            ),
        ),
        hf_class_prefix="Mixtral",
        hf_fields=frozenset({"head_dim", "sliding_window", "n_experts"}),
    )
)
