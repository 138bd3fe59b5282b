"""The identity of a measurement: two runs with the same identity measure the same thing, on the same kind of device,
with the same code."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import gptbench
from gptbench.config import Config, Section, plugins
from gptbench.config.targets import target
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Runner
from gptbench.measure.environment import place
from gptbench.schema.identity import DIGITS, digest, job_of
from gptbench.task import Standalone

MEASURING = (
    *("__init__", "base", "private", "architecture", "config", "text", "device", "kernels", "model", "quant"),
    *("sampling", "checkpoint", "build", "block_sizes", "engine", "generate", "measure", "task", "execute"),
)
"""Packages and modules of gptbench that a number depends on, from configuring to measuring."""
RECORDING = ("schema", "charts", "record", "compare", "present", "sweep", "commands", "__main__")
"""All others: they process a number once it exists, statistics included, and change no identity."""
MAX_HASHED = 64 * 2**20
"""Maximum size in bytes of a file whose content is hashed; for a larger one, name, size and modification time count."""
LIBRARIES = ("torch", "triton")
"""Libraries whose versions are part of every identity."""


@functools.cache
def code_version() -> str:
    """Return a hash of gptbench's source files that a number depends on; it also covers uncommitted changes."""
    root = Path(gptbench.__file__).parent
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.partition("/")[0].removesuffix(".py") in MEASURING:
            hashed.update(f"{name}\0{path.stat().st_size}\0".encode())
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:DIGITS]


def sources() -> list[str]:
    """Return the hashes of the plugins' source, wherever it lies."""
    return sorted(plugins.loaded.values())


def code_used(config: Config, device: Device) -> Any:
    """Return what a number depends on beside gptbench's own code, such as tuned kernels, as engine or task report it:
    see `Runner.code_used` and `Standalone.code_used`.

    Raises:
        UserError: the file with the autotuned tiles cannot be read.
    """
    if not config.task.RUNS_ENGINE:
        task: type[Standalone] = target(config.task)
        return task.code_used(config, device)
    engine: type[Runner] = target(config.engine)
    return engine.code_used(config, device)


def measured(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that a number depends on, as plain data."""
    return job_of(plain(config)) | {"contents": contents(config)}


def contents(config: Config) -> dict[str, list[list[Any]]]:
    """Return the files that the configuration points to, wherever they lie: name and hash of each."""
    model = config.model
    places = {
        "checkpoint": model.checkpoint if model.reads_checkpoint else None,
        "tokenizer": model.tokenizer,
        "text_file": getattr(config.task, "text_file", None),
    }
    return {name: [file_hash(file) for file in files_in(Path(place))] for name, place in places.items() if place}


def files_in(place: Path) -> list[Path]:
    """Return a file, or the files directly in a folder."""
    return [place] if place.is_file() else sorted(file for file in place.glob("*") if file.is_file())


def file_hash(file: Path) -> list[Any]:
    """Return name and hash of a file's content, or name, size and modification time of a large one."""
    status = file.stat()
    if status.st_size > MAX_HASHED:
        return [file.name, status.st_size, status.st_mtime_ns]
    return [file.name, hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS]]


def plain(config: Config | Section) -> dict[str, Any]:
    """Return a configuration as plain data, as a record holds it."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def plan_identity(config: Config) -> str:
    """Return a hash of what is asked for, before the device is known; the engine may still be `auto`."""
    device = {name: value for name, value in plain(config.device).items() if name != "measure_roof"}
    return digest([code_version(), sources(), measured(config), device])


def identity(config: Config, devices: DeviceGroup) -> str:
    """Return a hash of what is measured.

    Args:
        config: configuration with its prompt as tokens, and the engine that `auto` selected.
        devices: the devices that `config.device` selected.
    """
    libraries = (*LIBRARIES, *config.engine.LIBRARIES)
    device = devices.local
    where = [place(each, libraries).of_job(libraries) for each in devices.devices]
    result = {"dtype": device.dtype_name, "code": code_used(config, device)}
    return digest([code_version(), sources(), measured(config), where, result])
