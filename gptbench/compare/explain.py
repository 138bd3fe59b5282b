"""Where the time of a run's decode step goes, against what the read roof allows, and what would help.

Everything follows from one record. With `task.breakdown=true` it holds a profiled step, whose kernels are told apart by
their names and scaled to the samples' median step, as tracing costs time. The parts add up to that step:

    bytes       what the weights take at the read roof
    boundaries  what the kernels that read them take beyond that, and the gaps within a CUDA graph: starts and ends
    attention   its kernels, the keys and values that they read included
    sampling    the drawing of the token
    other       norms, rotary embedding, routing and whatever is not known by its name
    host        gaps in which nothing runs, where the host launches each kernel

Advice is given where the record says that it applies, with an estimate in which all that it does not change takes as
long as now. Where only a bound is known, it is called so. No estimate is beyond the roof.
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
"""Share of a step's bytes from which on it is said that more are moved."""
HALF = 0.5
"""Share of a step from which on a part is called most of it."""
SHORT_STEP_S = 200e-6
"""Of a step that is called too short for bandwidth to bind it: launches of kernels and waiting for the host take so
much by themselves."""
STEADY_CLOCK = 0.05
"""Difference between the highest and the lowest clock of the samples, from which on it is told."""


@dataclass(frozen=True)
class Explanation:
    """Of one run."""

    title: str
    step_s: float
    """Median decode step of the samples."""
    least_s: float
    """What its bytes take at the read roof."""
    mbu: float
    tokens_per_s: float
    most_tokens_per_s: float
    limit: str
    """The same in a sentence."""
    binding: str
    """See `binding`."""
    parts: list[Part] = field(default_factory=list)
    """Which add up to `step_s`; empty without a breakdown."""
    profiled_s: float | None = None
    """The profiled step, of which the parts are shares."""
    host_overhead_s: float | None = None
    """Of a whole call, what the host takes beyond prefill and steps: median."""
    notes: list[str] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    """What is estimated to gain most comes first, what is not estimated after it, and other work last."""
    more: str | None = None
    """Command that would tell more, where there is no breakdown."""


def explain(result: Result) -> Explanation:
    """Of a run that counts."""
    step = Step(result)
    names = {group: result.config[group]["name"] for group in ("model", "engine")}
    told = step.summary
    most = step.step_tokens / step.least_s
    found = step.result.breakdown
    now = told[HEADLINE]
    sources = ((*fewer_bytes(step), *another_engine(step), *settings(step)), other_work(step))
    faster = [in_order(source, now) for source in sources]
    command = [part for part in result.command if not part.startswith("task.breakdown=")]
    return Explanation(
        title=f"{names['model']}, {result.weights}, engine {names['engine']}, batch {step.batch}, "
        f"on {result.environment.device}",
        step_s=step.step_s,
        least_s=step.least_s,
        mbu=told["mbu"],
        tokens_per_s=told[HEADLINE],
        most_tokens_per_s=most,
        limit=f"A decode step takes {micro(step.step_s)} and needs {giga(step.weights + step.kv)}{more_moved(step)}; "
        f"at the read roof of {result.roof.gb_per_s:.4g} GB/s that takes {micro(step.least_s)}: MBU {told['mbu']:.1%}, "
        f"{told[HEADLINE]:.4g} tokens/s of at most {most:.4g}.",
        binding=binding(step),
        parts=[] if found is None else list(partition(step)),
        profiled_s=None if found is None else found.step_s,
        host_overhead_s=beyond(result),
        notes=list(notes(step)),
        advice=[one for each in faster for one in each],
        more=shlex.join([*command, "task.breakdown=true"]) if found is None else None,
    )


def binding(step: Step) -> str:
    """How far a run is from the limit of its device's memory, and what binds it, as far as its record shows that."""
    most = step.step_tokens / step.least_s
    rates = f"{number(step.summary[HEADLINE])} of at most {number(most)} tokens/s"
    return f"{step.summary['mbu']:.1%} of the memory limit ({rates}): {'; '.join(binds(step))}"


def binds(step: Step) -> Iterator[str]:
    """What makes a step as long as it is. Without a breakdown that is said of memory bandwidth alone."""
    mbu, told_more = step.summary["mbu"], "task.breakdown=true shows what takes the time"
    if step.result.busy_kinds().get("speed"):
        yield "the machine was busy with something else, so what binds this run on a quiet one is not known"
    elif mbu > 1:
        yield "faster than the read roof, so that has to be measured again (device.measure_roof=true)"
    elif mbu >= NEAR_THE_ROOF:
        yield "memory bandwidth binds, and hardly anything but fewer bytes per step can help"
    elif step.seconds:
        first, second = sorted(partition(step), key=lambda part: -part.seconds)[:2]
        what = "most" if first.seconds > HALF * step.step_s else "the largest part"
        shares = [f"{NAMED[part.name]} ({part.seconds / step.step_s:.0%})" for part in (first, second)]
        yield f"{what} of a step is {shares[0]}, then {shares[1]}"
    elif mbu >= HALF:
        yield f"most of a step is memory bandwidth ({mbu:.0%}); of the rest, {told_more}"
    else:
        why = "the step is too short for memory bandwidth to bind" if step.step_s < SHORT_STEP_S else ""
        yield f"{why or 'memory bandwidth does not bind'} ({micro(step.least_s)} of a step of {micro(step.step_s)})"
        yield told_more
    if throttling(valid_samples(step.result)) is not None:
        yield "power or heat lowered the clocks"


NAMED = {
    "bytes": "memory bandwidth",
    "boundaries": "what kernels over weights take beyond reading them: ramp-up, drain, launch gaps, arithmetic",
    "attention": "attention",
    "sampling": "sampling",
    "other": "other kernels, such as norms",
    "host": "host overhead: gaps in which nothing runs",
}
"""Parts of a step, see the module, in words."""


def more_moved(step: Step) -> str:
    """What the engine moves beyond that, in words; nothing where it is next to nothing."""
    needed = step.weights + step.kv
    if step.moved <= needed * (1 + MIN_MOVED):
        return ""
    return f" (its engine moves {giga(step.moved)}: padding, copies, or experts that nobody chose)"


def beyond(result: Result) -> float:
    """Of a call, by the host's clock, what is neither prefill nor a step: the calls themselves, and waiting."""
    return float(np.median([one.call_s - one.ttft_s - sum(one.step_s) for one in valid_samples(result)]))


def notes(step: Step) -> Iterator[str]:
    """What must be known to read the rest."""
    if (told_busy := why_busy(step.result)) is not None:
        yield f"It was {told_busy}."
    if (told_idle := idle_neighbours(step.result)) is not None:
        yield f"{told_idle}."
    found, told = step.result.breakdown, step.summary
    if found is None:
        weights, kv = micro(step.weights / step.roof), micro(step.kv / step.roof)
        yield f"At the roof, {weights} are the weights' and {kv} keys and values'; a breakdown would tell the rest."
    else:
        yield (
            f"The step at position {found.position} took {micro(found.step_s)} while it was profiled; its parts are "
            f"scaled by {step.factor:.3f} to the samples' median."
        )
        if step.kernels["matrices"] and step.matrix_bytes / step.roof > step.seconds["matrices"]:
            yield (
                "The kernels that read weights were faster than the read roof: caches held some of it, or names tell "
                "too few of them; so there are no boundaries to be told."
            )
        if not step.kernels["matrices"]:
            yield "No kernel is known to read weights, so what reads them is among the others."
        if any(launch.name.startswith("compiled graph ") for launch, _ in step.kernels["matrices"]):
            yield (
                "A compiled graph is one operation on a CPU: attention and all else in it count among the boundaries."
            )
    if (held_back := throttling(valid_samples(step.result))) is not None:
        yield f"{held_back}. Cooler, or with more power, it may be faster."
    states = [one.state for one in valid_samples(step.result) if one.state is not None]
    clocks = [clock for state in states for clock in state.during("clock_mhz")]
    if clocks and max(clocks) > min(clocks) * (1 + STEADY_CLOCK):
        yield f"The clock went from {min(clocks):.0f} to {max(clocks):.0f} MHz between the samples' readings."
    mixture = step.batch > 1 and bool(step.result.config["model"].get("n_experts"))
    if mixture and any(one.experts_chosen is None for one in valid_samples(step.result)):
        yield "The experts that its batch chose were not counted: bytes and MBU are the most there can be."
    whole = float(np.median([one.call_s for one in valid_samples(step.result)]))
    if (host := beyond(step.result)) > MIN_HOST * whole:
        yield f"A whole call takes {micro(host)} of the host's time beyond prefill and steps, {host / whole:.1%} of it."
    if told["mbu"] > 1:
        yield "More than the read roof: measure it again, with device.measure_roof=true."
    elif told["mbu"] >= NEAR_THE_ROOF:
        yield f"At an MBU of {told['mbu']:.1%} hardly anything but fewer bytes can help."
