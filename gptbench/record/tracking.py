"""Where a result is logged beside its `result.json`: nowhere, or to MLflow.

A result is logged as a whole and after the measurement, from nothing but what `result.json` holds; so `gptbench log`
can do the same at any later time. MLflow is imported only then, or before the first job of a sweep, whose parent run
that job belongs to: it takes seconds, and runs nothing while a run is timed.
"""

import contextlib
import csv
import datetime
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import statistics
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from gptbench.base.errors import TrackingError, raised
from gptbench.base.inputs import read_object
from gptbench.base.numbers import number
from gptbench.base.outputs import redact_files, write_json
from gptbench.base.redaction import HIDDEN, redacted, redacted_message, remember
from gptbench.charts import draw_compile_stages, write_figures
from gptbench.config import MLflowConfig, TrackingConfig
from gptbench.private.mlflow import charts_query, try_opening
from gptbench.record.store import NAME, embedded_store, file_of, lock_of, make_whole
from gptbench.schema.ab import AbResult
from gptbench.schema.breakdown import Breakdown, chrome_trace
from gptbench.schema.busy import busy
from gptbench.schema.failure import Failure
from gptbench.schema.files import load_record, problem
from gptbench.schema.kernels import KernelResult, all_metrics, kernel_summary
from gptbench.schema.labels import short_keys, weights_of
from gptbench.schema.metrics import HEADLINE, METRICS, Metric, View, shown_in
from gptbench.schema.plan import PLAN
from gptbench.schema.result import Measured, Recorded, Result
from gptbench.schema.statistics import compilation_name
from gptbench.schema.steps import Steps
from gptbench.schema.summary import interleaved_metrics, log_middles, log_ratios, sample_metrics, summary
from gptbench.schema.sweep import SweepRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RESULT_TAG = "gptbench.result"
"""sha256 of `result.json`: by it a result is known again."""
SWEEP_TAG = "gptbench.sweep"
"""Folder of the sweep, on its parent run."""
ENDED_TAG = "gptbench.sweep_ended"
"""When, on its parent run."""
BUSY_TAG = "gptbench.busy"
"""Why a run was measured on a busy machine, in words; only where it was."""
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
"""Markdown, which MLflow's page of a run begins with."""
PARENT_FILE = "mlflow_parent.json"
"""In the folder of a sweep: uri, experiment_id and run_id of its parent run."""
MOST_CHARACTERS = 6000
"""Of a param; MLflow takes more of a tag, but not much."""


FAULTS = (AttributeError, TypeError, LookupError, NameError, AssertionError)
"""What a fault in code raises."""


class AwayError(TrackingError):
    """A store that did not even answer the first request, and so would not for any other record."""


class Tracker:
    """Logs results.

    Args:
        config: the tracking section.
        outputs: folder for what the tracker keeps on disk.
    """

    def __init__(self, config: TrackingConfig, outputs: Path) -> None:
        self.config, self.outputs = config, outputs.absolute()

    def log(self, result: Recorded, result_path: Path) -> str | None:
        """Logs a result that was saved, and says where; None where there is nothing to say.

        Raises:
            TrackingError: the result is not, or not wholly, logged; it is still there as a file.
        """
        raise NotImplementedError

    def begin_sweep(self, sweep: str, started: str, swept: list[str]) -> None:
        """Makes the parent of a sweep's jobs, or opens it again.

        Args:
            sweep: folder of the sweep.
            swept: keys that it varies.

        Raises:
            TrackingError: there is none; the sweep can go on.
        """
        raise NotImplementedError


class NoTracker(Tracker):
    """Logs nothing."""

    def log(self, result: Recorded, result_path: Path) -> None:
        return None

    def begin_sweep(self, sweep: str, started: str, swept: list[str]) -> None:
        return None


@dataclass
class Record:
    """What is logged of one result, in MLflow's terms."""

    name: str
    """Of the run."""
    start_ms: int
    end_ms: int
    """Milliseconds since 1970."""
    status: str
    """FINISHED, or FAILED where something was not finite."""
    params: list[tuple[str, str]]
    metrics: list[tuple[str, float, int]]
    """Name, value and step."""
    tags: dict[str, str]


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
        """Of a SQLite store."""
        self.lock = lock_of(self.file or self.outputs / NAME)
        self.away = self.outputs / "mlflow.away"
        """Touched when a server does not answer."""

    def log(self, result: Recorded, result_path: Path) -> str:
        record = make_record(result, result_path, self.config.run_name)
        with self.talking(f"The result is kept. To log it later: gptbench log {shlex.quote(str(result_path))}"):
            return self.send(record, result, result_path)

    def begin_sweep(self, sweep: str, started: str, swept: list[str]) -> None:
        with (
            self.talking("Its jobs and itself will be logged when they have ended."),
            self.opened() as (client, experiment),
        ):
            self.parent(client, experiment, sweep, milliseconds(started), swept, running=True)

    @contextlib.contextmanager
    def talking(self, kept: str) -> Iterator[None]:
        """With MLflow's settings. For whatever goes wrong it raises TrackingError, which ends with `kept`."""
        try:
            with environment_variables(mlflow_settings(self.config)):
                yield
        except Exception as error:  # stores, servers and plugins raise whatever they like
            # A fault in our own code says so: what it reads like otherwise is the store's.
            told = raised(error) if isinstance(error, FAULTS) else reason(error)
            kind = AwayError if isinstance(error, AwayError) else TrackingError
            # MLflow tells the address that it asked, with the password in it.
            raise kind(f"tracking.uri={redacted(self.uri)}: {redacted_message(told)}\n{kept}") from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple["MlflowClient", str]]:
        """With the lock: a client, and the id of the experiment.

        Raises:
            AwayError: the store does not answer; or a server did not answer another process while this one waited for
                that: if it then waited for the server, too, many of them would for hours, one after the other.
        """
        before = touched(self.away)
        for file in (self.away, Path(self.lock.lock_file)):
            file.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if touched(self.away) != before:
                raise AwayError("did not answer another process, which this one waited for")
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
        """Which makes a SQLite store that is not there yet: call it with the lock."""
        from mlflow import MlflowClient

        try_opening(self.config.retries + 1)
        if self.file is not None and (remark := make_whole(self.file)) is not None:
            print(remark, file=sys.stderr)
        return MlflowClient(self.uri)

    def send(self, record: Record, result: Recorded, result_path: Path) -> str:
        """Finds or makes the run, and fills it. All of it can be done twice: MLflow keeps an equal metric once."""
        with tempfile.TemporaryDirectory() as folder:
            write_artifacts(result, result_path, Path(folder), self.config.figures)  # drawing keeps nobody waiting
            redact_files(Path(folder))
            return self.send_with(record, result, Path(folder))

    def send_with(self, record: Record, result: Recorded, artifacts: Path) -> str:
        """The same, with a folder of what goes beside the numbers."""
        with self.opened() as (client, experiment):
            if isinstance(result, SweepRecord):
                run = self.parent(client, experiment, str(result.sweep), record.start_ms, result.swept_keys)
                if run.info.status != "RUNNING":
                    # It may have been gone on with since, and that been logged before.
                    if run.data.tags.get(ENDED_TAG, "") >= result.ended:
                        return f"already logged: {self.describe(run)}"
                    client.update_run(run.info.run_id, status="RUNNING")  # until it is whole
            else:
                found = self.one_run(client, experiment, RESULT_TAG, record.tags[RESULT_TAG])
                if found is not None and found.info.status != "RUNNING":
                    return f"already logged: {self.describe(found)}"
                parent = None
                if result.sweep:
                    parent = self.parent(client, experiment, result.sweep, record.start_ms, result.swept)
                tags = record.tags | ({PARENT_TAG: parent.info.run_id} if parent is not None else {})
                run = found or self.create(client, experiment, record.start_ms, tags, record.name, RESULT_TAG)
                if parent is not None and not (Path(result.sweep or "") / PLAN).exists():
                    self.end_parent(client, parent.info.run_id, record)  # of a version whose sweeps had no record
            if self.is_embedded:  # many writers at once would time out waiting for each other
                self.fill(client, run, record, result, artifacts)
        if not self.is_embedded:
            self.fill(client, run, record, result, artifacts)
        return self.describe(run)

    @property
    def is_embedded(self) -> bool:
        return self.uri.startswith("sqlite:")

    @property
    def is_database(self) -> bool:
        return re.match(r"(sqlite|postgresql|mysql|mssql)[:+]", self.uri) is not None

    def fill(self, client: "MlflowClient", run: "Run", record: Record, result: Recorded, artifacts: Path) -> None:
        """All that a run holds, in one batch."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = run.info.run_id
        params = [Param(key, value) for key, value in record.params]
        metrics = [Metric(key, value, record.end_ms, step) for key, value, step in record.metrics]
        tags = []
        if isinstance(result, SweepRecord):
            note = f"[Charts]({charts_of_jobs(run.info.experiment_id, run_id)}) of {record.tags[NOTE_TAG]}"
            tags = [RunTag(key, value) for key, value in (record.tags | {NOTE_TAG: note}).items()]
        client.log_batch(run_id, metrics, params, tags, synchronous=True)  # splits what is too much for one request
        log_files(client, run_id, artifacts)
        client.set_terminated(run_id, record.status, record.end_ms)  # last: a run that ended is complete

    def create(
        self, client: "MlflowClient", experiment: str, start_ms: int, tags: dict[str, str], name: str, known_by: str
    ) -> "Run":
        """Makes a run, which is known again by one of its tags. MLflow asks a server again that does not answer, and
        that may have made a run each time."""
        made = client.create_run(experiment, start_ms, tags, name)
        return made if self.is_database else self.one_run(client, experiment, known_by, tags[known_by]) or made

    def one_run(self, client: "MlflowClient", experiment: str, tag: str, value: str) -> "Run | None":
        """The run with that tag, if there is one. A slow server may have made several when it was asked again: the
        others hold nothing, and go."""
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
        """Id of the experiment, which is made if it is not there."""
        found = client.get_experiment_by_name(self.name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"its experiment {self.config.experiment} was deleted; "
                    f"mlflow experiments restore --experiment-id {found.experiment_id} brings it back, and "
                    "tracking.experiment=NAME logs to another"
                )
            return str(found.experiment_id)
        # A server knows where its artifacts go. A bare database would put them into the working directory.
        artifacts = folder_address(self.outputs / "mlartifacts") if self.is_database else None
        try:
            return client.create_experiment(self.name, artifacts)
        except Exception as error:
            # By another machine, or for a first request whose answer was lost.
            made = getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"
            if not made or (found := client.get_experiment_by_name(self.name)) is None:
                raise
            return str(found.experiment_id)

    def parent(
        self,
        client: "MlflowClient",
        experiment: str,
        sweep: str,
        start_ms: int,
        swept: list[str],
        running: bool = False,
    ) -> "Run":
        """The run that all jobs of a sweep belong to, which is made if it is not there; `running` opens it again.

        The file in the sweep's folder tells which one it is. The tag does where the folder was moved to another
        machine, or the sweep is logged to a second store.
        """
        path = Path(sweep) / PARENT_FILE
        run = None
        kept = read_object(path)
        known, here = str(kept.get("run_id")), (place_of(str(kept.get("uri"))), kept.get("experiment_id"))
        if here == (place_of(self.uri), experiment) and re.fullmatch(r"\w+", known):
            run = first_run(client, experiment, f"attributes.run_id = '{known}'")
        run = run or self.one_run(client, experiment, SWEEP_TAG, sweep)
        if run is None:
            varied = " × ".join(short_keys([override.partition("=")[0] for override in swept]).values())
            name = " ".join(["sweep", *([varied] if varied else []), "/".join(Path(sweep).parts[-2:])])
            tags = {SWEEP_TAG: sweep, "mlflow.source.name": "gptbench"}
            run = self.create(client, experiment, start_ms, tags, name, SWEEP_TAG)
        elif running:
            client.update_run(run.info.run_id, status="RUNNING")
        if path.parent.is_dir():
            kept = {"uri": redacted(self.uri), "experiment_id": experiment, "run_id": run.info.run_id}
            write_json(path, kept)
        return run

    def end_parent(self, client: "MlflowClient", parent: str, record: Record) -> None:
        """Moves the end of a sweep's parent on to that of the job; one that failed marks it for good."""
        info = client.get_run(parent).info
        status = "FAILED" if "FAILED" in (info.status, record.status) else "FINISHED"
        client.set_terminated(parent, status, max(info.end_time or 0, record.end_ms))


def folder_address(folder: Path) -> str:
    """Of a folder for artifacts: its path, unless MLflow would take that for a quoted one."""
    return folder.as_uri() if "%" in str(folder) else str(folder)


PLAIN_VALUE = re.compile(r"[\w /:.,=+@~-]*", re.ASCII)
"""Text that a filter of MLflow's takes in quotes as it is; there is no way to quote a quote in one."""


def runs_with_tag(client: "MlflowClient", experiment: str, tag: str, value: str) -> list["Run"]:
    """Runs that are not deleted and whose tag has the value, whatever is in that."""
    if PLAIN_VALUE.fullmatch(value):
        return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'"))
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{tag}` LIKE '%'", page_token=token)
        found += [run for run in page if run.data.tags.get(tag) == value]
        if not (token := page.token):
            return found


def first_run(client: "MlflowClient", experiment: str, condition: str) -> "Run | None":
    """The run of the experiment for which the condition holds, unless it was deleted."""
    return next(iter(client.search_runs([experiment], condition, max_results=1)), None)


def charts_of_jobs(experiment: str, parent: str) -> str:
    """Where MLflow's pages show charts of a sweep's jobs, the fastest first. In the list of all runs they are folded up
    under their parent, and the charts beside it know nothing of them."""
    query = charts_query(f"tags.mlflow.parentRunId = '{parent}'", HEADLINE)
    return f"#/experiments/{experiment}/runs?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


def touched(path: Path) -> int | None:
    """When a file last was, in the clock of where it lies; None where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def milliseconds(iso: str) -> int:
    """Since 1970."""
    return round(datetime.datetime.fromisoformat(iso).timestamp() * 1000)


def make_record(result: Recorded, result_path: Path, name: str | None) -> Record:
    """What is logged of a result; `name` is the run's, or None for one made of what was run."""
    start = datetime.datetime.fromisoformat(result.started).timestamp()
    if isinstance(result, SweepRecord):
        own = sweep_record(result, start)
    elif isinstance(result, Failure):
        own = failure_record(result, start)
    elif isinstance(result, AbResult):
        own = ab_record(result, start)
    else:
        assert isinstance(result, Measured)
        own = run_record(result, start) if isinstance(result, Result) else kernel_record(result, start)
    groups = ("model", "quant") if not isinstance(result, SweepRecord) else ()
    command = shlex.join(result.command)
    tags: dict[str, str | None] = {  # MLflow shows them in this order: first what one filters by
        **{group: result.config[group]["name"] for group in groups},
        **own.tags,
        "task": result.config["task"]["name"] if "task" in result.config else None,
        **(where(result) if isinstance(result, Measured) else {}),
        "baseline": result.config.get("baseline", {}).get("name"),
        "sweep": result.sweep,
        "identity": result.identity,
        RESULT_TAG: hashlib.sha256(result_path.read_bytes()).hexdigest(),
        "gptbench.command": command,
        "mlflow.source.name": "gptbench",
        NOTE_TAG: f"{own.tags.get(NOTE_TAG, '')}\n\n`` {command} ``".lstrip(),
    }
    values = () if isinstance(result, SweepRecord) else flat(params_of(result.config))
    return replace(
        own,
        name=redacted(" ".join([*swept_name(result.swept), name or own.name])),
        params=[
            *((clean(redacted(key)), redacted(value)[:MOST_CHARACTERS]) for key, value in values),
            *redacted(own.params),
        ],
        tags={key: redacted(value)[:MOST_CHARACTERS] for key, value in tags.items() if value is not None},
    )


NO_PARAMS = ("baseline", "sweep", "tracking", "outputs", "commit")
"""Sections and fields that are not logged as params: what a run is compared with, belongs to, or is written to. They
are in config.yaml among the artifacts, and the baseline's name is a tag."""


def params_of(config: dict[str, Any]) -> dict[str, Any]:
    """What of the configuration is logged as params: what says how a run was measured. MLflow's table of runs opens
    without any metric where there are too many params to choose from."""

    def without_targets(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: without_targets(value) if isinstance(value, dict) else value
            for key, value in values.items()
            if key != "_target_"
        }

    return without_targets({key: value for key, value in config.items() if key not in NO_PARAMS})


def where(result: Measured) -> dict[str, str | None]:
    """Tags of the place that a number comes from."""
    here = result.environment
    return {
        "dtype": result.dtype,
        "commit": here.commit,
        "device": here.device,
        "driver": here.driver,
        BUSY_TAG: "; ".join(busy(result)) or None,
        "power_limit_w": None if here.power_limit_w is None else f"{here.power_limit_w:g}",
        **{library: here.libraries[library] for library in ("torch", "triton") if library in here.libraries},
    }


def swept_name(swept: list[str]) -> list[str]:
    """What distinguishes a job of a sweep from the others, for the beginning of its name: `top_k=5`; of several
    overrides first all values, `5/0.8 top_k/temperature`, as MLflow's list of runs shows some fifteen characters."""
    values = dict(override.split("=", 1) for override in swept if "=" in override)
    short = short_keys(list(values))
    if len(values) < 2:
        return [f"{short[key]}={value}" for key, value in values.items()]
    return ["/".join(values.values()), "/".join(short[key] for key in values)]


def run_record(result: Result, start: float) -> Record:
    """What is of a run alone; it began at `start`, in seconds since 1970."""
    names = {group: result.config[group]["name"] for group in ("model", "engine", "sampling")}
    # Not what an earlier job of the sweep has paid.
    seconds = result.load_s if result.reused is None else 0.0
    seconds += sum(compilation.prepare_s for compilation in result.compilations if not compilation.shared)
    seconds += sum(warm_up.call_s for warm_up in result.warm_ups) + sum(sample.call_s for sample in result.samples)
    tags = {
        "engine": names["engine"],
        "sampling": names["sampling"],
        "weights": "seeded random" if result.checkpoint is None else result.checkpoint.folder,
    }
    if result.compilations:
        tags["compile_cache"] = result.compilations[0].cache
    if told := told_in_brief(result):
        tags[NOTE_TAG] = told
    return Record(
        name=f"{names['model']}-{weights_of(result)}-{names['engine']}-b{result.config['workload']['batch_size']}",
        start_ms=round(start * 1000),
        end_ms=round((start + seconds) * 1000),
        status="FINISHED" if all(sample.finite for sample in result.samples) else "FAILED",
        params=[("prompt_tokens", str(len(result.prompt)))],
        metrics=list(metrics(result)),
        tags=tags,
    )


def kernel_record(result: Measured, start: float) -> Record:
    """What is of `task=kernels` alone."""
    assert isinstance(result, KernelResult)
    return Record(
        name=f"kernels-{result.config['model']['name']}-{weights_of(result)}",
        start_ms=round(start * 1000),
        end_ms=round((start + result.wall_s) * 1000),
        status="FAILED" if any(kernel.failed for kernel in result.kernels) else "FINISHED",
        params=[],
        metrics=[(name, value, 0) for name, value in kernel_summary(result).items()],
        tags={},
    )


def failure_record(result: Failure, start: float) -> Record:
    """What is of a failure alone."""
    names = {group: result.config[group]["name"] for group in ("model", "engine")}
    batch = result.config["workload"]["batch_size"]
    return Record(
        name=f"{names['model']}-{weights_of(result)}-{names['engine']}-b{batch}",
        start_ms=round(start * 1000),
        end_ms=round((start + result.seconds) * 1000),
        status="FAILED",
        params=[],
        metrics=[],
        tags={
            "engine": names["engine"],
            "failure": result.cause,
            NOTE_TAG: f"**{result.cause}**: {result.reason}",
            **({} if result.commit is None else {"commit": result.commit}),
        },
    )


def ab_record(result: AbResult, start: float) -> Record:
    """What is of an interleaved measurement: the samples of both sides, and the mean ratio."""
    sampled = [
        (f"sample_{name}/{metric}", value, step)  # MLflow shows sections by name: after `brief`
        for name in result.sides
        for step, sample in enumerate(result.samples(name))
        if not sample.compiles
        for metric, value in interleaved_metrics(result, name, sample).items()
    ]
    values: dict[str, list[float]] = {}
    for name, value, _ in sampled:
        side, metric = name.removeprefix("sample_").split("/")
        values.setdefault(f"brief/{side}_{metric}", []).append(value)
    middles = {name: statistics.median(each) for name, each in values.items()}
    for one in shown_in(View.interleaved):
        if one.share is not None:  # as `gptbench ab` shows them
            sides = zip(result.sides, zip(*log_middles(result, one.name), strict=True), strict=False)
            middles |= {f"brief/{name}_{one.name}": math.exp(statistics.fmean(each)) for name, each in sides}
    known = log_ratios(result)
    ratios = {HEADLINE: math.exp(statistics.fmean(known))} if known else {}
    finite = all(sample.finite for name in result.sides for sample in result.samples(name))
    unfinished = {"failed": "FAILED", "killed": "KILLED"}
    return Record(
        name=f"ab-{result.config['model']['name']}",
        start_ms=round(start * 1000),
        end_ms=round((start + result.seconds) * 1000),
        status=unfinished.get(result.ended, "FINISHED" if finite else "FAILED"),
        params=[(name, " ".join(side.overrides)) for name, side in result.sides.items()],
        metrics=[
            *((f"brief/B_over_A_{metric}", ratio, 0) for metric, ratio in ratios.items()),
            *((name, value, 0) for name, value in middles.items()),
            *sampled,
        ],
        tags={"rounds": str(len(result.rounds)), "ended": result.ended},
    )


def sweep_record(result: SweepRecord, start: float) -> Record:
    """What is of a sweep itself: its parent run."""
    counts = {f"jobs_{name.replace(' ', '_')}": float(count) for name, count in result.counts.items()}
    return Record(
        name="",
        start_ms=round(start * 1000),
        end_ms=milliseconds(result.ended),
        status=result.status,
        params=[],
        metrics=[(name, value, 0) for name, value in ({"jobs": float(len(result.jobs))} | counts).items()],
        tags={NOTE_TAG: result.markdown(), ENDED_TAG: result.ended},
    )


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a nested dict but None, as text under its dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def metrics(result: Result) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number that is logged. MLflow's pages keep the order, and the plot of its page that
    compares runs begins with the first."""
    medians = summary(result)
    for each in brief(medians):
        yield f"brief/{each.brief}", medians[each.name] * each.factor, 0
    for name, value in medians.items():
        yield name, value, 0
    for step, sample in enumerate(result.samples):
        yield "sample/compiles", float(sample.compiles), step
        if sample.state is not None:
            yield "sample/throttled", float(sample.throttled), step
        if not sample.compiles:
            for name, value in sample_metrics(result, sample).items():
                yield f"sample/{name}", value, step
    named = {compilation_name(each): each for each in reversed(result.compilations) if each.cache != "none"}
    for whose, compilation in named.items():  # of two that met the same, the first
        for stage, seconds in compilation.costs_s.items():
            yield f"compile_stage/{whose}/{stage}", seconds, 0


def told_in_brief(result: Result) -> str:
    """A run's few numbers in a line; nothing without a valid sample."""
    medians = summary(result)
    return ", ".join(
        f"{each.label} {number(medians[each.name] * each.factor)} {each.unit}".strip() for each in brief(medians)
    )


def brief(known: dict[str, float]) -> list[Metric]:
    """Of a summary, what runs are compared by, as ``brief/<key>`` in the unit that people read: MLflow's charts and
    comparisons show two or three decimals, which leave nothing of seconds; and charts are grouped by what stands before
    the slash, in alphabetical order, those without one last."""
    return [each for each in METRICS.values() if each.brief is not None and each.name in known]


def clean(key: str) -> str:
    """The key with only such characters as MLflow takes in a name. It takes a slash, too, but reads it as a path."""
    return re.sub(r"[^\w.\- ]", "_", key)


def write_artifacts(result: Recorded, result_path: Path, folder: Path, figures: bool) -> None:
    """The record itself, its configuration to run it again, and what is in it as tables, texts, traces and, if
    `figures`, pictures."""
    shutil.copyfile(result_path, folder / f"{result.FILE}.json")
    if isinstance(result, SweepRecord):
        write_table(folder / "jobs.csv", *result.table())
        if figures:
            draw(counting_jobs(result, result_path), folder)
        return
    if isinstance(result, Failure) and result.traceback is not None:
        (folder / "traceback.txt").write_text(result.traceback, encoding="utf-8")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(result.config)))
    if isinstance(result, Result):
        write_run(result, folder)
    if isinstance(result, KernelResult):
        rows = [asdict(row) for row in all_metrics(result)]
        write_table(folder / "kernels.csv", list(rows[0]) if rows else [], [list(row.values()) for row in rows])
    if figures and isinstance(result, (Result, KernelResult)):
        draw([result], folder)


def draw(records: list[Result | KernelResult], folder: Path) -> None:
    """Pictures of records, in a folder within that one."""
    for name, error in write_figures(records, folder / "figures").items():
        print(f"Not drawn: {name}: {error!r}", file=sys.stderr)


def counting_jobs(sweep: SweepRecord, sweep_path: Path) -> list[Result | KernelResult]:
    """Measurements of a sweep's jobs that mean something, each once."""
    records: list[Result | KernelResult] = []
    for path in sweep.job_records(sweep_path.parent):
        try:
            record = load_record(path)
            if isinstance(record, (Result, KernelResult)) and problem(record) is None:
                records.append(record)
        except Exception as error:  # the sweep's record is worth more than one job in its pictures
            print(f"Not drawn: {path}: {error!r}", file=sys.stderr)
    return records


def log_files(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """All that lies in a folder."""
    client.log_artifacts(run_id, str(folder))


def write_run(result: Result, folder: Path) -> None:
    """Every decode step as a table, compile time as a picture, what was generated, and a profiled step."""
    draw_compile_stages(result, folder / "compile.png")
    if any(sample.text for sample in result.samples):
        texts = [
            f"{result.prompt_texts[row] if result.prompt_texts else result.prompt_text}{text}"
            for sample in result.samples
            for row, text in enumerate(sample.text)
        ]
        separated = "\n\n----\n\n".join(texts)
        (folder / "text.txt").write_text(separated + "\n", encoding="utf-8")
    steps: list[list[Any]] = []
    for index, sample in enumerate(result.samples):
        own, traffic = Steps(sample), result.traffic
        read, tokens = own.of_rows(traffic.positions_read), own.tokens.sum(axis=1)
        each = zip(sample.step_s, own.needed(traffic), own.moved(traffic), read, tokens, strict=True)
        steps += ([index, step, *values] for step, values in enumerate(each))
    columns = ["sample", "step", "seconds", "bytes", "bytes_moved", "positions_read", "tokens"]
    write_table(folder / "steps.csv", columns, steps)
    if result.breakdown is not None:
        write_trace(result.breakdown, result.roof.gb_per_s, folder / "trace.json")
        rows = [asdict(share) | {"gb_per_s": share.gb_per_s} for share in result.breakdown.by_kernel()]
        write_table(folder / "breakdown.csv", list(rows[0]), [list(row.values()) for row in rows])


def write_trace(breakdown: Breakdown, roof_gb_per_s: float, path: Path) -> None:
    """The profiled step for Perfetto."""
    write_json(path, chrome_trace(breakdown, roof_gb_per_s), indent=None)


def write_table(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def mlflow_settings(config: MLflowConfig) -> dict[str, str | None]:
    """Environment variables, which is where MLflow reads these from; None is for one that must not be there."""
    seconds = str(math.ceil(config.timeout_s))  # MLflow refuses fractions
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": seconds,
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": seconds,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(config.retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # which may be hours
        "PGCONNECT_TIMEOUT": seconds,  # of PostgreSQL's own library, without a server of MLflow's
        "MLFLOW_ACTIVE_MODEL_ID": None,  # each metric would be tied to that model, too
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # our last line there is JSON
        "MLFLOW_LOGGING_LEVEL": "ERROR",  # what goes wrong is in our own error
        "MLFLOW_DISABLE_TELEMETRY": "true",  # its threads would run on while a sweep's next job is timed
    }


@contextlib.contextmanager
def environment_variables(values: dict[str, str | None]) -> Iterator[None]:
    """Sets environment variables for a while, and removes those that are to be None."""
    before = {name: os.environ.get(name) for name in values}
    set_environment(values)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def reason(error: BaseException) -> str:
    """An error in one line. What the operating system said explains more than what was made of it on the way up."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    system = [(cause.strerror or str(cause)).strip() for cause in chain if isinstance(cause, OSError)]
    said = [text for text in system if text]
    return (said[-1] if said else str(error).strip() or repr(error)).splitlines()[0]


def place_of(uri: str) -> str:
    """Of a store, whoever asks it: its address without user and password."""
    return redacted(uri).replace(f"{HIDDEN}@", "")
