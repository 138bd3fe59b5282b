"""Qwen 3 with experts. Yang et al., 2025, arXiv:2505.09388."""

from gptbench.architecture.layout import LlamaLayer
from gptbench.architecture.qwen2 import QWEN
from gptbench.architecture.row import Architecture, Window, register_architecture

QWEN3_MOE = register_architecture(
    Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        qk_norm=True,
        window=Window.all_if_used,
        ffn_key="moe_intermediate_size",
        experts=True,
        defaults=QWEN | {"num_key_value_heads": 4, "norm_topk_prob": False},
        layer=LlamaLayer(
            "mlp.gate.weight",
            (
                "mlp.experts.{}.gate_proj.weight",
                "mlp.experts.{}.up_proj.weight",
                "mlp.experts.{}.down_proj.weight",
            ),
        ),
        hf_class_prefix="Qwen3Moe",
        hf_fields=frozenset({"head_dim", "qk_norm", "n_experts"}),
    )
)
