"""Whether a machine was busy with something else during a measurement, and why: judged whenever a record is read, from
what was recorded beside its samples.

A number from a busy machine is recorded and shown like any other, with the reasons beside it; `compare` and `gate` give
no verdict on it. Speeds are judged by the samples and by the probes around them, compile time and energy by the load on
the machine while they were measured. Records of versions that did not read the load are not judged by it.
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
"""Maximum relative difference of a probe below the read roof, or below the usual rate of probes if that is known."""
MAX_OTHERS = 0.05
"""Maximum share that other processes may use of the cores that the threads run on or could move to."""
MAX_WAITING = 0.05
"""Maximum seconds per second for which threads, all together, may wait for a core or be stopped. The limit is a total
because the threads of one product wait for the slowest of them."""
MAX_SPREAD = {"cuda": 0.01, "cpu": 0.10}
"""Maximum standard deviation of the logarithm of the samples' decode rates within one process, by kind of device: on a
quiet GPU it is about 0.04% (docs/log), on a quiet CPU up to 4%."""
MAX_ROUNDINGS = 2
"""Tolerance for the CPU time of a core in one sample, in multiples of the counters' resolution; for several cores and
samples it grows with the square root of their number. Counters are rounded down independently at both ends, which gives
a standard deviation of 0.4 times the resolution."""
MIN_SAMPLES = 3
"""Minimum number of samples for a spread."""
MAX_OTHER_BYTES = 3 * 10**9
"""Maximum bytes of a GPU's memory that others may use: the driver and this process's own context take up to half of it,
the idle context of another process the rest."""
PHASES = {"speed": "", "compile": "while it compiled, ", "energy": "while energy was measured, "}
"""Kinds of metrics (keys of `gptbench.schema.metrics.KINDS`), and how a reason of each begins."""


def busy(record: "Recorded") -> list[str]:
    """Return the reasons to think that the machine was busy with something else; empty if there are none."""
    return [f"{PHASES[kind]}{why}" for kind, reasons in record.busy_kinds().items() for why in reasons]


def by_kind(**reasons: list[str]) -> dict[str, list[str]]:
    """Return the reasons by kind of metrics, without kinds that have none."""
    return {kind: listed for kind, listed in reasons.items() if listed}


def why_busy(record: "Recorded") -> str | None:
    """Return the reasons as a sentence; None if there are none."""
    reasons = busy(record)
    return f"measured on a busy machine: {'; '.join(reasons)}" if reasons else None


def busy_round(
    sides: Iterable[Sequence[Sample]], probes: Sequence[Probe], roof: Roof, environment: Environment
) -> list[str]:
    """Return the reasons for a round of interleaved measurements, from the samples of each side and the probes around
    them."""
    valid = [[sample for sample in samples if not sample.compiles] for samples in sides]
    reasons = slow_probes(probes, roof)
    reasons += taken(loads_of([sample for side in valid for sample in side]), environment)
    reasons += [why for side in valid for why in spread_out(side, environment)]
    return list(dict.fromkeys(reasons))


def busy_samples(samples: Sequence[Sample], environment: Environment) -> list[str]:
    """Return the reasons from the load on the machine during the samples, and from their spread."""
    return [*taken(loads_of(samples), environment), *spread_out(samples, environment)]


def loads_of(samples: Sequence[Sample]) -> list[Load]:
    return [sample.load for sample in samples if sample.load is not None]


def slow_probes(probes: Sequence[Probe], roof: Roof) -> list[str]:
    """Return the slowest probe as a reason, if it is too far below the read roof or below the usual rate of probes."""
    slowest = min(probes, key=lambda probe: probe.gb_per_s, default=None)
    if slowest is None:
        return []
    usual = slowest.usual_gb_per_s
    expected = roof.gb_per_s if usual is None else min(usual, roof.gb_per_s)
    if slowest.gb_per_s >= (1 - MAX_BEHIND) * expected:
        return []
    rate = f"the probe {slowest.when} the samples read {slowest.gb_per_s:.4g} GB/s"
    what = "the read roof of" if usual is None else "probes usually read here,"
    return [f"{rate}, {1 - slowest.gb_per_s / expected:.0%} less than {what} {expected:.4g} GB/s"]


def threads_of(environment: Environment) -> int:
    """Return the number of threads that need a core each."""
    return 1 if environment.on_gpu else environment.threads


def spare_cores(loads: Sequence[Load], environment: Environment) -> int:
    """Return the number of cores that the threads leave to others."""
    return max(0, min(load.cores for load in loads) - threads_of(environment))


def taken(loads: Sequence[Load], environment: Environment) -> list[str]:
    """Return reasons from what others used of the GPU and of the cores that the samples need, and from how long threads
    waited."""
    seconds = sum(load.seconds for load in loads)
    if not seconds > 0:
        return []
    reasons = []
    # With more threads than cores, the threads of this process wait for each other.
    if threads_of(environment) <= min(load.cores for load in loads):
        if (waiting := total(loads, "waiting_s")) is not None and waiting / seconds > MAX_WAITING:
            reasons.append(f"threads waited for a core {waiting / seconds:.2g} s a second")
        if (pressure := total(loads, "pressure_s")) is not None and pressure / seconds > MAX_WAITING:
            reasons.append(f"its control group waited for a core {pressure / seconds:.0%} of the time (cpu.pressure)")
    if (quota := total(loads, "quota_s")) is not None and quota / seconds > MAX_WAITING:
        reasons.append(f"its CPU quota stopped it {quota / seconds:.2g} s a second")
    return [*shared(loads, spare_cores(loads, environment)), *reasons]


def shared(loads: Sequence[Load], spare: int) -> list[str]:
    """Return reasons from what others used of the machine.

    Args:
        spare: number of cores that others may use.
    """
    seconds = sum(load.seconds for load in loads)
    if not seconds > 0:
        return []
    reasons = []
    cores = min(load.cores for load in loads)
    unsure = MAX_ROUNDINGS * RESOLUTION_S * (cores * len(loads)) ** 0.5 / seconds
    if (others := total(loads, "other_s")) is not None:
        used = others / seconds
        if used - unsure - spare > MAX_OTHERS * (cores - spare):
            reasons.append(f"other processes used {used:.2g} of {counted(cores, 'core')}")
    if (stolen := total(loads, "stolen_s")) is not None and stolen / seconds - unsure > MAX_WAITING:
        reasons.append(f"the host took away {stolen / seconds:.2g} cores (steal)")
    return [*reasons, *neighbours(loads)]


def neighbours(loads: Sequence[Load]) -> list[str]:
    """Return reasons from other users of the GPU."""
    processes, active, size = (most(loads, name) for name in ("gpu_processes", "gpu_active", "gpu_other_bytes"))
    if active:
        return [f"{active} other process{'es' * (active > 1)} computed on the GPU"]
    if size > MAX_OTHER_BYTES:
        unseen = "" if processes else ", which are not visible from here"
        return [f"{size / 1e9:.3g} GB of the GPU's memory are in use by other processes{unseen}"]
    return []


def idle_neighbours(record: "Recorded") -> str | None:
    """Return a sentence on processes that have a context on the GPU and were not seen to use it; None if there are
    none."""
    loads = record.loads
    processes = most(loads, "gpu_processes")
    if not processes or neighbours(loads):
        return None
    subject = "1 other process has" if processes == 1 else f"{processes} other processes have"
    return f"{subject} a context on the GPU, and used too little of it to matter"


def most(loads: Sequence[Load], name: str) -> int:
    """Return the maximum of one field over all loads; 0 if no load has it."""
    return max((value for load in loads if (value := getattr(load, name)) is not None), default=0)


def total(loads: Sequence[Load], name: str) -> float | None:
    """Return the sum of one field over all loads; None if some load lacks it."""
    values = [getattr(load, name) for load in loads]
    return None if None in values or not values else float(sum(values))


def spread_out(samples: Sequence[Sample], environment: Environment) -> list[str]:
    """Return a reason if the samples differ by more than they do on a quiet machine. Throttled samples are left out, as
    throttling explains their difference, and so are those of versions that did not read the load."""
    rates = [decode_rate(sample) for sample in samples if sample.load is not None and not sample.throttled]
    most = MAX_SPREAD["cuda" if environment.on_gpu else "cpu"]
    if len(rates) < MIN_SAMPLES or (spread := float(np.log(rates).std(ddof=1))) <= most:
        return []
    return [
        f"the samples' speeds spread by {spread:.1%} (standard deviation), on a quiet machine by at most {most:.0%}"
    ]
