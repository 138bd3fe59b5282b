"""The decode step of the fused engine, as a list of kernels.

    embed
    for each layer: linear (norm, queries, keys, values) → attend → add_linear (output projection, residual)
                    → [route] → swiglu (norm, gate, value) → add_linear (down projection, residual)
    linear (norm, head) → chunk_maxima → draw

Whoever writes the residual stream writes it twice: as it is, and times the gain of the norm that comes next. The norm's
divisor follows from sums of squares, of which each program leaves its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptbench.architecture.spec import MixtureSpec
from gptbench.engine.base import State
from gptbench.kernels import attention, draw
from gptbench.kernels import route as router
from gptbench.kernels.activation import Activation
from gptbench.kernels.add_linear import add_linear, add_linear_reference
from gptbench.kernels.attention import Attend
from gptbench.kernels.draw import Draw, Maxima
from gptbench.kernels.embed import Embed
from gptbench.kernels.launch import shaped
from gptbench.kernels.linear import Norm, linear, linear_reference
from gptbench.kernels.op import Bytes, Op
from gptbench.kernels.route import Route, Routing, Votes
from gptbench.kernels.swiglu import swiglu, swiglu_reference
from gptbench.kernels.tile import Tile, Use
from gptbench.model import KeyValueCache, Transformer, Weight
from gptbench.model.transformer import Attention, FeedForward, MixtureOfExperts
from gptbench.sampling import Sampler

LEAST_ROWS = 4
"""Of a tile that writes the residual stream: with fewer, the next kernel would have more sums of squares to add up."""


@dataclass(frozen=True, eq=False)
class Launch(Op):
    """A kernel whose launcher and reference are functions of the same arguments."""

    own_name: str
    kernel: Callable[..., None]
    twin: Callable[..., None]
    arguments: tuple[Any, ...]
    read: Bytes
    own_use: Use | None = None

    @property
    def name(self) -> str:
        return self.own_name

    @property
    def use(self) -> Use | None:
        return self.own_use

    def operands(self) -> tuple[Any, ...]:
        return self.arguments

    def launch(self, pdl: bool = False) -> None:
        self.kernel(*self.arguments, overlap=pdl)

    def reference(self) -> None:
        self.twin(*self.arguments)

    def reads(self) -> tuple[Any, ...]:
        return self.arguments

    def writes(self) -> tuple[Any, ...]:
        return self.arguments

    def bytes_read(self) -> Bytes:
        return self.read

    def bytes_beside(self) -> int:
        raise NotImplementedError

    def shape(self) -> dict[str, int]:
        raise NotImplementedError

    def flops(self, positions: int) -> int:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        raise NotImplementedError


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
        gains = [gain for block in model.layers for gain in (block.attention_norm.weight, block.ffn_norm.weight)]
        after_attention, after_ffn = gains[1::2], [*gains[2::2], model.norm.weight]
        norm = self.embed(gains[0])
        layers = zip(model.layers, model.caches, after_attention, after_ffn, strict=True)
        for block, cache, next_gain, last_gain in layers:
            self.attend(block.attention, cache, norm)
            norm, votes = self.project(block.attention, block.ffn, next_gain)
            routing = self.route(block.spec.mixture, votes, norm)
            self.up(block.ffn, norm, routing)
            norm = self.down(block.ffn, routing, last_gain)
        self.draw(norm)

    def allocate(self, processors: int) -> None:
        """Memory that serves every layer: each reads what the one before it has written."""
        config, first = self.config, self.model.layers[0]
        self.residual = self.empty(config.dim)
        self.qkv = self.empty(first.attention.wqkv.float_shape[0])
        # The residual stream times the gain of the next norm.
        self.following = self.activation(self.batch, config.dim, self.model.head)
        self.attended = self.activation(self.batch, config.n_heads * config.head_dim, first.attention.wo)
        mixture = first.spec.mixture
        self.slots = 0 if mixture is None else mixture.most_chosen(self.batch)
        self.hidden = self.activation(max(self.slots, 1) * self.batch, config.ffn_dim, first.ffn.w2)
        heads = config.n_heads, config.n_kv_heads, config.head_dim
        length, itemsize = self.model.caches[0].length, self.model.dtype.itemsize
        plan = attention.Plan.choose(self.batch, *heads, length, first.attention.window, itemsize, processors)
        self.attention_scratch = attention.Scratch.empty(plan, self.batch, *heads, self.device)
        if mixture is not None:
            parts = self.squares(self.use_of_residual(first.attention.wo)).shape[1]
            self.votes = self.empty(parts, mixture.experts, dtype=torch.float32)
            self.router_scratch = router.Scratch.empty(self.batch, mixture.experts, self.device)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """[B, ...], of the model's type unless another is given."""
        return torch.empty(self.batch, *shape, dtype=dtype or self.model.dtype, device=self.device)

    def activation(self, rows: int, width: int, reader: Weight) -> Activation:
        """Memory for what a weight is multiplied with: in fixed point for int8."""
        return Activation.empty(rows, width, self.model.dtype, self.device, reader.weight.dtype == torch.int8)

    def use_of_residual(self, module: Weight, slots: int = 0) -> Use:
        """Of a matrix whose products are added to the residual stream."""
        return Use.of(add_linear, module.weight, self.batch, written=1, least=LEAST_ROWS, slots=slots)

    def squares(self, use: Use) -> Tensor:
        """float32 [B, P]: memory for the sums of squares that a kernel's programs leave."""
        return self.empty(-(-use.rows // self.tile_for(use).rows), dtype=torch.float32)

    def norm(self, squares: Tensor) -> Norm:
        return Norm(squares, self.config.dim, self.config.norm_eps)

    def add(
        self,
        role: str,
        name: str,
        kernel: Callable[..., None],
        twin: Callable[..., None],
        *arguments: Any,
        weights: int = 0,
        positions: int = 0,
        expert_bytes: int = 0,
        use: Use | None = None,
    ) -> None:
        """One more kernel; see `Launch`, and `Bytes` of `weights`, those of experts included."""
        slots = use.slots if use is not None else 0
        read = Bytes(weights - slots * expert_bytes, expert_bytes, slots, positions)
        self.ops.append(Launch(name, kernel, twin, arguments, read, use, role=role))

    def add_weight(
        self,
        role: str,
        use: Use,
        kernel: Callable[..., None],
        twin: Callable[..., None],
        module: Weight,
        *arguments: Any,
        more_bytes: int = 0,
    ) -> None:
        """One more kernel over a matrix: of a mixture those of some experts; `more_bytes` of other weights."""
        stored = sum(parameter.nbytes for parameter in module.parameters())
        expert_bytes = stored // module.float_shape[0] if use.slots else 0
        read = (use.slots * expert_bytes if use.slots else stored) + more_bytes
        name = shaped(use.kernel, use.rows, use.columns, mixture=use.slots > 0)
        self.add(
            role, name, kernel, twin, *arguments, self.tile_for(use), weights=read, expert_bytes=expert_bytes, use=use
        )

    def embed(self, gain: Tensor) -> Norm:
        """The token's row becomes the residual stream."""
        table, squares = self.model.embedding, self.empty(1, dtype=torch.float32)
        token, scale = self.state.token, scale_of(table)
        op = Embed(token, table.weight, scale, self.residual, gain, self.following, squares, role="embed")
        self.ops.append(op)
        return self.norm(squares)

    def attend(self, core: Attention, cache: KeyValueCache, norm: Norm) -> None:
        """Queries, keys and values, and what they come to."""
        bias, q_norm, k_norm = (
            None if module is None else module.weight for module in (core.qkv_bias, core.q_norm, core.k_norm)
        )
        self.add_weight(
            "qkv", Use.of(linear, core.wqkv.weight, self.batch), linear, linear_reference, core.wqkv,
            self.following, norm, core.wqkv.weight, scale_of(core.wqkv), bias, self.qkv,
        )  # fmt: skip
        table = self.model.rotations[0]
        op = Attend(
            self.qkv, q_norm, k_norm, self.config.norm_eps, table.cos, table.sin, self.state.position,
            cache.keys, cache.values, core.window, self.attention_scratch, self.attended, role="attention",
        )  # fmt: skip
        self.ops.append(op)

    def project(self, core: Attention, ffn: FeedForward | MixtureOfExperts, gain: Tensor) -> tuple[Norm, Votes | None]:
        """The output projection, added to the residual stream; and where a mixture comes next, its router's votes."""
        use = self.use_of_residual(core.wo)
        squares = self.squares(use)
        votes = Votes(ffn.router.weight, self.votes) if isinstance(ffn, MixtureOfExperts) else None
        self.add_weight(
            "wo", use, add_linear, add_linear_reference, core.wo,
            self.attended, core.wo.weight, scale_of(core.wo), None,
            self.residual, gain, self.following, squares, votes,
            more_bytes=0 if votes is None else votes.weight.nbytes,
        )  # fmt: skip
        return self.norm(squares), votes

    def route(self, mixture: MixtureSpec | None, votes: Votes | None, norm: Norm) -> Routing | None:
        """Of a mixture: which experts are taken. Each layer has memory of its own for it, as the down projection reads
        it before it waits."""
        if mixture is None or votes is None:
            return None
        active = mixture.active
        counter = self.model.experts_counter
        routing = Routing.empty(self.batch, mixture.experts, active, self.device, counter)
        self.ops.append(Route(votes, norm, active, routing, self.router_scratch, role="route"))
        return routing

    def up(self, ffn: FeedForward | MixtureOfExperts, norm: Norm, routing: Routing | None) -> None:
        """The first half of the feed-forward network."""
        use = Use.of(swiglu, ffn.w13.weight, self.batch, written=2, slots=self.slots)
        self.add_weight(
            "w13", use, swiglu, swiglu_reference, ffn.w13,
            self.following, norm, ffn.w13.weight, scale_of(ffn.w13), routing, self.hidden,
        )  # fmt: skip

    def down(self, ffn: FeedForward | MixtureOfExperts, routing: Routing | None, gain: Tensor) -> Norm:
        """Its second half, added to the residual stream."""
        use = self.use_of_residual(ffn.w2, self.slots)
        squares = self.squares(use)
        self.add_weight(
            "w2", use, add_linear, add_linear_reference, ffn.w2,
            self.hidden, ffn.w2.weight, scale_of(ffn.w2), routing,
            self.residual, gain, self.following, squares, None,
        )  # fmt: skip
        return self.norm(squares)

    def draw(self, norm: Norm) -> None:
        """The logits, and the token that is drawn from them."""
        head, state = self.model.head, self.state
        self.add_weight(
            "head", Use.of(linear, head.weight, self.batch), linear, linear_reference, head,
            self.following, norm, head.weight, scale_of(head), None, state.logits,
        )  # fmt: skip
        scratch = draw.Scratch.empty(self.batch, self.config.vocab_size, self.device)
        self.ops.append(Maxima(state.logits, scratch, role="maxima"))
        op = Draw(
            state.logits, state.uniform, *self.sampler.settings, self.sampler.stops, state.stopped,
            state.token, state.tokens, state.position, scratch, role="draw",
        )  # fmt: skip
        self.ops.append(op)


def scale_of(module: Weight) -> Tensor | None:
    """Scales of an int8 weight's rows."""
    return getattr(module, "scale", None)
