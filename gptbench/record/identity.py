"""What a measurement is of: two runs of the same identity measure the same thing, on the same kind of device, by the
same code.
"""

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
"""Rooms of gptbench that a number depends on: from configuring to measuring, and what joins them."""
RECORDING = ("schema", "charts", "record", "compare", "present", "sweep", "commands", "__main__")
"""All others: what is done with a number once it is there, statistics included, changes no identity."""
MAX_HASHED = 64 * 2**20
"""Bytes of a file that is read for it; of a larger one count its name, size and time of change."""
LIBRARIES = ("torch", "triton")


@functools.cache
def code_version() -> str:
    """Hash of gptbench's own source files that a number depends on: it tells changes apart that no commit holds yet."""
    root = Path(gptbench.__file__).parent
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.partition("/")[0].removesuffix(".py") in MEASURING:
            hashed.update(f"{name}\0{path.stat().st_size}\0".encode())
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:DIGITS]


def sources() -> list[str]:
    """Hashes of the plugins' source, wherever it lies."""
    return sorted(plugins.loaded.values())


def code_used(config: Config, device: Device) -> Any:
    """What of kernels and the like a number depends on beside gptbench's own code, as engine or task say: see
    `Runner.code_used` and `Standalone.code_used`.

    Raises:
        UserError: the file with the tiles that were found cannot be read.
    """
    if not config.task.RUNS_ENGINE:
        task: type[Standalone] = target(config.task)
        return task.code_used(config, device)
    engine: type[Runner] = target(config.engine)
    return engine.code_used(config, device)


def measured(config: Config) -> dict[str, Any]:
    """What of a configuration a number depends on, as plain data."""
    return job_of(plain(config)) | {"contents": contents(config)}


def contents(config: Config) -> dict[str, list[list[Any]]]:
    """What lies where the configuration points to, wherever that is: name and hash of each file."""
    model = config.model
    places = {
        "checkpoint": model.checkpoint if model.reads_checkpoint else None,
        "tokenizer": model.tokenizer,
        "text_file": getattr(config.task, "text_file", None),
    }
    return {name: [file_hash(file) for file in files_in(Path(place))] for name, place in places.items() if place}


def files_in(place: Path) -> list[Path]:
    """A file itself, or those that lie in a folder."""
    return [place] if place.is_file() else sorted(file for file in place.glob("*") if file.is_file())


def file_hash(file: Path) -> list[Any]:
    status = file.stat()
    if status.st_size > MAX_HASHED:
        return [file.name, status.st_size, status.st_mtime_ns]
    return [file.name, hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS]]


def plain(config: Config | Section) -> dict[str, Any]:
    """As plain data, as a record has it."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def plan_identity(config: Config) -> str:
    """Hash of what is asked for, before it is known on which device; its engine may still be `auto`."""
    device = {name: value for name, value in plain(config.device).items() if name != "measure_roof"}
    return digest([code_version(), sources(), measured(config), device])


def identity(config: Config, devices: DeviceGroup) -> str:
    """Hash of what is measured.

    Args:
        config: with its prompt as tokens, and the engine that `auto` stands for.
        devices: what `config.device` turned out to be.
    """
    libraries = (*LIBRARIES, *config.engine.LIBRARIES)
    device = devices.local
    where = [place(each, libraries).of_job(libraries) for each in devices.devices]
    made = {"dtype": device.dtype_name, "code": code_used(config, device)}
    return digest([code_version(), sources(), measured(config), where, made])
