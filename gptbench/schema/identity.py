"""What of a configuration makes two measurements the same."""

import hashlib
import json
from typing import Any

MEASURED = ("model", "quant", "sampling", "engine", "workload", "task")
"""Sections that a number depends on. Of the device counts what it turned out to be; where a result is written, and what
it is compared with, does not."""
PLACES = {"engine": ("tiles",), "model": ("checkpoint", "tokenizer"), "task": ("text_file",)}
"""Fields of them that say where something lies: what lies there counts instead (see `contents`)."""
ALONGSIDE = {
    "engine": ("measure_warm_start",),
    "workload": ("samples", "prompt", "prompts", "same_prompt", "prompt_text", "prompt_file", "prompt_length"),
    "task": ("breakdown", "energy"),
}
"""Fields of them that change no number: how many samples there are, what else is measured after them, and in what words
the prompt was given, whose tokens count instead."""
DIGITS = 16
"""Of a hash, hexadecimal: 64 bits."""


def digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
