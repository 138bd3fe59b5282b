"""What a run measures: something that prepares, and then generates tokens with a tick of a clock for each step.

`gptbench.engine.Engine` is one that runs gptbench's own model in this process. A server, a library with a model of its
own, or another process is one as well: it answers what is here, and is given the model without its weights.
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
    """Notes the time under a number, without waiting for the device (see `gptbench.generate.Clock.tick`)."""

    def __call__(self, index: int, emitted: Tensor | None = None) -> None: ...


@dataclass(frozen=True)
class Shape:
    """How much a runner has to do."""

    batch: int
    """B, sequences decoded at once."""
    prompt: int
    """T, tokens of every prompt."""
    length: int
    """S, positions of a cache that holds prompt and new tokens."""

    @classmethod
    def of(cls, config: Config) -> "Shape":
        """Of a run."""
        return cls(config.workload.batch_size, len(config.workload.prompt), cache_length(config))


class Runner:
    """Prefills and decodes one batch.

    Args:
        config: of the run; `config.engine` is the runner's own section.
        model: the model's shape: on `meta`, unless `BUILDS_MODEL`.
        devices: where it runs, and which of them this process drives.

    Attributes:
        device: that this process drives.
        batch, prompt_length, length: see `Shape`.
        memory: says what each layer keeps; on `meta` where that is kept elsewhere.
        capture_s: seconds that CUDA graphs of our own have taken so far.
    """

    BUILDS_MODEL: ClassVar[bool] = False
    """Whether it runs over gptbench's own model, with its weights on the device."""

    def __init__(self, config: Config, model: Transformer, devices: DeviceGroup) -> None:
        self.model, self.device = model, devices.local
        shape = Shape.of(config)
        self.batch, self.prompt_length, self.length = shape.batch, shape.prompt, shape.length
        self.sampling = config.sampling
        self.capture_s = 0.0
        self.memory = model.allocate(self.batch, self.length, "meta")

    @classmethod
    def make(cls, config: Config, model: Transformer, devices: DeviceGroup) -> "Runner":
        """The runner for a run."""
        return cls(config, model, devices)

    @classmethod
    def unsupported_reason(cls, config: Config, devices: DeviceGroup) -> str | None:
        """What would have to be different, of the configuration or of this machine, for the engine to do a run on
        devices; None if nothing. The one place that says so: what the configuration alone tells is asked of its section
        first (`EngineConfig.unsupported_reason`), before torch is imported."""
        if (reason := config.engine.unsupported_reason(config)) is not None:
            return reason
        if not cls.BUILDS_MODEL and not config.task.is_speed_alone:
            return "task=speed alone: of what runs elsewhere, no logits, kernels or prefill by itself are seen"
        return None

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        """Raises ConfigError for a setting of the engine's own that cannot be had here."""

    @classmethod
    def require(cls, config: Config, devices: DeviceGroup) -> None:
        """Raises ConfigError for a run that it cannot do."""
        if (reason := cls.unsupported_reason(config, devices)) is not None:
            raise ConfigError("engine", config.engine.name, f"eager or auto: this one needs {reason}")
        for device in devices.devices:
            cls.check(config, device)

    @classmethod
    def shipped(cls, section: EngineConfig, config: Config) -> EngineConfig:
        """The settings with which `engine=auto` takes it, given those that its fields have unless they are set."""
        return section

    @classmethod
    def warm_up_compiler(cls, config: EngineConfig, device: Device) -> None:
        """Starts, in the background, what preparing will need and what needs no model: a compiler and its processes."""

    @classmethod
    def serves_other_workloads(cls, config: EngineConfig) -> bool:
        """Whether what it compiles is for prompts and answers of any length, so that a later job can have it."""
        return False

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        """What else than configuration, versions and gptbench's code a number depends on, as plain data: it is part of
        the measurement's identity. None if nothing. Asked before the engine is made.

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
        """Searches what is kept for later runs on this device, if that was asked for. Before `prepare`."""

    def prepare(self) -> None:
        """Compiles and captures whatever is needed, so that no later call has to."""

    def seed(self, seed: int) -> None:
        """Makes the tokens drawn from here on depend on `seed` alone."""
        raise NotImplementedError

    def generate(self, prompt: Tensor, new_tokens: int, tick: Tick) -> None:
        """The timed region: ticks 0, then 1 after the prefill, which gives each row's first token, and on after each
        step. What runs on the device in order need not be waited for.

        Args:
            prompt: int64 [B, T] on the device.
        """
        raise NotImplementedError

    def tokens(self, new_tokens: int) -> list[list[int]]:
        """The tokens that `generate` drew last, for each row."""
        raise NotImplementedError

    def finite(self) -> bool:
        """Whether the last logits and all that was cached are finite, as far as that is seen."""
        return True

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Positions of a layer's cache that a step reads whose rows are at `positions`, in all rows together, whether
        they are filled or padding: those that each row's token attends to, where no more is known."""
        return sum(map(cache.spec.attended, positions))

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        """Positions of a layer's cache that such a step reads or writes, one as often as it does."""
        return self.positions_read(positions, cache)

    def experts_chosen(self, steps: int) -> int | None:
        """Experts that some row chose in the `steps` decode steps since the prefill, added up over layers; None of a
        dense model, and where they are not known."""
        return None

    def experts_read(self, chosen: int, steps: int) -> int:
        """Experts whose matrices these steps read."""
        return chosen

    def details(self) -> dict[str, Any]:
        """What a record should tell beyond the configuration, as plain data."""
        return {}

    def release(self) -> None:
        """Lets go of what it holds. The engine is of no use after it."""
