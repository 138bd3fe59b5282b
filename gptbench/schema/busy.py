"""Whether a machine was busy with something else while it was measured, and why: judged whenever a record is read, from
what was recorded beside its samples.

A number from a busy machine is recorded and shown as any other, with the reasons beside it; `compare` and `gate` give
no verdict on it. Speeds are judged by the samples and by the probes around them, compile time and energy by what the
machine did while they were measured. A record of a version that did not look has nothing to be judged by.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptbench.base.errors import counted
from gptbench.schema.machine import RESOLUTION_S, Environment, Load, Probe, Roof
from gptbench.schema.sample import Sample
from gptbench.schema.steps import decode_rate

if TYPE_CHECKING:
    from gptbench.schema.record import Recorded

MAX_BEHIND = 0.05
"""Share by which a probe may lie below the read roof, or below what is usual where that is known."""
MAX_OTHERS = 0.05
"""Share of the cores that the threads run on, or could move to, which other processes may use."""
MAX_WAITING = 0.05
"""Seconds in each second for which threads may wait for a core, all together, or be stopped: those that add up one
product wait for the slowest of them, so that one that waits holds up all."""
MAX_SPREAD = {"cuda": 0.01, "cpu": 0.10}
"""Standard deviation of the logarithm of the samples' decode rates within one start, by where it ran: on a quiet GPU it
is about 0.04% (docs/log), on a quiet CPU up to 4%."""
MAX_ROUNDINGS = 2
"""Times the resolution of the counters of CPU time that a core's time in one sample may be off, by chance; that of
several cores and samples by the root of their number as much. Counters are rounded down at both ends, independently,
which is a standard deviation of 0.4 times the resolution."""
MIN_SAMPLES = 3
"""Of which a spread means something."""
MAX_OTHER_BYTES = 3 * 10**9
"""Of a GPU's memory that others may use: the driver and this process's own context take up to half of it, another
process's idle context the rest."""
PHASES = {"speed": "", "compile": "while it compiled, ", "energy": "while energy was measured, "}
"""Kinds of metrics (see `gptbench.compare.ratio`), and how a reason of each begins."""


def busy(record: "Recorded") -> list[str]:
    """Reasons to think that the machine was busy with something else, in words; empty where there are none."""
    return [f"{PHASES[kind]}{why}" for kind, reasons in record.busy_kinds().items() for why in reasons]


def by_kind(**reasons: list[str]) -> dict[str, list[str]]:
    """By kind of metrics, without those that have none."""
    return {kind: told for kind, told in reasons.items() if told}


def why_busy(record: "Recorded") -> str | None:
    """The reasons in a sentence; None where there are none."""
    reasons = busy(record)
    return f"measured on a busy machine: {'; '.join(reasons)}" if reasons else None


def busy_round(
    sides: Iterable[Sequence[Sample]], probes: Sequence[Probe], roof: Roof, environment: Environment
) -> list[str]:
    """Of a round of interleaved measurements: by what was recorded during the samples of each side, and around them."""
    own = [[sample for sample in samples if not sample.compiles] for samples in sides]
    reasons = slow_probes(probes, roof)
    reasons += taken(loads_of([sample for side in own for sample in side]), environment)
    reasons += [why for side in own for why in spread_out(side, environment)]
    return list(dict.fromkeys(reasons))


def busy_samples(samples: Sequence[Sample], environment: Environment) -> list[str]:
    """By what was recorded of the machine during them, and by how much they differ."""
    return [*taken(loads_of(samples), environment), *spread_out(samples, environment)]


def loads_of(samples: Sequence[Sample]) -> list[Load]:
    return [sample.load for sample in samples if sample.load is not None]


def slow_probes(probes: Sequence[Probe], roof: Roof) -> list[str]:
    """The slowest probe, where it lies too far below the roof, or below what probes usually read."""
    slowest = min(probes, key=lambda probe: probe.gb_per_s, default=None)
    if slowest is None:
        return []
    usual = slowest.usual_gb_per_s
    expected = roof.gb_per_s if usual is None else min(usual, roof.gb_per_s)
    if slowest.gb_per_s >= (1 - MAX_BEHIND) * expected:
        return []
    told = f"the probe {slowest.when} the samples read {slowest.gb_per_s:.4g} GB/s"
    what = "the read roof of" if usual is None else "probes usually read here,"
    return [f"{told}, {1 - slowest.gb_per_s / expected:.0%} less than {what} {expected:.4g} GB/s"]


def threads_of(environment: Environment) -> int:
    """That need a core of their own."""
    return 1 if environment.on_gpu else environment.threads


def spare_cores(loads: Sequence[Load], environment: Environment) -> int:
    """That the threads leave to others."""
    return max(0, min(load.cores for load in loads) - threads_of(environment))


def taken(loads: Sequence[Load], environment: Environment) -> list[str]:
    """What others took of the cores that samples need, and of the GPU, and how long threads waited."""
    seconds = sum(load.seconds for load in loads)
    if not seconds > 0:
        return []
    told = []
    # Threads of one process wait for each other where there are more of them than cores.
    if threads_of(environment) <= min(load.cores for load in loads):
        if (waiting := total(loads, "waiting_s")) is not None and waiting / seconds > MAX_WAITING:
            told.append(f"threads waited for a core {waiting / seconds:.2g} s a second")
        if (pressure := total(loads, "pressure_s")) is not None and pressure / seconds > MAX_WAITING:
            told.append(f"its control group waited for a core {pressure / seconds:.0%} of the time (cpu.pressure)")
    if (quota := total(loads, "quota_s")) is not None and quota / seconds > MAX_WAITING:
        told.append(f"its CPU quota stopped it {quota / seconds:.2g} s a second")
    return [*shared(loads, spare_cores(loads, environment)), *told]


def shared(loads: Sequence[Load], spare: int) -> list[str]:
    """What others took of the machine.

    Args:
        spare: cores that they may use.
    """
    seconds = sum(load.seconds for load in loads)
    if not seconds > 0:
        return []
    told = []
    cores = min(load.cores for load in loads)
    unsure = MAX_ROUNDINGS * RESOLUTION_S * (cores * len(loads)) ** 0.5 / seconds
    if (others := total(loads, "other_s")) is not None:
        used = others / seconds
        if used - unsure - spare > MAX_OTHERS * (cores - spare):
            told.append(f"other processes used {used:.2g} of {counted(cores, 'core')}")
    if (stolen := total(loads, "stolen_s")) is not None and stolen / seconds - unsure > MAX_WAITING:
        told.append(f"the host took away {stolen / seconds:.2g} cores (steal)")
    return [*told, *neighbours(loads)]


def neighbours(loads: Sequence[Load]) -> list[str]:
    """Who else uses the GPU."""
    processes, active, size = (most(loads, name) for name in ("gpu_processes", "gpu_active", "gpu_other_bytes"))
    if active:
        return [f"{active} other process{'es' * (active > 1)} computed on the GPU"]
    if size > MAX_OTHER_BYTES:
        unseen = "" if processes else ", who cannot be seen from here"
        return [f"{size / 1e9:.3g} GB of the GPU's memory are used by others{unseen}"]
    return []


def idle_neighbours(record: "Recorded") -> str | None:
    """Who else has a context on the GPU and was not seen to use it, in a sentence; None where nobody has."""
    loads = record.loads
    processes = most(loads, "gpu_processes")
    if not processes or neighbours(loads):
        return None
    subject = "1 other process has" if processes == 1 else f"{processes} other processes have"
    return f"{subject} a context on the GPU, and used too little of it to matter"


def most(loads: Sequence[Load], name: str) -> int:
    """Of one field; 0 where nothing told it."""
    return max((found for load in loads if (found := getattr(load, name)) is not None), default=0)


def total(loads: Sequence[Load], name: str) -> float | None:
    """Of one field over all of them; None where nothing told it."""
    found = [getattr(load, name) for load in loads]
    return None if None in found or not found else float(sum(found))


def spread_out(samples: Sequence[Sample], environment: Environment) -> list[str]:
    """Whether samples differ by more than they do on a quiet machine; those that were throttled have another reason to,
    and those of a version that did not look at the load are not judged."""
    rates = [decode_rate(sample) for sample in samples if sample.load is not None and not sample.throttled]
    most = MAX_SPREAD["cuda" if environment.on_gpu else "cpu"]
    if len(rates) < MIN_SAMPLES or (spread := float(np.log(rates).std(ddof=1))) <= most:
        return []
    return [
        f"the samples' speeds spread by {spread:.1%} (standard deviation), on a quiet machine by at most {most:.0%}"
    ]
