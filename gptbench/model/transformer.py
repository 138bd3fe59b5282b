"""A decoder-only transformer, dense or mixture of experts, over a static KV cache that whoever calls it keeps.

Shapes: B batch, T tokens fed at once, S cached positions, D model width, H heads, G key-value heads, K head width,
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
from gptbench.model.rope import rotate

BIAS_STD = 0.5
"""Of seeded biases: enough to matter beside projections of order one."""
LOGIT_SPREAD = 2.0
"""Standard deviation of the logits that seeded weights give: of 32,000 tokens, as many as 590 equally likely ones."""

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "norm": (NormKind.rms,),
    "norms": (NormPlaces.before,),
}
"""Fields of a `LayerSpec`, and those of their values that the Transformer computes. Those of its attention and of its
feed-forward network have a table of their own, for each kind: see `Attention` and `FeedForward`."""

WINDOW_QUERIES = 1024
"""Queries of a prefill with a sliding window that are attended to at once: the mask of a window of 4096 takes 5 MB."""


@torch.library.custom_op("gptbench::attend_in_window", mutates_args=())
def attend_in_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Queries [B, H, T, K] over the keys and values [B, G, T, K] of their sliding window, from position 0 on:
    [B, H, T, K]. At most `WINDOW_QUERIES` queries at once, so that no mask is T by T.

    One operation to a compiler: it would unroll the loop, and need another graph for each T. Keys and values are
    repeated for their queries: under a mask, torch's kernel for grouped heads on a GPU is the one that writes all
    scores to memory.
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
    """x [..., D] over its root mean square, times weight [D]. Zhang and Sennrich, 2019, arXiv:1910.07467."""

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

    Another one is a subclass in a file of its own: it says what it supports, and takes its place in `ATTENTIONS`.

    Args:
        layer: what it is a part of.
        depth: layers of the model.
    """

    SPEC: ClassVar[type] = AttentionSpec
    """Class of what it is made of."""
    SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rotary.kind": (RotaryKind.half,),
        "sinks": (False,),
        "output_bias": (False,),
    }
    """Fields of an `AttentionSpec`, and those of their values that it computes."""

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
        """x [B, T, D] at positions [B, T]; writes to the cache, [B, G, S, K] of keys and of values, and attends to what
        each row has there up to its position."""
        batch, tokens, _ = x.shape
        k_cache, v_cache = cache
        qkv = self.wqkv(x)
        if self.qkv_bias is not None:
            qkv = self.qkv_bias(qkv)
        qkv = qkv.view(batch, tokens, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        rows = torch.arange(batch, device=x.device).unsqueeze(1)
        k_cache[rows, :, positions] = k
        v_cache[rows, :, positions] = v
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        # Prefill starts at position 0: all that there is to attend to is in k and v.
        y = self.attend_to_prompt(q, k, v) if tokens > 1 else self.attend_to_cache(q, positions, k_cache, v_cache)
        return self.wo(y.transpose(1, 2).reshape(batch, tokens, -1))

    def attend_to_prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries [B, H, T, K] over the keys and values [B, G, T, K] of a whole prompt: [B, H, T, K]."""
        if 0 < self.window < q.shape[2]:
            return attend_in_window(q, k, v, self.window)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)

    def attend_to_cache(self, q: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One query for each head, q [B, H, 1, K], at positions [B, 1], over keys and values [B, G, S, K]:
        [B, H, 1, K]. Softmax in float32."""
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
"""The kinds of attention: a layer has the first that supports what its spec says."""


class FeedForward(nn.Module):
    """SwiGLU. Shazeer, 2020, arXiv:2002.05202. The gate's and the other input's matrices lie one below the other.

    Another one is a subclass in a file of its own: it says of which specs it is made and what of them it supports, and
    takes its place in `FEED_FORWARDS`.

    Args:
        layer: what it is a part of.
        depth: layers of the model.
    """

    SPEC: ClassVar[type[DenseSpec]] = DenseSpec
    """Class of what it is made of."""
    SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"activation": (Activation.silu,), "bias": (False,)}
    """Fields of such a spec, and those of their values that it computes."""

    w13: Weight
    w2: Weight

    def __init__(self, layer: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.make_matrices(layer, depth, dtype)

    def make_matrices(self, layer: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        """Of a subclass, its own."""
        dim, width = layer.dim, layer.ffn.width
        self.w13 = Linear(2 * width, dim, std=dim**-0.5, dtype=dtype)
        self.w2 = Linear(dim, width, std=residual_std(depth, width), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] to [B, T, D]."""
        gate, value = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * value)


def count_distinct(chosen: Tensor, experts: int) -> Tensor:
    """How many of the experts are among the chosen [...]: int64 []. On the device, without waiting for it."""
    every = torch.arange(experts, device=chosen.device)
    return (chosen.flatten().unsqueeze(-1) == every).any(0).sum()


class MixtureOfExperts(FeedForward):
    """Each token goes through the A experts that the router likes best, weighted by their renormalised softmax.

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
        """x [N, D] to the weights (float32) and the numbers of the chosen experts, each [N, A]."""
        probabilities = self.router(x).float().softmax(-1)
        weights, chosen = probabilities.topk(self.active, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] to [B, T, D]."""
        flat = x.flatten(0, 1)
        weights, chosen = self.route(flat)
        if self.counter is not None and x.shape[0] > 1 and x.shape[1] == 1:  # a decode step; one token chooses A
            self.counter.add_(count_distinct(chosen, self.experts))
        if flat.shape[0] * self.active < self.experts:
            y = self.gather_experts(flat, weights, chosen)
        else:
            y = self.all_experts(flat, weights, chosen)
        return y.view_as(x)

    def gather_experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Reads one expert for each of the P = N·A pairs: fewest bytes for a token or two."""
        gate, value = self.w13(x.repeat_interleave(self.active, dim=0), chosen.flatten()).chunk(2, dim=-1)
        y = self.w2(F.silu(gate) * value, chosen.flatten()).view(*weights.shape, -1)
        return (y.float() * weights.unsqueeze(-1)).sum(1).to(x.dtype)

    def all_experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Reads every expert once and feeds it every token, with weight 0 where it was not chosen: no dynamic shape."""
        y = torch.zeros_like(x, dtype=torch.float32)
        for expert in range(self.experts):
            weight = torch.where(chosen == expert, weights, 0.0).sum(-1, keepdim=True)
            gate, value = self.w13.dense(x, expert).chunk(2, dim=-1)
            y = y + weight * self.w2.dense(F.silu(gate) * value, expert).float()
        return y.to(x.dtype)


FEED_FORWARDS: list[type[FeedForward]] = [FeedForward, MixtureOfExperts]
"""The kinds of feed-forward network: a layer has the first that supports what its spec says."""


class Block(nn.Module):
    """Pre-norm: attention, then the feed-forward network, each added to the residual stream."""

    def __init__(self, spec: LayerSpec, depth: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.attention_norm = RMSNorm(spec.dim, spec.norm_eps, dtype)
        self.attention: Attention = kind_of(ATTENTIONS, spec.attention)(spec, depth, dtype)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps, dtype)
        self.ffn: FeedForward = kind_of(FEED_FORWARDS, spec.ffn)(spec, depth, dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
        """x [B, T, D] to [B, T, D]; the rest as in `Attention`."""
        x = x + self.attention(self.attention_norm(x), cos, sin, positions, cache)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """Tokens to logits. Make it under ``torch.device("meta")``: the weights come later, by `gptbench.build`.

    Args:
        config: shape of the model.
        dtype: type of weights, activations and KV cache.

    Attributes:
        layers: the blocks, in order.
        experts_counter: of a mixture, int64 [1]: decode steps add the number of experts that some row of the batch
            chose, in each layer, and whoever starts anew sets it to 0. Of a single row the model's own code does not
            count: that is A in each layer.

    Raises:
        ConfigError: a layer is of a kind that the Transformer does not compute.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        head_std = LOGIT_SPREAD * config.dim**-0.5
        specs = config.layer_specs
        for spec in dict.fromkeys(specs):
            refuse_unsupported(spec)
        self.layers = [Block(spec, len(specs), dtype) for spec in specs]
        self.blocks = nn.ModuleList(self.layers)
        self.norm = RMSNorm(config.dim, config.norm_eps, dtype)
        self.head = Linear(config.vocab_size, config.dim, std=head_std, dtype=dtype)
        self.experts_counter: Tensor | None = None
        # A tied embedding stays small, as the head's: else each token would above all predict itself.
        self.embedding = self.head if config.tied else Embedding(config.vocab_size, config.dim, std=1.0, dtype=dtype)

    def allocate(self, batch: int, length: int, device: torch.device | str) -> Memory:
        """Memory for `batch` sequences of `length` positions: the cache of every layer, and the tables of rotations."""
        return Memory([block.spec.attention for block in self.layers], batch, length, self.dtype, device)

    @property
    def mixtures(self) -> list[MixtureSpec]:
        """Of each layer that has experts."""
        return [block.spec.mixture for block in self.layers if block.spec.mixture is not None]

    @property
    def active_experts(self) -> int:
        """Experts that each token goes through, in all layers together."""
        return sum(mixture.active for mixture in self.mixtures)

    def count_experts(self) -> None:
        """Gives all mixtures the same counter, where the weights are; once, as whoever has captured a step adds to it
        from then on."""
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
        """tokens [B, T] at positions [B, T] to the residual stream after the last block, [B, T, D].

        T > 1 starts an empty memory at position 0. T = 1 attends to the first `read` cached positions, of which each
        row masks those after its own. `blocks` are called in the place of the model's own, if given.
        """
        x = self.embedding.rows(tokens)
        turns = [table.at(positions) for table in memory.rotations]
        bound = self.reading(memory, read) if blocks is None else blocks
        for block, table in zip(bound, memory.tables, strict=True):
            x = block(x, *turns[table], positions)
        return x

    def reading(self, memory: Memory, read: int) -> list[Callable[..., Tensor]]:
        """The blocks, each bound to the first `read` positions of its cache."""
        pairs = zip(self.layers, memory.caches, strict=True)
        return [partial(block, cache=cache.first(read)) for block, cache in pairs]

    def logits(self, hidden: Tensor) -> Tensor:
        """Residual stream [..., D] to logits: float32 [..., V]."""
        return self.head(self.norm(hidden)).float()

    def forward(self, tokens: Tensor, positions: Tensor, memory: Memory, read: int) -> Tensor:
        """As `hidden`, then the logits after the last token: float32 [B, V]."""
        return self.logits(self.hidden(tokens, positions, memory, read)[:, -1])


def residual_std(depth: int, fan_in: int) -> float:
    """Of the two matrices in each of `depth` layers that write to the residual stream: all together add about one.

    The 2 makes up for what comes in: SwiGLU halves what it is given, and attention averages it.
    """
    return 2 * (fan_in * 2 * depth) ** -0.5


def unsupported(spec: Any, supported: dict[str, tuple[Any, ...]]) -> tuple[str, Any, str] | None:
    """The first field of a spec whose value is none of the supported ones, that value, and what was expected."""
    for path, allowed in supported.items():
        value = spec
        for name in path.split("."):
            value = getattr(value, name)
        if value not in allowed:
            expected = " or ".join(getattr(choice, "name", str(choice)) for choice in allowed)
            return path, getattr(value, "name", value), f"{expected}: gptbench has no other"
    return None


def kind_of(kinds: Sequence[Any], spec: Any) -> Any:
    """The kind for a layer's attention or feed-forward network: of those that are made of such a spec the first that
    supports it, or where none does, the first, which says why not.

    Raises:
        ConfigError: none is made of such a spec.
    """
    made_of = [kind for kind in kinds if kind.SPEC is type(spec)]
    if not made_of:
        names = " or ".join(dict.fromkeys(kind.SPEC.__name__ for kind in kinds))
        raise ConfigError("layer", type(spec).__name__, f"{names}: gptbench computes no other")
    return next((kind for kind in made_of if unsupported(spec, kind.SUPPORTED) is None), made_of[0])


def refuse_unsupported(spec: LayerSpec) -> None:
    """Raises ConfigError for a layer that the Transformer does not compute."""
    own = {
        f"{name}.{path}": allowed
        for name, kinds in (("attention", ATTENTIONS), ("ffn", FEED_FORWARDS))
        for path, allowed in kind_of(kinds, getattr(spec, name)).SUPPORTED.items()
    }
    if (found := unsupported(spec, own | SUPPORTED)) is not None:
        path, value, expected = found
        raise ConfigError(f"layer.{path}", value, expected)
    if (width := spec.attention.rotary.width) != spec.attention.head_dim:
        raise ConfigError("layer.attention.rotary.width", width, f"head_dim={spec.attention.head_dim}")
