"""A checkpoint's `config.json`: read, and told apart from what is none. Nothing that it names is imported or run."""

import json
from pathlib import Path
from typing import Any

from gptbench.architecture.row import ARCHITECTURES, Architecture
from gptbench.base.errors import CheckpointError, InputError
from gptbench.base.hub import expanded
from gptbench.base.inputs import is_finite_number, read_json

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 * 2**20
"""A thousand times what a config.json has."""


class ConfigFile:
    """A `config.json`, whose errors name the file.

    Raises:
        CheckpointError: not there, not JSON, or not an object.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"model.checkpoint={folder}: no such folder")
        self.path = folder / CONFIG_FILE
        try:
            self.values = read_json(self.path, MAX_CONFIG_BYTES)
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise CheckpointError(f"{self.path}: not there; a Hugging Face checkpoint has one") from None
            raise
        if not isinstance(self.values, dict):
            raise CheckpointError(f"{self.path}: expected a JSON object")

    def error(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {key}={json.dumps(value)}: expected {expected}")

    def integer(self, *keys: str, default: int | None = None, most: int = 2**24) -> int:
        """Of the first key that is there and not null; others must agree."""
        given = {key: self.values[key] for key in keys if self.values.get(key) is not None}
        value = next(iter(given.values()), default)
        if value is None:
            raise CheckpointError(f"{self.path}: {' or '.join(keys)} is missing")
        for key, other in given.items():
            if other != value:
                raise self.error(key, other, f"{json.dumps(value)}, as {next(iter(given))} has it")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.error(keys[0], value, f"a whole number from 0 to {most}")
        return value

    def number(self, values: dict[str, Any], key: str, default: float | None = None) -> float:
        """Of a key in `values`, which are this file's or an object in it."""
        value = values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path}: {key} is missing")
        if not is_finite_number(value) or not abs(value) < 1e30:
            raise self.error(key, value, "a number under 1e30")
        return float(value)

    def architecture(self) -> Architecture:
        """Of the model whose code the library takes: `model_type` says which, whatever `architectures` beside it says.

        Raises CheckpointError for one that gptbench does not have.
        """
        names, kind = self.values.get("architectures"), self.values.get("model_type")
        if not (isinstance(names, list) and len(names) == 1 and names[0] in tuple(ARCHITECTURES)):  # it may be any JSON
            raise self.error("architectures", names, f"one of {', '.join(ARCHITECTURES)}")
        if kind is None:
            return ARCHITECTURES[names[0]]
        kinds = {architecture.model_type: architecture for architecture in ARCHITECTURES.values()}
        if not isinstance(kind, str) or kind not in kinds:
            raise self.error("model_type", kind, f"one of {', '.join(kinds)}")
        return kinds[kind]


def of_checkpoint(given: str) -> str | None:
    """What to give in the place of a file of a checkpoint, or why a folder is none; None of anything else."""
    if not given or "\0" in given:
        return None
    path = Path(expanded(given))
    try:
        if path.is_file() and (path.parent / CONFIG_FILE).is_file():
            return f"a file of a checkpoint; give the folder: {path.parent}"
        if path.is_dir() and not (path / CONFIG_FILE).is_file():
            return f"a folder with no {CONFIG_FILE} in it, which a checkpoint has"
    except OSError:  # such as of a name that is too long
        return None
    return None
