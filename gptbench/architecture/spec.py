"""What one layer of a model is, without torch: the model, its memory, its traffic and the engines are built from it.

What is declared here may be more than the Transformer can compute; it refuses by name what it cannot
(`gptbench.model.transformer.refuse_unsupported`).
"""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class AttentionKind(Enum):
    """Which positions a layer attends to: all before it, or those of its sliding window."""

    full = "full"
    window = "window"


class FeedForwardKind(Enum):
    """Whether a layer has one feed-forward network, or experts of which each token goes through some."""

    dense = "dense"
    experts = "experts"


class RotaryKind(Enum):
    """Which components of a head are turned together, if any."""

    none = "none"
    half = "half"
    """Component i and i + K/2, as Hugging Face checkpoints have it."""
    interleaved = "interleaved"
    """Component 2i and 2i + 1, as in the paper."""


class Activation(Enum):
    """What the gate of a feed-forward network goes through."""

    silu = "silu"
    gelu = "gelu"
    clamped_silu = "clamped_silu"


class RouterKind(Enum):
    """How experts are chosen, and weighted."""

    renormalised = "renormalised"
    """Those of the highest softmax, by their softmax over the chosen ones."""
    softmax = "softmax"
    """Those of the highest softmax, by their softmax over all."""
    sigmoid = "sigmoid"
    """Those of the highest sigmoid."""


class NormKind(Enum):
    """What a norm computes."""

    rms = "rms"
    layer = "layer"


class NormPlaces(Enum):
    """Where a layer's norms stand: before attention and feed-forward network, after each of them, or both."""

    before = "before"
    after = "after"
    both = "both"


@dataclass(kw_only=True, unsafe_hash=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths (see `gptbench.model.rope`)."""

    factor: float = MISSING
    """How far the long wavelengths are stretched."""
    low_freq_factor: float = 1.0
    """Wavelengths over original_context / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths under original_context / high_freq_factor stay as they are."""
    original_context: int = 8192
    """Context the model was first trained with, in tokens."""


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of queries and keys."""

    width: int
    """Components of a head that are turned; fewer than the head has where the rest stays as it is."""
    base: float
    """Base of the wavelengths."""
    scaling: RopeScaling | None = None
    """Llama 3's stretching of the wavelengths, or None."""
    kind: RotaryKind = RotaryKind.half
    """Which components are turned together."""


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention of one layer."""

    heads: int
    """H, query heads."""
    kv_heads: int
    """G, key and value heads."""
    head_dim: int
    """K, width of one head."""
    rotary: Rotary
    """How queries and keys are turned by their positions."""
    window: int = 0
    """Positions that a token attends to, its own included; 0 is all before it."""
    sinks: bool = False
    """Whether each head has a logit of its own beside those of the positions, which takes a share of the softmax."""
    qkv_bias: bool = False
    """Whether something is added to queries, keys and values."""
    output_bias: bool = False
    """Whether something is added to what the output projection gives."""
    qk_norm: bool = False
    """Whether each head's query and key are normalised before they are turned."""

    @property
    def is_plain(self) -> bool:
        """Whether it is what every engine has; of another kind only the model's own code is sure to be."""
        return not self.sinks and not self.output_bias and self.rotary.kind is RotaryKind.half

    @property
    def rows(self) -> int:
        """(H + 2G)·K, rows of the matrix that gives queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def hides(self, length: int) -> bool:
        """Whether the window hides anything of a sequence of `length` positions."""
        return 0 < self.window < length

    def attended(self, position: int) -> int:
        """Positions that the token at `position` attends to, its own included."""
        return min(position + 1, self.window or position + 1)


@dataclass(frozen=True)
class DenseSpec:
    """One gated feed-forward network."""

    width: int
    """F, inner width."""
    activation: Activation = Activation.silu
    """What the gate goes through."""
    bias: bool = False
    """Whether something is added to what its matrices give."""

    @property
    def is_plain(self) -> bool:
        """Whether it is what every engine has; of another kind only the model's own code is sure to be."""
        return type(self) is DenseSpec and self.activation is Activation.silu and not self.bias


@dataclass(frozen=True)
class MixtureSpec(DenseSpec):
    """Experts, of which each token goes through some; `width` is that of one."""

    experts: int = 1
    """E, experts that there are."""
    active: int = 1
    """A, experts that each token goes through."""
    router: RouterKind = RouterKind.renormalised
    """How experts are chosen, and weighted."""
    router_bias: bool = False
    """Whether something is added to what the router gives."""
    shared: int = 0
    """Experts beside them that every token goes through."""

    @property
    def is_plain(self) -> bool:
        plain = type(self) is MixtureSpec and self.activation is Activation.silu and not (self.bias or self.router_bias)
        return plain and self.router is RouterKind.renormalised and not self.shared

    def most_chosen(self, tokens: int) -> int:
        """How many experts `tokens` tokens can choose together."""
        return min(self.experts, tokens * self.active)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: attention, then the feed-forward network, each added to the residual stream."""

    dim: int
    """D, width of the residual stream."""
    attention: AttentionSpec
    """What mixes positions."""
    ffn: DenseSpec
    """What follows it; a `MixtureSpec` where it has experts."""
    norm_eps: float
    """What is added to the mean square, or the variance, in every norm."""
    norm: NormKind = NormKind.rms
    """What the norms compute."""
    norms: NormPlaces = NormPlaces.before
    """Where the norms stand."""

    @property
    def mixture(self) -> MixtureSpec | None:
        """The feed-forward network, if it has experts."""
        return self.ffn if isinstance(self.ffn, MixtureSpec) else None
