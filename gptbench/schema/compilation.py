"""Compile time as it is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gptbench.private.torch import GRAPHS, INDUCTOR, KERNELS, LOADING, TUNING
from gptbench.schema.machine import Load
from gptbench.schema.sample import WarmUp

STAGES = ("tracing", "lowering", "kernels", "loading", "tuning", "capture", "rest")
"""What preparing is made of, none within another. tracing: torch's Dynamo and AOTAutograd; lowering: Inductor, up to
the kernels' source; kernels: waiting for compilers, Triton's own included; loading: what a cache had; tuning: Inductor
measures block sizes; capture: CUDA graphs of our own; rest: first launches, libraries, and what belongs to none."""


@dataclass
class Compilation:
    """What it took to prepare an engine, in one process."""

    cache: str
    """State of the compile cache that was met: cold (an empty folder), warm (every graph found), mixed (some things
    found, there or in what was taken over), or none (nothing was compiled)."""
    process: str
    """first: the process that ran the samples, and had compiled nothing before; later: the same, but after other jobs
    of a sweep, whose start of the compiler it did not pay; second: one started for this alone, on the first's cache."""
    prepare_s: float
    """Seconds from the weights being there until prefill and decode had run and been captured. Before that, on a GPU,
    the compiler may have been imported, and its processes started: see `Engine.begin`."""
    later_s: float = 0.0
    """Seconds of warm-up generations during which something was compiled after all, their decoding included."""
    first_generation_s: float | None = None
    """Seconds of the first whole generation after preparing."""
    compiles: int = 0
    """Graphs and kernels compiled, and graphs recorded by torch, while preparing."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """`prepare_s` by what it was spent on: see `STAGES`."""
    torch_stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, under torch's own names. Stages hold each other, so they do not add up."""
    cache_counts: dict[str, int] = field(default_factory=dict)
    """Compile-cache hits, misses and bypasses of graphs, as torch counts them, and of Triton's kernels."""
    load: Load | None = None
    """What else the machine did during `prepare_s`; processes that the compiler started are its own. None in a record
    of a version that did not look."""

    @property
    def metric(self) -> str | None:
        """cold or warm, as the metrics of its seconds are called. None where nothing can be compared with them: nothing
        was compiled, the cache held some of it, or the process had compiled something before."""
        return self.cache if self.cache in ("cold", "warm") and self.process != "later" else None

    @property
    def label(self) -> str:
        """For people: what it met, and what of that is no single run's."""
        added = {"later": ", after other jobs", "second": ", second process"}
        return self.cache + added.get(self.process, "")

    @property
    def total_s(self) -> float:
        """Seconds spent on compiling, all told."""
        return self.prepare_s + self.later_s

    @property
    def gptfast_s(self) -> float | None:
        """What the seed calls compilation time: preparing and the first generation."""
        return None if self.first_generation_s is None else self.prepare_s + self.first_generation_s

    def with_warm_ups(self, warm_ups: Sequence[WarmUp]) -> "Compilation":
        """The same with what the generations after preparing took."""
        later_s = sum(call.call_s for call in warm_ups if call.compiles)
        return replace(self, later_s=later_s, first_generation_s=warm_ups[0].call_s)


def costs(prepare_s: float, spent: dict[str, float], triton_s: float, capture_s: float) -> dict[str, float]:
    """Seconds by stage, see `STAGES`; they add up to `prepare_s`.

    Args:
        spent: seconds under torch's own names, some of which hold others.
        triton_s: in which Triton compiled or loaded kernels in this process. Where torch compiles, too, they are in its
            own figures.
        capture_s: of CUDA graphs of our own.
    """

    def total(names: tuple[str, ...]) -> float:
        return sum(spent.get(name, 0.0) for name in names)

    graphs, inductor = spent.get(GRAPHS, 0.0), spent.get(INDUCTOR, 0.0)
    waited = total(KERNELS)  # within Inductor, or within the loading of what it left in a cache
    found = {
        "tracing": graphs - inductor - total(LOADING),
        "lowering": inductor - waited,
        "kernels": waited if graphs else triton_s,
        "loading": total(LOADING) - max(waited - inductor, 0.0),
        "tuning": total(TUNING),
        "capture": capture_s,
    }
    found = {name: max(seconds, 0.0) for name, seconds in found.items()}
    return found | {"rest": max(prepare_s - sum(found.values()), 0.0)}
