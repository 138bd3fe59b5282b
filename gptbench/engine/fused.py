"""`engine=fused`: the decode step as a chain of gptbench's Triton kernels, overlapped by programmatic dependent launch.

`gptbench.engine.decode_step` lists the kernels. On a GPU the whole step, sampling included, is one CUDA graph. The
prefill is the model's PyTorch code, in another graph: nothing is compiled but the kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptbench.build import on_meta
from gptbench.config import Config, EngineConfig, FusedConfig
from gptbench.config.targets import instantiate
from gptbench.device import Device
from gptbench.engine import caches
from gptbench.engine.base import Engine, KnownKernel
from gptbench.engine.decode_step import DecodeStep
from gptbench.engine.runner import Shape
from gptbench.engine.tile_cache import TileCache, fastest
from gptbench.kernels.launch import INTERPRETED, compile_only, supports_pdl
from gptbench.kernels.op import Op
from gptbench.kernels.tile_config import TileConfig, TileKey
from gptbench.model import KeyValueCache, Transformer, Weight
from gptbench.quant.base import skinny_products_by_kernel
from gptbench.sampling import Sampler


class Fused(Engine):
    """Reads each weight once (of a mixture, those of the experts that some row chose), and only the valid part of the
    cache.

    Attributes:
        ops: kernels of the decode step, in order.
        processors: SMs of the device.
    """

    config: FusedConfig

    @classmethod
    def unavailable_reason(cls, device: Device) -> str | None:
        if device.is_amd:
            return "an NVIDIA GPU: its kernels use PTX instructions (dp2a) that AMD GPUs do not have"
        return caches.missing_for_kernels(inductor=False) if device.is_cuda else "an NVIDIA GPU"

    @classmethod
    def auto_section(cls, section: EngineConfig, config: Config) -> EngineConfig:
        assert isinstance(section, FusedConfig)
        return replace(section, tile_cache=f"{config.outputs}/tiles")

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        """Return the tile of each kernel that the run launches. None where a search is requested: its tiles are not
        known yet."""
        assert isinstance(config.engine, FusedConfig)
        runs = INTERPRETED or (device.is_cuda and not device.is_amd)
        unsupported = config.engine.unsupported_by_kernels(config) or config.quant.unsupported_reason(
            config.model, config.device.dtype
        )
        if not runs or unsupported or config.engine.autotune:
            return None
        return cls.planned(config.engine, config, device).tiles_used

    @classmethod
    def serves_other_workloads(cls, config: EngineConfig) -> bool:
        return True

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        assert isinstance(config.engine, FusedConfig)
        caches.check(config.engine)
        TileCache.of(Path(config.engine.tile_cache), device)  # reports an unreadable file before anything is built

    def __init__(self, config: FusedConfig, model: Transformer, sampler: Sampler, device: Device, shape: Shape) -> None:
        super().__init__(config, model, sampler, device, shape)
        self.pdl = config.pdl and supports_pdl(device.torch)
        self.tile_cache = TileCache.of(Path(config.tile_cache), device)
        self.processors = torch.cuda.get_device_properties(device.torch).multi_processor_count if device.is_cuda else 1
        self.ops = self.decode_ops(self.tile_cache.__getitem__)
        self.launch_prefill: Callable[[], None] = self.prefill_step
        self.launch_decode: Callable[[], None] = self.decode_step

    @classmethod
    def planned(cls, section: FusedConfig, config: Config, device: Device) -> "Fused":
        """Return the engine over a model on meta, which says what it would launch for a run.

        If all layers are alike, two of them are enough: only the first layer's norm differs, which gets its sum of
        squares from `embed`.
        """
        alike = len(set(config.model.layer_specs)) == 1 and not config.quant.weights
        shape = replace(config.model, n_layers=min(2, config.model.n_layers)) if alike else config.model
        model = on_meta(shape, config.quant, device.dtype)
        sampler = instantiate(config.sampling, config.model.vocab_size, device.torch)
        return cls(section, model, sampler, device, Shape.of(config))

    def decode_ops(self, tile_for: Callable[[TileKey], TileConfig]) -> list[Op]:
        """Return the kernels of a decode step, with newly allocated buffers."""
        return DecodeStep(self.model, self.memory, self.state, self.sampler, tile_for, self.processors).ops

    @torch.no_grad()
    def prepare(self) -> None:
        self.filled = self.prompt_length
        if self.device.is_cuda:
            with caches.explain_cache_errors():
                compile_only(self.launch_each_kernel, self.device.torch)
        for _ in range(2 if self.device.is_cuda else 1):  # libraries allocate memory at the first calls
            self.prefill_step()
            self.decode_step()
        if self.device.is_cuda:
            self.launch_prefill = self.capture(self.prefill_step)
            self.launch_decode = self.capture(self.decode_step)
        self.device.synchronize()

    def launch_each_kernel(self) -> None:
        """Launch each of gptbench's kernels at least once: the decode step's, and those that multiply a prompt."""
        self.launch_all(self.ops)
        longest = max(module.format.max_skinny_tokens for module in self.model.modules() if isinstance(module, Weight))
        if longest:
            hidden = torch.zeros(self.batch, self.model.config.dim, dtype=self.model.dtype, device=self.device.torch)
            with skinny_products_by_kernel(self.device.torch):
                if self.prompt.numel() <= longest:
                    hidden = self.prompt_hidden()
                self.model.logits(hidden)

    @property
    def tunes(self) -> bool:
        return self.config.autotune

    @torch.no_grad()
    def tune(self) -> None:
        """Autotune and store the tile of each key that has none yet, those that read most bytes first.

        The best tile is the one with which a whole step is fastest, as a kernel's tile decides what room its neighbours
        have.
        """
        if not self.tunes:
            return
        self.set_mid_generation_state()
        bytes_by_key: dict[TileKey, int] = {}
        for op in self.ops:
            if op.tile_key is not None:
                bytes_by_key[op.tile_key] = bytes_by_key.get(op.tile_key, 0) + op.bytes_read().total()
        for tile_key in sorted(bytes_by_key, key=lambda tile_key: -bytes_by_key[tile_key]):
            if str(tile_key) not in self.tile_cache.configs:

                def compile_with(tile: TileConfig, tile_key: TileKey = tile_key) -> None:
                    self.launch_all([op for op in self.ops_with(tile_key, tile) if op.tile_key == tile_key])

                def step_with(tile: TileConfig, tile_key: TileKey = tile_key) -> Callable[[], None]:
                    return partial(self.launch_all, self.ops_with(tile_key, tile))

                best = fastest(tile_key, compile_with, step_with, self.device.torch)
                if best is not None:
                    self.tile_cache.store(tile_key, best)
        self.ops = self.decode_ops(self.tile_cache.__getitem__)

    def set_mid_generation_state(self) -> None:
        """Set the state to the middle of a generation: each row has a different token, and so different experts."""
        vocabulary = self.model.config.vocab_size
        self.state.token.random_(vocabulary, generator=self.generator)
        self.state.position.fill_(self.length // 2)

    def ops_with(self, tile_key: TileKey, tile: TileConfig) -> list[Op]:
        """Return a step with another tile for one key. It samples no token, so it can be repeated at the same
        position."""
        step = self.decode_ops(lambda other: tile if other == tile_key else self.tile_cache[other])
        return [op for op in step if op.role != "sample"]

    def launch_all(self, ops: list[Op]) -> None:
        """Launch kernels, one after the other."""
        for op in ops:
            op.launch(self.pdl)

    def run_prefill(self) -> None:
        self.launch_prefill()

    def run_decode(self) -> None:
        self.launch_decode()

    def prefill_step(self) -> None:
        self.reset_to_prompt()
        with skinny_products_by_kernel(self.device.torch):
            self.advance(self.prompt_hidden())

    def prompt_hidden(self) -> Tensor:
        """Return the residual stream [B, D] of the prompt's last token."""
        return self.model.hidden(self.prompt, self.prompt_positions, self.memory, self.prompt_length)[:, -1]

    def decode_step(self) -> None:
        self.launch_all(self.ops)

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return sum(map(cache.spec.attended, positions))

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return self.positions_read(positions, cache)  # each row's own position is only written

    def experts_read(self, chosen: int, steps: int) -> int:
        return chosen

    def kernels(self, positions: Sequence[int], experts: float | None = None) -> list[KnownKernel]:
        cached = [position + 1 for position in positions]
        reads = ((op, op.bytes_read().total(cached, experts)) for op in self.ops)
        return [KnownKernel(op.name, op.part, count or None) for op, count in reads]

    @property
    def tiles_used(self) -> dict[str, dict[str, int]]:
        """The tile of each key, by the key's string."""
        tile_keys = dict.fromkeys(op.tile_key for op in self.ops if op.tile_key is not None)
        return {str(tile_key): asdict(self.tile_cache[tile_key]) for tile_key in tile_keys}

    def details(self) -> dict[str, Any]:
        return {"pdl": self.pdl, "tiles": self.tiles_used}

    def release(self) -> None:
        super().release()
        self.ops = []
        self.launch_prefill = self.launch_decode = self.fail_released
