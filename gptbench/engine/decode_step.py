"""The decode step of the fused engine, as a list of kernels.

    embed
    for each layer: linear (norm, queries, keys, values) → attend → add_linear (output projection, residual)
                    → [route] → swiglu (norm, gate, value) → add_linear (down projection, residual)
    linear (norm, head) → chunk_maxima → draw

Whoever writes the residual stream writes it twice: as it is, and times the gain of the norm that comes next, encoded as
the matrix after that norm wants it. The norm's divisor follows from sums of squares, of which each program leaves its
own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gptbench.architecture.spec import MixtureSpec
from gptbench.engine.base import State
from gptbench.kernels import attention, draw
from gptbench.kernels import route as router
from gptbench.kernels.activation import Activation
from gptbench.kernels.add_linear import AddLinear
from gptbench.kernels.attention import Attend
from gptbench.kernels.draw import Draw, Maxima
from gptbench.kernels.embed import Embed
from gptbench.kernels.linear import Linear
from gptbench.kernels.matrix import Encoding
from gptbench.kernels.norm import Norm
from gptbench.kernels.op import Op
from gptbench.kernels.route import Route, Routing, Votes
from gptbench.kernels.swiglu import SwiGLU
from gptbench.kernels.tile import Tile, Use
from gptbench.model import KeyValueCache, Transformer, Weight
from gptbench.model.transformer import Attention, FeedForward, MixtureOfExperts
from gptbench.sampling import Sampler


class DecodeStep:
    """One decode step over a model, with the memory that its kernels hand on to one another.

    Args:
        model: with its KV cache.
        state: read and written, but for the prompt.
        sampler: settings of the drawing.
        tile_for: the tile for each use.
        processors: streaming multiprocessors of the device.

    Attributes:
        ops: the kernels, in order.
    """

    def __init__(
        self, model: Transformer, state: State, sampler: Sampler, tile_for: Callable[[Use], Tile], processors: int
    ) -> None:
        self.model, self.state, self.sampler, self.tile_for = model, state, sampler, tile_for
        self.config, self.batch, self.device = model.config, state.token.shape[0], state.token.device
        self.ops: list[Op] = []
        self.allocate(processors)
        # Of each layer, and of the head: the norm before it, and the matrix that reads what the norm gives.
        starts = [(block.attention_norm.weight, block.attention.wqkv) for block in model.layers]
        starts.append((model.norm.weight, model.head))
        norm = self.embed(*starts[0])
        for block, cache, after in zip(model.layers, model.caches, starts[1:], strict=True):
            self.attend(block.attention, cache, norm)
            norm, votes = self.project(block.attention, block.ffn, block.ffn_norm.weight)
            routing = self.route(block.spec.mixture, votes, norm)
            self.up(block.ffn, norm, routing)
            norm = self.down(block.ffn, routing, *after)
        self.draw(norm)

    def allocate(self, processors: int) -> None:
        """Memory that serves every layer: each reads what the one before it has written."""
        config, first = self.config, self.model.layers[0]
        self.residual = self.empty(config.dim)
        self.qkv = self.empty(first.attention.wqkv.float_shape[0])
        self.activations: dict[tuple[str, Encoding], Activation] = {}
        self.votes: dict[int, Tensor] = {}
        mixture = first.spec.mixture
        self.slots = 0 if mixture is None else mixture.most_chosen(self.batch)
        heads = config.n_heads, config.n_kv_heads, config.head_dim
        length, itemsize = self.model.caches[0].length, self.model.dtype.itemsize
        plan = attention.Plan.choose(self.batch, *heads, length, first.attention.window, itemsize, processors)
        self.attention_scratch = attention.Scratch.empty(plan, self.batch, *heads, self.device)
        if mixture is not None:
            self.router_scratch = router.Scratch.empty(self.batch, mixture.experts, self.device)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """[B, ...], of the model's type unless another is given."""
        return torch.empty(self.batch, *shape, dtype=dtype or self.model.dtype, device=self.device)

    def activation(self, name: str, rows: int, reader: Weight) -> Activation:
        """Memory for what a matrix reads, in the encoding that it wants; all of a name and an encoding share it."""
        key = name, reader.format.encoding
        if key not in self.activations:
            self.activations[key] = Activation.empty(
                rows, reader.float_shape[-1], self.model.dtype, self.device, reader.format.encoding
            )
        return self.activations[key]

    def following(self, reader: Weight) -> Activation:
        """The residual stream times the gain of the norm before the matrix that reads it."""
        return self.activation("following", self.batch, reader)

    def attended(self, core: Attention) -> Activation:
        """What attention gives."""
        return self.activation("attended", self.batch, core.wo)

    def hidden(self, ffn: FeedForward | MixtureOfExperts) -> Activation:
        """What is between the two halves of a feed-forward network, of each slot."""
        return self.activation("hidden", max(self.slots, 1) * self.batch, ffn.w2)

    def for_residual(self, use: Use) -> tuple[Tile, Tensor]:
        """The tile of a kernel that adds to the residual stream, and memory for the sums of squares that its programs
        leave: float32 [B, P]."""
        tile = self.tile_for(use)
        return tile, self.empty(-(-use.rows // tile.rows), dtype=torch.float32)

    def parts_of_votes(self, parts: int, experts: int) -> Tensor:
        """float32 [B, P, E]: memory for `Votes.parts`, which layers share."""
        if parts not in self.votes:
            self.votes[parts] = self.empty(parts, experts, dtype=torch.float32)
        return self.votes[parts]

    def norm(self, squares: Tensor) -> Norm:
        return Norm(squares, self.config.dim, self.config.norm_eps)

    def embed(self, gain: Tensor, reader: Weight) -> Norm:
        """The token's row becomes the residual stream."""
        squares, table = self.empty(1, dtype=torch.float32), self.model.embedding.matrix
        following = self.following(reader)
        self.ops.append(Embed(self.state.token, table, self.residual, gain, following, squares, role="embed"))
        return self.norm(squares)

    def attend(self, core: Attention, cache: KeyValueCache, norm: Norm) -> None:
        """Queries, keys and values, and what they come to."""
        bias, q_norm, k_norm = (
            None if module is None else module.weight for module in (core.qkv_bias, core.q_norm, core.k_norm)
        )
        self.linear("qkv", norm, core.wqkv, bias, self.qkv)
        table = self.model.rotations[0]
        op = Attend(
            self.qkv, q_norm, k_norm, self.config.norm_eps, table.cos, table.sin, self.state.position,
            cache.keys, cache.values, core.window, self.attention_scratch, self.attended(core), role="attention",
        )  # fmt: skip
        self.ops.append(op)

    def project(self, core: Attention, ffn: FeedForward | MixtureOfExperts, gain: Tensor) -> tuple[Norm, Votes | None]:
        """The output projection, added to the residual stream; and where a mixture comes next, its router's votes."""
        following, weight = self.following(ffn.w13), core.wo.matrix
        tile, squares = self.for_residual(AddLinear.use_of(weight, self.batch, following))
        votes = None
        if isinstance(ffn, MixtureOfExperts):
            votes = Votes(ffn.router.weight, self.parts_of_votes(squares.shape[1], ffn.experts))
        self.ops.append(
            AddLinear(
                self.attended(core), weight, None, self.residual, gain, following, squares, votes, tile, role="wo"
            )
        )
        return self.norm(squares), votes

    def route(self, mixture: MixtureSpec | None, votes: Votes | None, norm: Norm) -> Routing | None:
        """Of a mixture: which experts are taken. Each layer has memory of its own for it, as the down projection reads
        it before it waits."""
        if mixture is None or votes is None:
            return None
        routing = Routing.empty(self.batch, mixture.experts, mixture.active, self.device, self.model.experts_counter)
        self.ops.append(Route(votes, norm, routing, self.router_scratch, role="route"))
        return routing

    def up(self, ffn: FeedForward | MixtureOfExperts, norm: Norm, routing: Routing | None) -> None:
        """The first half of the feed-forward network."""
        weight, hidden = ffn.w13.matrix, self.hidden(ffn)
        tile = self.tile_for(SwiGLU.use_of(weight, self.batch, hidden, self.slots))
        self.ops.append(SwiGLU(self.following(ffn.w13), norm, weight, routing, hidden, tile, role="w13"))

    def down(self, ffn: FeedForward | MixtureOfExperts, routing: Routing | None, gain: Tensor, reader: Weight) -> Norm:
        """Its second half, added to the residual stream."""
        following, weight = self.following(reader), ffn.w2.matrix
        tile, squares = self.for_residual(AddLinear.use_of(weight, self.batch, following, self.slots))
        self.ops.append(
            AddLinear(self.hidden(ffn), weight, routing, self.residual, gain, following, squares, None, tile, role="w2")
        )
        return self.norm(squares)

    def linear(self, role: str, norm: Norm, module: Weight, bias: Tensor | None, out: Tensor) -> None:
        """A matrix after a norm."""
        weight = module.matrix
        tile = self.tile_for(Linear.use_of(weight, self.batch))
        self.ops.append(Linear(self.following(module), norm, weight, bias, out, tile, role=role))

    def draw(self, norm: Norm) -> None:
        """The logits, and the token that is drawn from them."""
        state = self.state
        self.linear("head", norm, self.model.head, None, state.logits)
        scratch = draw.Scratch.empty(self.batch, self.config.vocab_size, self.device)
        self.ops.append(Maxima(state.logits, scratch, role="maxima"))
        op = Draw(
            state.logits, state.uniform, *self.sampler.settings, self.sampler.stops, state.stopped,
            state.token, state.tokens, state.position, scratch, role="draw",
        )  # fmt: skip
        self.ops.append(op)
