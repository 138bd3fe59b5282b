"""Specification of a layer, without torch. The model, its memory, its traffic and the engines are built from it.

It can describe more than the Transformer supports: `gptbench.model.transformer.validate_layer` raises an error that
names the field.
"""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class AttentionKind(Enum):
    """Which positions a token attends to: all up to its own, or those of its sliding window."""

    full = "full"
    window = "window"


class FeedForwardKind(Enum):
    """Whether a layer has one feed-forward network or a mixture of experts."""

    dense = "dense"
    experts = "experts"


class RotaryKind(Enum):
    """Which components of a head RoPE rotates as a pair, if any."""

    none = "none"
    """No RoPE."""
    half = "half"
    """Components i and i + K/2 (NeoX-style rotate-half), as in Hugging Face checkpoints."""
    interleaved = "interleaved"
    """Components 2i and 2i + 1, as in the RoFormer paper."""


class Activation(Enum):
    """Activation function of the gate of a feed-forward network."""

    silu = "silu"
    gelu = "gelu"
    clamped_silu = "clamped_silu"


class RouterKind(Enum):
    """How experts are chosen and weighted."""

    renormalised = "renormalised"
    """Experts of highest softmax, weighted by their softmax over the chosen ones."""
    softmax = "softmax"
    """Experts of highest softmax, weighted by their softmax over all experts."""
    sigmoid = "sigmoid"
    """Experts of highest sigmoid, weighted by it."""


class NormKind(Enum):
    """Whether a norm is RMSNorm or LayerNorm."""

    rms = "rms"
    layer = "layer"


class NormPlaces(Enum):
    """Whether a layer's norms come before attention and feed-forward network, after each of them, or both."""

    before = "before"
    after = "after"
    both = "both"


@dataclass(kw_only=True, unsafe_hash=True)
class RopeScaling:
    """Llama 3's scaling of the RoPE wavelengths (see `gptbench.model.rope`)."""

    factor: float = MISSING
    """Factor by which long wavelengths are stretched."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_context / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_context / high_freq_factor are left unchanged."""
    original_context: int = 8192
    """Context length before scaling, in tokens."""


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (RoPE) of queries and keys."""

    width: int
    """Number of components of a head that are rotated; the remaining ones, if any, are left unchanged."""
    base: float
    """Base of the wavelengths."""
    scaling: RopeScaling | None = None
    """Llama 3's scaling of the wavelengths, or None."""
    kind: RotaryKind = RotaryKind.half
    """Which components are rotated as a pair."""


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention of one layer."""

    heads: int
    """H, number of query heads."""
    kv_heads: int
    """G, number of key-value heads."""
    head_dim: int
    """K, width of one head."""
    rotary: Rotary
    """Rotary position embedding of queries and keys."""
    window: int = 0
    """Number of positions that a token attends to, including its own; 0 means all up to its own."""
    sinks: bool = False
    """Whether each head has an attention sink: a learnt logit that takes part in the softmax."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    output_bias: bool = False
    """Whether the output projection has a bias."""
    qk_norm: bool = False
    """Whether each head's query and key are normalised before RoPE."""

    @property
    def is_plain(self) -> bool:
        """Whether every engine supports it. Other kinds may run with the model's PyTorch code only."""
        return not self.sinks and not self.output_bias and self.rotary.kind is RotaryKind.half

    @property
    def rows(self) -> int:
        """(H + 2G)·K, rows of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def window_applies(self, length: int) -> bool:
        """Whether the sliding window masks any position of a sequence of `length` positions."""
        return 0 < self.window < length

    def attended(self, position: int) -> int:
        """Return the number of positions that the token at `position` attends to, including its own."""
        return min(position + 1, self.window or position + 1)


@dataclass(frozen=True)
class DenseSpec:
    """One gated feed-forward network."""

    width: int
    """F, inner width of the network, or of one expert."""
    activation: Activation = Activation.silu
    """Activation function of the gate."""
    bias: bool = False
    """Whether its matrices have biases."""

    @property
    def is_plain(self) -> bool:
        """Whether every engine supports it. Other kinds may run with the model's PyTorch code only."""
        return type(self) is DenseSpec and self.activation is Activation.silu and not self.bias


@dataclass(frozen=True)
class MixtureSpec(DenseSpec):
    """A mixture of experts. `width` is the inner width of one expert."""

    experts: int = 1
    """E, number of routed experts."""
    active: int = 1
    """A, number of experts that the router chooses for each token."""
    router: RouterKind = RouterKind.renormalised
    """How experts are chosen and weighted."""
    router_bias: bool = False
    """Whether the router has a bias."""
    shared: int = 0
    """Number of additional experts that every token goes through."""

    @property
    def is_plain(self) -> bool:
        plain = type(self) is MixtureSpec and self.activation is Activation.silu and not (self.bias or self.router_bias)
        return plain and self.router is RouterKind.renormalised and not self.shared

    def max_distinct(self, tokens: int) -> int:
        """Return the maximum number of distinct experts that `tokens` tokens can choose."""
        return min(self.experts, tokens * self.active)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: attention, then the feed-forward network, each added to the residual stream."""

    dim: int
    """D, width of the residual stream."""
    attention: AttentionSpec
    """Attention of the layer."""
    ffn: DenseSpec
    """Feed-forward network of the layer; a `MixtureSpec` if it has experts."""
    norm_eps: float
    """Epsilon added to the mean square, or the variance, in every norm."""
    norm: NormKind = NormKind.rms
    """Kind of the norms."""
    norms: NormPlaces = NormPlaces.before
    """Placement of the norms."""

    @property
    def mixture(self) -> MixtureSpec | None:
        """Spec of the feed-forward network if it has experts, else None."""
        return self.ffn if isinstance(self.ffn, MixtureSpec) else None
