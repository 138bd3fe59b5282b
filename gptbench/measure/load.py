"""Measures the other load of the machine during a sample: CPU time of other processes, stolen and waiting time,
pressure stall information, and other processes on the GPU.

Counters are read just before and just after the timed region, in about 0.1 ms. They are Linux's
(https://docs.kernel.org/filesystems/proc.html, .../accounting/psi.html, .../admin-guide/cgroup-v2.html); a counter that
the machine does not have is None. `gptbench.schema.busy` decides whether the machine was busy.
"""

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from gptbench.base.limits import PROCESS, groups, lines_of
from gptbench.measure.sensors import Sensor
from gptbench.schema.machine import Load

PRESSURE = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Counters:
    """Cumulative times in seconds, each from an arbitrary start, summed over the cores that this process may use."""

    wall_s: float
    """Wall-clock time."""
    own_s: float
    """CPU time of this process."""
    used_s: float | None = None
    """CPU time of all processes and of the kernel."""
    stolen_s: float | None = None
    """Time that the host gave to other virtual machines while this one had work."""
    iowait_s: float | None = None
    """Idle time while a process waited for a disk."""
    waiting_s: float | None = None
    """Time that threads of this process were ready to run and waited for a core."""
    pressure_s: float | None = None
    """Time that some task of this process's control group waited for a core or for its quota."""
    system_pressure_s: float | None = None
    """Time that some task of the whole machine waited for a core or for its quota."""
    quota_s: float | None = None
    """Time that this process's control groups were stopped because their CPU quota was used up."""


def counters(process: Path = PROCESS, family: bool = False) -> Counters:
    """Read all counters.

    Args:
        process: folder of the process in /proc.
        family: whether child processes count as part of this one, which takes some milliseconds.
    """
    cpus = psutil.cpu_times(percpu=True)
    allowed = [cpus[index] for index in own_cores() if index < len(cpus)]
    used = [
        cpu.user + cpu.system + sum(getattr(cpu, name, 0.0) for name in ("nice", "irq", "softirq")) for cpu in allowed
    ]
    return Counters(
        wall_s=time.perf_counter(),
        own_s=time.process_time() + (children_s() if family else 0.0),
        used_s=sum(used) if allowed else None,
        stolen_s=summed(allowed, "steal"),
        iowait_s=summed(allowed, "iowait"),
        waiting_s=waiting(process),
        pressure_s=None if (file := pressure_file()) is None else pressure(file),
        system_pressure_s=pressure(PRESSURE),
        quota_s=stopped(),
    )


def children_s() -> float:
    """Return the CPU time of all descendants of this process in seconds, including those that have ended."""
    process = psutil.Process()
    times = process.cpu_times()
    total = times.children_user + times.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            total += sum(child.cpu_times()[:4])
    return total


def own_cores() -> list[int]:
    """Return the indices of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def summed(cpus: list[object], name: str) -> float | None:
    """Return the sum of one time over all CPUs; None if the system does not count it."""
    times = [getattr(cpu, name) for cpu in cpus if hasattr(cpu, name)]
    return sum(times) if times else None


def waiting(process: Path = PROCESS) -> float | None:
    """Return the seconds that threads of the process waited for a core, from the second field of schedstat (in ns)."""
    times = []
    for file in process.glob("task/*/schedstat"):
        words = " ".join(lines_of(file)).split()
        if len(words) == 3:
            times.append(int(words[1]) / 1e9)
    return sum(times) if times else None


@functools.cache
def pressure_file(process: Path = PROCESS) -> Path | None:
    """Return the cpu.pressure file of the process's control group, or None."""
    return next((file for group in groups("cpu", process) if (file := group / "cpu.pressure").exists()), None)


def pressure(file: Path) -> float | None:
    """Return the seconds that some task waited since the control group was created or the machine booted."""
    for line in lines_of(file):
        if line.startswith("some "):
            fields = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            return int(fields["total"]) / 1e6 if "total" in fields else None
    return None


@functools.cache
def statistics_files(process: Path = PROCESS) -> list[Path]:
    """Return the cpu.stat files of the control groups that may have a CPU quota."""
    return [file for group in groups("cpu", process) if (file := group / "cpu.stat").exists()]


def stopped(process: Path = PROCESS) -> float | None:
    """Return the seconds that the process's control groups were stopped by their quotas: the maximum over groups."""
    times = []
    for file in statistics_files(process):
        counts = dict(line.split(" ", 1) for line in lines_of(file) if " " in line)
        for name, unit in (("throttled_usec", 1e6), ("throttled_time", 1e9)):  # versions 2 and 1
            if name in counts:
                times.append(int(counts[name]) / unit)
    return max(times, default=None)


def between(before: Counters, after: Counters, cores: int) -> Load:
    """Return the load between two readings of the counters."""

    def difference(name: str) -> float | None:
        return growth(getattr(before, name), getattr(after, name))

    used, own = difference("used_s"), difference("own_s") or 0.0
    load = Load(seconds=difference("wall_s") or 0.0, cores=cores, own_s=own)
    load.other_s = None if used is None else used - own
    for name in ("stolen_s", "iowait_s", "waiting_s", "pressure_s", "system_pressure_s", "quota_s"):
        setattr(load, name, difference(name))
    return load


def growth(before: float | None, after: float | None) -> float | None:
    """Return the growth of a counter, at least 0: threads that end take their counts with them."""
    return None if before is None or after is None else max(0.0, after - before)


@contextmanager
def observed(sensor: Sensor, family: bool = False) -> Iterator[Load]:
    """Yield a `Load` that is filled in when the context exits.

    Args:
        sensor: sensor of the device.
        family: see `counters`.
    """
    load = Load(seconds=0.0, cores=len(own_cores()), own_s=0.0)
    neighbours, since = [sensor.neighbours()], time.time()
    before = counters(family=family)
    try:
        yield load
    finally:
        after = counters(family=family)
        neighbours.append(sensor.neighbours())
        measured = between(before, after, load.cores)
        for field in fields(Load):
            setattr(load, field.name, getattr(measured, field.name))
        load.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        known = [reading for reading in neighbours if reading is not None]
        if known:
            load.gpu_processes = max(reading.processes for reading in known)
            load.gpu_other_bytes = max(reading.other_bytes for reading in known)
        load.gpu_active = sensor.active_neighbours(since)
