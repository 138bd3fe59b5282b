"""The `task` group: what is measured."""

from dataclasses import dataclass, field
from typing import ClassVar

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_SAMPLES, MAX_TOKENS, MAX_WIDTH


@dataclass(kw_only=True)
class TaskConfig(Section):
    """What is measured: speed, and nothing beside it."""

    GROUP: ClassVar[str] = "task"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Speed",)
    RUNS_ENGINE: ClassVar[bool] = True
    """Whether an engine is made, and so has to be one that can do the run."""

    breakdown: bool = False
    """Profile a few decode steps after the samples, and tell where the time of one goes, kernel by kernel."""
    energy: bool = False
    """Measure joules per token of prefill and decode after the samples, where the device counts them; takes seconds."""

    @property
    def is_speed_alone(self) -> bool:
        """Whether no more is asked of an engine than to generate."""
        return type(self) is TaskConfig and not self.breakdown and not self.energy


@dataclass(kw_only=True)
class QualityConfig(TaskConfig):
    """Beside speed, how well the engine predicts a text, and how far it is from the reference."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Quality",)

    text_file: str | None = None
    """Held-out text, in UTF-8; null is the one that the demo model never saw."""
    tokens: int = 2048
    """Tokens of the text that are predicted, rounded down to whole generations of the workload's length."""
    reference: bool = True
    """Whether to compare with the unquantised model in bfloat16 under the eager engine."""

    def check(self) -> None:
        self.within(1, MAX_TOKENS, "tokens")


@dataclass(kw_only=True)
class KernelsConfig(TaskConfig):
    """Single kernels instead of generations: each at every shape of the model, and the seed's micro-benchmarks.

    No weights are made. Of the workload, the batch size counts, and for the model's kernels prompt and new tokens.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Kernels",)
    RUNS_ENGINE: ClassVar[bool] = False

    only: str | None = None
    """Measure only what has this in its name, from the beginning of a part on: `gemv`, `D4096/int8`; null is all."""
    sizes: list[int] = field(default_factory=lambda: [1024, 4096, 8192, 16384])
    """D of the micro-benchmarks."""
    replays: int = 20
    """Timed repetitions of a round over all sets of inputs; the median counts."""

    def check(self) -> None:
        for name in ("breakdown", "energy"):
            if getattr(self, name):
                raise self.error(name, "false with task=kernels, which decodes nothing")
        if not self.sizes or min(self.sizes) < 1:
            raise self.error("sizes", "some numbers of at least 1")
        if len(set(self.sizes)) < len(self.sizes):
            raise self.error("sizes", "each number once")
        if max(self.sizes) > MAX_WIDTH:
            raise self.error("sizes", f"numbers up to {MAX_WIDTH}")
        self.within(1, MAX_SAMPLES, "replays")
