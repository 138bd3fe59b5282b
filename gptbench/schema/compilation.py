"""Compile time as it is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gptbench.private.torch import GRAPHS, INDUCTOR, KERNELS, LOADING, TUNING
from gptbench.schema.machine import Load
from gptbench.schema.sample import WarmUp

STAGES = ("tracing", "lowering", "kernels", "loading", "tuning", "capture", "rest")
"""Disjoint stages of preparing an engine. tracing: torch's Dynamo and AOTAutograd; lowering: Inductor, up to the
kernels' source; kernels: waiting for compilers, Triton's included; loading: what was in a cache; tuning: Inductor
measures block sizes; capture: gptbench's own CUDA graphs; rest: first launches, libraries, and everything else."""


@dataclass
class Compilation:
    """Cost of preparing an engine in one process."""

    cache: str
    """State of the compile cache: cold (an empty folder), warm (every graph was in it), mixed (some of the graphs were
    in it, or were taken over from an earlier job), or none (nothing was compiled)."""
    process: str
    """first: the process that ran the samples and had compiled nothing before; later: the same after other jobs of a
    sweep, which paid for starting the compiler; second: a process started only for this, with the first one's cache."""
    prepare_s: float
    """Seconds after the weights were loaded until prefill and decode had run and been captured. On a GPU, importing the
    compiler and starting its processes may have happened before: see `Engine.warm_up_compiler`."""
    later_s: float = 0.0
    """Seconds of warm-up generations during which something was still compiled, their decoding included."""
    first_generation_s: float | None = None
    """Seconds of the first whole generation after preparing."""
    compiles: int = 0
    """Number of graphs and kernels compiled, and of graphs recorded by torch, while preparing."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage of `STAGES`; they add up to `prepare_s`."""
    torch_stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage under torch's own names. Stages contain each other, so they do not add up."""
    cache_counts: dict[str, int] = field(default_factory=dict)
    """Compile-cache hits, misses and bypasses: of graphs, as torch counts them, and of Triton's kernels."""
    load: Load | None = None
    """Load on the machine during `prepare_s`; processes that the compiler started count as this process. None in
    records of versions that did not read it."""

    @property
    def metric(self) -> str | None:
        """cold or warm, as in the name of the metric. None if the time is not comparable: nothing was compiled, the
        cache had some of the graphs, or the process had compiled something before."""
        return self.cache if self.cache in ("cold", "warm") and self.process != "later" else None

    @property
    def label(self) -> str:
        """State of the cache, and what distinguishes the process from that of a single run."""
        added = {"later": ", after other jobs", "second": ", second process"}
        return self.cache + added.get(self.process, "")

    @property
    def total_s(self) -> float:
        """Total seconds spent on compiling."""
        return self.prepare_s + self.later_s

    @property
    def gptfast_s(self) -> float | None:
        """Seconds that gpt_fast calls compilation time: preparing and the first generation."""
        return None if self.first_generation_s is None else self.prepare_s + self.first_generation_s

    def with_warm_ups(self, warm_ups: Sequence[WarmUp]) -> "Compilation":
        """Return a copy with the times of the warm-up generations."""
        later_s = sum(call.call_s for call in warm_ups if call.compiles)
        return replace(self, later_s=later_s, first_generation_s=warm_ups[0].call_s)


def costs(prepare_s: float, spent: dict[str, float], triton_s: float, capture_s: float) -> dict[str, float]:
    """Return seconds by stage of `STAGES`; they add up to `prepare_s`.

    Args:
        spent: seconds under torch's own names, some of which contain others.
        triton_s: seconds in which Triton compiled or loaded kernels in this process. If torch compiles as well, its own
            figures include them.
        capture_s: seconds of capturing gptbench's own CUDA graphs.
    """

    def total(names: tuple[str, ...]) -> float:
        return sum(spent.get(name, 0.0) for name in names)

    graphs, inductor = spent.get(GRAPHS, 0.0), spent.get(INDUCTOR, 0.0)
    waited = total(KERNELS)  # part of Inductor's time, or of the time to load from its cache
    stages = {
        "tracing": graphs - inductor - total(LOADING),
        "lowering": inductor - waited,
        "kernels": waited if graphs else triton_s,
        "loading": total(LOADING) - max(waited - inductor, 0.0),
        "tuning": total(TUNING),
        "capture": capture_s,
    }
    stages = {name: max(seconds, 0.0) for name, seconds in stages.items()}
    return stages | {"rest": max(prepare_s - sum(stages.values()), 0.0)}
