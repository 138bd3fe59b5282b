"""A function in a process of its own: what kills that process, or poisons its GPU context, does not reach the next one.

The processes are forked from a server that has imported torch, and touched no GPU: they start within milliseconds.
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
"""What the server imports, once for all processes."""
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
"""Where a container tells how often the kernel killed one of its processes for memory."""


@dataclass(frozen=True)
class Died:
    """A process that ended without giving a value."""

    reason: str
    timed_out: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class Ended(Generic[T]):
    """What came of it: the value that the function returned, or why there is none."""

    value: T | None = None
    died: Died | None = None


def context() -> multiprocessing.context.BaseContext:
    """Of the processes: forked from the server where there can be one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(PRELOADED)
    # torch's compiler asks for GPUs while it is imported.
    given = os.environ.get(ASK_NVML)
    os.environ[ASK_NVML] = "1"
    forkserver.ensure_running()
    if given is None:
        del os.environ[ASK_NVML]
    else:
        os.environ[ASK_NVML] = given
    return forking


def in_own_process(function: Callable[..., T], *args: Any, timeout_s: float | None = None) -> Ended[T]:
    """Calls a function in a process of its own, and waits for it without using the processor.

    Args:
        function: importable by name; it, its arguments and what it returns must be picklable. It must catch what it
            raises.
        timeout_s: seconds after which the process is ended.

    Raises:
        KeyboardInterrupt: Ctrl-C; the process is ended first. It does not itself get the signal.
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
        with contextlib.suppress(EOFError, OSError):  # it ended, and had sent nothing
            if ours.poll():
                value = ours.recv()
                process.join(GRACE_S)
                return Ended(value)
        process.join(GRACE_S)
        killed = process.exitcode == -signal.SIGKILL and memory_kills() > kills
        return Ended(died=Died(told(process.exitcode, killed), out_of_memory=killed))
    finally:
        if process.pid is not None:  # a signal may have come before there was one
            end(process)
        ours.close()


def call(connection: Connection, _: Plugins, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In the process itself, which has imported the plugins where it unpickled them."""
    # A group of its own, with all that it starts: it ends as a whole. A terminal's Ctrl-C goes to the parent alone,
    # which says what it means; ended by that, the function is told as if it were Ctrl-C.
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
    """A parent that is killed cannot end its children: they look after it, in a thread that only waits."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def end(process: Any) -> None:
    """Asks a process to end, and kills it where it does not, and whatever it has started."""
    if process.is_alive():
        process.terminate()
        process.join(GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def told(exit_code: int | None, for_memory: bool) -> str:
    """How a process ended, in words."""
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code} and told nothing"
    name = signal.Signals(-exit_code).name
    if for_memory:
        return f"its process was killed by {name}: the kernel had no memory left for it"
    hint = " (kill -9, or the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def memory_kills(events: Path | None = None) -> int:
    """How many processes of this container the kernel has killed for memory; 0 where it does not tell."""
    try:
        lines = (events or MEMORY_EVENTS).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
