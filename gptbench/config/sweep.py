"""The `sweep` group: which jobs a sweep runs."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_JOBS, MAX_SECONDS


@dataclass(kw_only=True)
class SweepConfig(Section):
    """Which jobs a sweep (`-m`) runs, and how it treats jobs that are already recorded or take too long. The option
    `product` runs the full product of all lists."""

    GROUP: ClassVar[str] = "sweep"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sweep.Product",)

    paired: list[str] = field(default_factory=list)
    """Names of swept overrides whose lists advance together (first value with first value, and so on) instead of
    forming a product, such as [sampling.top_k,sampling.temperature]."""
    resume: bool = False
    """Whether to skip jobs that are already recorded with the same configuration, code and device, and to continue the
    last sweep over the same jobs."""
    timeout_s: float | None = None
    """Time limit of a job, in seconds, after which it is stopped and counts as failed; null is no limit. It needs
    isolation=process."""

    def check(self) -> None:
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_SECONDS:
            raise self.error("timeout_s", f"a number of seconds over 0, up to {MAX_SECONDS}, or null for no limit")
        if len(self.paired) == 1 or len(set(self.paired)) < len(self.paired):
            raise self.error("paired", "two or more swept overrides, each listed once")


@dataclass(kw_only=True)
class SampledSweepConfig(SweepConfig):
    """Runs a sample of the space that lists, ranges and intervals span: random points, or those of a Sobol sequence,
    which cover it more evenly."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sweep.Random", "gptbench.sweep.Sobol")

    jobs: int = MISSING
    """Number of jobs (points of the space) to run; no two are the same."""
    seed: int = 0
    """Seed of the random number generator that chooses the points."""

    def check(self) -> None:
        super().check()
        self.within(1, MAX_JOBS, "jobs")
        if not 0 <= self.seed < 2**31:
            raise self.error("seed", "a number from 0 to 2147483647")
