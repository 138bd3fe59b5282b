"""What every record has, whatever it is of: how it becomes a file, is named, summarised and published.

A kind of record is a subclass of `Recorded` or `Measured` in a file of its own, and a row in `KINDS` of
`gptbench.schema.files`; what it does not say for itself is what these two say. A file is one JSON object with the
fields of its kind, nested as the dataclasses are; names end in their unit (`_s` seconds, `_bytes`, `_w` watts, GB = 1e9
bytes). A change that an older reader would misread raises `SCHEMA_VERSION`; one that computes other statistics of the
same samples does, too, as baselines keep statistics alone.

Version 2: percentiles of decode steps are of the pooled steps of all valid samples; before, they were the median of the
samples' own. The files of both versions are alike.
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
"""Versions of files that are read."""
NOT_OURS = "not a result of gptbench"
BUSY_TAG = "gptbench.busy"
"""Of a publication: why it was measured on a busy machine, in words; only where it was."""


@dataclass(kw_only=True)
class Recorded:
    """What every record begins with. It is of no measurement, and says so, where its kind says nothing else."""

    FILE: ClassVar[str]
    """Name of the kind, and of the file without `.json`."""
    IS_RUN: ClassVar[bool] = False
    """Whether it is what a job is there to measure: `sweep.resume` takes it, and `gptbench compare` holds it against
    others."""
    NAMED_BY: ClassVar[tuple[str, ...]] = ("model", "quant", "engine", "sampling")
    """Groups of the configuration whose names a program is told."""
    TOLD_AS: ClassVar[str] = "result"
    """What a program is told its place as."""

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
        """What the file holds."""
        return {"kind": self.FILE} | asdict(self)

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
            if (kind := raw.get("kind", cls.FILE)) != cls.FILE:
                raise InputError(f"kind: expected {cls.FILE}, and it is {kind}")
            upgrade_config(raw.get("config"))
            cls.upgrade(raw)
            record = restored(cls, {key: value for key, value in raw.items() if key != "kind"})
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

    @property
    def number_type(self) -> str:
        """Type of what is not quantised, as far as it is known."""
        return str(self.config["device"].get("dtype"))

    @property
    def weights(self) -> str:
        """How weights are stored: the quantisation, or the type of those that have none; and those of patterns."""
        section = self.config["quant"]
        name = self.number_type if section["name"] == "none" else section["name"]
        return full_name(name, section.get("weights") or {})

    def name_of(self, group: str) -> str:
        """What an option of its configuration is called; of `quant` with the formats of patterns."""
        section: dict[str, Any] = self.config[group]
        return full_name(section["name"], section.get("weights") or {}) if group == "quant" else str(section["name"])

    @property
    def run_name(self) -> str:
        """Of a run of one engine: model, weights, engine and batch size."""
        names = {group: self.config[group]["name"] for group in ("model", "engine")}
        return f"{names['model']}-{self.weights}-{names['engine']}-b{self.config['workload']['batch_size']}"

    def origin(self) -> dict[str, str | None]:
        """Where its numbers come from: device and commit."""
        return {"device": None, "commit": None}

    def own_traits(self) -> dict[str, str]:
        """What may tell it from others beside the configuration, as text."""
        return {}

    def problem(self) -> str | None:
        """Why it means nothing, or None where it counts."""
        return None

    def outcome(self) -> str:
        """recorded, or in one line why it does not count."""
        if (why := self.problem()) is None:
            return "recorded"
        return why.splitlines()[0] if why else "does not count"

    def not_shown(self) -> tuple[str, str] | None:
        """What it is, and why it does not stand among the runs of a report; None where it does."""
        return "not shown", "no record of one run"

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        """Its numbers, by metric, as they were when first asked for; none of what is no measurement."""
        return {}

    def busy_kinds(self) -> dict[str, list[str]]:
        """Reasons to think that the machine was busy with something else, in words, by the kind of metrics that they
        change, `PHASES`; without kinds that have none."""
        return {}

    @property
    def loads(self) -> list[Load]:
        """What else the machine did during its samples, of those for which it is known."""
        return []

    def members(self, folder: Path) -> list[Path] | None:
        """Files of the records that it is made of, where it lies in that folder; None where it stands for itself."""
        return None

    def line(self) -> dict[str, Any]:
        """What a program is told of it, beside its place."""
        names = {group: self.name_of(group) for group in self.NAMED_BY if group in self.config}
        return names | {"batch_size": self.config["workload"]["batch_size"]}

    def publication(self) -> Publication:
        """What a tracker gets of it."""
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
        """Those of its publication, its own among them."""
        names = {group: self.name_of(group) for group in ("model", "quant")}
        return {**names, **own, "task": self.config.get("task", {}).get("name")}

    def write_files(self, folder: Path) -> None:
        """Writes what a tracker keeps beside the record itself: its configuration, to run it again, and in other kinds
        tables, texts and traces of what is in it."""
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(self.config)))


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

    @property
    def number_type(self) -> str:
        return self.dtype

    def origin(self) -> dict[str, str | None]:
        return {"device": self.environment.device, "commit": self.environment.commit}

    def own_traits(self) -> dict[str, str]:
        return {"device": self.environment.device, "commit": short_commit(self.environment.commit)}

    def not_shown(self) -> tuple[str, str] | None:
        return None if (why := self.problem()) is None else ("does not count", why)

    def busy_kinds(self) -> dict[str, list[str]]:
        return by_kind(speed=slow_probes(self.probes, self.roof))

    def line(self) -> dict[str, Any]:
        told = super().line() | {"dtype": self.dtype} | self.origin()
        return told | self.summary | {"busy": busy(self)}

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
    """Those of them that are of one kind."""
    return [record for record in records if isinstance(record, kind)]


def upgrade_config(config: Any) -> None:
    """Gives a recorded configuration, in place, what one has now: the `_target_` of each section, and the width of
    heads, which was not recorded, or as 0, where it followed from the model's."""
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
    """What a file of a record holds. Raises UserError if that is no object."""
    try:
        raw = read_json(path)
    except InputError as error:
        raise UserError(f"{path}: {NOT_OURS}: {str(error).removeprefix(f'{path}: ')}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {NOT_OURS}: expected an object")
    return raw
