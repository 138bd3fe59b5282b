"""Which fields of a configuration make two measurements the same."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptbench.config.quant import weights_text

if TYPE_CHECKING:
    from gptbench.schema.record import Measured

IDENTITY_SECTIONS = ("model", "quant", "sampling", "engine", "workload", "task")
"""Sections that a number depends on. Of the device, what it turned out to be counts; where a result is written, and
what it is compared with, does not."""
PATH_FIELDS: dict[str, tuple[str, ...]] = {
    "engine": ("tile_cache",),
    "model": ("checkpoint", "tokenizer"),
    "task": ("text_file",),
}
"""Fields of these sections that are paths: the content of the files counts instead."""
NON_IDENTITY_FIELDS: dict[str, tuple[str, ...]] = {
    "engine": ("measure_warm_start",),
    "workload": ("samples", "prompt", "prompts", "same_prompt", "prompt_text", "prompt_file", "prompt_length"),
    "task": ("breakdown", "energy"),
}
"""Fields of these sections that change no number: the number of samples, what else is measured after them, and how the
prompt was given, whose tokens count instead."""
WEIGHTS = "quant.weights"
NAMES = dict.fromkeys(IDENTITY_SECTIONS, ("name",))
"""Names of the sections, which change no number either."""
DIGITS = 16
"""Length of a hash in hexadecimal digits: 64 bits."""


def fields_of(config: Mapping[str, Any], *without: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the values of a configuration that a number depends on, by dotted field. The class of a section is under
    the section's name.

    Args:
        config: recorded configuration, as plain data.
        without: fields to leave out, by section, such as `PATH_FIELDS`.
    """
    values: dict[str, Any] = {}
    for name in IDENTITY_SECTIONS:
        left_out = {field for table in without for field in table.get(name, ())}
        section = {key: value for key, value in config.get(name, {}).items() if key not in left_out}
        values[name] = section.pop("_target_", None)
        values |= flattened(section, name)
    return values


def flattened(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is not a dict under its dotted field. `quant.weights`, whose order counts, is a single
    text; it is left out if it has no entries, as in records of versions without it."""
    for key, value in section.items():
        if f"{path}.{key}" == WEIGHTS:
            if value:
                yield WEIGHTS, weights_text(value)
        elif isinstance(value, dict):
            yield from flattened(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def job_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two jobs of sweeps the same, so that a record of one serves the other: it must have as many
    samples, and everything that was measured beside them. The contents of `PATH_FIELDS` have to be added."""
    return fields_of(config, PATH_FIELDS)


def measurement_of(record: "Measured") -> dict[str, Any]:
    """Return what makes two records measurements of the same: they are compared as such, or belong to the same row of a
    baseline, whatever their overrides were. It includes the contents of `PATH_FIELDS`, and the dtype and threads of the
    device."""
    prompt, checkpoint, quality = (getattr(record, name, None) for name in ("prompt", "checkpoint", "quality"))
    return fields_of(record.config, PATH_FIELDS, NON_IDENTITY_FIELDS, NAMES) | {
        "device.dtype": record.dtype,
        "device.threads": None if record.environment.on_gpu else record.environment.threads,
        "prompt": None if prompt is None else digest(getattr(record, "prompts", None) or prompt),
        "checkpoint": None if checkpoint is None else checkpoint.headers_sha256,
        "text": None if quality is None else quality.text_sha256,
    }


def digest(value: Any) -> str:
    """Return a hash of plain data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
