"""The whole record of a run, as `result.json` holds it: raw samples with units; statistics are computed when read.

The file is one JSON object with the fields of `Result`, nested as the dataclasses are; names end in their unit
(`_s` seconds, `_bytes`, `_w` watts, GB = 1e9 bytes). A change that an older reader would misread raises
`SCHEMA_VERSION`; one that computes other statistics of the same samples does, too, as baselines keep statistics alone.

Version 2: percentiles of decode steps are of the pooled steps of all valid samples; before, they were the median of the
samples' own. The files of both versions are alike.
"""

import contextlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from gptbench.base.errors import InputError, UserError
from gptbench.base.inputs import read_json
from gptbench.base.outputs import as_json, whole_file
from gptbench.base.redaction import redacted, redacted_message
from gptbench.config import MOVED_TARGETS, Dtype
from gptbench.schema.breakdown import Breakdown
from gptbench.schema.compilation import Compilation, costs
from gptbench.schema.energy import Energy
from gptbench.schema.machine import Environment, Probe, Roof
from gptbench.schema.quality import Predictions
from gptbench.schema.restore import check_config, is_time, require, restored
from gptbench.schema.sample import Sample, Traffic, WarmUp

SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Versions of files that are read."""
NOT_OURS = "not a result of gptbench"


@dataclass(frozen=True)
class Loaded:
    """What was read, for the record."""

    folder: str
    files: list[str]
    bytes: int
    """Of all files together."""
    headers_sha256: str
    """Of every tensor's name, file, shape and type, and every file's size: tells checkpoints of one shape apart only
    where these differ."""


@dataclass(kw_only=True)
class Recorded:
    """What every record begins with, and how it becomes a file."""

    FILE: ClassVar[str]
    """Name of the file, without `.json`."""

    started: str
    """When, ISO 8601."""
    command: list[str]
    """Command line that repeats it."""
    sweep: str | None
    """Folder of the sweep that it belongs to."""
    config: dict[str, Any]
    """The whole configuration, as the groups in conf/ have it, resolved."""
    swept: list[str] = field(default_factory=list)
    """Of a job, the overrides that the sweep varies, such as `sampling.top_k=5`."""
    identity: str | None = None
    """What was measured, by what code, on what device: see `gptbench.record.identity`."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        self.command, self.config = redacted(self.command), redacted(self.config)
        self.swept = redacted(self.swept)

    def save(self, folder: Path) -> Path:
        """Writes `FILE.json` to the folder, all of it or none; never over another one: a second one becomes
        `FILE-2.json`."""
        number = 1
        with whole_file(folder, as_json(asdict(self))) as new:
            while True:
                path = folder / (f"{self.FILE}.json" if number == 1 else f"{self.FILE}-{number}.json")
                try:
                    os.link(new, path)
                    return path
                except FileExistsError:
                    number += 1
                except OSError:  # a file system without hard links
                    if not path.exists():
                        new.replace(path)
                        return path
                    number += 1

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            UserError: the file is not there, or no such result, or of another schema version.
        """
        return cls.of(read_record(path), path)

    @classmethod
    def of(cls, raw: dict[str, Any], path: Path) -> Self:
        """The same of what is in the file."""
        try:
            if raw.get("schema_version") not in READABLE:
                known = " and ".join(map(str, READABLE))
                told = raw.get("schema_version", "nothing")
                raise InputError(f"schema_version={told}, and this gptbench reads {known}")
            rename_targets(raw.get("config"))
            cls.upgrade(raw)
            record = restored(cls, raw)
            record.check()
            return record
        except InputError as error:
            raise UserError(f"{path}: {NOT_OURS}: {error}") from error

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        """Makes up, in place, for what a record of an older version does not hold. It may hold anything else."""

    def check(self) -> None:
        """Raises InputError where fields that are right each by itself do not go together, or the configuration lacks
        what a record is named by."""
        require(is_time(self.started), "started", "a time, ISO 8601")
        check_config(self.config, "config")


@dataclass(kw_only=True)
class Measured(Recorded):
    """What every record of a measurement has."""

    environment: Environment
    dtype: str
    """Type of activations, KV cache and unquantised weights."""
    roof: Roof
    """Of the device, as used for MBU: the highest rate seen until then, these probes included."""
    probes: list[Probe] = field(default_factory=list)
    """Short measurements of the same rate before and after what was measured; of interleaved ones, each round has its
    own. Empty in a record of a version that took none, and where the device had no memory for it."""

    failures: dict[str, str] = field(default_factory=dict)
    """Traceback of each thing that was to be measured beside the samples and failed: breakdown, energy, quality,
    warm start, a probe of the read roof."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.failures = {what: redacted_message(trace) for what, trace in self.failures.items()}

    def check(self) -> None:
        super().check()
        require(self.dtype in {dtype.value for dtype in Dtype}, "dtype", "a type of numbers")


@dataclass(kw_only=True)
class Result(Measured):
    """One run."""

    FILE: ClassVar[str] = "result"

    load_s: float
    """Seconds to make and fill the weights."""
    prepare_peak_memory_bytes: int
    """Most memory in use while the weights were made, and the engine prepared and warmed up."""
    memory_need_bytes: dict[str, int]
    """What the run was expected to need before it was started: weights, kv_cache, workspace."""
    traffic: Traffic
    compilations: list[Compilation]
    """First the one before the samples, then, if measured, that of a second process, or what earlier jobs paid for what
    this one took over."""
    warm_ups: list[WarmUp]
    samples: list[Sample]
    prompt: list[int] = field(default_factory=list)
    """Token ids of the prompt that each row got, or, where they differ, the first."""
    prompts: list[list[int]] = field(default_factory=list)
    """Those of each row where they differ; empty where all rows got the same, as in every record of a version that does
    not have this field."""
    prompt_text: str | None = None
    """`prompt` as text, without a begin-of-text token, if the model has a tokenizer."""
    prompt_texts: list[str] = field(default_factory=list)
    """`prompts` as text."""
    checkpoint: Loaded | None = None
    """What the weights were read from; None where they are seeded."""
    quality: Predictions | None = None
    """What came of predicting a text, if the task was to."""
    engine_choice: list[str] | None = None
    """Of `engine=auto`: what each engine that is faster as a rule lacked; None where an engine was asked for."""
    engine_details: dict[str, Any] = field(default_factory=dict)
    """What the engine says of itself beyond its configuration, such as the tiles that its kernels used."""
    tune_s: float | None = None
    """Seconds of the search for tiles, if one was asked for; no part of any compile time."""
    reused: str | None = None
    """When the earlier job of the sweep began that made the weights which this one took over: `load_s` is that job's.
    None where it made its own."""
    breakdown: Breakdown | None = None
    """Where the time of one decode step goes, if the task was to tell."""
    energy: Energy | None = None
    """What prefill and decode use, if the task was to tell, and the device does."""

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        for entry in of_list(raw.get("compilations")):  # of a version that did not sum them up
            if isinstance(entry, dict) and "costs_s" not in entry:
                with contextlib.suppress(TypeError, AttributeError):  # they are not what they should be, which is told
                    stages: Any = entry.get("stages_s")
                    prepare_s: Any = entry.get("prepare_s")
                    entry["costs_s"] = costs(prepare_s, stages, triton_s=0.0, capture_s=0.0) if stages else {}
        if "prompt" not in raw:
            with contextlib.suppress(KeyError, TypeError, AttributeError):
                raw["prompt"] = raw["config"]["workload"].get("prompt")

    def check(self) -> None:
        super().check()
        moved, steps = self.traffic, len(self.traffic.positions_read)
        require(steps > 0, "traffic.positions_read", "a number for each step")
        require(len(moved.positions_filled) == steps, "traffic.positions_filled", f"{steps} numbers, one for each step")
        for name in ("positions_attended", "positions_moved", "kv_needed", "kv_moved"):
            require(len(getattr(moved, name)) in (0, steps), f"traffic.{name}", f"{steps} numbers, or none")
        for number, sample in enumerate(self.samples):
            place = f"samples[{number}]"
            check_sample(sample, place)
            told = f"{steps} numbers, one for each step of traffic"
            require(bool(sample.step_tokens) or len(sample.step_s) == steps, f"{place}.step_s", told)
            for name in ("prompts", "prompt_texts"):
                count = len(getattr(self, name))
                require(count in (0, len(sample.tokens)), name, "one for each row, or none")
            for name in ("experts_chosen", "experts_read"):
                experts, least = getattr(sample, name), moved.experts_least * len(sample.step_s)
                require(experts is None or experts >= least, f"{place}.{name}", f"at least {least}, or null")
        if (found := self.quality) is not None:
            require(len(found.context) == 2, "quality.context", "two numbers")
            for name in ("reference_nll", "kl", "same_top"):
                count = len(getattr(found, name))
                require(count in (0, len(found.nll)), f"quality.{name}", "as many as quality.nll, or none")
        require(self.breakdown is None or bool(self.breakdown.launches), "breakdown.launches", "at least one")


def rename_targets(config: Any) -> None:
    """Gives the sections of a recorded configuration, in place, the `_target_` that they have now."""
    for section in config.values() if isinstance(config, dict) else []:
        if isinstance(section, dict) and isinstance(target := section.get("_target_"), str):
            section["_target_"] = MOVED_TARGETS.get(target, target)


def read_record(path: Path) -> dict[str, Any]:
    """What a file of a record holds. Raises UserError if that is no object."""
    try:
        raw = read_json(path)
    except InputError as error:
        raise UserError(f"{path}: {NOT_OURS}: {str(error).removeprefix(f'{path}: ')}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {NOT_OURS}: expected an object")
    return raw


def check_sample(sample: Sample, place: str) -> None:
    """Raises InputError where its lists do not go together."""
    rows = len(sample.tokens)
    require(len(sample.step_s) > 0, f"{place}.step_s", "at least one step")
    require(rows > 0 and len(sample.tokens[0]) > 0, f"{place}.tokens", "at least one token")
    if sample.step_tokens:
        check_emitted(sample, place)
    else:
        require(len({len(row) for row in sample.tokens}) == 1, f"{place}.tokens", "rows of the same length")
    for name in ("text", "generated"):
        require(
            len(getattr(sample, name)) in (0, rows), f"{place}.{name}", f"{rows} entries, one for each row, or none"
        )


def check_emitted(sample: Sample, place: str) -> None:
    """The same of tokens that each step says it emitted."""
    place, steps, rows = f"{place}.step_tokens", len(sample.step_s), len(sample.tokens)
    each = all(len(step) == rows for step in sample.step_tokens)
    require(len(sample.step_tokens) == steps and each, place, f"{steps} lists of a number for each of {rows} rows")
    emitted = [sum(step[row] for step in sample.step_tokens) for row in range(rows)]
    told = "as many tokens for each row as it got after its first, and any at all"
    require(any(emitted) and emitted == [len(row) - 1 for row in sample.tokens], place, told)


def of_list(raw: Any) -> list[Any]:
    """The same, of what may be anything."""
    return raw if isinstance(raw, list) else []
