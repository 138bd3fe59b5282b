"""`Engine`, the base class of engines over gptbench's own model: a state on the device that prefill and decode
advance."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gptbench.config import Config, EngineConfig
from gptbench.config.targets import instantiate
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine.runner import Runner, Shape, Tick
from gptbench.kernels.sample_reference import sample_reference
from gptbench.model import KeyValueCache, Transformer
from gptbench.sampling import Sampler


@dataclass
class State:
    """State of a generation. The tensors live as long as the engine, at fixed addresses, and are only changed in
    place."""

    tokens: Tensor
    """Prompt, then each new token at its position, int64 [B, S + 1]; the last token is never fed."""
    token: Tensor
    """Token that the next step is fed, int64 [B, 1]."""
    position: Tensor
    """Position of that token in each row's sequence, int64 [B, 1]."""
    logits: Tensor
    """Logits from which the last token was sampled, float32 [B, V]."""
    uniform: Tensor
    """Uniform random number with which each position's token is sampled, float32 [B, S + 1]; redrawn by each
    prefill."""
    stopped: Tensor
    """Stop token that the row has sampled, and repeats from then on, int64 [B, 1]; -1 before."""


@dataclass(frozen=True)
class KnownKernel:
    """What is known of one kernel launch of a step without profiling it."""

    name: str
    """Name that a profiler shows."""
    part: str
    """Part of the step that the kernel belongs to: matrices, attention, sampling or other."""
    bytes_read: int | None
    """Bytes that the kernel reads from memory; None where they are negligible."""


class Engine(Runner):
    """A runner of gptbench's own model. Nothing here waits for the device, unless it says so.

    Args:
        config: the engine's section.
        model: the model with its weights, which other engines may share.
        sampler: sampling settings, read at every step.
        device: device of the model.
        shape: shape of the workload.

    Attributes:
        memory: the KV cache, on the weights' device.
        state: see `State`.
        filled: cached positions that are filled, in the row with most of them.
        generator: source of random numbers; reseed it with `seed`.
        capture_s: seconds that `capture` has taken so far.
    """

    def __init__(
        self, config: EngineConfig, model: Transformer, sampler: Sampler, device: Device, shape: Shape
    ) -> None:
        self.config, self.model, self.sampler, self.device = config, model, sampler, device
        self.batch, self.prompt_length, self.length = shape.batch, shape.prompt, shape.length
        on = model.norm.weight.device if self.FILLS_MEMORY else "meta"
        self.memory = model.allocate(self.batch, self.length, on)
        try:
            self.allocate_state()
        except BaseException:
            self.memory.free()  # the traceback refers to this engine for as long as the error is handled
            raise
        self.filled = 0
        self.capture_s = 0.0

    def allocate_state(self) -> None:
        """Allocate all tensors beside the KV cache, and the generator."""
        model, device = self.model, self.device
        model.count_experts()
        self.state = State(
            tokens=torch.zeros(self.batch, self.length + 1, dtype=torch.int64, device=device.torch),
            token=torch.zeros(self.batch, 1, dtype=torch.int64, device=device.torch),
            position=torch.zeros(self.batch, 1, dtype=torch.int64, device=device.torch),
            logits=torch.zeros(self.batch, model.config.vocab_size, device=device.torch),
            uniform=torch.zeros(self.batch, self.length + 1, device=device.torch),
            stopped=torch.full((self.batch, 1), -1, dtype=torch.int64, device=device.torch),
        )
        self.prompt = torch.zeros(self.batch, self.prompt_length, dtype=torch.int64, device=device.torch)
        self.prompt_positions = torch.arange(self.prompt_length, device=device.torch).repeat(self.batch, 1)
        self.generator = torch.Generator(device.torch)

    BUILDS_MODEL: ClassVar[bool] = True
    FILLS_MEMORY: ClassVar[bool] = True
    """Whether the engine keeps keys and values in `memory`."""

    @property
    def stop_tokens(self) -> frozenset[int]:
        return frozenset(self.sampler.stops.tolist())

    @classmethod
    def make(cls, config: Config, model: Transformer, devices: DeviceGroup) -> "Engine":
        device = devices.local
        sampler = instantiate(config.sampling, config.model.vocab_size, device.torch)
        return cls(config.engine, model, sampler, device, Shape.of(config))

    @classmethod
    def unsupported_reason(cls, config: Config, devices: DeviceGroup) -> str | None:
        if (unsupported := super().unsupported_reason(config, devices)) is not None:
            return unsupported
        return next(
            (reason for device in devices.devices if (reason := cls.unavailable_reason(device)) is not None), None
        )

    @classmethod
    def unavailable_reason(cls, device: Device) -> str | None:
        """Return what this machine lacks to run the engine on a device, whatever the run; None if nothing."""
        return None

    def seed(self, seed: int) -> None:
        """Make the tokens sampled from here on depend on `seed` alone."""
        self.generator.manual_seed(seed)

    @torch.no_grad()
    def prefill(self, prompt: Tensor) -> None:
        """Start over with prompt, int64 [B, T] on the device, and sample the first new token of each row."""
        self.prompt.copy_(prompt)
        self.filled = self.prompt_length
        self.run_prefill()
        if self.model.experts_counter is not None:  # after the prefill, as that of a single token is counted, too
            self.model.experts_counter.zero_()

    @torch.no_grad()
    def decode(self) -> None:
        """Feed each row's last token and sample the next one.

        Raises:
            IndexError: the cache is full.
        """
        if self.filled >= self.length:
            raise IndexError(f"the KV cache holds {self.length} positions, and all are filled")
        self.filled += 1
        self.run_decode()

    def generate(self, prompt: Tensor, new_tokens: int, tick: Tick) -> None:
        """Enqueue all work on the device and tick, without waiting."""
        tick(0)
        self.prefill(prompt)
        tick(1)
        for index in range(2, new_tokens + 1):
            self.decode()
            tick(index)

    def tokens(self, new_tokens: int) -> list[list[int]]:
        first = self.prompt_length
        sampled: list[list[int]] = self.state.tokens[:, first : first + new_tokens].tolist()
        return sampled

    def finite(self) -> bool:
        """Check the last logits and the cache: a NaN or infinity of an earlier step stays in the cache, whose padding
        is 0."""
        return all(bool(tensor.isfinite().all()) for tensor in (self.state.logits, *self.cached()))

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture what a step launches into a CUDA graph; return its replay, which uses the generator's next
        numbers."""
        start = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            step()
        self.capture_s += time.perf_counter() - start
        return graph.replay

    def run_prefill(self) -> None:
        """Process `prompt`, and update the state."""
        raise NotImplementedError

    def run_decode(self) -> None:
        """Run one decode step, and update the state."""
        raise NotImplementedError

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Return the positions of a layer's cache that a step reads, filled or padding, summed over rows at
        `positions`."""
        raise NotImplementedError

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Return the positions of a layer's cache that a step reads or writes, summed over rows and counted at each
        access: each row's own position is written, and read back."""
        return self.positions_read(positions, cache) + len(positions)

    def experts_chosen(self, steps: int) -> int | None:
        """Return the distinct experts chosen in the `steps` decode steps since the prefill, summed over steps and
        layers; None for a dense model. Waits for the device."""
        counter = self.model.experts_counter
        if counter is None:
            return None
        return self.model.active_experts * steps if self.batch == 1 else int(counter.item())

    def experts_read(self, chosen: int, steps: int) -> int:
        """Return the experts whose matrices these steps read: the model's code reads one for each pair of row and
        choice, or all."""
        return steps * sum(mixture.max_distinct(self.batch) for mixture in self.model.mixtures)

    def kernels(self, positions: Sequence[int], experts: float | None = None) -> list[KnownKernel]:
        """Return what is known of the kernels of a step whose rows are at `positions`, in launch order.

        Args:
            positions: position of each row.
            experts: distinct experts that a layer reads, for a mixture.
        """
        return []

    def cached(self) -> list[Tensor]:
        """Return the key and value tensors of every layer."""
        return self.memory.tensors

    def reset_to_prompt(self) -> None:
        """Reset the state to the end of the prompt, where no row has stopped, and draw new random numbers."""
        state = self.state
        state.tokens[:, : self.prompt_length].copy_(self.prompt)
        state.position.fill_(self.prompt_length - 1)
        state.stopped.fill_(-1)
        state.uniform.uniform_(generator=self.generator)

    def release(self) -> None:
        """Free the KV cache, and drop references that would keep the weights' memory alive. The engine cannot be used
        afterwards."""
        self.memory.free()

    def fail_released(self, *_: Any) -> None:
        """Replacement for functions that held memory."""
        raise RuntimeError("the engine was released")

    def advance(self, hidden: Tensor) -> None:
        """Sample from the residual stream [B, D] of the last fed position."""
        self.sample(self.model.logits(hidden))

    def sample(self, logits: Tensor) -> None:
        """Sample the next token from the logits [B, V], float32, of the last fed position; it is fed next. A row that
        has sampled a stop token repeats it."""
        state, sampler = self.state, self.sampler
        sample_reference(
            logits,
            state.uniform,
            *sampler.settings,
            stops=sampler.stops,
            stopped=state.stopped,
            token=state.token,
            tokens=state.tokens,
            position=state.position,
        )
        state.logits.copy_(logits)
