"""Llama. Touvron et al., 2023, arXiv:2302.13971."""

from gptbench.architecture.row import Architecture, register_architecture

LLAMA = register_architecture(
    Architecture(
        "LlamaForCausalLM",
        "llama",
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        hf_class_prefix="Llama",
    )
)
