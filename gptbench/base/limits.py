"""Memory and CPU time that this process may use: limits of control groups (set by containers, Slurm and systemd) and
CPU affinity.

Every group that the process is in limits it, so that the smallest limit of all levels counts. Both versions of control
groups are read (https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROCESS = Path("/proc/self")
"""Folder in which Linux describes the current process."""
UNLIMITED = 2**60
"""Limit, in bytes, from which on there is none: version 1 writes a number near 2^63 for no limit."""


def groups(controller: str, process: Path = PROCESS) -> Iterator[Path]:
    """Yield the folders of the control groups that a process is in and that a controller may limit, in both versions,
    from the process's group up to the topmost visible one."""
    paths = dict(memberships(process))
    for root, mount, controllers in mounts(process):
        if (path := paths.get(controller if controllers else "")) is None or (
            controllers and controller not in controllers
        ):
            continue
        top, group = Path(mount), Path(mount)
        # In a container, the path may be the host's, and the mounted group a folder below it.
        if ".." not in Path(path).parts and Path(path).is_relative_to(root):
            group = top / Path(path).relative_to(root)
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.is_dir())


def memberships(process: Path) -> Iterator[tuple[str, str]]:
    """Yield controller ("" in version 2) and path of each control group that a process is in."""
    for line in lines_of(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))


def mounts(process: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield for each mounted hierarchy its topmost group, where that is mounted, and its controllers (version 1 only).

    Format: proc_pid_mountinfo(5).
    """
    for line in lines_of(process / "mountinfo"):
        fields = line.split()
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind in ("cgroup", "cgroup2"):
            yield fields[3], fields[4].replace("\\040", " "), options.split(",") if kind == "cgroup" else []


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file; empty if it cannot be read, as not every kernel has it."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def number_in(file: Path) -> int | None:
    """Return the number in a file; None if there is no such file, or it says that there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def smallest(read: Callable[[Path], float | None], controller: str, process: Path) -> float | None:
    """Return the smallest limit of all groups; None if none has one."""
    limits = [limit for group in groups(controller, process) if (limit := read(group)) is not None]
    return min(limits, default=None)


def memory_of(group: Path) -> tuple[int, int] | None:
    """Return the limit and the free memory of one group, in bytes; None if it has no limit.

    Inactive cached files, which the group counts as used, count as free: the kernel drops them when memory is short.
    """
    for limit_file, used_file, cached_field in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = number_in(group / limit_file), number_in(group / used_file)
        if limit is not None and used is not None and limit < UNLIMITED:
            counts = dict(line.split(" ", 1) for line in lines_of(group / "memory.stat") if " " in line)
            return limit, max(0, limit - used + int(counts.get(cached_field, 0)))
    return None


def memory_limit(process: Path = PROCESS) -> int | None:
    """Return the memory that the control groups allow, in bytes; None if they set no limit."""
    limit = smallest(lambda group: None if (memory := memory_of(group)) is None else memory[0], "memory", process)
    return None if limit is None else int(limit)


def free_memory(process: Path = PROCESS) -> int:
    """Return the host memory that can still be allocated, in bytes: free on the machine and allowed by control
    groups."""
    free = smallest(lambda group: None if (memory := memory_of(group)) is None else memory[1], "memory", process)
    available: int = psutil.virtual_memory().available
    return available if free is None else min(available, int(free))


def quota_of(group: Path) -> float | None:
    """Return the number of CPUs whose time one group may use; None if it has no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    quota_us, period_us = number_in(group / "cpu.cfs_quota_us"), number_in(group / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and quota_us > 0 and period_us else None


def cpu_quota(process: Path = PROCESS) -> float | None:
    """Return the number of CPUs whose time the control groups allow (`docker run --cpus`); None if they set no
    limit."""
    return smallest(quota_of, "cpu", process)


def cores(process: Path = PROCESS) -> int:
    """Return the number of cores that can be busy all the time, at least 1, by affinity (cpusets) and by quota.

    A quota is rounded down: with a quota of 1.5, two busy cores would be stopped in every period.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(process)
    return allowed if quota is None else max(1, min(allowed, int(quota)))
