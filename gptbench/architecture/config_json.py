"""Reads and validates a checkpoint's `config.json`. Nothing that it names is imported or run."""

import json
from pathlib import Path
from typing import Any

from gptbench.architecture.row import ARCHITECTURES, Architecture
from gptbench.base.errors import CheckpointError, InputError
from gptbench.base.hub import expanded
from gptbench.base.inputs import is_finite_number, read_json

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 * 2**20
"""Size limit, about a thousand times the size of a typical config.json."""


class ConfigFile:
    """The values of a `config.json`, with errors that name the file.

    Attributes:
        path: path of the file.
        values: its JSON object.

    Raises:
        CheckpointError: the file is missing, is not JSON, or is not a JSON object.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"model.checkpoint={folder}: no such folder")
        self.path = folder / CONFIG_FILE
        try:
            self.values = read_json(self.path, MAX_CONFIG_BYTES)
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise CheckpointError(f"{self.path}: no such file; a Hugging Face checkpoint has one") from None
            raise
        if not isinstance(self.values, dict):
            raise CheckpointError(f"{self.path}: expected a JSON object")

    def error(self, key: str, value: Any, expected: str) -> CheckpointError:
        """Return the error for a key whose value is not what was expected."""
        return CheckpointError(f"{self.path}: {key}={json.dumps(value)}: expected {expected}")

    def integer(self, *keys: str, default: int | None = None, maximum: int = 2**24) -> int:
        """Return the whole number of the first key that is present and not null.

        Raises:
            CheckpointError: no key is present and there is no default, the keys disagree, or the value is not a whole
                number from 0 to `maximum`.
        """
        present = {key: self.values[key] for key in keys if self.values.get(key) is not None}
        value = next(iter(present.values()), default)
        if value is None:
            raise CheckpointError(f"{self.path}: {' or '.join(keys)} is missing")
        for key, other in present.items():
            if other != value:
                raise self.error(key, other, f"{json.dumps(value)}, the value of {next(iter(present))}")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
            raise self.error(keys[0], value, f"a whole number from 0 to {maximum}")
        return value

    def number(self, values: dict[str, Any], key: str, default: float | None = None) -> float:
        """Return the finite number of a key in `values`, which is the file's object or one nested in it.

        Raises:
            CheckpointError: the key is missing and there is no default, or the value is not a number under 1e30.
        """
        value = values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path}: {key} is missing")
        if not is_finite_number(value) or not abs(value) < 1e30:
            raise self.error(key, value, "a number under 1e30")
        return float(value)

    def architecture(self) -> Architecture:
        """Return the architecture that transformers would use: `model_type` decides, whatever `architectures` says.

        Raises:
            CheckpointError: gptbench does not support the architecture.
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


def checkpoint_hint(argument: str) -> str | None:
    """Return a hint for an argument that is a file of a checkpoint or a folder without config.json, or None."""
    if not argument or "\0" in argument:
        return None
    path = Path(expanded(argument))
    try:
        if path.is_file() and (path.parent / CONFIG_FILE).is_file():
            return f"a file of a checkpoint; give the folder: {path.parent}"
        if path.is_dir() and not (path / CONFIG_FILE).is_file():
            return f"a folder with no {CONFIG_FILE} in it, so not a checkpoint"
    except OSError:  # for example, the name is too long
        return None
    return None
