"""The `task` group: what is measured."""

from dataclasses import dataclass, field
from typing import ClassVar

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_SAMPLES, MAX_TOKENS, MAX_WIDTH


@dataclass(kw_only=True)
class TaskConfig(Section):
    """What a run measures. The option `speed` measures time to first token, decode throughput and compile time."""

    GROUP: ClassVar[str] = "task"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Speed",)
    RUNS_ENGINE: ClassVar[bool] = True
    """Whether the task runs an engine, which then has to support the run."""

    breakdown: bool = False
    """Whether a few decode steps are profiled after the samples, to report kernel by kernel where a step's time
    goes."""
    energy: bool = False
    """Whether the energy of prefill and decode (in joules per token) is measured after the samples, on devices that
    measure energy; takes a few seconds more."""

    @property
    def is_speed_alone(self) -> bool:
        """Whether the task asks nothing of an engine but to generate."""
        return type(self) is TaskConfig and not self.breakdown and not self.energy


@dataclass(kw_only=True)
class QualityConfig(TaskConfig):
    """Measures speed, and how well the engine predicts a text and how far its predictions are from the reference's."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Quality",)

    text_file: str | None = None
    """File with a held-out text in UTF-8; null is the text held out from the demo model's training."""
    tokens: int = 2048
    """Number of tokens of the text to predict, rounded down to a multiple of workload.new_tokens."""
    reference: bool = True
    """Whether the predictions are compared with those of the reference: the unquantised model in bfloat16 under the
    eager engine."""

    def check(self) -> None:
        self.within(1, MAX_TOKENS, "tokens")


@dataclass(kw_only=True)
class KernelsConfig(TaskConfig):
    """Measures single kernels instead of generations: each kernel at every shape of the model, and gpt_fast's
    micro-benchmarks of matrix-vector products.

    No weights are loaded. Of the workload, only the batch size counts, and for the model's kernels the lengths of the
    prompt and of the generation.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Kernels",)
    RUNS_ENGINE: ClassVar[bool] = False

    only: str | None = None
    """Text that selects cases by name, matched from the beginning of any part of it, such as `gemv` or `D4096/int8`;
    null selects all."""
    sizes: list[int] = field(default_factory=lambda: [1024, 4096, 8192, 16384])
    """Widths D of the [D, D] matrices of the micro-benchmarks."""
    replays: int = 20
    """Number of timed repetitions of a round over all sets of inputs; the median is reported."""

    def check(self) -> None:
        for name in ("breakdown", "energy"):
            if getattr(self, name):
                raise self.error(name, "false with task=kernels, which does not decode")
        if not self.sizes or min(self.sizes) < 1:
            raise self.error("sizes", "one or more numbers of at least 1")
        if len(set(self.sizes)) < len(self.sizes):
            raise self.error("sizes", "each number once")
        if max(self.sizes) > MAX_WIDTH:
            raise self.error("sizes", f"numbers up to {MAX_WIDTH}")
        self.within(1, MAX_SAMPLES, "replays")
