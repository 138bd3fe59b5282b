"""The `model` group: the shape of the model, and where its weights come from."""

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
    """Where the weights come from: `auto` reads the checkpoint if one is named and otherwise makes random weights;
    `random` never reads a checkpoint's weights."""

    auto = "auto"
    random = "random"


class CheckpointFormat(Enum):
    """Format of the checkpoint's weight files. `bin` is PyTorch's pickle, from which only tensors are accepted."""

    safetensors = "safetensors"
    bin = "bin"


@dataclass(kw_only=True)
class ModelConfig(Section):
    """Shape of a decoder-only transformer, and where its weights and its tokenizer come from. Capital letters are the
    names of dimensions used throughout the code (see `gptbench.model.transformer`)."""

    GROUP: ClassVar[str] = "model"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.model.Transformer",)

    vocab_size: int = MISSING
    """Number of tokens in the vocabulary (V)."""
    dim: int = MISSING
    """Width of the residual stream (D)."""
    n_layers: int = MISSING
    """Number of layers (transformer blocks)."""
    n_heads: int = MISSING
    """Number of query heads (H)."""
    n_kv_heads: int = MISSING
    """Number of key and value heads (G); it divides n_heads."""
    ffn_dim: int = MISSING
    """Inner width of the feed-forward network (F); in a mixture of experts, that of one expert."""
    context: int = MISSING
    """Longest sequence that the model supports, in tokens."""
    rope_theta: float = 10000.0
    """Base of the RoPE frequencies (theta)."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the RoPE frequencies for long contexts, as in Llama 3, or null for none."""
    norm_eps: float = 1e-5
    """Epsilon that RMSNorm adds to the mean square."""
    tied: bool = False
    """Whether the output head shares the embedding's weights."""
    n_experts: int = 0
    """Number of experts in a layer of a mixture of experts (E); 0 is a dense model."""
    n_active_experts: int = 0
    """Number of experts that each token is routed to (A)."""
    head_dim: int = 0
    """Width of one attention head (K); 0 is replaced by dim / n_heads."""
    qkv_bias: bool = False
    """Whether the projections of queries, keys and values have a bias, as in Qwen 2."""
    qk_norm: bool = False
    """Whether each head's query and key are normalised with RMSNorm before RoPE is applied, as in Qwen 3."""
    sliding_window: int = 0
    """Number of positions that a token attends to, in tokens and including itself, as in Mistral 7B v0.1; 0 is all
    positions up to its own."""
    attention_pattern: list[AttentionKind] | None = None
    """Kind of attention of each layer, full or window (the sliding window), as a pattern that repeats over the layers;
    null gives every layer the sliding window if there is one."""
    ffn_pattern: list[FeedForwardKind] | None = None
    """Kind of feed-forward network of each layer, dense or experts, as a pattern that repeats over the layers; null
    gives every layer the experts if there are any."""
    architecture: str | None = None
    """Name of the architecture that defines the layers, as in the checkpoint's config.json; null builds them from the
    other fields of this section."""
    checkpoint: str | None = None
    """Folder of a Hugging Face checkpoint, or the name of a model in the Hugging Face cache; null for none. Fields that
    the YAML file leaves open are taken from the checkpoint's config.json, and those that it sets must agree with
    that."""
    checkpoint_format: CheckpointFormat = CheckpointFormat.safetensors
    """Format of the checkpoint's weight files: safetensors, or bin (PyTorch's pickle, from which only tensors are
    accepted), which is read only if it is set here."""
    weights: WeightSource = WeightSource.auto
    """Source of the weights: auto (the checkpoint if one is named, otherwise random weights) or random."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer; null uses the checkpoint's tokenizer, if it has one."""

    @property
    def reads_checkpoint(self) -> bool:
        """Whether the weights are read from a checkpoint."""
        return self.checkpoint is not None and self.weights is WeightSource.auto

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """Return the specification of each layer, in order; layers of the same kind share one object."""
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
        specs: dict[tuple[AttentionKind, FeedForwardKind], LayerSpec] = {}
        return tuple(
            specs.setdefault(kind, LayerSpec(self.dim, attentions[kind[0]], ffns[kind[1]], self.norm_eps))
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
                raise self.error(name, f"a pattern that has {kind.name} in it exactly if {needs} is over 0")
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
