"""A decoder-only transformer, dense or mixture of experts, over a static KV cache that the caller owns.

Shapes: B batch, T tokens per forward pass, S cached positions, D model width, H heads, G key-value heads, K head width,
F feed-forward width, E experts, A active experts, V vocabulary, P token-expert pairs.

Llama: Touvron et al., 2023, arXiv:2307.09288. Mixtral: Jiang et al., 2024, arXiv:2401.04088. Mistral's sliding window:
Jiang et al., 2023, arXiv:2310.06825. Qwen 2 (bias) and Qwen 3 (normalised heads): arXiv:2407.10671, arXiv:2505.09388.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptbench.architecture.spec import (
    Activation,
    AttentionSpec,
    DenseSpec,
    LayerSpec,
    MixtureSpec,
    NormKind,
    NormPlaces,
    RotaryKind,
    RouterKind,
)
from gptbench.base.errors import ConfigError
from gptbench.config import ModelConfig
from gptbench.model.cache import Memory
from gptbench.model.linear import Bias, Embedding, ExpertLinear, Linear, Router, Weight
from gptbench.model.rope import apply_rope

BIAS_STD = 0.5
"""Standard deviation of seeded biases: large enough to matter beside projections of order one."""
LOGIT_SPREAD = 2.0
"""Standard deviation of the logits that seeded weights give. Over 32,000 tokens, 1/Σp² is then about 590."""

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "norm": (NormKind.rms,),
    "norms": (NormPlaces.before,),
}
"""Fields of a `LayerSpec` and the values of each that the Transformer supports. Each kind of attention and of
feed-forward network has a table for its own fields: see `Attention.SUPPORTED` and `FeedForward.SUPPORTED`."""

WINDOW_QUERIES = 1024
"""Queries per chunk of a sliding-window prefill: the mask for a window of 4096 takes 5 MB."""


@torch.library.custom_op("gptbench::attend_in_window", mutates_args=())
def attend_in_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attend with queries [B, H, T, K] to keys and values [B, G, T, K] in a causal sliding window: [B, H, T, K].

    Positions start at 0. The queries are processed in chunks of `WINDOW_QUERIES`, so that no mask is T by T. It is a
    custom operation because a compiler would unroll the loop and need another graph for each T. Keys and values are
    repeated for their query heads because, with a mask, torch's grouped-query path on a GPU falls back to the kernel
    that writes all scores to memory.
    """
    repeats = q.shape[1] // k.shape[1]
    parts = []
    for first in range(0, q.shape[2], WINDOW_QUERIES):
        end = min(first + WINDOW_QUERIES, q.shape[2])
        start = max(0, first + 1 - window)
        query, key = (torch.arange(*ends, device=q.device) for ends in ((first, end), (start, end)))
        mask = (key <= query[:, None]) & (key > query[:, None] - window)
        keys, values = k[:, :, start:end], v[:, :, start:end]
        if repeats > 1:
            keys, values = (x.repeat_interleave(repeats, dim=1) for x in (keys, values))
        parts.append(F.scaled_dot_product_attention(q[:, :, first:end], keys, values, attn_mask=mask))
    return torch.cat(parts, dim=2).contiguous()


@attend_in_window.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:  # noqa: ARG001 (the operation's own signature)
    return q.new_empty(q.shape)


class RMSNorm(nn.Module):
    """RMSNorm: x [..., D] over its root mean square, times weight [D]. Zhang and Sennrich, 2019, arXiv:1910.07467."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention. Ainslie et al., 2023, arXiv:2305.13245.

    To add another kind of attention, subclass it in a new file, declare what it supports, and add it to `ATTENTIONS`.

    Args:
        layer: layer that it belongs to.
        depth: number of layers of the model.
        dtype: type of weights and activations.
    """

    SPEC: ClassVar[type] = AttentionSpec
    """Class of spec that it is made from."""
    SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rotary.kind": (RotaryKind.half,),
        "sinks": (False,),
        "output_bias": (False,),
    }
    """Fields of an `AttentionSpec` and the values of each that it supports."""

    def __init__(self, layer: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        super().__init__()
        spec, columns = layer.attention, layer.attention.heads * layer.attention.head_dim
        self.heads, self.kv_heads, self.head_dim, self.window = spec.heads, spec.kv_heads, spec.head_dim, spec.window
        self.wqkv = Linear(spec.rows, layer.dim, std=layer.dim**-0.5, dtype=dtype)
        self.qkv_bias = Bias(spec.rows, BIAS_STD, dtype) if spec.qkv_bias else None
        self.q_norm = RMSNorm(spec.head_dim, layer.norm_eps, dtype) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, layer.norm_eps, dtype) if spec.qk_norm else None
        self.wo = Linear(layer.dim, columns, std=residual_std(depth, columns), dtype=dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
        """Attend with x [B, T, D] at positions [B, T]: [B, T, D].

        Writes keys and values to the cache, each [B, G, S, K]; each row attends to its cached positions up to its own.
        """
        batch, tokens, _ = x.shape
        k_cache, v_cache = cache
        qkv = self.wqkv(x)
        if self.qkv_bias is not None:
            qkv = self.qkv_bias(qkv)
        qkv = qkv.view(batch, tokens, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        rows = torch.arange(batch, device=x.device).unsqueeze(1)
        k_cache[rows, :, positions] = k
        v_cache[rows, :, positions] = v
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        # Prefill starts at position 0, so k and v hold everything there is to attend to.
        y = self.attend_to_prompt(q, k, v) if tokens > 1 else self.attend_to_cache(q, positions, k_cache, v_cache)
        return self.wo(y.transpose(1, 2).reshape(batch, tokens, -1))

    def attend_to_prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with queries [B, H, T, K] to keys and values [B, G, T, K] of a whole prompt: [B, H, T, K]."""
        if 0 < self.window < q.shape[2]:
            return attend_in_window(q, k, v, self.window)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)

    def attend_to_cache(self, q: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with one query per head, q [B, H, 1, K] at positions [B, 1], to keys and values [B, G, S, K]:
        [B, H, 1, K]. The softmax is computed in float32."""
        grouped = q.view(q.shape[0], self.kv_heads, -1, self.head_dim)  # [B, G, H/G, K]
        scores = torch.matmul(grouped, k.transpose(-1, -2)).float() * self.head_dim**-0.5
        visible = self.visible(positions[:, None, None], torch.arange(k.shape[2], device=q.device))
        probabilities = scores.where(visible, -torch.inf).softmax(-1).to(q.dtype)
        return torch.matmul(probabilities, v).view_as(q)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token at position `query` attends to the one at `key`; both broadcast."""
        seen = key <= query
        return seen & (key > query - self.window) if self.window else seen


ATTENTIONS: list[type[Attention]] = [Attention]
"""Available kinds of attention. A layer gets the first one that supports its spec."""


class FeedForward(nn.Module):
    """SwiGLU. Shazeer, 2020, arXiv:2002.05202. The gate and up projections are stacked in one matrix, `w13`.

    To add another kind, subclass it in a new file, declare the class of spec that it is made from and what it supports,
    and add it to `FEED_FORWARDS`.

    Args:
        layer: layer that it belongs to.
        depth: number of layers of the model.
        dtype: type of weights and activations.
    """

    SPEC: ClassVar[type[DenseSpec]] = DenseSpec
    """Class of spec that it is made from."""
    SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"activation": (Activation.silu,), "bias": (False,)}
    """Fields of such a spec and the values of each that it supports."""

    w13: Weight
    w2: Weight

    def __init__(self, layer: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.make_matrices(layer, depth, dtype)

    def make_matrices(self, layer: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        """Create the weight matrices; a subclass overrides this to create others."""
        dim, width = layer.dim, layer.ffn.width
        self.w13 = Linear(2 * width, dim, std=dim**-0.5, dtype=dtype)
        self.w2 = Linear(dim, width, std=residual_std(depth, width), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] to [B, T, D]."""
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


def count_distinct(chosen: Tensor, experts: int) -> Tensor:
    """Count the distinct experts among the chosen [...]: int64 [], on the device and without synchronising."""
    expert_ids = torch.arange(experts, device=chosen.device)
    return (chosen.flatten().unsqueeze(-1) == expert_ids).any(0).sum()


class MixtureOfExperts(FeedForward):
    """Each token goes through the A experts of highest router probability, weighted by their renormalised softmax.

    Attributes:
        counter: see `Transformer.experts_counter`.
    """

    SPEC = MixtureSpec
    SUPPORTED = FeedForward.SUPPORTED | {
        "router": (RouterKind.renormalised,),
        "router_bias": (False,),
        "shared": (0,),
    }
    w13: ExpertLinear
    w2: ExpertLinear

    def make_matrices(self, layer: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        spec, dim = layer.ffn, layer.dim
        assert isinstance(spec, MixtureSpec)
        self.spec, self.experts, self.active = spec, spec.experts, spec.active
        self.router = Router(spec.experts, dim, std=dim**-0.5, dtype=dtype)
        self.w13 = ExpertLinear(spec.experts, 2 * spec.width, dim, std=dim**-0.5, dtype=dtype)
        self.w2 = ExpertLinear(spec.experts, dim, spec.width, std=residual_std(depth, spec.width), dtype=dtype)
        self.counter: Tensor | None = None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route x [N, D]: weights (float32) and indices of the chosen experts, each [N, A]."""
        probabilities = self.router(x).float().softmax(-1)
        weights, chosen = probabilities.topk(self.active, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] to [B, T, D]."""
        flat = x.flatten(0, 1)
        weights, chosen = self.route(flat)
        if self.counter is not None and x.shape[0] > 1 and x.shape[1] == 1:  # a decode step; a single row chooses A
            self.counter.add_(count_distinct(chosen, self.experts))
        if flat.shape[0] * self.active < self.experts:
            y = self.gather_experts(flat, weights, chosen)
        else:
            y = self.all_experts(flat, weights, chosen)
        return y.view_as(x)

    def gather_experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Read one expert for each of the P = N·A pairs, which moves the fewest bytes for a token or two."""
        gate, up = self.w13(x.repeat_interleave(self.active, dim=0), chosen.flatten()).chunk(2, dim=-1)
        y = self.w2(F.silu(gate) * up, chosen.flatten()).view(*weights.shape, -1)
        return (y.float() * weights.unsqueeze(-1)).sum(1).to(x.dtype)

    def all_experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Read every expert once and feed it every token, with weight 0 where not chosen: no shape is dynamic."""
        y = torch.zeros_like(x, dtype=torch.float32)
        for expert in range(self.experts):
            weight = torch.where(chosen == expert, weights, 0.0).sum(-1, keepdim=True)
            gate, up = self.w13.dense(x, expert).chunk(2, dim=-1)
            y = y + weight * self.w2.dense(F.silu(gate) * up, expert).float()
        return y.to(x.dtype)


FEED_FORWARDS: list[type[FeedForward]] = [FeedForward, MixtureOfExperts]
"""Available kinds of feed-forward network. A layer gets the first one that supports its spec."""


class Block(nn.Module):
    """Pre-norm: attention, then the feed-forward network, each added to the residual stream."""

    def __init__(self, spec: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.attention_norm = RMSNorm(spec.dim, spec.norm_eps, dtype)
        self.attention: Attention = implementation_of(ATTENTIONS, spec.attention)(spec, depth, dtype)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps, dtype)
        self.ffn: FeedForward = implementation_of(FEED_FORWARDS, spec.ffn)(spec, depth, dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
        """x [B, T, D] to [B, T, D]; the other arguments are those of `Attention`."""
        x = x + self.attention(self.attention_norm(x), cos, sin, positions, cache)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """A model from tokens to logits. Make it under ``torch.device("meta")``: `gptbench.build` adds the weights later.

    Args:
        config: shape of the model.
        dtype: type of weights, activations and KV cache.

    Attributes:
        layers: blocks, in order.
        experts_counter: int64 [1] for a mixture of experts, else None. In every layer, a decode step adds the number
            of distinct experts that the rows of the batch chose; the caller resets it to 0. With a single row nothing
            is counted, as the number is always A per layer.

    Raises:
        ConfigError: a layer is of a kind that the Transformer does not support.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        head_std = LOGIT_SPREAD * config.dim**-0.5
        specs = config.layer_specs
        for spec in dict.fromkeys(specs):
            validate_layer(spec)
        self.layers = [Block(spec, len(specs), dtype) for spec in specs]
        self.blocks = nn.ModuleList(self.layers)
        self.norm = RMSNorm(config.dim, config.norm_eps, dtype)
        self.head = Linear(config.vocab_size, config.dim, std=head_std, dtype=dtype)
        self.experts_counter: Tensor | None = None
        # A tied embedding keeps the head's small scale: otherwise each token would mostly predict itself.
        self.embedding = self.head if config.tied else Embedding(config.vocab_size, config.dim, std=1.0, dtype=dtype)

    def allocate(self, batch: int, length: int, device: torch.device | str) -> Memory:
        """Allocate the KV caches and RoPE tables for `batch` sequences of `length` positions."""
        return Memory([block.spec.attention for block in self.layers], batch, length, self.dtype, device)

    @property
    def mixtures(self) -> list[MixtureSpec]:
        """Specs of the mixtures, one per layer that has experts."""
        return [block.spec.mixture for block in self.layers if block.spec.mixture is not None]

    @property
    def active_experts(self) -> int:
        """Number of experts that each token goes through, summed over the layers."""
        return sum(mixture.active for mixture in self.mixtures)

    def count_experts(self) -> None:
        """Give all mixtures one shared counter on the device of the weights. An existing counter is kept, because
        captured steps add to it."""
        device = self.norm.weight.device
        if self.mixtures and (self.experts_counter is None or self.experts_counter.device != device):
            self.experts_counter = torch.zeros(1, dtype=torch.int64, device=device)
            for block in self.layers:
                if isinstance(block.ffn, MixtureOfExperts):
                    block.ffn.counter = self.experts_counter

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        memory: Memory,
        read: int,
        blocks: Iterable[Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """Return the residual stream after the last block, [B, T, D], for tokens [B, T] at positions [B, T].

        T > 1 is a prefill that starts at position 0. T = 1 is a decode step that attends to the first `read` cached
        positions, of which each row masks those after its own. `blocks`, if given, are called instead of the model's.
        """
        x = self.embedding.rows(tokens)
        cos_sin = [table.at(positions) for table in memory.rope_tables]
        bound = self.bind_caches(memory, read) if blocks is None else blocks
        for block, index in zip(bound, memory.rope_table_index, strict=True):
            x = block(x, *cos_sin[index], positions)
        return x

    def bind_caches(self, memory: Memory, read: int) -> list[Callable[..., Tensor]]:
        """Return the blocks, each bound to the first `read` positions of its cache."""
        pairs = zip(self.layers, memory.caches, strict=True)
        return [partial(block, cache=cache.prefix(read)) for block, cache in pairs]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, float32 [..., V], of a residual stream [..., D]."""
        return self.head(self.norm(hidden)).float()

    def forward(self, tokens: Tensor, positions: Tensor, memory: Memory, read: int) -> Tensor:
        """Return the logits after the last token, float32 [B, V]; the arguments are those of `hidden`."""
        return self.logits(self.hidden(tokens, positions, memory, read)[:, -1])


def residual_std(depth: int, fan_in: int) -> float:
    """Return the standard deviation of seeded matrices that write to the residual stream, two in each of `depth`
    layers: together they add about one to its variance.

    The 2 compensates for their inputs: SwiGLU halves its input, and attention averages it.
    """
    return 2 * (fan_in * 2 * depth) ** -0.5


def first_unsupported(spec: Any, supported: dict[str, tuple[Any, ...]]) -> tuple[str, Any, str] | None:
    """Return the first field of a spec with an unsupported value, that value, and what was expected; or None."""
    for path, allowed in supported.items():
        value = spec
        for name in path.split("."):
            value = getattr(value, name)
        if value not in allowed:
            expected = " or ".join(getattr(choice, "name", str(choice)) for choice in allowed)
            return path, getattr(value, "name", value), f"{expected}: gptbench supports no other"
    return None


def implementation_of(kinds: Sequence[Any], spec: Any) -> Any:
    """Return the class that computes a layer's attention or feed-forward network.

    Of the classes made from such a spec it is the first that supports it. If none does, it is the first of them, whose
    `SUPPORTED` then gives the reason.

    Raises:
        ConfigError: no class is made from such a spec.
    """
    candidates = [kind for kind in kinds if kind.SPEC is type(spec)]
    if not candidates:
        names = " or ".join(dict.fromkeys(kind.SPEC.__name__ for kind in kinds))
        raise ConfigError("layer", type(spec).__name__, f"{names}: gptbench supports no other")
    return next((kind for kind in candidates if first_unsupported(spec, kind.SUPPORTED) is None), candidates[0])


def validate_layer(spec: LayerSpec) -> None:
    """Raise ConfigError for a layer that the Transformer does not support."""
    parts = {
        f"{name}.{path}": allowed
        for name, kinds in (("attention", ATTENTIONS), ("ffn", FEED_FORWARDS))
        for path, allowed in implementation_of(kinds, getattr(spec, name)).SUPPORTED.items()
    }
    if (unsupported := first_unsupported(spec, parts | SUPPORTED)) is not None:
        path, value, expected = unsupported
        raise ConfigError(f"layer.{path}", value, expected)
    if (width := spec.attention.rotary.width) != spec.attention.head_dim:
        raise ConfigError("layer.attention.rotary.width", width, f"head_dim={spec.attention.head_dim}")
