"""What of a configuration makes two measurements the same."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptbench.config.quant import weights_text

if TYPE_CHECKING:
    from gptbench.schema.record import Measured

IDENTITY_SECTIONS = ("model", "quant", "sampling", "engine", "workload", "task")
"""Sections that a number depends on. Of the device counts what it turned out to be; where a result is written, and what
it is compared with, does not."""
PATH_FIELDS: dict[str, tuple[str, ...]] = {
    "engine": ("tile_cache",),
    "model": ("checkpoint", "tokenizer"),
    "task": ("text_file",),
}
"""Fields of them that say where something lies: what lies there counts instead."""
NON_IDENTITY_FIELDS: dict[str, tuple[str, ...]] = {
    "engine": ("measure_warm_start",),
    "workload": ("samples", "prompt", "prompts", "same_prompt", "prompt_text", "prompt_file", "prompt_length"),
    "task": ("breakdown", "energy"),
}
"""Fields of them that change no number: how many samples there are, what else is measured after them, and in what words
the prompt was given, whose tokens count instead."""
WEIGHTS = "quant.weights"
NAMES = dict.fromkeys(IDENTITY_SECTIONS, ("name",))
"""What a section is called changes no number either."""
DIGITS = 16
"""Of a hash, hexadecimal: 64 bits."""


def fields_of(config: Mapping[str, Any], *without: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What of a configuration a number depends on, by dotted field; a section's class stands under the section's name.

    Args:
        config: as it is recorded, as plain data.
        without: fields by section that are left out, such as `PATH_FIELDS`.
    """
    values: dict[str, Any] = {}
    for name in IDENTITY_SECTIONS:
        left_out = {field for each in without for field in each.get(name, ())}
        section = {key: value for key, value in config.get(name, {}).items() if key not in left_out}
        values[name] = section.pop("_target_", None)
        values |= flattened(section, name)
    return values


def flattened(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no dict, under its dotted field. `quant.weights`, whose order counts, is one text; where it
    has no entries, it is not there, as in records of versions that did not have it."""
    for key, value in section.items():
        if f"{path}.{key}" == WEIGHTS:
            if value:
                yield WEIGHTS, weights_text(value)
        elif isinstance(value, dict):
            yield from flattened(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def job_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two jobs of sweeps the same: a record of one then does for the other, so it must have as many samples,
    and all that was asked for beside them. What lies at its `PATH_FIELDS` has to be added."""
    return fields_of(config, PATH_FIELDS)


def measurement_of(record: "Measured") -> dict[str, Any]:
    """What makes two records measurements of the same: they are compared as such, or belong to the same row of a
    baseline, however they were asked for. With what was found at `PATH_FIELDS`, and what the device made of the
    configuration."""
    prompt, checkpoint, quality = (getattr(record, name, None) for name in ("prompt", "checkpoint", "quality"))
    return fields_of(record.config, PATH_FIELDS, NON_IDENTITY_FIELDS, NAMES) | {
        "device.dtype": record.dtype,
        "device.threads": None if record.environment.on_gpu else record.environment.threads,
        "prompt": None if prompt is None else digest(getattr(record, "prompts", None) or prompt),
        "checkpoint": None if checkpoint is None else checkpoint.headers_sha256,
        "text": None if quality is None else quality.text_sha256,
    }


def digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
