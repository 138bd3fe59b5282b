"""Stores and servers to log to, and a proxy in front of a server that simulates failures on demand."""

import base64
import contextlib
import csv
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy.event
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from sqlalchemy.engine import Engine

from gptbench.charts import compile_bars
from gptbench.config import MLflowConfig
from gptbench.record import MLflowTracker, payload
from gptbench.schema import Result
from tests.results import NEW_TOKENS, made_result

PATIENCE_S = 120
"""Seconds to wait for a server to start; with migrations that takes 10 to 20 s on an idle machine."""


def config(*, figures: bool = False, **values: Any) -> MLflowConfig:
    """Return MLflow's section, by default without figures, which take half a second to draw."""
    return MLflowConfig(_target_="gptbench.record.MLflowTracker", name="mlflow", figures=figures, **values)


@dataclass
class Store:
    """Outputs folder with its SQLite store, and queries of it."""

    outputs: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.outputs}/mlflow.db"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def log(self, result: Result, path: Path, **values: Any) -> str:
        return MLflowTracker(config(**values), self.outputs).log(result, path)

    def runs(self, experiment: str) -> list[Run]:
        """Return the runs of an experiment in order of their start."""
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))

    def series(self, run: Run, key: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in self.client.get_metric_history(run.info.run_id, key)]


def sweep_job(sweep: Path, hour: int, **values: Any) -> tuple[Result, Path]:
    job = made_result(started=f"2026-11-22T{hour}:00:00+00:00", sweep=str(sweep), **values)
    return job, job.save(sweep / str(hour))


def check_artifacts(folder: Path, result: Result, path: Path) -> None:
    expected = ["compile.png", "config.yaml", "result.json", "steps.csv", "text.txt"]
    assert sorted(entry.name for entry in folder.iterdir() if entry.name != "figures") == expected
    text = (folder / "text.txt").read_text(encoding="utf-8")
    assert text.split("\n\n----\n\n") == [*(f"Once upon a time {n}" for n in (0, 1)), "Once upon a time 2\n"]
    assert (folder / "result.json").read_bytes() == path.read_bytes()
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == result.config
    with (folder / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.samples) * (NEW_TOKENS - 1)
    last = rows[-1]
    assert (last["sample"], last["step"]) == ("2", str(NEW_TOKENS - 2))
    assert float(last["seconds"]) == result.samples[2].step_s[-1]
    assert int(last["bytes"]) == result.traffic.needed()[-1]
    assert int(last["bytes_moved"]) == result.traffic.moved()[-1]
    assert int(last["positions_read"]) == result.traffic.positions_read[-1]


@contextlib.contextmanager
def hasty_sqlite() -> Iterator[None]:
    """Open SQLite without waiting for the disk, which takes most of the time of making a store."""

    def pragma(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(Engine, "connect", pragma)
    try:
        yield
    finally:
        sqlalchemy.event.remove(Engine, "connect", pragma)


@contextlib.contextmanager
def hasty_pictures() -> Iterator[None]:
    """Replace the picture of compile time that is logged with a record by a stand-in: drawing it takes longer than
    logging."""

    def draw(result: Result, path: Path) -> bool:
        if drawn := bool(compile_bars(result)):
            path.write_text("a picture")
        return drawn

    with mock.patch.object(payload, "draw_compile_stages", draw):
        yield


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    """Yield the URL of a running server with a store; its artifacts and its log are in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store, "--artifacts-destination", str(folder / "served")),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE_S
        while not healthy(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group: the server's workers are processes of their own
        process.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.read() == b"OK"
    except OSError:
        return False


def postgresql_programs() -> Path | None:
    """Return the folder of `initdb` and `pg_ctl`: on the path, or the newest version where Debian puts them."""
    found = shutil.which("initdb")
    folders = [*([Path(found).parent] if found else []), *Path("/usr/lib/postgresql").glob("*/bin")]
    folders = [folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()]
    return max(folders, key=lambda folder: [int(part) for part in folder.parts if part.isdigit()], default=None)


def no_postgresql() -> str | None:
    """Return why PostgreSQL cannot be run here; None if it can."""
    if postgresql_programs() is None:
        return "needs PostgreSQL's initdb and pg_ctl"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "needs psycopg2"
    if os.geteuid() == 0 and postgresql_user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


def postgresql_user() -> pwd.struct_passwd | None:
    """Return the user that runs PostgreSQL, which root may not; None if there is none."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return None


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Yield the URI of an empty database on a private PostgreSQL, which only listens on a socket in its folder."""
    programs = postgresql_programs()
    assert programs is not None
    # Not below pytest's folder: the user postgres may not look into that. And a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="gptbench-") as name:
        user = postgresql_user() if os.geteuid() == 0 else None
        rights: dict[str, Any] = {}
        if user is not None:
            os.chown(name, user.pw_uid, user.pw_gid)
            rights = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), "--pgdata", f"{name}/data", *arguments]
            with Path(name, "log").open("a+") as log:
                done = subprocess.run(command, cwd=name, stdout=log, stderr=log, check=False, **rights)
                log.seek(0)
                assert done.returncode == 0, log.read()

        # It need not outlive the power.
        settings = f"-c listen_addresses='' -c unix_socket_directories='{name}' -c fsync=off -c synchronous_commit=off"
        call("initdb", "--username=mlflow", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        call("pg_ctl", "start", "--wait", "--options", settings)
        try:
            # Without a driver's name, SQLAlchemy 2.1 looks for psycopg 3.
            yield f"postgresql+psycopg2://mlflow@/postgres?host={name}"
        finally:
            call("pg_ctl", "stop", "--wait", "--mode=immediate")


class Trouble(Enum):
    """Failures that a proxy can simulate."""

    refuse = auto()
    """Refuse connections, and do not answer the request during which this begins."""
    hang = auto()
    """Accept requests, but neither forward nor answer them."""
    delay = auto()
    """Forward requests at once, but do not answer them before the proxy gets another order."""
    cut = auto()
    """Forward requests, and close the connection without an answer."""
    busy = auto()
    """Answer requests with 503 and Retry-After in an hour."""
    locked = auto()
    """Forward requests only from the user `me` with the password `secret`."""


@dataclass
class Order:
    """Order to a proxy to simulate a failure."""

    trouble: Trouble
    at: str
    """Part of the path of the requests that are affected."""
    times: float
    """Number of requests that are affected."""
    over: threading.Event = field(default_factory=threading.Event)
    """Event that is set when the proxy gets another order."""


class Proxy:
    """Proxy that forwards requests to a server on this machine, in threads, and counts them.

    Args:
        url: URL of the server; None for no server.
    """

    def __init__(self, url: str | None) -> None:
        self.target = None if url is None else ("127.0.0.1", int(url.rpartition(":")[2]))
        self.requests: list[str] = []
        """Method and path of each request, in order of arrival."""
        self.order: Order | None = None
        self.lock = threading.Lock()
        self.listener = self.bound(0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.listen()

    def make(self, trouble: Trouble, at: str = "", times: float = float("inf")) -> None:
        """Simulate a failure from now on."""
        self.work()
        with self.lock:
            self.order = Order(trouble, at, times)
        if trouble is Trouble.refuse and not at:
            self.leave()

    def work(self) -> None:
        """Work normally from now on; requests that hang or wait are given up."""
        with self.lock:
            if self.order is not None:
                self.order.over.set()
            self.order = None
        if self.away:
            self.listen()

    def close(self) -> None:
        self.work()
        self.leave()
        self.listener.close()

    def count(self, part: str) -> int:
        """Return the number of requests whose line contains some text."""
        return sum(part in request for request in self.requests)

    @staticmethod
    def bound(port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    def listen(self) -> None:
        self.away = False
        self.listener.listen(64)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def leave(self) -> None:
        """Refuse connections, but keep the port."""
        self.away = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # ends the thread that accepts
        self.listener.close()
        self.listener = self.bound(self.port)

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """Serve one request and close the connection, so that the answer ends where reading ends."""
        with connection, contextlib.suppress(OSError):
            request = read_request(connection)
            if request is None:
                return
            line, _, rest = request.partition(b"\r\n")
            order = self.order_for(line.decode())
            trouble = None if order is None else order.trouble
            if trouble is Trouble.refuse and not self.away:
                self.leave()
            elif order is not None and trouble is Trouble.hang:
                order.over.wait()
            elif trouble is Trouble.busy:
                connection.sendall(answer("503 Service Unavailable", "Retry-After: 3600"))
            elif trouble is Trouble.locked and KEY not in rest:
                connection.sendall(answer("401 Unauthorized"))
            elif trouble is not Trouble.refuse and self.target is not None:
                with socket.create_connection(self.target) as server:
                    server.sendall(request)
                    answered = b"".join(iter(lambda: server.recv(2**16), b""))
                if order is not None and trouble is Trouble.delay:
                    order.over.wait()
                if trouble is not Trouble.cut:
                    connection.sendall(answered)

    def order_for(self, line: str) -> Order | None:
        """Return the order that applies to a request; None to forward it."""
        with self.lock:
            self.requests.append(line.rpartition(" ")[0])
            order = self.order
            if order is None or order.at not in line or order.times < 1:
                return None
            order.times -= 1
            return order


KEY = b"Basic " + base64.b64encode(b"me:secret")


def answer(status: str, *headers: str) -> bytes:
    """Return an HTTP response without a body."""
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *headers, "", ""]).encode()


def read_request(connection: socket.socket) -> bytes | None:
    """Return a complete request, which asks the server to close the connection; None if the client has gone."""
    read = b""
    while b"\r\n\r\n" not in read:
        if not (more := connection.recv(2**16)):
            return None
        read += more
    head, _, body = read.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    assert b"transfer-encoding" not in headers
    length = int(headers.get(b"content-length", b"0"))
    while len(body) < length:
        if not (more := connection.recv(2**16)):
            return None
        body += more
    headers[b"connection"] = b"close"
    return b"\r\n".join([first, *(b": ".join(header) for header in headers.items()), b"", body])
