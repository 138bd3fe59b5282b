"""Runs a function in a separate process: what kills that process, or corrupts its GPU context, does not affect the next
one.

The processes are forked from a server that has imported torch but used no GPU: they start within milliseconds.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from gptbench.base.streams import lasting
from gptbench.config.plugins import Plugins
from gptbench.private.torch import ASK_NVML

T = TypeVar("T")

GRACE_S = 5.0
"""Seconds between asking a process to end and killing it."""
PRELOADED = ["gptbench.execute.run", "gptbench.record.tracking"]
"""Modules that the server imports once for all processes."""
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
"""File in which a container counts how often the kernel killed one of its processes for memory."""


@dataclass(frozen=True)
class Died:
    """A process that ended without returning a value."""

    reason: str
    """How it ended, in words."""
    timed_out: bool = False
    """Whether it was ended because it took too long."""
    out_of_memory: bool = False
    """Whether the kernel killed it for memory."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """Result of a process: the value that the function returned, or why there is none."""

    value: T | None = None
    died: Died | None = None


def context() -> multiprocessing.context.BaseContext:
    """Return the context that makes the processes: forked from the server if there can be one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(PRELOADED)
    # torch's compiler looks for GPUs while it is imported, which must not create a context.
    before = os.environ.get(ASK_NVML)
    os.environ[ASK_NVML] = "1"
    forkserver.ensure_running()
    if before is None:
        del os.environ[ASK_NVML]
    else:
        os.environ[ASK_NVML] = before
    return forking


def in_own_process(function: Callable[..., T], *args: Any, timeout_s: float | None = None) -> Ended[T]:
    """Call a function in a separate process, and wait for it without using the processor.

    Args:
        function: importable by name; it, its arguments and what it returns must be picklable. It must not raise.
        timeout_s: seconds after which the process is ended.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the process was ended. The process itself does not get the signal.
    """
    processes = context()
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=call, args=(theirs, Plugins(), function, args))  # type: ignore[attr-defined]
    kills = memory_kills()
    try:
        process.start()
        theirs.close()
        if not wait([ours, process.sentinel], timeout_s):
            end(process)
            return Ended(died=Died(f"it took more than {timeout_s:g} s", timed_out=True))
        with contextlib.suppress(EOFError, OSError):  # it ended without sending anything
            if ours.poll():
                value = ours.recv()
                process.join(GRACE_S)
                return Ended(value)
        process.join(GRACE_S)
        killed = process.exitcode == -signal.SIGKILL and memory_kills() > kills
        return Ended(died=Died(exit_reason(process.exitcode, killed), out_of_memory=killed))
    finally:
        if process.pid is not None:  # a signal may have arrived before it started
            end(process)
        ours.close()


def call(connection: Connection, _: Plugins, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call the function; this runs in the separate process, which imported the plugins when it unpickled them."""
    # A new process group, with everything that it starts, can be ended at once. A terminal's Ctrl-C reaches only the
    # parent, which decides what it means: the SIGTERM that it then sends raises KeyboardInterrupt in the function.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        with lasting():
            connection.send(function(*args))
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def end_with_parent() -> None:
    """End this process with its parent. A parent that is killed cannot end its children, so a thread of theirs waits
    for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def end(process: Any) -> None:
    """Ask a process to end; kill it if it does not, and whatever it has started."""
    if process.is_alive():
        process.terminate()
        process.join(GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def exit_reason(exit_code: int | None, for_memory: bool) -> str:
    """Return how a process ended, in words."""
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code} and without a result"
    name = signal.Signals(-exit_code).name
    if for_memory:
        return f"its process was killed by {name}: the kernel ran out of memory"
    hint = " (kill -9, or the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def memory_kills(events: Path | None = None) -> int:
    """Return how many processes of this container the kernel has killed for memory; 0 if unknown."""
    try:
        lines = (events or MEMORY_EVENTS).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
