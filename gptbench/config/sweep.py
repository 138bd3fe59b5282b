"""The `sweep` group: which jobs a sweep has."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_JOBS, MAX_SECONDS


@dataclass(kw_only=True)
class SweepConfig(Section):
    """Which jobs a sweep has (`-m`), and what becomes of those that are recorded or fail. This one takes the full
    product of all lists."""

    GROUP: ClassVar[str] = "sweep"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sweep.Product",)

    paired: list[str] = field(default_factory=list)
    """Overrides whose lists go together, first with first and so on: sampling.top_k, sampling.temperature."""
    resume: bool = False
    """Do not run again what is recorded with the same configuration, code and device; and go on with the last sweep
    over the same jobs."""
    timeout_s: float | None = None
    """Seconds after which a job is ended and counts as failed, or null for no limit. Needs isolation=process."""

    def check(self) -> None:
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_SECONDS:
            raise self.error("timeout_s", f"a number of seconds over 0, up to {MAX_SECONDS}, or null for no limit")
        if len(self.paired) == 1 or len(set(self.paired)) < len(self.paired):
            raise self.error("paired", "two overrides or more that are swept, each once")


@dataclass(kw_only=True)
class SampledSweepConfig(SweepConfig):
    """Some points of the space that lists, ranges and intervals span: random ones, or those of a Sobol sequence, which
    fill it more evenly."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sweep.Random", "gptbench.sweep.Sobol")

    jobs: int = MISSING
    """How many points are drawn; no two are the same."""
    seed: int = 0
    """Of the drawing."""

    def check(self) -> None:
        super().check()
        self.within(1, MAX_JOBS, "jobs")
        if not 0 <= self.seed < 2**31:
            raise self.error("seed", "a number from 0 to 2147483647")
