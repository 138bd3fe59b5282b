"""`Runner`: what a run measures. It prepares, and then generates tokens with a clock tick for each step.

`gptbench.engine.Engine` is a runner of gptbench's own model in this process. A server, a library with its own model, or
another process can be a runner, too: it implements what is here, and gets the model without its weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from gptbench.base.errors import ConfigError
from gptbench.build import cache_length
from gptbench.config import Config, EngineConfig
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.model import KeyValueCache, Transformer


class Tick(Protocol):
    """Records the time under an index, without waiting for the device (see `gptbench.generate.Clock.tick`)."""

    def __call__(self, index: int, emitted: Tensor | None = None) -> None: ...


@dataclass(frozen=True)
class Shape:
    """Shape of a workload."""

    batch: int
    """Batch B, sequences decoded at once."""
    prompt: int
    """Prompt length T, tokens of every prompt."""
    length: int
    """Cache length S, positions for prompt and new tokens."""

    @classmethod
    def of(cls, config: Config) -> "Shape":
        """Return the shape of a run."""
        return cls(config.workload.batch_size, len(config.workload.prompt), cache_length(config))


class Runner:
    """Prefills and decodes one batch.

    Args:
        config: configuration of the run; `config.engine` is the runner's section.
        model: the model's shape, on `meta` unless `BUILDS_MODEL`.
        devices: devices of the run, and which of them this process drives.

    Attributes:
        device: device that this process drives.
        batch, prompt_length, length: see `Shape`.
        memory: says what each layer keeps; on `meta` where that is kept elsewhere.
        capture_s: seconds that gptbench's CUDA graph captures have taken so far.
    """

    BUILDS_MODEL: ClassVar[bool] = False
    """Whether the runner uses gptbench's own model, with its weights on the device."""

    def __init__(self, config: Config, model: Transformer, devices: DeviceGroup) -> None:
        self.model, self.device = model, devices.local
        shape = Shape.of(config)
        self.batch, self.prompt_length, self.length = shape.batch, shape.prompt, shape.length
        self.sampling = config.sampling
        self.capture_s = 0.0
        self.memory = model.allocate(self.batch, self.length, "meta")

    @classmethod
    def make(cls, config: Config, model: Transformer, devices: DeviceGroup) -> "Runner":
        """Return the runner for a run."""
        return cls(config, model, devices)

    @classmethod
    def unsupported_reason(cls, config: Config, devices: DeviceGroup) -> str | None:
        """Return what would have to change, in the configuration or on this machine, for the runner to do a run on
        devices; None if nothing.

        What the configuration alone decides is asked of the engine's section (`EngineConfig.unsupported_reason`)
        earlier, before torch is imported.
        """
        if (reason := config.engine.unsupported_reason(config)) is not None:
            return reason
        if not cls.BUILDS_MODEL and not config.task.is_speed_alone:
            return "task=speed alone: an engine outside this process shows no logits, kernels or separate prefill"
        return None

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        """Raise ConfigError for a setting of the engine's section that is not available here."""

    @classmethod
    def require(cls, config: Config, devices: DeviceGroup) -> None:
        """Raise ConfigError for a run that the runner cannot do."""
        if (reason := cls.unsupported_reason(config, devices)) is not None:
            raise ConfigError("engine", config.engine.name, f"eager or auto: this one needs {reason}")
        for device in devices.devices:
            cls.check(config, device)

    @classmethod
    def auto_section(cls, section: EngineConfig, config: Config) -> EngineConfig:
        """Return the settings with which `engine=auto` selects the engine, given a section with its defaults."""
        return section

    @classmethod
    def warm_up_compiler(cls, config: EngineConfig, device: Device) -> None:
        """Start, in the background, what `prepare` needs and what needs no model: a compiler and its processes."""

    @classmethod
    def serves_other_workloads(cls, config: EngineConfig) -> bool:
        """Return whether compiled code serves prompts and answers of any length, so that a later job can reuse the
        runner."""
        return False

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        """Return what a measurement depends on beyond configuration, versions and gptbench's code, as plain data; None
        if nothing.

        It is part of the measurement's identity, and asked before the runner is made.

        Raises:
            UserError: it cannot be read.
        """
        return None

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end a row's answer."""
        return frozenset(self.sampling.stop_tokens)

    @property
    def tunes(self) -> bool:
        """Whether `tune` does anything."""
        return False

    def tune(self) -> None:
        """Autotune for this device, if that is configured, and store the results for later runs. Called before
        `prepare`."""

    def prepare(self) -> None:
        """Compile and capture whatever is needed, so that no later call has to."""

    def seed(self, seed: int) -> None:
        """Make the tokens sampled from here on depend on `seed` alone."""
        raise NotImplementedError

    def generate(self, prompt: Tensor, new_tokens: int, tick: Tick) -> None:
        """The timed region: tick 0, then 1 after the prefill, which yields each row's first token, and one more after
        each step. Work that the device runs in order need not be waited for.

        Args:
            prompt: int64 [B, T] on the device.
            new_tokens: tokens to generate for each row, the first included.
            tick: records the time under an index.
        """
        raise NotImplementedError

    def tokens(self, new_tokens: int) -> list[list[int]]:
        """Return the tokens that the last `generate` sampled, for each row."""
        raise NotImplementedError

    def finite(self) -> bool:
        """Return whether the last logits and all cached keys and values are finite, as far as that is known."""
        return True

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Return the positions of a layer's cache that a step reads, filled or padding, summed over rows.

        `positions` has each row's position. Without further knowledge these are the positions that each row attends to.
        """
        return sum(map(cache.spec.attended, positions))

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Return the positions of a layer's cache that a step reads or writes, summed over rows and counted at each
        access."""
        return self.positions_read(positions, cache)

    def experts_chosen(self, steps: int) -> int | None:
        """Return the distinct experts chosen in the `steps` decode steps since the prefill, summed over steps and
        layers; None for a dense model, and where they are not known."""
        return None

    def experts_read(self, chosen: int, steps: int) -> int:
        """Return the experts whose matrices these steps read, given how many were `chosen`."""
        return chosen

    def details(self) -> dict[str, Any]:
        """Return what a record should hold beyond the configuration, as plain data."""
        return {}

    def release(self) -> None:
        """Free what the runner holds. It cannot be used afterwards."""
