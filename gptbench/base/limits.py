"""What this process may use of its machine: control groups, as containers, Slurm and systemd set them, and affinity.

A limit of any group that the process is in holds for it, so that the smallest of all levels counts; both versions of
control groups are read (https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROCESS = Path("/proc/self")
UNLIMITED = 2**60
"""Bytes: version 1 has a number near 2^63 for no limit."""


def groups(controller: str, process: Path = PROCESS) -> Iterator[Path]:
    """Folders of the control groups that a process is in and that may limit what a controller controls: of both
    versions, from its own up to the highest that can be seen."""
    own = dict(memberships(process))
    for root, mount, controllers in mounts(process):
        if (path := own.get(controller if controllers else "")) is None or (
            controllers and controller not in controllers
        ):
            continue
        top, group = Path(mount), Path(mount)
        # In a container, the path may be the host's, below what is mounted here as the top.
        if ".." not in Path(path).parts and Path(path).is_relative_to(root):
            group = top / Path(path).relative_to(root)
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.is_dir())


def memberships(process: Path) -> Iterator[tuple[str, str]]:
    """Controller, "" for version 2, and path of the group."""
    for line in lines_of(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))


def mounts(process: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Of each hierarchy that is mounted: the group that is its top, where that lies, and the controllers of version 1.
    See proc_pid_mountinfo(5)."""
    for line in lines_of(process / "mountinfo"):
        fields = line.split()
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind in ("cgroup", "cgroup2"):
            yield fields[3], fields[4].replace("\\040", " "), options.split(",") if kind == "cgroup" else []


def lines_of(file: Path) -> list[str]:
    """Of a file that the kernel may not have."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def number_in(file: Path) -> int | None:
    """None where there is no such file, or it says that there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def smallest(read: Callable[[Path], float | None], controller: str, process: Path) -> float | None:
    """The smallest limit of all groups; None where none has one."""
    found = [limit for group in groups(controller, process) if (limit := read(group)) is not None]
    return min(found, default=None)


def memory_of(group: Path) -> tuple[int, int] | None:
    """Limit and free bytes of one group; None where it has no limit. Cached files count as used there, although the
    kernel drops them when memory is short."""
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
    """Bytes that the control groups allow; None where they set no limit."""
    limit = smallest(lambda group: None if (memory := memory_of(group)) is None else memory[0], "memory", process)
    return None if limit is None else int(limit)


def free_memory(process: Path = PROCESS) -> int:
    """Bytes of the host's memory that can still be allocated: what the machine has, and the control groups allow."""
    free = smallest(lambda group: None if (memory := memory_of(group)) is None else memory[1], "memory", process)
    available: int = psutil.virtual_memory().available
    return available if free is None else min(available, int(free))


def quota_of(group: Path) -> float | None:
    """CPUs' worth of time that one group may use; None where it has no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    quota_us, period_us = number_in(group / "cpu.cfs_quota_us"), number_in(group / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and quota_us > 0 and period_us else None


def cpu_quota(process: Path = PROCESS) -> float | None:
    """CPUs' worth of time that the control groups allow, such as by `docker run --cpus`; None where they set none."""
    return smallest(quota_of, "cpu", process)


def cores(process: Path = PROCESS) -> int:
    """Cores that can be busy at once all the time, at least one: by affinity, as cpusets set it, and by quota. Of 1.5
    it is one: of two, both would be stopped again and again until the next period begins."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(process)
    return allowed if quota is None else max(1, min(allowed, int(quota)))
