"""The decode step of the fused engine, as a list of kernels.

    embed
    for each layer: linear (norm, queries, keys, values) → attend → add_linear (output projection, residual)
                    → [route] → swiglu (norm, gate, value) → add_linear (down projection, residual)
    linear (norm, head) → maxima → sample

Kernels that write the residual stream write it twice: as it is, and times the weight of the next norm, in the encoding
of the matrix after that norm. The norm's reciprocal RMS follows from partial sums of squares, one per CTA.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gptbench.architecture.spec import MixtureSpec
from gptbench.engine.base import State
from gptbench.kernels import maxima, split_kv
from gptbench.kernels import route as router
from gptbench.kernels.activation import Activation
from gptbench.kernels.add_linear import AddLinear
from gptbench.kernels.attention import Attend
from gptbench.kernels.embed import Embed
from gptbench.kernels.linear import Linear
from gptbench.kernels.maxima import Maxima
from gptbench.kernels.norm import Norm
from gptbench.kernels.op import Op
from gptbench.kernels.route import Route, RouterPartials, Routing
from gptbench.kernels.sample import SampleToken
from gptbench.kernels.split_kv import SplitKVPlan
from gptbench.kernels.swiglu import SwiGLU
from gptbench.kernels.tile_config import TileConfig, TileKey
from gptbench.model import KeyValueCache, Memory, Transformer, Weight
from gptbench.model.rope import RotationTable
from gptbench.model.transformer import Attention, FeedForward, MixtureOfExperts, RMSNorm
from gptbench.sampling import Sampler

Buffer = TypeVar("Buffer")


class DecodeStep:
    """One decode step over a model, with the buffers through which its kernels pass data on.

    Args:
        model: the model with its weights.
        memory: the model's memory with the KV cache.
        state: state that the step reads and writes; all but the prompt.
        sampler: sampling settings.
        tile_for: returns the tile of a key.
        processors: SMs of the device.

    Attributes:
        ops: the kernels, in order.
    """

    def __init__(
        self,
        model: Transformer,
        memory: Memory,
        state: State,
        sampler: Sampler,
        tile_for: Callable[[TileKey], TileConfig],
        processors: int,
    ) -> None:
        self.model, self.state, self.sampler, self.tile_for = model, state, sampler, tile_for
        self.config, self.batch, self.device = model.config, state.token.shape[0], state.token.device
        self.ops: list[Op] = []
        self.processors = processors
        self.buffers: dict[Hashable, Any] = {}
        self.residual = self.empty(self.config.dim)
        # For each layer and the head: the norm before it, and the matrix that reads the normalised residual stream.
        starts = [(block.attention_norm, block.attention.wqkv) for block in model.layers]
        starts.append((model.norm, model.head))
        norm = self.embed(*starts[0])
        layers = zip(model.layers, memory.caches, memory.rope_table_index, starts[1:], strict=True)
        for block, cache, table, after in layers:
            self.attend(block.attention, cache, memory.rope_tables[table], norm)
            norm, router_partials = self.project(block.attention, block.ffn, block.ffn_norm)
            routing = self.route(block.spec.mixture, router_partials, norm)
            self.up(block.ffn, norm, routing)
            norm = self.down(block.ffn, routing, *after)
        self.sample(norm)

    def shared(self, key: Hashable, make: Callable[[], Buffer]) -> Buffer:
        """Return a buffer shared by all layers of a shape: each reads what the kernels just before it have written."""
        if key not in self.buffers:
            self.buffers[key] = make()
        buffer: Buffer = self.buffers[key]
        return buffer

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate [B, ...], in the model's type unless another is given."""
        return torch.empty(self.batch, *shape, dtype=dtype or self.model.dtype, device=self.device)

    def activation(self, name: str, rows: int, reader: Weight) -> Activation:
        """Return the shared buffer for a matrix's input, in its encoding."""
        width, encoding = reader.float_shape[-1], reader.format.encoding
        return self.shared(
            (name, rows, width, encoding),
            lambda: Activation.empty(rows, width, self.model.dtype, self.device, encoding),
        )

    def next_input(self, reader: Weight) -> Activation:
        """Return the buffer for the residual stream times the weight of the norm before the matrix `reader`."""
        return self.activation("next_input", self.batch, reader)

    def attended(self, core: Attention) -> Activation:
        """Return the buffer for the attention output."""
        return self.activation("attended", self.batch, core.wo)

    def hidden(self, ffn: FeedForward, routing: Routing | None) -> Activation:
        """Return the buffer between the two halves of a feed-forward network; for a mixture it holds every slot."""
        return self.activation("hidden", self.batch if routing is None else routing.expert_weights.numel(), ffn.w2)

    def for_residual(self, tile_key: TileKey) -> tuple[TileConfig, Tensor]:
        """Return the tile of a kernel that adds to the residual stream, and a buffer for the partial sums of squares of
        its CTAs, float32 [B, P]."""
        tile = self.tile_for(tile_key)
        return tile, self.empty(-(-tile_key.rows // tile.rows), dtype=torch.float32)

    def norm(self, sum_sq_partials: Tensor, module: RMSNorm) -> Norm:
        return Norm(sum_sq_partials, self.config.dim, module.eps)

    def embed(self, after: RMSNorm, reader: Weight) -> Norm:
        """Add the embedding lookup, which starts the residual stream."""
        sum_sq_partials, table = self.empty(1, dtype=torch.float32), self.model.embedding.matrix
        next_input, token = self.next_input(reader), self.state.token
        self.ops.append(Embed(token, table, self.residual, after.weight, next_input, sum_sq_partials, role="embed"))
        return self.norm(sum_sq_partials, after)

    def attend(self, core: Attention, cache: KeyValueCache, table: RotationTable, norm: Norm) -> None:
        """Add the QKV projection and the attention."""
        spec = cache.spec
        bias, q_norm, k_norm = (
            None if module is None else module.weight for module in (core.qkv_bias, core.q_norm, core.k_norm)
        )
        eps = 0.0 if core.q_norm is None else core.q_norm.eps
        qkv = self.shared(("qkv", spec.rows), lambda: self.empty(spec.rows))
        self.linear("qkv", norm, core.wqkv, bias, qkv)
        heads = spec.heads, spec.kv_heads, spec.head_dim
        itemsize = self.model.dtype.itemsize
        plan = SplitKVPlan.choose(self.batch, *heads, cache.length, spec.window, itemsize, self.processors)
        scratch = self.shared(
            (plan, heads), lambda: split_kv.SplitKVScratch.empty(plan, self.batch, *heads, self.device)
        )
        op = Attend(
            qkv, q_norm, k_norm, eps, table.cos, table.sin, self.state.position,
            cache.keys, cache.values, spec.window, scratch, self.attended(core), role="attention",
        )  # fmt: skip
        self.ops.append(op)

    def project(self, core: Attention, ffn: FeedForward, after: RMSNorm) -> tuple[Norm, RouterPartials | None]:
        """Add the output projection and residual; where a mixture comes next, with its partial router logits."""
        next_input, weight, norm_weight = self.next_input(ffn.w13), core.wo.matrix, after.weight
        tile, sum_sq_partials = self.for_residual(AddLinear.tile_key_of(weight, self.batch, next_input))
        router_partials = None
        if isinstance(ffn, MixtureOfExperts):
            shape = sum_sq_partials.shape[1], ffn.experts
            router_partials = RouterPartials(
                ffn.router.weight,
                self.shared(("router_partials", shape), lambda: self.empty(*shape, dtype=torch.float32)),
            )
        self.ops.append(
            AddLinear(
                self.attended(core),
                weight,
                None,
                self.residual,
                norm_weight,
                next_input,
                sum_sq_partials,
                router_partials,
                tile,
                role="wo",
            )
        )
        return self.norm(sum_sq_partials, after), router_partials

    def route(self, mixture: MixtureSpec | None, router_partials: RouterPartials | None, norm: Norm) -> Routing | None:
        """Add the router, if the layer is a mixture. Each layer has its own `Routing`, as the down projection reads it
        before the PDL wait."""
        if mixture is None or router_partials is None:
            return None
        experts, device = mixture.experts, self.device
        routing = Routing.empty(self.batch, experts, mixture.active, device, self.model.experts_counter)
        scratch = self.shared(("router", experts), lambda: router.RouteScratch.empty(self.batch, experts, device))
        self.ops.append(Route(router_partials, norm, routing, scratch, role="route"))
        return routing

    def up(self, ffn: FeedForward, norm: Norm, routing: Routing | None) -> None:
        """Add the first half of the feed-forward network."""
        weight, hidden = ffn.w13.matrix, self.hidden(ffn, routing)
        tile = self.tile_for(SwiGLU.tile_key_of(weight, self.batch, hidden, max_experts_of(routing)))
        self.ops.append(SwiGLU(self.next_input(ffn.w13), norm, weight, routing, hidden, tile, role="w13"))

    def down(self, ffn: FeedForward, routing: Routing | None, after: RMSNorm, reader: Weight) -> Norm:
        """Add the down projection and residual."""
        next_input, weight, norm_weight = self.next_input(reader), ffn.w2.matrix, after.weight
        tile, sum_sq_partials = self.for_residual(
            AddLinear.tile_key_of(weight, self.batch, next_input, max_experts_of(routing))
        )
        hidden = self.hidden(ffn, routing)
        self.ops.append(
            AddLinear(
                hidden, weight, routing, self.residual, norm_weight, next_input, sum_sq_partials, None, tile, role="w2"
            )
        )
        return self.norm(sum_sq_partials, after)

    def linear(self, role: str, norm: Norm, module: Weight, bias: Tensor | None, out: Tensor) -> None:
        """Add a norm and the matrix after it."""
        weight = module.matrix
        tile = self.tile_for(Linear.tile_key_of(weight, self.batch))
        self.ops.append(Linear(self.next_input(module), norm, weight, bias, out, tile, role=role))

    def sample(self, norm: Norm) -> None:
        """Add the logits, and the sampling of the next token."""
        state = self.state
        self.linear("head", norm, self.model.head, None, state.logits)
        scratch = maxima.MaximaScratch.empty(self.batch, self.config.vocab_size, self.device)
        self.ops.append(Maxima(state.logits, scratch, role="maxima"))
        op = SampleToken(
            state.logits, state.uniform, *self.sampler.settings, self.sampler.stops, state.stopped,
            state.token, state.tokens, state.position, scratch, role="sample",
        )  # fmt: skip
        self.ops.append(op)


def max_experts_of(routing: Routing | None) -> int:
    """Return the maximum number of distinct experts that a step reads; 0 without a mixture."""
    return 0 if routing is None else routing.expert_ids.numel()
