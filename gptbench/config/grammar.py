"""Passes text through Hydra's grammar of values, which would turn it into numbers, lists and functions."""

import re
import shlex
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from gptbench.base.hub import expanded
from gptbench.private import hydra as private

QUOTED = re.compile(r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\s*(?=,|$)", re.DOTALL)
"""A quoted element of a comma-separated list."""
PLAIN = re.compile(r"(?:[^,\\]|\\.|\\$)*", re.DOTALL)
"""An unquoted element; Hydra does not split at a comma after a backslash."""
FUNCTION = re.compile(
    r"\s*(choice|range|interval|glob|sort|shuffle|tag|int|float|bool|str|json_str|extend_list)\(.*\)\s*"
)
"""A call of one of Hydra's functions."""


def as_text(value: str, name: str, sweep: bool) -> str:
    """Return the value of a text field, or several swept ones, as Hydra has to read it.

    Args:
        name: name of the field.
        sweep: whether a comma separates the values of several jobs.
    """
    is_function = FUNCTION.fullmatch(value) is not None and parsed(value) is not None
    if is_function and not (sweep and "choice" in value):
        return value
    if not sweep:
        # One value is expected: a comma is part of a prompt, but of a path only if a file has that name.
        is_one = name == "workload.prompt_text" or len(separated(value)) == 1 or Path(expanded(value)).exists()
        return plain_text(value) if is_one else value
    if match := re.fullmatch(r"\s*choice\((.*)\)\s*", value, re.DOTALL):
        return f"choice({','.join(plain_text(part.strip()) for part in separated(match[1]))})"
    parts = separated(value)
    if name == "workload.prompt_text" and len(parts) > 1 and any(part.startswith(" ") for part in parts[1:]):
        note = f"{name}: sweeping {len(parts)} texts, because with -m a comma ends a value; as one text: "
        print(note + quoted_in_shell(name, value), file=sys.stderr)
    return ",".join(plain_text(part.strip()) for part in parts) if len(parts) > 1 else plain_text(value)


def plain_text(value: str) -> str:
    """Return a text quoted for Hydra, unless Hydra reads it unchanged or it is already written in Hydra's syntax."""
    if not value or "${" in value:
        return value
    if (override := parsed(value)) is not None and override.value_type is ValueType.ELEMENT:
        element = private.element(override)
        escaped = isinstance(element, str) and "\\" in value
        if element is None or isinstance(element, QuotedString) or element == value or escaped:
            return value
    return quoted(value)


def quoted(text: str) -> str:
    """Return a text in the quotes that Hydra's command line requires, whatever it contains."""
    return QuotedString(text, Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """Return a value without its quotes, if it has any."""
    override = parsed(value)
    element = None if override is None else private.element(override)
    return element.text if isinstance(element, QuotedString) else value


def quoted_in_shell(key: str, text: str) -> str:
    """Return the override, quoted for a shell, that passes a text to a field unchanged."""
    return shlex.quote(f"{key}={QuotedString(text, Quote.double).with_quotes()}")


def separated(value: str) -> list[str]:
    """Return the parts of a value between its commas, except for commas in quotes."""
    parts, end = [], -1
    while end < len(value):
        match = QUOTED.match(value, end + 1) or PLAIN.match(value, end + 1)
        assert match is not None
        parts.append(match[0])
        end = match.end()
    return parts


def parsed(value: str) -> Override | None:
    """Return a value as Hydra reads it, or None if Hydra cannot."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, ValueError, ArithmeticError):
        return None
