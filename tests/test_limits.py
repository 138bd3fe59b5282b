"""Limits of control groups: both versions, every level, and what is not there."""

import os
from pathlib import Path

import psutil
import pytest

from gptbench.base import limits
from gptbench.present.terminal import container

GB = 10**9


class Machine:
    """A process in control groups, as the kernel shows both."""

    def __init__(self, folder: Path) -> None:
        self.process, self.system = folder / "proc", folder / "sys"
        self.process.mkdir()

    def write(self, memberships: str, *mounts: str) -> None:
        """Lines of /proc/self/cgroup, and of mountinfo: what is mounted below the system's folder."""
        (self.process / "cgroup").write_text(memberships)
        lines = ["21 1 0:20 / /proc rw,nosuid - proc proc rw\n"]
        for number, mount in enumerate(mounts):
            root, place, kind, options = mount.split()
            lines += [f"{30 + number} 23 0:28 {root} {self.system / place} rw shared:9 - {kind} {kind} {options}\n"]
        (self.process / "mountinfo").write_text("".join(lines))

    def group(self, place: str, **files: str | int) -> None:
        folder = self.system / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".", 1)).write_text(f"{value}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def version_2(machine: Machine) -> None:
    machine.write("0::/system.slice/job.scope\n", "/ . cgroup2 rw,nsdelegate")
    machine.group(".")
    machine.group("system.slice", memory__max="max", memory__current=9 * GB, cpu__max="max 100000")
    machine.group("system.slice/job.scope", memory__max="max", memory__current=GB, cpu__max="max 100000")


def free(machine: Machine) -> int:
    return limits.free_memory(machine.process)


def test_without_limits_the_machine_counts(machine: Machine) -> None:
    available = psutil.virtual_memory().available
    assert free(machine) > available / 2, "no control groups at all"
    assert limits.cpu_quota(machine.process) is None
    version_2(machine)
    assert free(machine) > available / 2
    assert limits.memory_limit(machine.process) is None
    assert limits.cpu_quota(machine.process) is None
    assert limits.cores(machine.process) == len(os.sched_getaffinity(0))


def test_version_2_every_level_counts(machine: Machine) -> None:
    version_2(machine)
    machine.group("system.slice/job.scope", memory__max=1000, memory__current=700)
    assert free(machine) == 300
    machine.group("system.slice/job.scope", memory__stat="anon 500\ninactive_file 150")
    assert free(machine) == 450, "cached files can be dropped"
    machine.group("system.slice", memory__max=800, memory__current=700)
    assert free(machine) == 100, "a group above has less"
    assert limits.memory_limit(machine.process) == 800
    machine.group(".", memory__max=750, memory__current=1000)
    assert free(machine) == 0
    machine.group("system.slice/job.scope", cpu__max="400000 100000")
    assert limits.cpu_quota(machine.process) == 4
    machine.group("system.slice", cpu__max="150000 100000")
    assert limits.cpu_quota(machine.process) == 1.5
    assert limits.cores(machine.process) == 1, "two would be stopped again and again"
    machine.group("system.slice", cpu__max="20000 100000")
    assert limits.cores(machine.process) == 1


def test_another_group_does_not_count(machine: Machine) -> None:
    version_2(machine)
    machine.group("system.slice/other.scope", memory__max=1000, memory__current=700, cpu__max="100000 100000")
    assert free(machine) > GB / 10
    assert limits.cpu_quota(machine.process) is None


def test_version_1_as_docker_mounts_it(machine: Machine) -> None:
    """In a container the path is the host's, and what is mounted is the container's own group."""
    machine.write(
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
        "/docker/abc memory cgroup rw,memory",
        "/docker/abc cpu cgroup rw,cpu,cpuacct",
    )
    machine.group("memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=700)
    machine.group("cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert free(machine) > GB / 10
    assert limits.memory_limit(machine.process) is None
    assert limits.cpu_quota(machine.process) is None
    machine.group("memory", memory__limit_in_bytes=1000, memory__stat="inactive_file 1\ntotal_inactive_file 50")
    assert free(machine) == 350
    machine.group("cpu", cpu__cfs_quota_us=200000)
    assert limits.cpu_quota(machine.process) == 2


def test_version_1_groups_below_the_root(machine: Machine) -> None:
    """Control groups as older versions of Slurm make them."""
    machine.write("4:memory:/slurm/uid_1/job_2\n", "/ memory cgroup rw,memory", "/ unified cgroup2 rw")
    machine.group("memory/slurm/uid_1/job_2", memory__limit_in_bytes=1000, memory__usage_in_bytes=600)
    assert free(machine) == 400
    machine.group("memory/slurm", memory__limit_in_bytes=5000, memory__usage_in_bytes=4900)
    assert free(machine) == 100


def test_a_group_outside_of_what_is_mounted_counts_from_there_on(machine: Machine) -> None:
    """With a namespace of its own, a process may be told a path that begins with `..`."""
    machine.write("0::/../other\n", "/ . cgroup2 rw")
    machine.group(".", memory__max=1000, memory__current=600)
    machine.group("other", memory__max=1, memory__current=1)
    assert free(machine) == 400


def test_limits_are_told_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cpu_quota", lambda: None)
    monkeypatch.setattr(limits, "memory_limit", lambda: None)
    assert container() is None
    monkeypatch.setattr(limits, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert container() == "its control group (container, Slurm, systemd) allows 1.5 of 64 CPUs"
    monkeypatch.setattr(limits, "memory_limit", lambda: 4 * GB)
    assert container() == "its control group (container, Slurm, systemd) allows 1.5 of 64 CPUs and 4.00 GB of memory"
