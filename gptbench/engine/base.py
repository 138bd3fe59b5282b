"""What every engine is: a state on the device, a prefill and a decode step that advance it."""

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
    """Tensors that live as long as the engine, at fixed addresses, and are only ever changed in place."""

    tokens: Tensor
    """int64 [B, S + 1]: the prompt, then each new token at its position; the last one is never fed."""
    token: Tensor
    """int64 [B, 1]: the token that the next step is fed."""
    position: Tensor
    """int64 [B, 1]: the position of that token, in each row's own sequence."""
    logits: Tensor
    """float32 [B, V]: what the last token was drawn from."""
    uniform: Tensor
    """float32 [B, S + 1]: the random number that each position's token is drawn with, made anew by each prefill."""
    stopped: Tensor
    """int64 [B, 1]: the stop token that the row has drawn, and draws from then on; -1 before."""


@dataclass(frozen=True)
class KnownKernel:
    """One launch of a step, before it was measured."""

    name: str
    """What a profiler shows."""
    part: str
    """Part of the step that it belongs to: matrices, attention, sampling or other."""
    bytes_read: int | None
    """Bytes that it reads from memory; None where these are few."""


class Engine(Runner):
    """A runner over gptbench's own model. Nothing here waits for the device.

    Args:
        config: the engine's section.
        model: with its weights, which other engines may have too.
        sampler: settings of the drawing, read at every step.
        device: where the model is.
        shape: see `Shape`.

    Attributes:
        memory: the KV cache, where the weights are.
        state: see `State`.
        filled: cached positions that are filled, in the row with most of them.
        generator: where the random numbers come from; reseed it with `seed`.
        capture_s: seconds that `capture` has taken so far.
    """

    def __init__(
        self, config: EngineConfig, model: Transformer, sampler: Sampler, device: Device, shape: Shape
    ) -> None:
        self.config, self.model, self.sampler, self.device = config, model, sampler, device
        self.batch, self.prompt_length, self.length = shape.batch, shape.prompt, shape.length
        on = model.norm.weight.device if self.FILLS_MEMORY else "meta"
        self.memory = model.allocate(self.batch, self.length, on)
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
        self.filled = 0
        self.capture_s = 0.0

    BUILDS_MODEL: ClassVar[bool] = True
    FILLS_MEMORY: ClassVar[bool] = True
    """Whether `memory` is where it keeps keys and values."""

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
        if (reason := super().unsupported_reason(config, devices)) is not None:
            return reason
        return next(
            (lacking for device in devices.devices if (lacking := cls.unavailable_reason(device)) is not None), None
        )

    @classmethod
    def unavailable_reason(cls, device: Device) -> str | None:
        """What this machine lacks to run the engine on a device, whatever the run; None if nothing."""
        return None

    def seed(self, seed: int) -> None:
        """Makes the tokens drawn from here on depend on `seed` alone."""
        self.generator.manual_seed(seed)

    @torch.no_grad()
    def prefill(self, prompt: Tensor) -> None:
        """Starts anew with prompt, int64 [B, T] on the device; draws the first new token of each row."""
        self.prompt.copy_(prompt)
        self.filled = self.prompt_length
        self.run_prefill()
        if self.model.experts_counter is not None:  # after it, as the prefill of a single token counts
            self.model.experts_counter.zero_()

    @torch.no_grad()
    def decode(self) -> None:
        """Feeds each row's last token and draws the next one.

        Raises:
            IndexError: the cache is full.
        """
        if self.filled >= self.length:
            raise IndexError(f"the KV cache holds {self.length} positions, and all are filled")
        self.filled += 1
        self.run_decode()

    def generate(self, prompt: Tensor, new_tokens: int, tick: Tick) -> None:
        """Hands all work to the device, ticks, and waits for nothing."""
        tick(0)
        self.prefill(prompt)
        tick(1)
        for index in range(2, new_tokens + 1):
            self.decode()
            tick(index)

    def tokens(self, new_tokens: int) -> list[list[int]]:
        first = self.prompt_length
        drawn: list[list[int]] = self.state.tokens[:, first : first + new_tokens].tolist()
        return drawn

    def finite(self) -> bool:
        """A NaN or infinity of an earlier step stays in the cache; that of the padding is 0."""
        return all(bool(tensor.isfinite().all()) for tensor in (self.state.logits, *self.cached()))

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Records what a step launches on a GPU; the result launches it again, with the generator's next numbers."""
        start = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            step()
        self.capture_s += time.perf_counter() - start
        return graph.replay

    def run_prefill(self) -> None:
        """Reads `prompt`, changes the state."""
        raise NotImplementedError

    def run_decode(self) -> None:
        """Reads and changes the state."""
        raise NotImplementedError

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Positions of a layer's cache that a step reads whose rows are at `positions`, in all rows together, whether
        they are filled or padding."""
        raise NotImplementedError

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Positions of a layer's cache that such a step reads or writes, one as often as it does: each row's own is
        written, and read back."""
        return self.positions_read(positions, cache) + len(positions)

    def experts_chosen(self, steps: int) -> int | None:
        """Experts that some row chose in the `steps` decode steps since the prefill, added up over layers; None of a
        dense model. Waits for the device."""
        counter = self.model.experts_counter
        if counter is None:
            return None
        return self.model.active_experts * steps if self.batch == 1 else int(counter.item())

    def experts_read(self, chosen: int, steps: int) -> int:
        """Experts whose matrices these steps read: the model's own code reads one for each pair of row and choice, or
        all of them."""
        return steps * sum(mixture.max_distinct(self.batch) for mixture in self.model.mixtures)

    def kernels(self, positions: Sequence[int], experts: float | None = None) -> list[KnownKernel]:
        """What is known of the kernels of a step whose rows are at `positions`, in the order of their launches.
        `experts`: that a layer reads, where the step is of a mixture."""
        return []

    def cached(self) -> list[Tensor]:
        """Keys and values of every layer."""
        return self.memory.tensors

    def rewind(self) -> None:
        """Sets the state to the end of the prompt, where no row has stopped, and makes new random numbers."""
        state = self.state
        state.tokens[:, : self.prompt_length].copy_(self.prompt)
        state.position.fill_(self.prompt_length - 1)
        state.stopped.fill_(-1)
        state.uniform.uniform_(generator=self.generator)

    def release(self) -> None:
        """Gives the KV cache back, and lets go of what would keep the weights' memory from being given back. The engine
        is of no use after it."""
        self.memory.free()

    def released(self, *_: Any) -> None:
        """In the place of what holds memory."""
        raise RuntimeError("the engine was released")

    def advance(self, hidden: Tensor) -> None:
        """`sample` from the residual stream [B, D] of the last fed position."""
        self.sample(self.model.logits(hidden))

    def sample(self, logits: Tensor) -> None:
        """Draws the next token from the logits [B, V], float32, of the last fed position; it is the next to be fed.
        A row that has drawn a stop token draws that one again."""
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
