"""Keys of a config.json: those that are read, those without effect, and those of which few values are supported.

Source: https://huggingface.co/docs/transformers (main_classes/configuration, and the page of each model).
"""

from typing import Any

SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
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
"""Keys that change the arithmetic, with the values that the Transformer supports. A file need not have them all."""

READ_KEYS = frozenset(
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
        "quantization_config",
        "bos_token_id",
        "eos_token_id",
    }
)
"""Keys that are read. The tokenizer reads those of special tokens."""

IGNORED_KEYS = frozenset(
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
"""Keys that change no logits: those for training, for additional outputs and for transformers. A key in none of the
three tables belongs to none of these models: their code does not read it."""
