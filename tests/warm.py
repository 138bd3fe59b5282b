"""`python -m gptbench` without waiting for its imports: a server imports everything once, and forks for each call.

Each call is a separate process with its own working folder, environment and output files, which runs `main` from the
beginning and can be killed like any other.
"""

import atexit
import builtins
import errno
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent


class Call:
    """Call that was started.

    Attributes:
        pid: id of its process, which leads its own process group.
    """

    def __init__(self, pid: int, folder: Path, name: str) -> None:
        self.pid, self.folder, self.name = pid, folder, name
        self.process = psutil.Process(pid)

    @property
    def out(self) -> str:
        return self.printed("out")

    @property
    def err(self) -> str:
        return self.printed("err")

    def printed(self, where: str) -> str:
        file = self.folder / f"{self.name}.{where}"
        return file.read_text() if file.exists() else ""  # the process may only just have been started

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def is_running(self) -> bool:
        return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE


class Warm:
    """Server that starts calls."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "GPTBENCH_COMMIT": "0" * 40}
        environment.pop("HYDRA_FULL_ERROR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.calls: list[Call] = []

    def ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self,
        folder: Path,
        *arguments: str,
        faults: dict[str, str] | None = None,
        streams: dict[str, str] | None = None,
        **variables: str,
    ) -> Call:
        """Start a call.

        Args:
            faults: faults of jobs with some override, once they measure: see `fail`.
            streams: defects of `out` or `err`: see `break_stream`.
            variables: environment variables in addition to those of the server.
        """
        name = f"call-{len(self.calls)}"
        request: dict[str, Any] = {"folder": str(folder), "name": name, "arguments": arguments, "faults": faults or {}}
        request |= {"streams": streams or {}, "variables": variables}
        self.calls.append(Call(self.ask(request), folder, name))
        return self.calls[-1]

    def end(self, call: Call) -> int:
        """Wait for a call to end, and return its exit code, or the negative number of the signal that killed it."""
        return os.waitstatus_to_exitcode(self.ask({"wait": call.pid}))

    def run(self, folder: Path, *arguments: str, **how: Any) -> tuple[int, Call]:
        """Start a call, and wait for it to end."""
        call = self.start(folder, *arguments, **how)
        return self.end(call), call

    def close(self) -> None:
        """End the server, and calls that a failed test has left running."""
        assert self.process.stdin is not None
        for call in self.calls:
            if call.is_running():
                os.killpg(call.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()


USED = (
    *("alembic.command", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "rich.live", "rich.progress"),
    # Private modules of torch that a run looks up.
    *("torch._dynamo", "torch._inductor.async_compile", "torch._inductor.utils", "gptbench.__main__"),
)
PACKAGES = tuple(f"gptbench.{name}" for name in ("commands", "compare", "execute", "present", "record", "sweep"))
"""Packages whose modules, and everything that these import, are already imported for calls."""


def shrink_roof(set_value: Callable[[Any, str, Any], None]) -> None:
    """Make measuring the read roof instant, with a buffer that fits the cache: tests do not depend on its value."""
    from gptbench.measure import roof

    for name, value in {"CPU_BUFFER_BYTES": 2**22, "CACHES": 0, "LAUNCHES": 2, "PROBE_S": 1e-4}.items():
        set_value(roof, name, value)


def serve() -> None:
    from hydra._internal.hydra import Hydra

    from gptbench.config import register
    from gptbench.config.guard import install
    from tests.servers import hasty_sqlite

    for name in USED:
        importlib.import_module(name)
    for name in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(module.name)
    shrink_roof(setattr)
    register()
    install()  # each call does so again, but by then the guard is already known to be reached
    # Hydra would compose once more to determine the mode, and ignore an error in that.
    Hydra.get_mode = lambda *_, **__: None
    gc.collect()
    gc.freeze()  # so that calls, which collect garbage several times, do not search all modules

    with hasty_sqlite():
        answer_all()


def answer_all() -> None:
    """Start and await calls on request."""
    from gptbench.__main__ import main

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        elif (answer := os.fork()) == 0:
            os.setsid()
            os.chdir(request["folder"])
            os.environ.update(request["variables"])
            for number, end in ((0, None), (1, "out"), (2, "err")):
                path = os.devnull if end is None else f"{request['name']}.{end}"
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
            for number, end in ((1, "out"), (2, "err")):
                break_stream(number, request["streams"].get(end))
            sys.argv = ["gptbench", *request["arguments"]]
            fail(*request["faults"].items())
            leave(main, full_teardown=bool(request["streams"]))
        print(answer, flush=True)


def leave(main: Callable[[], int], full_teardown: bool) -> None:
    """End this process with the exit code that `main` returns or exits with.

    Args:
        full_teardown: whether the interpreter finalises everything that the server imported, which takes longer than
            everything else that a refused call does, and flushes streams that it does not know to be broken. Otherwise
            only threads are ended, and exit functions called.
    """
    try:
        code = main()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    if full_teardown:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def break_stream(number: int, how: str | None) -> None:
    """Make standard output or error closed, full, a pipe that nobody reads, or a terminal that hangs up once something
    is measured."""
    if how == "closed":
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)
    elif how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    elif how == "unread":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
    elif how == "terminal":
        import fcntl
        import pty
        import termios

        import gptbench.execute.measurement

        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.dup2(slave, number)
        os.close(slave)
        measure = gptbench.execute.measurement.measure_engine

        def hang_up(*args: Any) -> Any:
            os.closerange(master, master + 1)  # does not fail if it is closed already
            return measure(*args)

        gptbench.execute.measurement.measure_engine = hang_up


def fail(*faults: tuple[str, str]) -> None:
    """Make measuring in this process fail with an error of Python or torch of some name, or begin with a signal."""
    import torch

    import gptbench.execute.measurement

    for override, place in faults:
        if override == "full from":
            full_from(*place.partition(":")[::2])
        if override == "kill in":
            kill_in(*place.partition(":")[::2])
    measure = gptbench.execute.measurement.measure_engine

    def failing(subject: Any, *more: Any) -> Any:
        for override, fault in faults:
            key, _, value = override.partition("=")
            if value and str(functools.reduce(getattr, key.split("."), subject.config)) == value:
                if not fault.startswith("SIG"):
                    raise getattr(builtins if hasattr(builtins, fault) else torch, fault)("a planted fault")
                os.kill(os.getpid(), getattr(signal, fault))
        return measure(subject, *more)

    gptbench.execute.measurement.measure_engine = failing


def kill_in(place: str, call: str) -> None:
    """Make this process kill itself when it calls a function for the first or the nth time."""

    def kill(left: int) -> None:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each(place, int(call or 1), kill)


def full_from(place: str, call: str) -> None:
    """Make a function fail as if the disk were full, from its nth call on."""

    def fill(left: int) -> None:
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

    before_each(place, int(call or 1), fill)


def before_each(place: str, calls: int, happens: Callable[[int], None]) -> None:
    """Call `happens` before each call of a function, with the number of calls left."""
    module = pkgutil.resolve_name(place.rpartition(".")[0])  # a module or a class
    name = place.rpartition(".")[2]
    function, left = getattr(module, name), [calls]

    def wrapped(*args: Any, **more: Any) -> Any:
        left[0] -= 1
        happens(left[0])
        return function(*args, **more)

    for loaded in [module, *sys.modules.values()]:  # in every module that imported it
        if getattr(loaded, name, None) is function:
            setattr(loaded, name, wrapped)


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.02)
    return found


if __name__ == "__main__":
    serve()
