"""Explanation of where the time of a run's decode step goes, how far it is from the read roof, and what would help.

Everything is derived from one record. With `task.breakdown=true` it holds a profiled step. Its kernels are assigned to
parts by name, and their times are scaled to the samples' median step, because tracing costs time. The parts add up to
that step:

    bytes       reading the weights at the read roof
    boundaries  what the kernels that read weights take beyond that: kernel ramp-up/drain, arithmetic, and launch gaps
                within a CUDA graph
    attention   attention kernels, including the keys and values that they read
    sampling    sampling of the token
    other       norms, rotary embedding, routing, and kernels that are not recognised by name
    host        gaps in which nothing runs, where the host launches each kernel

Advice is given where the record shows that it applies. Its estimates assume that everything else takes as long as now;
an upper bound is marked as one. No estimate exceeds the read roof.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gptbench.base.numbers import giga, micro, number
from gptbench.compare.advice import (
    MIN_HOST,
    NEAR_THE_ROOF,
    Advice,
    another_engine,
    fewer_bytes,
    in_order,
    other_work,
    settings,
)
from gptbench.compare.step import Part, Step, partition
from gptbench.schema import Result
from gptbench.schema.busy import idle_neighbours, why_busy
from gptbench.schema.metrics import HEADLINE
from gptbench.schema.sample import throttling
from gptbench.schema.statistics import valid_samples

MIN_MOVED = 0.01
"""Share of a step's bytes from which on it is mentioned that the engine moves more."""
HALF = 0.5
"""Share of a step from which on a part is called most of the step."""
SHORT_STEP_S = 200e-6
"""Seconds below which a step is called too short to be bound by memory bandwidth: launches of kernels and waiting for
the host alone take about as long."""
STEADY_CLOCK = 0.05
"""Relative difference between the highest and the lowest clock from which on a note is made."""


@dataclass(frozen=True)
class Explanation:
    """Explanation of one run's decode step."""

    title: str
    """Model, weights, engine, batch and device of the run."""
    step_s: float
    """Median decode step of the samples, in seconds."""
    least_s: float
    """Seconds that the step's bytes take at the read roof."""
    mbu: float
    """Memory bandwidth utilisation: share of the read roof that is reached."""
    tokens_per_s: float
    """Decode tokens/s of the run."""
    most_tokens_per_s: float
    """Decode tokens/s if each step took no longer than its bytes at the read roof."""
    limit: str
    """The numbers above in a sentence."""
    binding: str
    """How far the run is from that limit, and what binds it: see `binding`."""
    parts: list[Part] = field(default_factory=list)
    """Parts that add up to `step_s`; empty without a breakdown."""
    profiled_s: float | None = None
    """Seconds of the profiled step, from which the parts are scaled; None without a breakdown."""
    host_overhead_s: float | None = None
    """Median seconds that a whole call takes beyond prefill and decode steps."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to interpret the numbers."""
    advice: list[Advice] = field(default_factory=list)
    """Changes that would help: those with the largest estimated gain first, then those without an estimate, and last
    those that change the work."""
    more: str | None = None
    """Command that would measure a breakdown; None if there is one."""


def explain(result: Result) -> Explanation:
    """Return the explanation of a valid run."""
    step = Step(result)
    names = {group: result.config[group]["name"] for group in ("model", "engine")}
    mbu, now = step.summary["mbu"], step.summary[HEADLINE]
    most = step.step_tokens / step.least_s
    profiled = step.result.breakdown
    sources = ((*fewer_bytes(step), *another_engine(step), *settings(step)), other_work(step))
    advice = [item for source in sources for item in in_order(source, now)]
    command = [part for part in result.command if not part.startswith("task.breakdown=")]
    return Explanation(
        title=f"{names['model']}, {result.weights}, engine {names['engine']}, batch {step.batch}, "
        f"on {result.environment.device}",
        step_s=step.step_s,
        least_s=step.least_s,
        mbu=mbu,
        tokens_per_s=now,
        most_tokens_per_s=most,
        limit=f"A decode step takes {micro(step.step_s)} and needs {giga(step.weights + step.kv)}{more_moved(step)}, "
        f"which take {micro(step.least_s)} at the read roof of {result.roof.gb_per_s:.4g} GB/s: MBU {mbu:.1%}, "
        f"{now:.4g} of at most {most:.4g} tokens/s.",
        binding=binding(step),
        parts=[] if profiled is None else list(partition(step)),
        profiled_s=None if profiled is None else profiled.step_s,
        host_overhead_s=host_overhead(result),
        notes=list(notes(step)),
        advice=advice,
        more=shlex.join([*command, "task.breakdown=true"]) if profiled is None else None,
    )


def binding(step: Step) -> str:
    """Return in words how far a run is from the limit of its device's memory bandwidth, and what binds it as far as its
    record shows."""
    most = step.step_tokens / step.least_s
    rates = f"{number(step.summary[HEADLINE])} of at most {number(most)} tokens/s"
    return f"{step.summary['mbu']:.1%} of the memory limit ({rates}): {'; '.join(binds(step))}"


def binds(step: Step) -> Iterator[str]:
    """Yield what makes a step as long as it is. Without a breakdown, only memory bandwidth can be judged."""
    mbu, show_more = step.summary["mbu"], "task.breakdown=true shows what takes the time"
    if step.result.busy_kinds().get("speed"):
        yield "the machine was busy with something else, so it is not known what binds this run on a quiet one"
    elif mbu > 1:
        yield "faster than the read roof, which has to be measured again (device.measure_roof=true)"
    elif mbu >= NEAR_THE_ROOF:
        yield "bound by memory bandwidth: hardly anything but fewer bytes per step can help"
    elif step.seconds:
        first, second = sorted(partition(step), key=lambda part: -part.seconds)[:2]
        what = "most" if first.seconds > HALF * step.step_s else "the largest part"
        shares = [f"{PART_NAMES[part.name]} ({part.seconds / step.step_s:.0%})" for part in (first, second)]
        yield f"{what} of a step is {shares[0]}, then {shares[1]}"
    elif mbu >= HALF:
        yield f"most of a step is memory bandwidth ({mbu:.0%}); for the rest, {show_more}"
    else:
        is_short = step.step_s < SHORT_STEP_S
        what = "the step is too short to be bound by memory bandwidth" if is_short else "not bound by memory bandwidth"
        yield f"{what} ({micro(step.least_s)} of a step of {micro(step.step_s)})"
        yield show_more
    if throttling(valid_samples(step.result)) is not None:
        yield "power or thermal throttling lowered the clocks"


PART_NAMES = {
    "bytes": "memory bandwidth",
    "boundaries": "kernel ramp-up/drain, launch gaps and arithmetic of the kernels that read weights",
    "attention": "attention",
    "sampling": "sampling",
    "other": "other kernels, such as norms",
    "host": "host overhead: gaps in which nothing runs",
}
"""Parts of a step (see the module's docstring) in words."""


def more_moved(step: Step) -> str:
    """Return in words what the engine moves beyond the bytes that a step needs; empty if that is negligible."""
    needed = step.weights + step.kv
    if step.moved <= needed * (1 + MIN_MOVED):
        return ""
    return f" (its engine moves {giga(step.moved)}: padding, copies, or experts that were not chosen)"


def host_overhead(result: Result) -> float:
    """Return the median seconds of a call, by the host's clock, that are neither prefill nor decode steps: launching
    and waiting."""
    return float(np.median([sample.call_s - sample.ttft_s - sum(sample.step_s) for sample in valid_samples(result)]))


def notes(step: Step) -> Iterator[str]:
    """Yield what a reader must know to interpret the numbers."""
    if (busy := why_busy(step.result)) is not None:
        yield f"The run was {busy}."
    if (idle := idle_neighbours(step.result)) is not None:
        yield f"{idle}."
    profiled, mbu = step.result.breakdown, step.summary["mbu"]
    if profiled is None:
        weights, kv = micro(step.weights / step.roof), micro(step.kv / step.roof)
        yield (
            f"At the read roof, the weights take {weights}, and keys and values {kv}; a breakdown would show the rest."
        )
    else:
        yield (
            f"The step at position {profiled.position} took {micro(profiled.step_s)} while profiled; its parts are "
            f"scaled by {step.factor:.3f} to the samples' median step."
        )
        if step.kernels["matrices"] and step.matrix_bytes / step.roof > step.seconds["matrices"]:
            yield (
                "The kernels that read weights were faster than the read roof: a cache held part of the weights, or "
                "some of the kernels were not recognised by name. So no time is attributed to boundaries."
            )
        if not step.kernels["matrices"]:
            yield "No kernel was recognised as one that reads weights, so those that do are among the others."
        if any(launch.name.startswith("compiled graph ") for launch, _ in step.kernels["matrices"]):
            yield (
                "On a CPU, a compiled graph is one operation: attention and everything else in it count as boundaries."
            )
    if (throttled := throttling(valid_samples(step.result))) is not None:
        yield f"{throttled}. It may be faster when cooler, or with a higher power limit."
    states = [sample.state for sample in valid_samples(step.result) if sample.state is not None]
    clocks = [clock for state in states for clock in state.during("clock_mhz")]
    if clocks and max(clocks) > min(clocks) * (1 + STEADY_CLOCK):
        yield f"The clock varied from {min(clocks):.0f} to {max(clocks):.0f} MHz between readings."
    mixture = step.batch > 1 and bool(step.result.config["model"].get("n_experts"))
    if mixture and any(sample.experts_chosen is None for sample in valid_samples(step.result)):
        yield "The experts chosen by the batch were not counted, so bytes and MBU are upper bounds."
    call_s = float(np.median([sample.call_s for sample in valid_samples(step.result)]))
    if (host := host_overhead(step.result)) > MIN_HOST * call_s:
        yield f"A call takes {micro(host)} of host time beyond prefill and steps, {host / call_s:.1%} of the call."
    if mbu > 1:
        yield "The run is faster than the read roof: measure the roof again with device.measure_roof=true."
    elif mbu >= NEAR_THE_ROOF:
        yield f"At an MBU of {mbu:.1%}, hardly anything but fewer bytes can help."
