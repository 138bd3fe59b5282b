"""The whole record of a run, as `result.json` holds it: raw samples with units; statistics are computed when read.

The file is one JSON object with the fields of `Result`, nested as the dataclasses are; names end in their unit
(`_s` seconds, `_bytes`, `_w` watts, GB = 1e9 bytes). A change that an older reader would misread raises
`SCHEMA_VERSION`.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from gptbench.checkpoint import Loaded
from gptbench.errors import UserError
from gptbench.guard import redacted as redacted  # what is recorded goes through it
from gptbench.measure.breakdown import Breakdown, Launch
from gptbench.measure.compilation import Compilation, costs
from gptbench.measure.energy import Energy, Spent
from gptbench.measure.environment import Environment
from gptbench.measure.load import Load
from gptbench.measure.quality import Predictions
from gptbench.measure.roof import Probe, Roof
from gptbench.measure.samples import Sample, WarmUp
from gptbench.measure.sensors import DeviceState
from gptbench.measure.traffic import Traffic

SCHEMA_VERSION = 1


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
        with whole_file(folder, json.dumps(asdict(self), indent=1)) as new:
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
        try:
            raw = json.loads(path.read_text())
            if raw["schema_version"] != SCHEMA_VERSION:
                raise UserError(
                    f"{path}: schema_version={raw['schema_version']}, and this gptbench reads {SCHEMA_VERSION}"
                )
            cls.restore(raw)
            return cls(**raw)
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a result of gptbench: {error!r}") from error

    @classmethod
    def restore(cls, raw: dict[str, Any]) -> None:
        """Makes dataclasses of a record's own fields again, in place."""


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
        self.failures = redacted(self.failures)

    @classmethod
    def restore(cls, raw: dict[str, Any]) -> None:
        raw["environment"] = Environment(**raw["environment"])
        raw["roof"] = Roof(**(raw["roof"] | {"environment": Environment(**raw["roof"]["environment"])}))
        raw["probes"] = [Probe(**entry) for entry in raw.get("probes", [])]


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
    """Token ids of the prompt that each row got."""
    prompt_text: str | None = None
    """The same as text, without a begin-of-text token, if the model has a tokenizer."""
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
    def restore(cls, raw: dict[str, Any]) -> None:
        super().restore(raw)
        raw["traffic"] = Traffic(**raw["traffic"])
        for entry in raw["compilations"]:
            if entry.get("stages_s") and "costs_s" not in entry:  # of a version that did not sum them up
                entry["costs_s"] = costs(entry["prepare_s"], entry["stages_s"], triton_s=0.0, capture_s=0.0)
        raw["compilations"] = [Compilation(**entry) for entry in raw["compilations"]]
        raw["warm_ups"] = [WarmUp(**entry) for entry in raw["warm_ups"]]
        raw["samples"] = [restored_sample(entry) for entry in raw["samples"]]
        raw.setdefault("prompt", raw["config"]["workload"].get("prompt"))
        for name, kind in (("checkpoint", Loaded), ("quality", Predictions)):
            raw[name] = kind(**raw[name]) if raw.get(name) else None
        if raw.get("breakdown"):
            launches = [Launch(**entry) for entry in raw["breakdown"]["launches"]]
            raw["breakdown"] = Breakdown(**(raw["breakdown"] | {"launches": launches}))
        if raw.get("energy"):
            phases = {name: Spent(**raw["energy"][name]) for name in ("prefill", "decode")}
            raw["energy"] = Energy(**(raw["energy"] | phases))


def restored_sample(raw: dict[str, Any]) -> Sample:
    """A sample as it was before it became plain data."""
    kinds = {"state": DeviceState, "load": Load}
    return Sample(**(raw | {name: kind(**raw[name]) for name, kind in kinds.items() if raw.get(name)}))


@contextlib.contextmanager
def whole_file(folder: Path, text: str) -> Iterator[Path]:
    """A new file in the folder that holds the text and is on the disk; it is taken away afterwards. Linked or renamed
    to where it belongs, it is there as a whole or not at all, whenever the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{uuid.uuid4().hex}.new"
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield new
    finally:
        new.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file, or replaces it: all of it or nothing."""
    with whole_file(path.parent, text) as new:
        new.replace(path)
