"""`engine=hf`: the transformers library's model over the same weights, a peer to compare with.

From transformers come the code of the model, its attention (sdpa), its cache, and how `generate` compiles a decode step
(it does not compile the prefill). From gptbench come, as in every engine, the weights, sampling and bookkeeping. No
sequence is padded, so no mask is passed, and transformers makes its own within the compiled code, as its guide
recommends. https://huggingface.co/docs/transformers/llm_optims and https://huggingface.co/docs/transformers/kv_cache
"""

import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from gptbench.architecture import ARCHITECTURES, layout
from gptbench.base.errors import ConfigError
from gptbench.build import cache_length
from gptbench.checkpoint import view
from gptbench.config import Cache, Config, EngineConfig, HuggingFaceConfig, ModelConfig, Tuning
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import caches
from gptbench.engine.base import Engine
from gptbench.engine.inductor import WARM_UP_CALLS, Inductor, compile_graph, compile_options, trust_vector_instructions
from gptbench.engine.runner import Shape
from gptbench.model import KeyValueCache, Transformer
from gptbench.model.transformer import MixtureOfExperts, count_distinct
from gptbench.private import transformers as private
from gptbench.private.torch import mark_static
from gptbench.sampling import Sampler

MIN_VERSION = (5, 17)
"""Minimum version of transformers; earlier ones lack some of what is called here."""

GROUPED_ALIGNMENT = 16
"""Alignment of the rows of operands of ``torch.nn.functional.grouped_mm``, in bytes."""


def window_hides(config: ModelConfig, length: int) -> bool:
    """Whether the window masks any position of a cache of `length` positions; otherwise it is left out, at no cost."""
    return any(layer.attention.window_applies(length) for layer in config.layer_specs)


def distinguishing_fields(config: ModelConfig, length: int) -> set[str]:
    """Return the fields that matter in this model, of those by which the models of transformers differ."""
    layers = set(config.layer_specs)
    attentions = {layer.attention for layer in layers}
    has = {
        "head_dim": any(layer.dim % layer.attention.heads for layer in layers),
        "sliding_window": window_hides(config, length),
        "qkv_bias": any(attention.qkv_bias for attention in attentions),
        "qk_norm": any(attention.qk_norm for attention in attentions),
        "n_experts": any(layer.mixture is not None for layer in layers),
        "architecture": not all(layer.attention.is_plain and layer.ffn.is_plain for layer in layers),
        "attention_pattern": len(attentions) > 1,
        "ffn_pattern": len({layer.ffn for layer in layers}) > 1,
    }
    return {name for name, value in has.items() if value}


def model_family(config: ModelConfig, length: int) -> str | None:
    """Return the simplest model family of transformers that can represent the model; None if none can."""
    rows = sorted(ARCHITECTURES.values(), key=lambda row: len(row.hf_fields))
    fields = distinguishing_fields(config, length)
    return next((row.hf_class_prefix for row in rows if row.hf_class_prefix and fields <= row.hf_fields), None)


def library_config(config: ModelConfig, length: int) -> Any:
    """Return the model's shape as a configuration of transformers, which ignores fields that the family does not
    have."""
    layer = config.layer_specs[0]  # all layers are alike
    attention, rotary = layer.attention, layer.attention.rotary
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.base}
    if (scaling := rotary.scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return getattr(private.library(), f"{model_family(config, length)}Config")(
        vocab_size=config.vocab_size,
        hidden_size=layer.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        intermediate_size=layer.ffn.width,
        moe_intermediate_size=layer.ffn.width,
        num_experts=0 if layer.mixture is None else layer.mixture.experts,
        num_experts_per_tok=0 if layer.mixture is None else layer.mixture.active,
        norm_topk_prob=True,
        max_position_embeddings=config.context,
        rope_parameters=rope,
        rms_norm_eps=layer.norm_eps,
        sliding_window=attention.window if window_hides(config, length) else None,
        tie_word_embeddings=config.tied,
        attn_implementation="sdpa",
    )


def weights(model: Transformer) -> dict[str, Tensor]:
    """Return views of the model's tensors, by their names in the transformers model.

    The names are those of a checkpoint, except for experts, which transformers also keeps in one tensor, and for the
    router, which is called as in Qwen's mixtures.
    """
    row, specs = ARCHITECTURES["Qwen3MoeForCausalLM"], [block.spec for block in model.layers]
    target_layout = layout(row.layer, row.outer_names, specs, model.config.vocab_size, model.config.tied).items()
    views = {name: view(model, target) for name, target in target_layout if target.parts[0].expert is None}
    for number, block in enumerate(model.layers):
        if isinstance(block.ffn, MixtureOfExperts):
            views[f"model.layers.{number}.mlp.experts.gate_up_proj"] = block.ffn.w13.weight
            views[f"model.layers.{number}.mlp.experts.down_proj"] = block.ffn.w2.weight
    return views | {"lm_head.weight": model.head.weight}


def build_hf_model(model: Transformer, length: int, device: torch.device) -> Any:
    """Return the transformers model with gptbench's tensors as its parameters; nothing is copied."""
    config = library_config(model.config, length)
    with torch.device("meta"):
        hf = getattr(private.library(), f"{model_family(model.config, length)}ForCausalLM")(config)
    hf.load_state_dict(weights(model), assign=True)
    hf.tie_weights()
    private.make_rotary(hf, config, device)  # still on `meta`
    return hf.eval().requires_grad_(False)


class HuggingFace(Engine):
    """Runs the transformers model.

    With the static cache, the decode step is compiled as `generate` compiles it on a GPU (mode="reduce-overhead":
    cudagraph trees), here on a CPU as well, and reads the whole cache. With the dynamic cache, operations run one after
    the other over a cache that grows by copying. Both caches have one length for all rows, so the first row's positions
    serve all rows.
    """

    config: HuggingFaceConfig
    FILLS_MEMORY: ClassVar[bool] = False

    @classmethod
    def unavailable_reason(cls, device: Device) -> str | None:
        if importlib.util.find_spec("transformers") is not None:
            major, minor = version("transformers").split(".")[:2]
            if (int(major), int(minor)) >= MIN_VERSION:
                return None
        return f"the transformers library, {MIN_VERSION[0]}.{MIN_VERSION[1]} or later (pip install 'gptbench[hf]')"

    @classmethod
    def unsupported_reason(cls, config: Config, devices: DeviceGroup) -> str | None:
        if (reason := super().unsupported_reason(config, devices)) is not None:
            return reason
        model, length = config.model, cache_length(config)
        if model_family(model, length) is None:
            fields = " and ".join(
                f"model.{name}={getattr(model, name)}" for name in sorted(distinguishing_fields(model, length))
            )
            return f"another model: transformers has no model with {fields}"
        device = devices.local
        multiple = GROUPED_ALIGNMENT // device.dtype.itemsize
        for name in ("dim", "ffn_dim"):
            if model.layer_specs[0].mixture is not None and (width := getattr(model, name)) % multiple:
                what = f"transformers' grouped product of experts needs model.{name} to be a multiple of {multiple}"
                return f"another model: {what} in {device.dtype_name} (it is {width})"
        return None

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        engine, model, length = config.engine, config.model, cache_length(config)
        assert isinstance(engine, HuggingFaceConfig)
        if engine.cache is Cache.static:
            if (unavailable := Inductor.unavailable_reason(device)) is not None:
                raise ConfigError("engine.cache", "static", f"dynamic, or what static needs: {unavailable}")
            caches.check(engine)
        window = model.layer_specs[0].attention.window  # all layers are alike
        if window_hides(model, length) and window == 1 and engine.cache is Cache.dynamic:
            expected = "static: the dynamic cache of transformers drops nothing with model.sliding_window=1"
            raise ConfigError("engine.cache", "dynamic", expected)

    @classmethod
    def warm_up_compiler(cls, config: EngineConfig, device: Device) -> None:
        assert isinstance(config, HuggingFaceConfig)
        if config.cache is Cache.static:
            Inductor.warm_up_compiler(config, device)

    def __init__(
        self, config: HuggingFaceConfig, model: Transformer, sampler: Sampler, device: Device, shape: Shape
    ) -> None:
        super().__init__(config, model, sampler, device, shape)
        self.hf = build_hf_model(model, self.length, device.torch)
        self.static = config.cache is Cache.static
        self.window_hides = window_hides(model.config, self.length)
        if self.static:
            self.cache = private.static_cache(self.hf.config, self.length)
        else:
            self.cache = private.dynamic_cache(self.hf.config)
        private.allocate(
            self.cache, self.batch, model.config.n_kv_heads, model.config.head_dim, model.dtype, device.torch
        )
        self.empty = self.cache
        self.decode_forward: Any = self.hf
        self.finish: Callable[[Tensor], None] = self.sample
        if self.static:
            self.decode_forward = private.compiled_call(self.hf)
            self.finish = compile_graph(self.sample, compile_options(cudagraphs=False, tuning=Tuning.none))
        # As in `generate`: on a GPU, decode steps multiply experts' matrices in another way, made for few tokens.
        self.switches_experts = device.is_cuda and private.uses_grouped_experts(self.hf)
        if self.batch > 1 and model.experts_counter is not None:
            for router in private.routers(self.hf):
                router.register_forward_hook(self.count_experts)
            mark_static(model.experts_counter)

    @torch.no_grad()
    def prepare(self) -> None:
        trust_vector_instructions()
        self.filled = self.prompt_length
        # A static cache with a window counts on the host, where compiled code asks for particular numbers; and the
        # cudagraph trees record each number separately.
        steps = self.length - self.prompt_length if self.static and self.window_hides else 1
        for _ in range(WARM_UP_CALLS):
            self.run_prefill()
            for _ in range(steps):
                self.run_decode()
        self.device.synchronize()

    def run_prefill(self) -> None:
        self.reset_to_prompt()
        self.use_experts(private.GROUPED)
        if self.static:
            self.cache.reset()
            self.cache.empty = True
            logits = self.logits(self.hf, self.prompt, self.prompt_positions)
            self.cache.empty = False
        else:
            self.cache = private.copied(self.empty)
            logits = self.logits(self.hf, self.prompt, self.prompt_positions)
        self.use_experts(private.BATCHED)
        self.finish(logits)

    def run_decode(self) -> None:
        self.finish(self.logits(self.decode_forward, self.state.token, self.state.position))

    def logits(self, forward: Callable[..., Any], tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the logits, float32 [B, V], after the last of tokens [B, T] at positions [B, T]; a copy, as the next
        replay overwrites the original."""
        output = forward(
            input_ids=tokens,
            position_ids=positions[:1],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        return output.logits[:, -1].to(torch.float32, copy=True)

    def use_experts(self, implementation: str) -> None:
        """Set how transformers multiplies experts' matrices, if that differs between prefill and decode."""
        if self.switches_experts:
            private.use_experts(self.hf, implementation)

    def count_experts(self, router: Any, inputs: Any, routed: tuple[Tensor, Tensor, Tensor]) -> None:
        """Forward hook of each router, which returns logits, weights and the chosen experts [N, A]."""
        counter, chosen = self.model.experts_counter, routed[2]
        if counter is not None and len(chosen) == self.batch:  # a decode step
            counter.add_(count_distinct(chosen, self.model.mixtures[0].experts))

    def experts_read(self, chosen: int, steps: int) -> int:
        """Return the experts that are read: on a GPU one for each pair of row and choice, which are gathered; elsewhere
        each once."""
        return steps * self.batch * self.model.active_experts if self.switches_experts else chosen

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Return the positions read or written. A dynamic cache is copied, which reads all but each row's own position
        and writes all, and is then read."""
        read, rows = self.positions_read(positions, cache), len(positions)
        return read + rows if self.static else 3 * read - rows

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        read = self.length if self.static else max(positions) + 1
        return len(positions) * (min(read, cache.spec.window) if self.window_hides else read)

    def cached(self) -> list[Tensor]:
        return [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]

    def release(self) -> None:
        self.hf = self.cache = self.empty = self.decode_forward = None
