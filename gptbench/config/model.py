"""The `model` group: the shape of a model, and where its weights come from."""

import itertools
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from gptbench.architecture import ARCHITECTURES
from gptbench.architecture.spec import (
    AttentionKind,
    AttentionSpec,
    DenseSpec,
    FeedForwardKind,
    LayerSpec,
    MixtureSpec,
    RopeScaling,
    Rotary,
)
from gptbench.base.errors import ConfigError
from gptbench.config.section import Section
from gptbench.config.sizes import MAX_CONTEXT, MAX_EXPERTS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH


class WeightSource(Enum):
    """`auto` takes the checkpoint where one is named, and else random weights; `random` never reads one."""

    auto = "auto"
    random = "random"


class CheckpointFormat(Enum):
    """Of the files that hold the weights. `bin` is PyTorch's pickle, of which nothing but tensors is accepted."""

    safetensors = "safetensors"
    bin = "bin"


@dataclass(kw_only=True)
class ModelConfig(Section):
    """Shape of a decoder-only transformer. Capitals as in the whole code: see `gptbench.model.transformer`."""

    GROUP: ClassVar[str] = "model"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.model.Transformer",)

    vocab_size: int = MISSING
    """V, tokens."""
    dim: int = MISSING
    """D, width of the residual stream."""
    n_layers: int = MISSING
    """Number of blocks."""
    n_heads: int = MISSING
    """H, query heads."""
    n_kv_heads: int = MISSING
    """G, key and value heads; divides n_heads."""
    ffn_dim: int = MISSING
    """F, inner width of the feed-forward network (of one expert, in a mixture)."""
    context: int = MISSING
    """Longest sequence the model was made for, in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's stretching of the wavelengths, or null."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tied: bool = False
    """Whether the output head is the embedding."""
    n_experts: int = 0
    """E, experts of a mixture; 0 is a dense model."""
    n_active_experts: int = 0
    """A, experts that each token goes through."""
    head_dim: int = 0
    """K, width of one head; 0 is dim / n_heads, and is replaced by it."""
    qkv_bias: bool = False
    """Whether something is added to queries, keys and values, as in Qwen 2."""
    qk_norm: bool = False
    """Whether each head's query and key are normalised before they are turned, as in Qwen 3."""
    sliding_window: int = 0
    """Positions that a token attends to, its own included, as in Mistral 7B v0.1; 0 is all before it."""
    attention_pattern: list[AttentionKind] | None = None
    """Which layers have the sliding window: full or window for each of the first layers, and again for those after
    them; null is all, where there is a window."""
    ffn_pattern: list[FeedForwardKind] | None = None
    """Which layers have the experts: dense or experts for each of the first layers, and again for those after them;
    null is all, where there are experts."""
    architecture: str | None = None
    """Name of the architecture that says what each layer is, as config.json has it; null is what the fields above
    say."""
    checkpoint: str | None = None
    """Folder of a Hugging Face checkpoint. What the YAML leaves open is taken from its config.json, and what the YAML
    says must agree with that."""
    checkpoint_format: CheckpointFormat = CheckpointFormat.safetensors
    """safetensors, or bin, which must be asked for."""
    weights: WeightSource = WeightSource.auto
    """auto or random."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer, or null for the checkpoint's, if it has one."""

    @property
    def reads_checkpoint(self) -> bool:
        """Whether the weights are a checkpoint's."""
        return self.checkpoint is not None and self.weights is WeightSource.auto

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """What each layer is, in order; those that are alike are equal."""
        if self.architecture is not None and (layers := ARCHITECTURES[self.architecture].layers) is not None:
            return layers(self)
        rotary = Rotary(self.head_dim, self.rope_theta, self.rope_scaling)
        attention = AttentionSpec(
            self.n_heads, self.n_kv_heads, self.head_dim, rotary, qkv_bias=self.qkv_bias, qk_norm=self.qk_norm
        )
        attentions = {
            AttentionKind.full: attention,
            AttentionKind.window: replace(attention, window=self.sliding_window),
        }
        ffns = {
            FeedForwardKind.dense: DenseSpec(self.ffn_dim),
            FeedForwardKind.experts: MixtureSpec(self.ffn_dim, experts=self.n_experts, active=self.n_active_experts),
        }
        kinds = zip(
            itertools.cycle(self.attention_pattern or [AttentionKind.window]),
            itertools.cycle(self.ffn_pattern or [FeedForwardKind.experts if self.n_experts else FeedForwardKind.dense]),
        )
        made: dict[tuple[AttentionKind, FeedForwardKind], LayerSpec] = {}
        return tuple(
            made.setdefault(kind, LayerSpec(self.dim, attentions[kind[0]], ffns[kind[1]], self.norm_eps))
            for kind in itertools.islice(kinds, self.n_layers)
        )

    def check(self) -> None:
        self.within(0, MAX_WIDTH, "head_dim")
        self.within(0, MAX_CONTEXT, "sliding_window")
        self.within(1, MAX_WIDTH, "dim", "n_heads", "n_kv_heads", "ffn_dim")
        self.within(1, MAX_LAYERS, "n_layers")
        self.within(1, MAX_VOCABULARY, "vocab_size")
        self.within(1, MAX_CONTEXT, "context")
        self.within(0, MAX_EXPERTS, "n_experts", "n_active_experts")
        if not self.rope_theta > 0:
            raise self.error("rope_theta", "a number over 0")
        if not self.norm_eps > 0:
            raise self.error("norm_eps", "a number over 0")
        if not self.head_dim:
            if self.dim % (2 * self.n_heads):
                raise self.error("n_heads", f"a number that divides dim={self.dim} into heads of even width")
            self.head_dim = self.dim // self.n_heads
        if self.head_dim % 2:
            raise self.error("head_dim", "an even number")
        if self.n_heads % self.n_kv_heads:
            raise self.error("n_kv_heads", f"a divisor of n_heads={self.n_heads}")
        if self.n_experts and not 1 <= self.n_active_experts <= self.n_experts:
            raise self.error("n_active_experts", f"a number from 1 to n_experts={self.n_experts}")
        if not self.n_experts and self.n_active_experts:
            raise self.error("n_active_experts", "0 where n_experts=0")
        known = [name for name, row in ARCHITECTURES.items() if row.layers is not None]
        if self.architecture is not None and self.architecture not in known:
            raise self.error("architecture", " or ".join(["null", *known]))
        for name, kind, needs in (
            ("attention_pattern", AttentionKind.window, "sliding_window"),
            ("ffn_pattern", FeedForwardKind.experts, "n_experts"),
        ):
            pattern, choices = getattr(self, name), ", ".join(choice.name for choice in type(kind))
            if pattern is not None and not 1 <= len(pattern) <= self.n_layers:
                raise self.error(name, f"null, or 1 to n_layers={self.n_layers} of {choices}")
            if pattern is not None and (kind in pattern) != bool(getattr(self, needs)):
                raise self.error(name, f"{kind.name} in it where {needs} is over 0, and there alone")
        if (scaling := self.rope_scaling) is not None:
            for name in ("factor", "low_freq_factor", "high_freq_factor", "original_context"):
                if not getattr(scaling, name) > 0:
                    raise ConfigError(f"model.rope_scaling.{name}", getattr(scaling, name), "a number over 0")
            if not scaling.high_freq_factor > scaling.low_freq_factor:
                raise ConfigError(
                    "model.rope_scaling.high_freq_factor",
                    scaling.high_freq_factor,
                    f"a number over low_freq_factor={scaling.low_freq_factor}",
                )
