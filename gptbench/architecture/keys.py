"""The keys of a config.json: which are read, which change nothing, and which are refused.

As in https://huggingface.co/docs/transformers (main_classes/configuration, and each model's own page).
"""

from typing import Any

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
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
"""Keys that change the arithmetic, and the values under which it is the Transformer's own. Not every file has each."""

HONOURED = frozenset(
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
"""Keys that are read; those of tokens with the tokenizer."""

WITHOUT_EFFECT = frozenset(
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
"""Keys that change no logit: of training, of what else is returned, of the library. A key that is in neither of the
three is none of these models': no code of theirs reads it."""
