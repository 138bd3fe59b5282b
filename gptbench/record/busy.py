"""Whether a machine was busy with something else while it was measured, and why: judged whenever a record is read, from
what was recorded beside its samples.

A number from a busy machine is recorded and shown as any other, with the reasons beside it; `compare` and `gate` give
no verdict on it. A record of a version that did not look has nothing to be judged by.
"""

from collections.abc import Sequence

import numpy as np

from gptbench.measure.environment import Environment
from gptbench.measure.load import RESOLUTION_S, Load
from gptbench.measure.roof import Probe, Roof
from gptbench.measure.samples import Sample
from gptbench.record.ab import AbResult, Round
from gptbench.record.result import Measured, Recorded, Result
from gptbench.record.statistics import decode_rate, valid_samples

MAX_BEHIND = 0.05
"""Share by which a probe may lie below the read roof."""
MAX_OTHERS = 0.05
"""Share of the cores that the threads run on, or could move to, which other processes may use."""
MAX_WAITING = 0.05
"""Seconds in each second for which threads may wait for a core, all together, or be stopped: those that add up one
product wait for the slowest of them, so that one that waits holds up all."""
MAX_SPREAD = {"cuda": 0.01, "cpu": 0.10}
"""Standard deviation of the logarithm of the samples' decode rates within one start, by where it ran: on a quiet GPU it
is about 0.04% (LOG.md), on a quiet CPU up to 4%."""
MAX_ROUNDINGS = 2
"""Times the resolution of the counters of CPU time that a core's time in one sample may be off, by chance; that of
several cores and samples by the root of their number as much. Counters are rounded down at both ends, independently,
which is a standard deviation of 0.4 times the resolution."""
MIN_SAMPLES = 3
"""Of which a spread means something."""
MAX_UNSEEN_BYTES = 3 * 10**9
"""Of a GPU's memory that may be used by nobody who can be seen: the driver and this process's own context take up to
half of it."""


def busy(record: Recorded) -> list[str]:
    """Reasons to think that the machine was busy with something else, in words; empty where there are none."""
    if isinstance(record, AbResult):
        return [f"round {number}: {why}" for number, reasons in busy_rounds(record).items() for why in reasons]
    if isinstance(record, Result):
        return [*slow_probes(record.probes, record.roof), *busy_samples(valid_samples(record), record.environment)]
    return slow_probes(record.probes, record.roof) if isinstance(record, Measured) else []


def why_busy(record: Recorded) -> str | None:
    """The reasons in a sentence; None where there are none."""
    reasons = busy(record)
    return f"measured on a busy machine: {'; '.join(reasons)}" if reasons else None


def busy_rounds(result: AbResult) -> dict[int, list[str]]:
    """Of interleaved measurements, by number of the round, from 1; of those alone that were busy."""
    found = {}
    for number, each in enumerate(result.rounds, 1):
        if reasons := busy_round(each, result):
            found[number] = reasons
    return found


def busy_round(each: Round, result: AbResult) -> list[str]:
    sides = [[sample for sample in samples if not sample.compiles] for samples in each.samples.values()]
    reasons = slow_probes(each.probes, result.roof)
    reasons += taken(loads_of([sample for side in sides for sample in side]), result.environment)
    reasons += [why for side in sides for why in spread_out(side, result.environment)]
    return list(dict.fromkeys(reasons))


def busy_samples(samples: Sequence[Sample], environment: Environment) -> list[str]:
    """By what was recorded of the machine during them, and by how much they differ."""
    return [*taken(loads_of(samples), environment), *spread_out(samples, environment)]


def loads_of(samples: Sequence[Sample]) -> list[Load]:
    return [sample.load for sample in samples if sample.load is not None]


def slow_probes(probes: Sequence[Probe], roof: Roof) -> list[str]:
    """The slowest probe, where it lies too far below the roof."""
    slowest = min(probes, key=lambda probe: probe.gb_per_s, default=None)
    if slowest is None or slowest.gb_per_s >= (1 - MAX_BEHIND) * roof.gb_per_s:
        return []
    behind = 1 - slowest.gb_per_s / roof.gb_per_s
    told = f"the probe {slowest.when} the samples read {slowest.gb_per_s:.4g} GB/s"
    return [f"{told}, {behind:.0%} less than the read roof of {roof.gb_per_s:.4g} GB/s"]


def taken(loads: Sequence[Load], environment: Environment) -> list[str]:
    """What others took of the cores, and of the GPU."""
    seconds = sum(load.seconds for load in loads)
    if not seconds > 0:
        return []
    told = []
    cores = min(load.cores for load in loads)
    threads = 1 if environment.on_gpu else environment.threads
    unsure = MAX_ROUNDINGS * RESOLUTION_S * (cores * len(loads)) ** 0.5 / seconds
    if (others := total(loads, "other_s")) is not None:
        used = others / seconds
        if used - unsure - max(0, cores - threads) > MAX_OTHERS * min(threads, cores):
            told.append(f"other processes used {used:.2g} of {cores} core{'s' * (cores > 1)}")
    if (stolen := total(loads, "stolen_s")) is not None and stolen / seconds - unsure > MAX_WAITING:
        told.append(f"the host took away {stolen / seconds:.2g} cores (steal)")
    # Threads of one process wait for each other where there are more of them than cores.
    if threads <= cores:
        if (waiting := total(loads, "waiting_s")) is not None and waiting / seconds > MAX_WAITING:
            told.append(f"threads waited for a core {waiting / seconds:.2g} s a second")
        if (pressure := total(loads, "pressure_s")) is not None and pressure / seconds > MAX_WAITING:
            told.append(f"its control group waited for a core {pressure / seconds:.0%} of the time (cpu.pressure)")
    if (quota := total(loads, "quota_s")) is not None and quota / seconds > MAX_WAITING:
        told.append(f"its CPU quota stopped it {quota / seconds:.2g} s a second")
    return [*told, *neighbours(loads)]


def neighbours(loads: Sequence[Load]) -> list[str]:
    """Who else is on the GPU."""
    processes = max((load.gpu_processes for load in loads if load.gpu_processes is not None), default=0)
    size = max((load.gpu_other_bytes for load in loads if load.gpu_other_bytes is not None), default=0)
    if processes:
        return [f"{processes} other process{'es' * (processes > 1)} on the GPU"]
    if size > MAX_UNSEEN_BYTES:
        return [f"{size / 1e9:.3g} GB of the GPU's memory are used by others, who cannot be seen from here"]
    return []


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
