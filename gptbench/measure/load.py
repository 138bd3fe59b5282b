"""What else the machine did during a sample, or whatever else is timed: other processes' CPU time, stolen and waiting
time, pressure, the GPU's other processes.

Counters are read just before and just after it, outside of its timed region, in about 0.1 ms. They are Linux's
(https://docs.kernel.org/filesystems/proc.html, .../accounting/psi.html, .../admin-guide/cgroup-v2.html); what a machine
does not tell is None. Nothing is judged here: see `gptbench.schema.busy`.
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
    """Seconds since some moment, of the cores that this process may use, all together."""

    wall_s: float
    own_s: float
    """CPU time of this process."""
    used_s: float | None = None
    """CPU time of all processes and of the kernel."""
    stolen_s: float | None = None
    """That the host gave to other virtual machines, while this one had work."""
    iowait_s: float | None = None
    """Idle, while a process waited for a disk."""
    waiting_s: float | None = None
    """That threads of this process were ready to run, and waited for a core."""
    pressure_s: float | None = None
    """That some task of this process's control group waited for a core, or for its quota."""
    system_pressure_s: float | None = None
    """The same of the whole machine."""
    quota_s: float | None = None
    """That this process's control groups were stopped, their CPU quota used up."""


def counters(process: Path = PROCESS, family: bool = False) -> Counters:
    """As they are now.

    Args:
        family: whether processes that this one started count as its own, which takes some milliseconds.
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
    """CPU time of the processes that this one started, and of theirs; of those that have ended, too."""
    own = psutil.Process()
    times = own.cpu_times()
    total = times.children_user + times.children_system
    for child in own.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            total += sum(child.cpu_times()[:4])
    return total


def own_cores() -> list[int]:
    """Those that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def summed(cpus: list[object], name: str) -> float | None:
    """Over all of them; None where the system does not count it."""
    found = [getattr(cpu, name) for cpu in cpus if hasattr(cpu, name)]
    return sum(found) if found else None


def waiting(process: Path = PROCESS) -> float | None:
    """Seconds that its threads waited for a core, by the second field of schedstat, in nanoseconds."""
    found = []
    for file in process.glob("task/*/schedstat"):
        words = " ".join(lines_of(file)).split()
        if len(words) == 3:
            found.append(int(words[1]) / 1e9)
    return sum(found) if found else None


@functools.cache
def pressure_file(process: Path = PROCESS) -> Path | None:
    """Of the process's own control group."""
    return next((file for group in groups("cpu", process) if (file := group / "cpu.pressure").exists()), None)


def pressure(file: Path) -> float | None:
    """Seconds that some task waited, since the group or the machine began."""
    for line in lines_of(file):
        if line.startswith("some "):
            found = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            return int(found["total"]) / 1e6 if "total" in found else None
    return None


@functools.cache
def statistics_files(process: Path = PROCESS) -> list[Path]:
    """Of the control groups that may have a CPU quota."""
    return [file for group in groups("cpu", process) if (file := group / "cpu.stat").exists()]


def stopped(process: Path = PROCESS) -> float | None:
    """Seconds that the process's control groups were stopped by their quotas: of several, of the one that was most."""
    found = []
    for file in statistics_files(process):
        counts = dict(line.split(" ", 1) for line in lines_of(file) if " " in line)
        for name, unit in (("throttled_usec", 1e6), ("throttled_time", 1e9)):  # versions 2 and 1
            if name in counts:
                found.append(int(counts[name]) / unit)
    return max(found, default=None)


def between(before: Counters, after: Counters, cores: int) -> Load:
    """What the counters grew by."""

    def grown(name: str) -> float | None:
        return growth(getattr(before, name), getattr(after, name))

    used, own = grown("used_s"), grown("own_s") or 0.0
    load = Load(seconds=grown("wall_s") or 0.0, cores=cores, own_s=own)
    load.other_s = None if used is None else used - own
    for name in ("stolen_s", "iowait_s", "waiting_s", "pressure_s", "system_pressure_s", "quota_s"):
        setattr(load, name, grown(name))
    return load


def growth(before: float | None, after: float | None) -> float | None:
    """Never negative: threads that have ended take their counts with them."""
    return None if before is None or after is None else max(0.0, after - before)


@contextmanager
def observed(sensor: Sensor, family: bool = False) -> Iterator[Load]:
    """Fills in the load of the machine while something runs.

    Args:
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
        found = between(before, after, load.cores)
        for one in fields(Load):
            setattr(load, one.name, getattr(found, one.name))
        load.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        told = [each for each in neighbours if each is not None]
        if told:
            load.gpu_processes = max(each.processes for each in told)
            load.gpu_other_bytes = max(each.other_bytes for each in told)
        load.gpu_active = sensor.active_neighbours(since)
