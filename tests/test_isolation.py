"""A function in a process of its own: it gives its value, and whatever kills it is told and reaches nobody else."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptbench.execute.isolation import Died, in_own_process, memory_kills

ROOT = Path(__file__).resolve().parent.parent


def square(value: int) -> tuple[int, int]:
    return value * value, os.getpid()


def rest(seconds: float, pid_file: Path | None = None) -> str:
    if pid_file is not None:
        pid_file.write_text(str(os.getpid()))
    time.sleep(seconds)
    return "rested"


def die(how: str) -> None:
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "raise":
        raise RuntimeError("nobody catches it")
    else:
        os.kill(os.getpid(), getattr(signal, how))


def interrupt_itself() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    return "went on"


def use_gpu(value: float) -> float:
    import torch

    return float(torch.full((4,), value, device="cuda").sum())


def poison_gpu() -> str:
    """Leaves a context in which every further call fails."""
    import torch

    with contextlib.suppress(RuntimeError):
        torch.zeros(4, device="cuda")[torch.tensor([1000], device="cuda")].cpu()
    try:
        use_gpu(1.0)
    except RuntimeError:
        return "poisoned"
    return "not poisoned"


def test_it_gives_the_value_of_another_process() -> None:
    ended = in_own_process(square, 12)
    assert ended.died is None
    assert ended.value is not None
    value, pid = ended.value
    assert value == 144
    assert pid != os.getpid()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("SIGKILL", "its process was killed by SIGKILL (kill -9, or the kernel's out-of-memory killer)"),
        ("SIGTERM", "its process was killed by SIGTERM"),
        ("SIGABRT", "its process was killed by SIGABRT"),
        ("segfault", "its process was killed by SIGSEGV"),
        ("exit", "its process ended with exit code 3 and without a result"),
        ("raise", "its process ended with exit code 1 and without a result"),
    ],
)
def test_a_death_is_told_and_the_next_one_lives(how: str, told: str) -> None:
    assert in_own_process(die, how).died == Died(told)
    assert in_own_process(square, 3).died is None


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    in_own_process(square, 1)  # the server starts
    start = time.perf_counter()
    ended = in_own_process(rest, 60.0, tmp_path / "pid", timeout_s=1.0)
    assert time.perf_counter() - start < 10
    assert ended.died == Died("it took more than 1 s", timed_out=True)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_waiting_uses_no_processor() -> None:
    in_own_process(square, 1)  # the server starts
    before = time.process_time()
    assert in_own_process(rest, 1.0).value == "rested"
    assert time.process_time() - before < 0.1


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A shell lets what it starts with `&` ignore SIGINT, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_it_and_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file, waits = tmp_path / "pid", threading.Event()

    def told_wait(*args: Any) -> list[Any]:
        waits.set()
        return wait(*args)

    def interrupt() -> None:
        waits.wait()
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("gptbench.execute.isolation.wait", told_wait)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        in_own_process(rest, 60.0, pid_file)
    thread.join()
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_a_terminals_ctrl_c_does_not_reach_it() -> None:
    assert in_own_process(interrupt_itself).value == "went on"


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
import gptbench.execute.isolation
from pathlib import Path
from tests.test_isolation import rest
gptbench.execute.isolation.PRELOADED = []
gptbench.execute.isolation.in_own_process(rest, 60.0, Path({str(pid_file)!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        end = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(pid_file.read_text()))
    finally:
        parent.kill()
        parent.wait()
    child.wait(timeout=10)


def test_the_kernels_kills_for_memory_are_counted(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert memory_kills(events) == 0
    events.write_text("low 0\nhigh 4\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert memory_kills(events) == 2


def test_a_kill_for_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr("gptbench.execute.isolation.memory_kills", lambda: next(counts))
    died = in_own_process(die, "SIGKILL").died
    assert died is not None
    assert died.out_of_memory
    assert re.search("SIGKILL.*ran out of memory", died.reason)


@pytest.mark.gpu
def test_a_poisoned_gpu_does_not_reach_the_next_process() -> None:
    assert in_own_process(use_gpu, 2.0).value == 8.0
    assert in_own_process(poison_gpu).value == "poisoned"
    assert in_own_process(die, "SIGKILL").died is not None
    assert in_own_process(use_gpu, 3.0).value == 12.0
