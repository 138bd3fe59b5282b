"""Where a result is logged beside its `result.json`: nowhere, or to MLflow.

A result is logged as a whole and after the measurement, from nothing but what `result.json` holds; so `gptbench log`
can do the same at any later time. MLflow is imported only then: it takes seconds, and runs nothing while a run is
timed.
"""

import argparse
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
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import OmegaConf

from gptbench.config import MLflowConfig, TrackingConfig
from gptbench.errors import TrackingError, UserError
from gptbench.measure.breakdown import Breakdown, chrome_trace
from gptbench.record.charts import draw_compile_stages
from gptbench.record.kernels import KernelResult, all_metrics, kernel_summary
from gptbench.record.result import Recorded, Result, redacted
from gptbench.record.statistics import compilation_name, sample_metrics, summary

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RESULT_TAG = "gptbench.result"
"""sha256 of `result.json`: by it a result is known again."""
SWEEP_TAG = "gptbench.sweep"
"""Folder of the sweep, on its parent run."""
PARENT_TAG = "mlflow.parentRunId"
PARENT_FILE = "mlflow_parent.json"
"""In the folder of a sweep: uri, experiment_id and run_id of its parent run."""
MOST_CHARACTERS = 6000
"""Of a param; MLflow takes more of a tag, but not much."""


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


class NoTracker(Tracker):
    """Logs nothing."""

    def log(self, result: Recorded, result_path: Path) -> None:
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
    runs, the medians, has the plain name.
    """

    config: MLflowConfig

    def __init__(self, config: MLflowConfig, outputs: Path) -> None:
        super().__init__(config, outputs)
        self.uri = config.uri or f"sqlite:///{self.outputs / 'mlflow.db'}"
        # Several processes that open a new SQLite store at once break its migrations, and would each make the
        # experiment, or the sweep's parent.
        self.lock = FileLock(self.outputs / "mlflow.lock")

    def log(self, result: Recorded, result_path: Path) -> str:
        record = make_record(result, result_path, self.config.run_name)
        try:
            with environment_variables(mlflow_settings(self.config)):
                return self.send(record, result, result_path)
        except Exception as error:  # stores, servers and plugins raise whatever they like
            raise TrackingError(
                f"tracking.uri={redacted(self.uri)}: {reason(error)}\n"
                f"The result is kept. To log it later: gptbench log {shlex.quote(str(result_path))}"
            ) from error

    def send(self, record: Record, result: Recorded, result_path: Path) -> str:
        """Finds or makes the run, and fills it. All of it can be done twice: MLflow keeps an equal metric once."""
        import mlflow.store.db.utils
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        # Otherwise it tries to open a database ten times, which takes 100 s.
        mlflow.store.db.utils.MAX_RETRY_COUNT = self.config.retries + 1
        self.outputs.mkdir(parents=True, exist_ok=True)
        with self.lock:
            client = MlflowClient(self.uri)
            experiment = self.experiment(client)
            run = first_run(client, experiment, f"tags.`{RESULT_TAG}` = '{record.tags[RESULT_TAG]}'")
            if run is not None and run.info.status != "RUNNING":
                return f"already logged: {self.describe(run)}"
            parent = self.parent(client, experiment, result.sweep, record) if result.sweep else None
            if run is None:
                tags = record.tags | ({PARENT_TAG: parent} if parent else {})
                run = client.create_run(experiment, record.start_ms, tags, record.name)

        run_id = run.info.run_id
        params = [Param(key, value) for key, value in record.params]
        metrics = [Metric(key, value, record.end_ms, step) for key, value, step in record.metrics]
        client.log_batch(run_id, metrics, params, synchronous=True)  # splits what is too much for one request
        with tempfile.TemporaryDirectory() as folder:
            write_artifacts(result, result_path, Path(folder))
            client.log_artifacts(run_id, folder)
        if parent:
            self.end_parent(client, parent, record)
        client.set_terminated(run_id, record.status, record.end_ms)  # last: a run that ended is complete
        return self.describe(run)

    def describe(self, run: "Run") -> str:
        return f"MLflow run {run.info.run_name} {run.info.run_id} in {redacted(self.uri)}"

    def experiment(self, client: "MlflowClient") -> str:
        """Id of the experiment, which is made if it is not there."""
        found = client.get_experiment_by_name(self.config.experiment)
        if found is not None:
            return str(found.experiment_id)
        # A server knows where its artifacts go. A bare SQLite store would put them into the working directory.
        artifacts = str(self.outputs / "mlartifacts") if self.uri.startswith("sqlite:") else None
        return client.create_experiment(self.config.experiment, artifacts)

    def parent(self, client: "MlflowClient", experiment: str, sweep: str, record: Record) -> str:
        """Id of the run that all jobs of a sweep belong to; the first job makes it.

        The file in the sweep's folder tells which one it is. The tag does where the folder was moved to another
        machine, or the sweep is logged to a second store.
        """
        path = Path(sweep) / PARENT_FILE
        run = None
        if path.exists():
            kept = json.loads(path.read_text())
            if (kept["uri"], kept["experiment_id"]) == (redacted(self.uri), experiment):
                run = first_run(client, experiment, f"attributes.run_id = '{kept['run_id']}'")
        run = run or first_run(client, experiment, f'tags.`{SWEEP_TAG}` = "{sweep}"')
        if run is None:
            name = "sweep " + "/".join(Path(sweep).parts[-2:])
            tags = {SWEEP_TAG: sweep, "mlflow.source.name": "gptbench"}
            run = client.create_run(experiment, record.start_ms, tags, name)
        if path.parent.is_dir():
            kept = {"uri": redacted(self.uri), "experiment_id": experiment, "run_id": run.info.run_id}
            path.write_text(json.dumps(kept, indent=1))
        return str(run.info.run_id)

    def end_parent(self, client: "MlflowClient", parent: str, record: Record) -> None:
        """Moves the end of a sweep's parent on to that of the job; one that failed marks it for good."""
        with self.lock:
            info = client.get_run(parent).info
            status = "FAILED" if "FAILED" in (info.status, record.status) else "FINISHED"
            client.set_terminated(parent, status, max(info.end_time or 0, record.end_ms))


def first_run(client: "MlflowClient", experiment: str, condition: str) -> "Run | None":
    """The run of the experiment for which the condition holds, unless it was deleted."""
    return next(iter(client.search_runs([experiment], condition, max_results=1)), None)


def make_record(result: Recorded, result_path: Path, name: str | None) -> Record:
    """What is logged of a result; `name` is the run's, or None for one made of what was run."""
    start = datetime.datetime.fromisoformat(result.started).timestamp()
    own = run_record(result, start) if isinstance(result, Result) else kernel_record(result, start)
    names = {group: result.config[group]["name"] for group in ("model", "quant")}
    here = result.environment
    tags: dict[str, str | None] = {
        RESULT_TAG: hashlib.sha256(result_path.read_bytes()).hexdigest(),
        "gptbench.command": shlex.join(result.command),
        "mlflow.source.name": "gptbench",
        **names,
        "dtype": result.dtype,
        "task": result.config["task"]["name"] if "task" in result.config else None,
        "sweep": result.sweep,
        "commit": here.commit,
        "device": here.device,
        "driver": here.driver,
        "power_limit_w": None if here.power_limit_w is None else f"{here.power_limit_w:g}",
        **{library: here.libraries[library] for library in ("torch", "triton") if library in here.libraries},
    }
    return replace(
        own,
        name=name or own.name,
        params=[*((clean(key), value[:MOST_CHARACTERS]) for key, value in flat(result.config)), *own.params],
        tags={key: value[:MOST_CHARACTERS] for key, value in (tags | own.tags).items() if value is not None},
    )


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
    return Record(
        name=f"{names['model']}-{weights_of(result)}-{names['engine']}-b{result.config['workload']['batch_size']}",
        start_ms=round(start * 1000),
        end_ms=round((start + seconds) * 1000),
        status="FINISHED" if all(sample.finite for sample in result.samples) else "FAILED",
        params=[("prompt_tokens", str(len(result.prompt)))],
        metrics=list(metrics(result)),
        tags=tags,
    )


def kernel_record(result: Recorded, start: float) -> Record:
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


def weights_of(result: Recorded) -> str:
    """How weights are stored: the quantisation, or the type of those that have none."""
    quant: str = result.config["quant"]["name"]
    return result.dtype if quant == "none" else quant


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a nested dict but None, as text under its dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def metrics(result: Result) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number that is logged."""
    for step, sample in enumerate(result.samples):
        yield "sample_compiles", float(sample.compiles), step
        if not sample.compiles:
            for name, value in sample_metrics(result, sample).items():
                yield f"sample/{name}", value, step
    for name, value in summary(result).items():
        yield name, value, 0
    named = {compilation_name(each): each for each in reversed(result.compilations) if each.cache != "none"}
    for whose, compilation in named.items():  # of two that met the same, the first
        for stage, seconds in compilation.costs_s.items():
            yield f"compile_stage/{whose}/{stage}", seconds, 0


def clean(key: str) -> str:
    """The key with only such characters as MLflow takes in a name. It takes a slash, too, but reads it as a path."""
    return re.sub(r"[^\w.\- ]", "_", key)


def write_artifacts(result: Recorded, result_path: Path, folder: Path) -> None:
    """The record itself, its configuration to run it again, and what is in it as tables, texts and traces."""
    shutil.copyfile(result_path, folder / f"{result.FILE}.json")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(result.config)))
    if isinstance(result, Result):
        write_run(result, folder)
    if isinstance(result, KernelResult):
        rows = [asdict(row) for row in all_metrics(result)]
        write_table(folder / "kernels.csv", list(rows[0]) if rows else [], [list(row.values()) for row in rows])


def write_run(result: Result, folder: Path) -> None:
    """Every decode step as a table, compile time as a picture, what was generated, and a profiled step."""
    draw_compile_stages(result, folder / "compile.png")
    if any(sample.text for sample in result.samples):
        texts = [text for sample in result.samples for text in sample.text]
        separated = "\n\n----\n\n".join(f"{result.prompt_text}{text}" for text in texts)
        (folder / "text.txt").write_text(separated + "\n", encoding="utf-8")
    steps: list[list[Any]] = []
    for number, sample in enumerate(result.samples):
        moved = zip(sample.step_s, result.traffic.steps, result.traffic.positions_read, strict=True)
        steps += ([number, step, *values] for step, values in enumerate(moved))
    write_table(folder / "steps.csv", ["sample", "step", "seconds", "bytes", "positions_read"], steps)
    if result.breakdown is not None:
        write_trace(result.breakdown, result.roof.gb_per_s, folder / "trace.json")
        rows = [asdict(share) | {"gb_per_s": share.gb_per_s} for share in result.breakdown.by_kernel()]
        write_table(folder / "breakdown.csv", list(rows[0]), [list(row.values()) for row in rows])


def write_trace(breakdown: Breakdown, roof_gb_per_s: float, path: Path) -> None:
    """The profiled step for Perfetto."""
    path.write_text(json.dumps(chrome_trace(breakdown, roof_gb_per_s)), encoding="utf-8")


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
    system = [cause.strerror for cause in chain if isinstance(cause, OSError) and cause.strerror]
    return system[-1] if system else (str(error).strip() or repr(error)).splitlines()[0]


def load_record(path: Path) -> Recorded:
    """A record of either kind.

    Raises:
        UserError: it is of none.
    """
    try:
        of_kernels = "kernels" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        of_kernels = False  # `load` tells what is wrong
    return KernelResult.load(path) if of_kernels else Result.load(path)


def log_command(arguments: list[str]) -> int:
    """`gptbench log`: logs recorded results. Returns the exit code.

    Raises:
        UserError: a file is not a result (then nothing is logged), or the store refuses one.
    """
    parser = argparse.ArgumentParser(
        prog="gptbench log",
        description="Logs recorded results to MLflow; what is there already is left as it is.",
        epilog="Without options, a result goes where its own configuration says; one that was recorded with "
        "tracking=none goes to the store in the outputs folder.",
    )
    parser.add_argument("results", metavar="RESULT", nargs="+", type=Path, help="a result.json or kernels.json")
    parser.add_argument("--uri", help="MLflow tracking server or store")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment")
    parser.add_argument("--outputs", metavar="DIR", type=Path, help="outputs folder, with the embedded store")
    options = parser.parse_args(arguments)
    changes = {"uri": options.uri, "experiment": options.experiment}
    results = [(path, load_record(path)) for path in options.results]
    for path, result in results:
        try:
            section = result.config["tracking"]
            if section["_target_"] not in MLflowConfig.TARGETS:
                section = {"_target_": MLflowConfig.TARGETS[0], "name": "mlflow"}
            config = MLflowConfig(**section)
            outputs = options.outputs or Path(result.config["outputs"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: its configuration has no usable tracking section: {error!r}") from error
        config = replace(config, **{key: value for key, value in changes.items() if value is not None})
        print(MLflowTracker(config, outputs).log(result, path))
    return 0
