"""Base classes of all records: how a record becomes a file, and how it is named, summarised and published.

A kind of record is a subclass of `Recorded` or `Measured` in its own module, and a row in `KINDS` of
`gptbench.schema.files`; it inherits what it does not define. A file is one JSON object with the fields of its kind,
nested as the dataclasses are; names end in their unit (`_s` seconds, `_bytes`, `_w` watts, GB = 1e9 bytes). A change
that an older reader would misread increments `SCHEMA_VERSION`, as does a change of the statistics computed from the
same samples, because baselines store statistics only.

Version 2: percentiles of decode steps are those of the pooled steps of all valid samples; before, they were the median
of the percentiles of each sample. The files of both versions are alike.
"""

import contextlib
import functools
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from omegaconf import OmegaConf

from gptbench.base.errors import InputError, UserError
from gptbench.base.inputs import read_json
from gptbench.base.outputs import as_json, atomic_file
from gptbench.base.redaction import redacted, redacted_message
from gptbench.config import MOVED_TARGETS, Dtype
from gptbench.config.quant import full_name
from gptbench.config.renamed import rename_in_config
from gptbench.schema.busy import busy, by_kind, slow_probes
from gptbench.schema.labels import short_commit
from gptbench.schema.machine import Environment, Load, Probe, Roof
from gptbench.schema.publication import Publication
from gptbench.schema.restore import check_config, is_time, require, restored

T = TypeVar("T")

SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Versions of files that can be read."""
NOT_OURS = "not a result of gptbench"
BUSY_TAG = "gptbench.busy"
"""Tag of a publication with the reasons to think that the machine was busy; only present if it was."""


@dataclass(kw_only=True)
class Recorded:
    """Base class of all records. Its defaults are those of a record without a measurement."""

    FILE: ClassVar[str]
    """Name of the kind, and of the file without `.json`."""
    IS_RUN: ClassVar[bool] = False
    """Whether it is the measurement of a job: `sweep.resume` reuses it, and `gptbench compare` compares it."""
    NAMED_BY: ClassVar[tuple[str, ...]] = ("model", "quant", "engine", "sampling")
    """Groups of the configuration whose options' names are in the JSON line."""
    PATH_KEY: ClassVar[str] = "result"
    """Key of the record's path in the JSON line."""

    started: str
    """Start of the measurement, ISO 8601."""
    command: list[str]
    """Command line that repeats the measurement."""
    sweep: str | None
    """Folder of the sweep that it belongs to."""
    config: dict[str, Any]
    """Resolved configuration, by groups as in conf/."""
    swept: list[str] = field(default_factory=list)
    """For a job of a sweep, its overrides for the keys that the sweep varies, such as `sampling.top_k=5`."""
    identity: str | None = None
    """Hash of what was measured, by what code and on what device: see `gptbench.record.identity`."""
    schema_version: int = SCHEMA_VERSION
    """Version of the file's format, one of `READABLE`."""

    def __post_init__(self) -> None:
        self.command, self.config = redacted(self.command), redacted(self.config)
        self.swept = redacted(self.swept)

    def save(self, folder: Path) -> Path:
        """Write `FILE.json` to the folder atomically and return its path. An existing file is never overwritten: the
        second one becomes `FILE-2.json`."""
        number = 1
        with atomic_file(folder, as_json(self.plain())) as new:
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

    def plain(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"kind": self.FILE} | asdict(self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the record in a file that `save` wrote.

        Raises:
            UserError: the file is missing, is not a record of this kind, or has another schema version.
        """
        return cls.of(read_record(path), path)

    @classmethod
    def of(cls, raw: dict[str, Any], path: Path) -> Self:
        """Return the record with this content; `path` is for messages."""
        try:
            if raw.get("schema_version") not in READABLE:
                known = " and ".join(map(str, READABLE))
                version = raw.get("schema_version", "missing")
                raise InputError(f"schema_version={version}: this gptbench reads {known}")
            if (kind := raw.get("kind", cls.FILE)) != cls.FILE:
                raise InputError(f"kind={kind}: expected {cls.FILE}")
            upgrade_config(raw.get("config"))
            cls.upgrade(raw)
            record = restored(cls, {key: value for key, value in raw.items() if key != "kind"})
            record.check()
            return record
        except InputError as error:
            raise UserError(f"{path}: {NOT_OURS}: {error}") from error

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        """Fill in, in place, what the record of an older version lacks. The content is not checked yet."""

    def check(self) -> None:
        """Raise InputError if fields that are valid individually contradict each other, or if the configuration lacks
        what names a record."""
        require(is_time(self.started), "started", "a time, ISO 8601")
        check_config(self.config, "config")

    @property
    def number_type(self) -> str:
        """Dtype of what is not quantised, as far as it is known."""
        return str(self.config["device"].get("dtype"))

    @property
    def weights(self) -> str:
        """Storage format of the weights: the quantisation, or the dtype if there is none, and the formats of
        patterns."""
        section = self.config["quant"]
        name = self.number_type if section["name"] == "none" else section["name"]
        return full_name(name, section.get("weights") or {})

    def name_of(self, group: str) -> str:
        """Return the name of a group's option; for `quant`, with the formats of patterns."""
        section: dict[str, Any] = self.config[group]
        return full_name(section["name"], section.get("weights") or {}) if group == "quant" else str(section["name"])

    @property
    def run_name(self) -> str:
        """Name of the run of one engine: model, weights, engine and batch size."""
        names = {group: self.config[group]["name"] for group in ("model", "engine")}
        return f"{names['model']}-{self.weights}-{names['engine']}-b{self.config['workload']['batch_size']}"

    def origin(self) -> dict[str, str | None]:
        """Return where the numbers come from: device and commit."""
        return {"device": None, "commit": None}

    def extra_traits(self) -> dict[str, str]:
        """Return what may distinguish it from other records beside the configuration, as text."""
        return {}

    def problem(self) -> str | None:
        """Return why the record does not count, or None if it does."""
        return None

    def outcome(self) -> str:
        """Return `recorded`, or why the record does not count, in one line."""
        if (why := self.problem()) is None:
            return "recorded"
        return why.splitlines()[0] if why else "does not count"

    def not_shown(self) -> tuple[str, str] | None:
        """Return the status of a record that is not among the runs of a report, and the reason; None if it is among
        them."""
        return "not shown", "not a record of one run"

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        """Metrics of the record by name, computed on first access; empty without a measurement."""
        return {}

    def busy_kinds(self) -> dict[str, list[str]]:
        """Return the reasons to think that the machine was busy with something else, by the kind of metrics that they
        affect, a key of `PHASES`. Kinds without a reason are left out."""
        return {}

    @property
    def loads(self) -> list[Load]:
        """Load on the machine during each sample for which it is known."""
        return []

    def members(self, folder: Path) -> list[Path] | None:
        """Return the files of the records that it summarises, given its folder; None if it stands for itself."""
        return None

    def line(self) -> dict[str, Any]:
        """Return the fields of the JSON line, without the record's path."""
        names = {group: self.name_of(group) for group in self.NAMED_BY if group in self.config}
        return names | {"batch_size": self.config["workload"]["batch_size"]}

    def publication(self) -> Publication:
        """Return what a tracker receives."""
        return Publication(
            name=f"{self.FILE} {self.run_name}",
            seconds=0.0,
            tags=self.tags(),
            params=self.config,
            metrics=[(name, value, 0) for name, value in self.summary.items()],
            sweep=self.sweep,
            varied=self.swept,
        )

    def tags(self, **own: str | None) -> dict[str, str | None]:
        """Return the tags of the publication, including those that are passed."""
        names = {group: self.name_of(group) for group in ("model", "quant")}
        return {**names, **own, "task": self.config.get("task", {}).get("name")}

    def write_files(self, folder: Path) -> None:
        """Write the files that a tracker stores beside the record: its configuration, to run it again, and for some
        kinds tables, texts and traces."""
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(self.config)))


@dataclass(kw_only=True)
class Measured(Recorded):
    """Base class of all records of a measurement."""

    environment: Environment
    """Hardware and software that it was measured on."""
    dtype: str
    """Dtype of activations, KV cache and unquantised weights."""
    roof: Roof
    """Read roof of the device, as used for MBU: the highest rate measured so far, these probes included."""
    probes: list[Probe] = field(default_factory=list)
    """Short measurements of the read bandwidth before and after the samples; those of interleaved measurements are in
    their rounds. Empty in records of versions that took none, and if the device had no memory for one."""

    failures: dict[str, str] = field(default_factory=dict)
    """Traceback of each optional measurement that failed: breakdown, energy, quality, warm start, a probe of the read
    roof."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.failures = {what: redacted_message(trace) for what, trace in self.failures.items()}

    def check(self) -> None:
        super().check()
        require(self.dtype in {dtype.value for dtype in Dtype}, "dtype", "a type of numbers")

    @property
    def number_type(self) -> str:
        return self.dtype

    def origin(self) -> dict[str, str | None]:
        return {"device": self.environment.device, "commit": self.environment.commit}

    def extra_traits(self) -> dict[str, str]:
        return {"device": self.environment.device, "commit": short_commit(self.environment.commit)}

    def not_shown(self) -> tuple[str, str] | None:
        return None if (why := self.problem()) is None else ("does not count", why)

    def busy_kinds(self) -> dict[str, list[str]]:
        return by_kind(speed=slow_probes(self.probes, self.roof))

    def line(self) -> dict[str, Any]:
        fields = super().line() | {"dtype": self.dtype} | self.origin()
        return fields | self.summary | {"busy": busy(self)}

    def tags(self, **own: str | None) -> dict[str, str | None]:
        here = self.environment
        return {
            **super().tags(**own),
            "dtype": self.dtype,
            "commit": here.commit,
            "device": here.device,
            "driver": here.driver,
            BUSY_TAG: "; ".join(busy(self)) or None,
            "power_limit_w": None if here.power_limit_w is None else f"{here.power_limit_w:g}",
            **{library: here.libraries.get(library) for library in ("torch", "triton")},
        }


def of_kind(kind: type[T], records: Iterable[Any]) -> list[T]:
    """Return those of the records that are of one kind."""
    return [record for record in records if isinstance(record, kind)]


def upgrade_config(config: Any) -> None:
    """Upgrade a recorded configuration in place: names of fields and options, the `_target_` of each section, and the
    width of heads, which older versions did not record, or recorded as 0, if it followed from the model's."""
    if not isinstance(config, dict):
        return
    if isinstance(model := config.get("model"), dict) and not model.get("head_dim"):
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            model["head_dim"] = model["dim"] // model["n_heads"]
    rename_in_config(config)
    for section in config.values():
        if isinstance(section, dict) and isinstance(target := section.get("_target_"), str):
            section["_target_"] = MOVED_TARGETS.get(target, target)


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a record's file. Raises UserError if it is not a JSON object."""
    try:
        raw = read_json(path)
    except InputError as error:
        raise UserError(f"{path}: {NOT_OURS}: {str(error).removeprefix(f'{path}: ')}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {NOT_OURS}: expected an object")
    return raw
