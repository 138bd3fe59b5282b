"""Trackers: where a result is logged beside its `result.json`, which is nowhere or MLflow.

A result is logged after the measurement, from the content of `result.json` alone, so `gptbench log` can do the same at
any later time. MLflow is imported only then, or before the first job of a sweep for its parent run: that takes seconds,
and nothing of it runs while a run is timed.
"""

import contextlib
import datetime
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptbench.base.errors import TrackingError, raised
from gptbench.base.inputs import read_object
from gptbench.base.outputs import redact_files, write_json
from gptbench.base.redaction import redacted, redacted_message, remember
from gptbench.config import MLflowConfig, TrackingConfig
from gptbench.private.mlflow import try_opening
from gptbench.record.payload import Record, make_record, write_artifacts
from gptbench.record.runs import (
    NOTE_TAG,
    PARENT_TAG,
    RESULT_TAG,
    SWEEP_TAG,
    charts_of_jobs,
    first_run,
    folder_address,
    runs_with_tag,
)
from gptbench.record.settings import environment_variables, mlflow_settings, place_of, reason
from gptbench.record.store import NAME, embedded_store, file_of, lock_of, make_whole
from gptbench.schema.labels import short_keys
from gptbench.schema.plan import PLAN
from gptbench.schema.record import Recorded
from gptbench.schema.sweep import ENDED_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_FILE = "mlflow_parent.json"
"""File in the folder of a sweep with uri, experiment_id and run_id of its parent run."""


FAULTS = (AttributeError, TypeError, LookupError, NameError, AssertionError)
"""Exceptions that a fault in the code raises."""


class AwayError(TrackingError):
    """A store that did not even answer the first request, and so would not answer for other records."""


class Tracker:
    """Base class of trackers, which log results.

    Args:
        config: the tracking section.
        outputs: folder for the tracker's files.
    """

    def __init__(self, config: TrackingConfig, outputs: Path) -> None:
        self.config, self.outputs = config, outputs.absolute()

    def log(self, result: Recorded, result_path: Path) -> str | None:
        """Log a result that was saved, and return where; None if nothing is logged.

        Raises:
            TrackingError: the result is not, or not completely, logged; its file remains.
        """
        raise NotImplementedError

    def begin_sweep(self, sweep: str, started: str, swept: list[str]) -> None:
        """Create the parent run of a sweep's jobs, or open it again.

        Args:
            sweep: folder of the sweep.
            swept: keys that the sweep varies.

        Raises:
            TrackingError: it could not be created; the sweep can continue.
        """
        raise NotImplementedError


class NoTracker(Tracker):
    """Logs nothing."""

    def log(self, result: Recorded, result_path: Path) -> None:
        return None

    def begin_sweep(self, sweep: str, started: str, swept: list[str]) -> None:
        return None


class MLflowTracker(Tracker):
    """Logs to the embedded SQLite store in the outputs folder, or to any MLflow store or server.

    A metric of a sample is a series ``sample/<metric>`` whose step is the sample's number; what is compared between
    runs, the medians and the percentiles of all steps, has the plain name, and the few that matter most stand first, as
    ``brief/<metric>``.
    """

    config: MLflowConfig

    def __init__(self, config: MLflowConfig, outputs: Path) -> None:
        super().__init__(config, outputs)
        self.uri = config.uri or embedded_store(self.outputs)
        remember(config.uri)
        self.name = redacted(config.experiment)
        # Several processes that open a new SQLite store at once break its migrations, and would each make the
        # experiment, or the sweep's parent.
        self.file = file_of(self.uri)
        """File of a SQLite store; None for any other."""
        self.lock = lock_of(self.file or self.outputs / NAME)
        self.away = self.outputs / "mlflow.away"
        """File that is touched when a server does not answer."""

    def log(self, result: Recorded, result_path: Path) -> str:
        record = make_record(result, result_path, self.config.run_name)
        with self.talking(f"The result is saved. To log it later: gptbench log {shlex.quote(str(result_path))}"):
            return self.send(record, result, result_path)

    def begin_sweep(self, sweep: str, started: str, swept: list[str]) -> None:
        with (
            self.talking("The sweep and its jobs will be logged when they have ended."),
            self.opened() as (client, experiment),
        ):
            self.parent(client, experiment, sweep, milliseconds(started), swept, running=True)

    @contextlib.contextmanager
    def talking(self, kept: str) -> Iterator[None]:
        """Apply MLflow's settings while the context lasts. Every error becomes a TrackingError whose message ends with
        `kept`."""
        try:
            with environment_variables(mlflow_settings(self.config)):
                yield
        except Exception as error:  # stores, servers and plugins may raise anything
            # The message of a fault in gptbench names its place; otherwise it would read like a fault of the store.
            message = raised(error) if isinstance(error, FAULTS) else reason(error)
            kind = AwayError if isinstance(error, AwayError) else TrackingError
            # MLflow's messages contain the address, with the password in it.
            raise kind(f"tracking.uri={redacted(self.uri)}: {redacted_message(message)}\n{kept}") from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple["MlflowClient", str]]:
        """Return a client and the id of the experiment, with the lock held while the context lasts.

        Raises:
            AwayError: the store does not answer; or a server did not answer another process for whose lock this one
                waited: if it then waited for the server as well, many processes would wait for hours, one by one.
        """
        before = touched(self.away)
        for file in (self.away, Path(self.lock.lock_file)):
            file.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if touched(self.away) != before:
                raise AwayError("did not answer another process, for which this one waited")
            try:
                client = self.client()
                experiment = self.experiment(client)
            except Exception as error:
                if not self.is_embedded:
                    with contextlib.suppress(OSError):
                        self.away.touch()
                raise AwayError(reason(error)) from error
            yield client, experiment

    def client(self) -> "MlflowClient":
        """Return a client. This creates a missing SQLite store: call it with the lock held."""
        from mlflow import MlflowClient

        try_opening(self.config.retries + 1)
        if self.file is not None and (remark := make_whole(self.file)) is not None:
            print(remark, file=sys.stderr)
        return MlflowClient(self.uri)

    def send(self, record: Record, result: Recorded, result_path: Path) -> str:
        """Find or create the run, and fill it. All of it can be repeated: MLflow keeps equal metrics once."""
        with tempfile.TemporaryDirectory() as folder:
            write_artifacts(
                result, result_path, Path(folder), self.config.figures
            )  # before the lock: drawing takes time
            redact_files(Path(folder))
            return self.send_with(record, Path(folder))

    def send_with(self, record: Record, artifacts: Path) -> str:
        """Find or create the run, and fill it, given a folder of artifacts."""
        with self.opened() as (client, experiment):
            if record.is_sweep:
                run = self.parent(client, experiment, str(record.sweep), record.start_ms, record.varied)
                if run.info.status != "RUNNING":
                    # The sweep may have been resumed since, and that may have been logged already.
                    if run.data.tags.get(ENDED_TAG, "") >= record.tags[ENDED_TAG]:
                        return f"already logged: {self.describe(run)}"
                    client.update_run(run.info.run_id, status="RUNNING")  # until it is complete
            else:
                found = self.one_run(client, experiment, RESULT_TAG, record.tags[RESULT_TAG])
                if found is not None and found.info.status != "RUNNING":
                    return f"already logged: {self.describe(found)}"
                parent = None
                if record.sweep:
                    parent = self.parent(client, experiment, record.sweep, record.start_ms, record.varied)
                tags = record.tags | ({PARENT_TAG: parent.info.run_id} if parent is not None else {})
                run = found or self.create(client, experiment, record.start_ms, tags, record.name, RESULT_TAG)
                if parent is not None and not (Path(record.sweep or "") / PLAN).exists():
                    self.end_parent(client, parent.info.run_id, record)  # sweeps of older versions have no record
            if self.is_embedded:  # concurrent writers would time out
                self.fill(client, run, record, artifacts)
        if not self.is_embedded:
            self.fill(client, run, record, artifacts)
        return self.describe(run)

    @property
    def is_embedded(self) -> bool:
        return self.uri.startswith("sqlite:")

    @property
    def is_database(self) -> bool:
        return re.match(r"(sqlite|postgresql|mysql|mssql)[:+]", self.uri) is not None

    def fill(self, client: "MlflowClient", run: "Run", record: Record, artifacts: Path) -> None:
        """Log everything that a run holds in one batch."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = run.info.run_id
        params = [Param(key, value) for key, value in record.params]
        metrics = [Metric(key, value, record.end_ms, step) for key, value, step in record.metrics]
        tags = []
        if record.is_sweep:
            note = f"[Charts]({charts_of_jobs(run.info.experiment_id, run_id)}) of {record.tags[NOTE_TAG]}"
            tags = [RunTag(key, value) for key, value in (record.tags | {NOTE_TAG: note}).items()]
        client.log_batch(run_id, metrics, params, tags, synchronous=True)  # it splits large batches into requests
        log_files(client, run_id, artifacts)
        client.set_terminated(run_id, record.status, record.end_ms)  # last, as an ended run counts as complete

    def create(
        self, client: "MlflowClient", experiment: str, start_ms: int, tags: dict[str, str], name: str, known_by: str
    ) -> "Run":
        """Create a run that one of its tags identifies. MLflow repeats a request to a server that does not answer,
        which may create a run each time."""
        created = client.create_run(experiment, start_ms, tags, name)
        return created if self.is_database else self.one_run(client, experiment, known_by, tags[known_by]) or created

    def one_run(self, client: "MlflowClient", experiment: str, tag: str, value: str) -> "Run | None":
        """Return the run with that tag; None if there is none. A slow server may have created several when the request
        was repeated: the others are empty, and are deleted."""
        runs = runs_with_tag(client, experiment, tag, value)
        whole = [run for run in runs if run.info.status != "RUNNING"]
        kept = next(iter(whole or runs), None)
        for run in runs:
            if kept is not None and run.info.run_id != kept.info.run_id and run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)
        return kept

    def describe(self, run: "Run") -> str:
        return f"MLflow run {run.info.run_name} {run.info.run_id} in {redacted(self.uri)}"

    def experiment(self, client: "MlflowClient") -> str:
        """Return the id of the experiment, which is created if it is missing."""
        known = client.get_experiment_by_name(self.name)
        if known is not None:
            if known.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"its experiment {self.config.experiment} was deleted; "
                    f"mlflow experiments restore --experiment-id {known.experiment_id} brings it back, and "
                    "tracking.experiment=NAME logs to another"
                )
            return str(known.experiment_id)
        # A server knows where to put artifacts. A bare database would put them into the working directory.
        artifacts = folder_address(self.outputs / "mlartifacts") if self.is_database else None
        try:
            return client.create_experiment(self.name, artifacts)
        except Exception as error:
            # Another machine created it, or an earlier request whose answer was lost.
            exists = getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"
            if not exists or (known := client.get_experiment_by_name(self.name)) is None:
                raise
            return str(known.experiment_id)

    def parent(
        self,
        client: "MlflowClient",
        experiment: str,
        sweep: str,
        start_ms: int,
        varied: Sequence[str],
        running: bool = False,
    ) -> "Run":
        """Return the parent run of a sweep's jobs, which is created if it is missing; `running` opens it again.

        The file in the sweep's folder identifies it, or the tag if the folder was moved to another machine, or if the
        sweep is logged to a second store.
        """
        path = Path(sweep) / PARENT_FILE
        run = None
        kept = read_object(path)
        known, here = str(kept.get("run_id")), (place_of(str(kept.get("uri"))), kept.get("experiment_id"))
        if here == (place_of(self.uri), experiment) and re.fullmatch(r"\w+", known):
            run = first_run(client, experiment, f"attributes.run_id = '{known}'")
        run = run or self.one_run(client, experiment, SWEEP_TAG, sweep)
        if run is None:
            what = " × ".join(short_keys([key.partition("=")[0] for key in varied]).values())
            name = " ".join(["sweep", *([what] if what else []), "/".join(Path(sweep).parts[-2:])])
            tags = {SWEEP_TAG: sweep, "mlflow.source.name": "gptbench"}
            run = self.create(client, experiment, start_ms, tags, name, SWEEP_TAG)
        elif running:
            client.update_run(run.info.run_id, status="RUNNING")
        if path.parent.is_dir():
            kept = {"uri": redacted(self.uri), "experiment_id": experiment, "run_id": run.info.run_id}
            write_json(path, kept)
        return run

    def end_parent(self, client: "MlflowClient", parent: str, record: Record) -> None:
        """Move the end of a sweep's parent run to that of the job; a job that failed marks it as failed."""
        info = client.get_run(parent).info
        status = "FAILED" if "FAILED" in (info.status, record.status) else "FINISHED"
        client.set_terminated(parent, status, max(info.end_time or 0, record.end_ms))


def touched(path: Path) -> int | None:
    """Return the modification time of a file, by the clock of its file system; None if it is missing."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def milliseconds(iso: str) -> int:
    """Return a time in milliseconds since 1970."""
    return round(datetime.datetime.fromisoformat(iso).timestamp() * 1000)


def log_files(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """Log all files of a folder."""
    client.log_artifacts(run_id, str(folder))
