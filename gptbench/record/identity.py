"""What a measurement is of: two runs of the same identity measure the same thing, on the same kind of device, by the
same code.
"""

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

import gptbench
from gptbench.config import Config, Section
from gptbench.device import Device
from gptbench.measure.environment import gpu_state

MEASURED = ("model", "quant", "sampling", "engine", "workload", "task")
"""Sections that a number depends on. Of the device counts what it turned out to be; where a result is written, and what
it is compared with, does not."""
PLACES = {"engine": ("tiles",), "model": ("checkpoint", "tokenizer"), "task": ("text_file",)}
"""Fields of them that say where something lies: what lies there counts instead (see `contents`)."""
ALONGSIDE = {
    "engine": ("measure_warm_start",),
    "workload": ("samples", "prompt", "prompt_text", "prompt_file", "prompt_length"),
    "task": ("breakdown", "energy"),
}
"""Fields of them that change no number: how many samples there are, what else is measured after them, and in what words
the prompt was given, whose tokens count instead."""
MOST_HASHED = 64 * 2**20
"""Bytes of a file that is read for it; of a larger one count its name, size and time of change."""
LIBRARIES = ("torch", "triton")
PEERS = {"gptbench.engine.HuggingFace": ("transformers",)}
"""What else runs the model, by `_target_` of the engine."""
DIGITS = 16
"""Of a hash, hexadecimal: 64 bits."""


def digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


@functools.cache
def code_version() -> str:
    """Hash of gptbench's own source files: it tells changes apart that no commit holds yet."""
    root = Path(gptbench.__file__).parent
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:DIGITS]


def measured(config: Config) -> dict[str, Any]:
    """What of a configuration a number depends on, as plain data."""
    found = {name: plain(getattr(config, name), PLACES.get(name, ())) for name in MEASURED}
    return found | {"contents": contents(config)}


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
    if status.st_size > MOST_HASHED:
        return [file.name, status.st_size, status.st_mtime_ns]
    return [file.name, hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS]]


def plain(section: Section, left_out: tuple[str, ...]) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.structured(section), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in left_out}


def plan_identity(config: Config) -> str:
    """Hash of what is asked for, before it is known on which device; its engine may still be `auto`."""
    return digest([code_version(), measured(config), plain(config.device, ("measure_roof",))])


def identity(config: Config, device: Device) -> str:
    """Hash of what is measured.

    Args:
        config: with its prompt as tokens, and the engine that `auto` stands for.
        device: what `config.device` turned out to be.
    """
    versions: dict[str, str | None] = {}
    for name in (*LIBRARIES, *PEERS.get(config.engine._target_, ())):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # Triton is not everywhere
            versions[name] = None
    _, power_limit_w = gpu_state(device)
    where: dict[str, Any] = {
        "name": device.name,
        "dtype": device.dtype_name,
        "threads": None if device.is_cuda else torch.get_num_threads(),
        "power_limit_w": power_limit_w,
    }
    if getattr(config.engine, "tune", True) is False:  # and those of a search are not known before it
        tiles = Path(config.engine.tiles)  # type: ignore[attr-defined]
        where["tiles"] = [file_hash(file) for file in sorted(tiles.glob(f"{device.key}-*.json"))]
    return digest([code_version(), versions, measured(config), where])
