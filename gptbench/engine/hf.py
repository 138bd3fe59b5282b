"""The transformers library's model over the same weights: a peer to compare with.

The library's are the code of the model, its attention (sdpa), its cache, and how `generate` compiles a decode step; a
prefill it does not compile. Ours are, as in every engine, the weights, the drawing of tokens and the bookkeeping. No
sequence is padded, so the library is given no mask and makes its own, within what is compiled, as its guide has it.
https://huggingface.co/docs/transformers/llm_optims and https://huggingface.co/docs/transformers/kv_cache
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
from gptbench.engine.inductor import WARM_UP_CALLS, Inductor, compile_options, compiled, trust_vector_instructions
from gptbench.engine.runner import Shape
from gptbench.model import KeyValueCache, Transformer
from gptbench.model.transformer import MixtureOfExperts, count_distinct
from gptbench.private import transformers as private
from gptbench.private.torch import mark_static
from gptbench.sampling import Sampler

OLDEST = (5, 17)
"""Version of the library; earlier ones lack some of what is called here."""

GROUPED_ALIGNMENT = 16
"""Bytes: rows of what ``torch.nn.functional.grouped_mm`` multiplies are a multiple of so many."""


def slides(config: ModelConfig, length: int) -> bool:
    """Whether the window masks any position of a cache of `length` positions; otherwise it is left out, at no cost."""
    return any(layer.attention.window_applies(length) for layer in config.layer_specs)


def asked(config: ModelConfig, length: int) -> set[str]:
    """Fields of a model, by which the library's models differ, that mean something."""
    layers = set(config.layer_specs)
    attentions = {layer.attention for layer in layers}
    has = {
        "head_dim": any(layer.dim % layer.attention.heads for layer in layers),
        "sliding_window": slides(config, length),
        "qkv_bias": any(attention.qkv_bias for attention in attentions),
        "qk_norm": any(attention.qk_norm for attention in attentions),
        "n_experts": any(layer.mixture is not None for layer in layers),
        "architecture": not all(layer.attention.is_plain and layer.ffn.is_plain for layer in layers),
        "attention_pattern": len(attentions) > 1,
        "ffn_pattern": len({layer.ffn for layer in layers}) > 1,
    }
    return {name for name, value in has.items() if value}


def family(config: ModelConfig, length: int) -> str | None:
    """The simplest of the library's models that can be the model; None if none can."""
    rows = sorted(ARCHITECTURES.values(), key=lambda row: len(row.hf_fields))
    return next(
        (row.hf_class_prefix for row in rows if row.hf_class_prefix and asked(config, length) <= row.hf_fields), None
    )


def library_config(config: ModelConfig, length: int) -> Any:
    """The model's shape in the library's words. A name that its family does not have is kept, and read by nothing."""
    layer = config.layer_specs[0]  # as all others
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
    return getattr(private.library(), f"{family(config, length)}Config")(
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
        sliding_window=attention.window if slides(config, length) else None,
        tie_word_embeddings=config.tied,
        attn_implementation="sdpa",
    )


def weights(model: Transformer) -> dict[str, Tensor]:
    """Views of the model's own tensors, by the names that they have in the library's model.

    These are the names of a checkpoint but for the experts, of which the library, too, has all in one tensor, and the
    router, which is called in all its mixtures as in Qwen's.
    """
    row, specs = ARCHITECTURES["Qwen3MoeForCausalLM"], [block.spec for block in model.layers]
    found = layout(row.layer, row.outer_names, specs, model.config.vocab_size, model.config.tied).items()
    views = {name: view(model, target) for name, target in found if target.parts[0].expert is None}
    for number, block in enumerate(model.layers):
        if isinstance(block.ffn, MixtureOfExperts):
            views[f"model.layers.{number}.mlp.experts.gate_up_proj"] = block.ffn.w13.weight
            views[f"model.layers.{number}.mlp.experts.down_proj"] = block.ffn.w2.weight
    return views | {"lm_head.weight": model.head.weight}


def peer(model: Transformer, length: int, device: torch.device) -> Any:
    """The library's model with our tensors as its parameters; nothing is copied."""
    config = library_config(model.config, length)
    with torch.device("meta"):
        hf = getattr(private.library(), f"{family(model.config, length)}ForCausalLM")(config)
    hf.load_state_dict(weights(model), assign=True)
    hf.tie_weights()
    private.make_rotary(hf, config, device)  # still on `meta`
    return hf.eval().requires_grad_(False)


class HuggingFace(Engine):
    """Static: the decode step compiled as `generate` compiles it on a GPU (mode="reduce-overhead": torch's cudagraph
    trees), here on a CPU as well; it reads the whole cache. Dynamic: one operation after the other, over a cache that
    grows by copying. Both caches have one length for all rows, so the first row's positions are every row's."""

    config: HuggingFaceConfig
    FILLS_MEMORY: ClassVar[bool] = False

    @classmethod
    def unavailable_reason(cls, device: Device) -> str | None:
        if importlib.util.find_spec("transformers") is not None:
            major, minor = version("transformers").split(".")[:2]
            if (int(major), int(minor)) >= OLDEST:
                return None
        return f"the transformers library, {OLDEST[0]}.{OLDEST[1]} or later (pip install 'gptbench[hf]')"

    @classmethod
    def unsupported_reason(cls, config: Config, devices: DeviceGroup) -> str | None:
        if (reason := super().unsupported_reason(config, devices)) is not None:
            return reason
        model, length = config.model, cache_length(config)
        if family(model, length) is None:
            fields = " and ".join(f"model.{name}={getattr(model, name)}" for name in sorted(asked(model, length)))
            return f"another model: the library has no model with {fields}"
        device = devices.local
        multiple = GROUPED_ALIGNMENT // device.dtype.itemsize
        for name in ("dim", "ffn_dim"):
            if model.layer_specs[0].mixture is not None and (width := getattr(model, name)) % multiple:
                what = f"the library's product of all experts takes a model.{name} that is a multiple of {multiple}"
                return f"another model: {what} in {device.dtype_name} (it is {width})"
        return None

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        engine, model, length = config.engine, config.model, cache_length(config)
        assert isinstance(engine, HuggingFaceConfig)
        if engine.cache is Cache.static:
            if (missing := Inductor.unavailable_reason(device)) is not None:
                raise ConfigError("engine.cache", "static", f"dynamic, or what static needs: {missing}")
            caches.check(engine)
        window = model.layer_specs[0].attention.window  # as that of all others
        if slides(model, length) and window == 1 and engine.cache is Cache.dynamic:
            expected = "static: the library's dynamic cache drops nothing with model.sliding_window=1"
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
        self.hf = peer(model, self.length, device.torch)
        self.static = config.cache is Cache.static
        self.slides = slides(model.config, self.length)
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
            self.finish = compiled(self.sample, compile_options(cudagraphs=False, tuning=Tuning.none))
        # As in `generate`: on a GPU another product of matrices for the few tokens of a decode step.
        self.switches_experts = device.is_cuda and private.uses_grouped_experts(self.hf)
        if self.batch > 1 and model.experts_counter is not None:
            for router in private.routers(self.hf):
                router.register_forward_hook(self.count_experts)
            mark_static(model.experts_counter)

    @torch.no_grad()
    def prepare(self) -> None:
        trust_vector_instructions()
        self.filled = self.prompt_length
        # A static cache with a window counts on the host, where compiled code asks for certain numbers; and the trees
        # record each number on its own.
        steps = self.length - self.prompt_length if self.static and self.slides else 1
        for _ in range(WARM_UP_CALLS):
            self.run_prefill()
            for _ in range(steps):
                self.run_decode()
        self.device.synchronize()

    def run_prefill(self) -> None:
        self.rewind()
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
        """float32 [B, V] after the last of tokens [B, T] at positions [B, T]; a copy, as the next replay overwrites
        it."""
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
        """Sets how the library multiplies with the experts' matrices, if that changes between prefill and decode."""
        if self.switches_experts:
            private.use_experts(self.hf, implementation)

    def count_experts(self, router: Any, inputs: Any, routed: tuple[Tensor, Tensor, Tensor]) -> None:
        """Called after each router, which gives logits, weights and the chosen experts [N, A]."""
        counter, chosen = self.model.experts_counter, routed[2]
        if counter is not None and len(chosen) == self.batch:  # a decode step
            counter.add_(count_distinct(chosen, self.model.mixtures[0].experts))

    def experts_read(self, chosen: int, steps: int) -> int:
        """On a GPU the library gathers one for each pair of row and choice; elsewhere it reads each once."""
        return steps * self.batch * self.model.active_experts if self.switches_experts else chosen

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """A dynamic cache is copied, which reads all but each row's own position and writes all, and then read."""
        read, rows = self.positions_read(positions, cache), len(positions)
        return read + rows if self.static else 3 * read - rows

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        read = self.length if self.static else max(positions) + 1
        return len(positions) * (min(read, cache.spec.window) if self.slides else read)

    def cached(self) -> list[Tensor]:
        return [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]

    def release(self) -> None:
        self.hf = self.cache = self.empty = self.decode_forward = None
