"""Our own kernels: the decode step as a chain of Triton kernels, each of which starts before the one before it is done.

    embed
    for each layer: linear (norm, queries, keys, values) → attend → add_linear (output projection, residual)
                    → [route] → swiglu (norm, gate, value) → add_linear (down projection, residual)
    linear (norm, head) → chunk_maxima → draw

On a GPU the whole step is one CUDA graph, drawing included. The prefill is the model's own code, in a graph of its own:
nothing is compiled but the kernels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptbench.config import Config, FusedConfig
from gptbench.device import Device
from gptbench.engine.base import Engine
from gptbench.engine.tiles import Tiles, Use, fastest
from gptbench.kernels import attention, draw
from gptbench.kernels import route as router
from gptbench.kernels.activation import Activation
from gptbench.kernels.add_linear import add_linear, add_linear_reference
from gptbench.kernels.embed import embed, embed_reference
from gptbench.kernels.int8_matmul import MOST_TOKENS, int8_matmul
from gptbench.kernels.launch import can_overlap, shaped
from gptbench.kernels.linear import Norm, Tile, linear, linear_reference
from gptbench.kernels.route import Routing, Votes, route, route_reference
from gptbench.kernels.swiglu import swiglu, swiglu_reference
from gptbench.model import Transformer, Weight
from gptbench.model.transformer import Block, FeedForward, MixtureOfExperts
from gptbench.quant import Int8, Unquantised
from gptbench.quant.int8 import Int8Weight, cast_product
from gptbench.sampling import Sampler
from gptbench.targets import target

LEAST_ROWS = 4
"""Of a tile that writes the residual stream: with fewer, the next kernel would have more sums of squares to add up."""
MOST_SEQUENCES = 8
"""Sums of more would not fit into a program's registers; and with more, matrix units are the better choice."""


@dataclass(frozen=True)
class Launch:
    """One kernel of the decode step."""

    name: str
    """What a profiler shows."""
    role: str
    """What it does for the model."""
    kernel: Callable[..., None]
    twin: Callable[..., None]
    arguments: tuple[Any, ...]
    weights: int
    """Bytes of the weights (or logits) that it reads; 0 where it reads next to nothing."""
    positions: int = 0
    """Bytes that it reads for each cached position."""
    use: Use | None = None
    """What its tile is for, if it has one."""


class Fused(Engine):
    """Reads each weight once, and of the cache what is filled.

    Attributes:
        launches: the decode step, in order.
        processors: streaming multiprocessors.
    """

    config: FusedConfig

    @classmethod
    def missing(cls, device: Device) -> str | None:
        return None if device.is_cuda else "an NVIDIA GPU"

    @classmethod
    def refuse(cls, config: Config, device: Device) -> str | None:
        batch = config.workload.batch_size
        if device.dtype == torch.float16:
            return "device.dtype=bfloat16 or float32: a residual stream times a norm's gain may pass float16's 65504"
        if batch > MOST_SEQUENCES:
            return f"workload.batch_size={MOST_SEQUENCES} at most (it is {batch})"
        if target(config.quant) not in (Unquantised, Int8):
            return f"quant=none or int8 (it is {config.quant.name})"
        return None

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        super().check(config, device)
        assert isinstance(config.engine, FusedConfig)
        Tiles(Path(config.engine.tiles), device.key)  # a file that cannot be read is told before anything is built

    def __init__(
        self, config: FusedConfig, model: Transformer, sampler: Sampler, device: Device, prompt_length: int
    ) -> None:
        super().__init__(config, model, sampler, device, prompt_length)
        if device.is_cuda:
            for module in model.modules():
                if isinstance(module, Int8Weight):
                    module.product = int8_product
        self.overlap = config.overlap and can_overlap(device.torch)
        self.tiles = Tiles(Path(config.tiles), device.key)
        self.processors = torch.cuda.get_device_properties(device.torch).multi_processor_count if device.is_cuda else 1
        self.launches = self.decode_launches(self.tiles.__getitem__)
        self.launch_prefill: Callable[[], None] = self.prefill_step
        self.launch_decode: Callable[[], None] = self.decode_step

    def decode_launches(self, tile_for: Callable[[Use], Tile]) -> list[Launch]:
        """The kernels of a decode step, with the memory that they hand on to one another."""
        model, state, on = self.model, self.state, self.device.torch
        config, batch, dtype = model.config, self.batch, model.dtype
        residual = torch.empty(batch, config.dim, dtype=dtype, device=on)
        qkv = torch.empty(batch, model.layers[0].attention.wqkv.float_shape[0], dtype=dtype, device=on)
        following = self.activation(batch, config.dim, model.head)
        attended = self.activation(batch, config.n_heads * config.head_dim, model.layers[0].attention.wo)
        hidden = self.hidden_activation(model.layers[0])
        plan = attention.Plan.choose(
            batch,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            self.length,
            config.sliding_window,
            dtype.itemsize,
            self.processors,
        )
        scratch = attention.Scratch.empty(plan, batch, config.n_heads, config.n_kv_heads, config.head_dim, on)
        router_scratch = router.Scratch.empty(batch, config.n_experts, on)

        launches: list[Launch] = []

        def add(
            role: str,
            name: str,
            kernel: Callable[..., None],
            twin: Callable[..., None],
            *arguments: Any,
            weights: int = 0,
            positions: int = 0,
            use: Use | None = None,
        ) -> None:
            launches.append(Launch(name, role, kernel, twin, arguments, weights, positions, use))

        def add_weight(
            role: str,
            use: Use,
            kernel: Callable[..., None],
            twin: Callable[..., None],
            module: Weight,
            *arguments: Any,
            share: float = 1,
            more_bytes: int = 0,
        ) -> None:
            name = shaped(use.kernel, use.rows, use.columns)
            read = sum(parameter.nbytes for parameter in module.parameters())
            add(role, name, kernel, twin, *arguments, tile_for(use), weights=int(read * share) + more_bytes, use=use)

        def squares(width: int, tile: Tile) -> Tensor:
            return torch.empty(batch, -(-width // tile.rows), dtype=torch.float32, device=on)

        gains = [gain for block in model.layers for gain in (block.attention_norm.weight, block.ffn_norm.weight)]
        gains.append(model.norm.weight)
        sums = torch.empty(batch, 1, dtype=torch.float32, device=on)
        vote_parts: Tensor | None = None
        embedding = (
            state.token,
            model.embedding.weight,
            scale_of(model.embedding),
            residual,
            gains[0],
            following,
            sums,
        )
        row = model.embedding.weight[0].nbytes * batch
        add("embed", "embed_kernel", embed, embed_reference, *embedding, weights=row)
        for number, block in enumerate(model.layers):
            core = block.attention
            norm = Norm(sums, config.dim, config.norm_eps)
            use = Use.of(linear, core.wqkv.weight, batch)
            bias = None if core.qkv_bias is None else core.qkv_bias.weight
            add_weight(
                "qkv", use, linear, linear_reference, core.wqkv,
                following, norm, core.wqkv.weight, scale_of(core.wqkv), bias, qkv,
            )  # fmt: skip
            q_norm = None if core.q_norm is None else core.q_norm.weight
            k_norm = None if core.k_norm is None else core.k_norm.weight
            add(
                "attention", "attend_kernel", attention.attend, attention.attend_reference,
                qkv, q_norm, k_norm, config.norm_eps, model.cos, model.sin, state.position,
                core.k_cache, core.v_cache, config.sliding_window, scratch, attended,
                positions=(core.k_cache[:, :, 0].nbytes + core.v_cache[:, :, 0].nbytes),
            )  # fmt: skip
            ffn, votes, routing, share, slots = block.ffn, None, None, 1.0, 0
            assert isinstance(ffn, (FeedForward, MixtureOfExperts))
            use = Use.of(add_linear, core.wo.weight, batch, written=1, least=LEAST_ROWS)
            sums = squares(config.dim, tile_for(use))
            if isinstance(ffn, MixtureOfExperts):
                if vote_parts is None:  # one for all layers: each is added up before the next is written
                    vote_parts = torch.empty(*sums.shape, config.n_experts, dtype=torch.float32, device=on)
                votes = Votes(ffn.router.weight, vote_parts)
            add_weight(
                "wo", use, add_linear, add_linear_reference, core.wo,
                attended, core.wo.weight, scale_of(core.wo), None,
                residual, gains[2 * number + 1], following, sums, votes,
                more_bytes=0 if votes is None else votes.weight.nbytes,
            )  # fmt: skip
            norm = Norm(sums, config.dim, config.norm_eps)
            if votes is not None:
                # One for each layer: the down projection reads it before it waits.
                routing = Routing.empty(batch, config.n_experts, config.n_active_experts, on)
                slots = routing.slots.numel()
                share = slots / config.n_experts
                add(
                    "route", "route_kernel", route, route_reference,
                    votes, norm, config.n_active_experts, routing, router_scratch,
                )  # fmt: skip
            use = Use.of(swiglu, ffn.w13.weight, batch, written=2, slots=slots)
            add_weight(
                "w13", use, swiglu, swiglu_reference, ffn.w13,
                following, norm, ffn.w13.weight, scale_of(ffn.w13), routing, hidden, share=share,
            )  # fmt: skip
            use = Use.of(add_linear, ffn.w2.weight, batch, written=1, least=LEAST_ROWS, slots=slots)
            sums = squares(config.dim, tile_for(use))
            add_weight(
                "w2", use, add_linear, add_linear_reference, ffn.w2,
                hidden, ffn.w2.weight, scale_of(ffn.w2), routing,
                residual, gains[2 * number + 2], following, sums, None,
                share=share,
            )  # fmt: skip
        norm = Norm(sums, config.dim, config.norm_eps)
        head = model.head
        add_weight(
            "head", Use.of(linear, head.weight, batch), linear, linear_reference, head,
            following, norm, head.weight, scale_of(head), None, state.logits,
        )  # fmt: skip
        chances = draw.Scratch.empty(batch, config.vocab_size, on)
        add(
            "maxima", "maxima_kernel", draw.chunk_maxima, draw.chunk_maxima_reference,
            state.logits, chances, weights=state.logits.nbytes,
        )  # fmt: skip
        add(
            "draw", "draw_kernel", draw.draw, draw.draw_reference,
            state.logits, state.uniform, *self.sampler.settings, self.sampler.stops, state.stopped,
            state.token, state.tokens, state.position, chances,
        )  # fmt: skip
        return launches

    def activation(self, batch: int, width: int, reader: Weight) -> Activation:
        """Memory for what a weight is multiplied with: in fixed point for int8."""
        fixed = reader.weight.dtype == torch.int8
        return Activation.empty(batch, width, self.model.dtype, self.device.torch, fixed)

    def hidden_activation(self, block: Block) -> Activation:
        """Memory for what is between the two halves of a feed-forward network."""
        ffn, config = block.ffn, self.model.config
        assert isinstance(ffn, (FeedForward, MixtureOfExperts))
        slots = min(self.batch * config.n_active_experts, config.n_experts) if config.n_experts else 1
        return self.activation(slots * self.batch, config.ffn_dim, ffn.w2)

    @torch.no_grad()
    def prepare(self) -> None:
        self.filled = self.prompt_length
        for _ in range(2 if self.device.is_cuda else 1):  # compiles; then libraries may still allocate
            self.prefill_step()
            self.decode_step()
        if self.device.is_cuda:
            self.launch_prefill = self.capture(self.prefill_step)
            self.launch_decode = self.capture(self.decode_step)
        self.device.synchronize()

    @property
    def tunes(self) -> bool:
        return self.config.tune

    @torch.no_grad()
    def tune(self) -> None:
        """Finds and keeps the best tile for each use that has none yet: the one with which a whole step is fastest, as
        a kernel's tile decides what room its neighbours have. What reads most comes first."""
        if not self.tunes:
            return
        self.pose()
        read: dict[Use, int] = {}
        for launch in self.launches:
            if launch.use is not None:
                read[launch.use] = read.get(launch.use, 0) + launch.weights
        for use in sorted(read, key=lambda use: -read[use]):
            if str(use) not in self.tiles.found:

                def compile_with(tile: Tile, use: Use = use) -> None:
                    self.launch_all([launch for launch in self.launches_with(use, tile) if launch.use == use])

                def step_with(tile: Tile, use: Use = use) -> Callable[[], None]:
                    return partial(self.launch_all, self.launches_with(use, tile))

                found = fastest(use, compile_with, step_with, self.device.torch)
                if found is not None:
                    self.tiles.keep(use, found)
        self.launches = self.decode_launches(self.tiles.__getitem__)

    def pose(self) -> None:
        """Puts the state in the midst of a generation: each row has a token of its own, and so experts of its own."""
        vocabulary = self.model.config.vocab_size
        self.state.token.random_(vocabulary, generator=self.generator)
        self.state.position.fill_(self.length // 2)

    def launches_with(self, use: Use, tile: Tile) -> list[Launch]:
        """A step with another tile for one use, again and again at the same position: no token is drawn."""
        step = self.decode_launches(lambda other: tile if other == use else self.tiles[other])
        return [launch for launch in step if launch.kernel is not draw.draw]

    def launch_all(self, launches: list[Launch]) -> None:
        """Hands kernels to the device, one after the other."""
        for launch in launches:
            launch.kernel(*launch.arguments, overlap=self.overlap)

    def run_prefill(self) -> None:
        self.launch_prefill()

    def run_decode(self) -> None:
        self.launch_decode()

    def prefill_step(self) -> None:
        self.rewind()
        hidden = self.model.hidden(self.prompt, self.prompt_positions, self.prompt_length)
        self.advance(hidden[:, -1])

    def decode_step(self) -> None:
        self.launch_all(self.launches)

    def positions_read(self, position: int) -> int:
        window = self.model.config.sliding_window
        return min(position + 1, window) if 0 < window < self.length else position + 1

    def kernel_bytes(self, position: int) -> dict[str, int]:
        read = self.positions_read(position)
        reads = {launch.name: launch.weights + launch.positions * read for launch in self.launches}
        return {name: count for name, count in reads.items() if count}

    def details(self) -> dict[str, Any]:
        uses = dict.fromkeys(launch.use for launch in self.launches if launch.use is not None)
        return {"overlap": self.overlap, "tiles": {str(use): asdict(self.tiles[use]) for use in uses}}

    def release(self) -> None:
        for module in self.model.modules():
            if isinstance(module, Int8Weight):
                module.product = cast_product
        self.launches = []
        self.launch_prefill = self.launch_decode = self.released

    def released(self) -> None:
        """In the place of graphs that hold memory."""
        raise RuntimeError("the engine was released")


def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """As `gptbench.quant.int8.cast_product`, for a few tokens without a copy of the weight."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) > MOST_TOKENS:
        return cast_product(x, weight, scale)
    out = torch.empty(len(flat), len(weight), dtype=x.dtype, device=x.device)
    int8_matmul(flat, weight, scale, out)
    return out.view(*x.shape[:-1], -1)


def scale_of(module: Weight) -> Tensor | None:
    """Scales of an int8 weight's rows."""
    return getattr(module, "scale", None)
