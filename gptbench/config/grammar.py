"""Hydra's grammar of values makes numbers, lists and functions of what is typed; a text is to get there as it is."""

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
"""A whole part of a list, in quotes."""
PLAIN = re.compile(r"(?:[^,\\]|\\.|\\$)*", re.DOTALL)
"""A part without; Hydra takes a comma behind a backslash for one that separates nothing."""
FUNCTION = re.compile(
    r"\s*(choice|range|interval|glob|sort|shuffle|tag|int|float|bool|str|json_str|extend_list)\(.*\)\s*"
)
"""Hydra's own."""


def as_text(value: str, name: str, sweep: bool) -> str:
    """Hydra's form of what is to be a text, or several of them.

    Args:
        name: of the field.
        sweep: whether a comma stands between values of several jobs.
    """
    is_function = FUNCTION.fullmatch(value) is not None and parsed(value) is not None
    if is_function and not (sweep and "choice" in value):
        return value
    if not sweep:
        # A list where one value is expected: of texts a comma is part of, of folders only where there is such a one.
        is_one = name == "workload.prompt_text" or len(separated(value)) == 1 or Path(expanded(value)).exists()
        return plain_text(value) if is_one else value
    if match := re.fullmatch(r"\s*choice\((.*)\)\s*", value, re.DOTALL):
        return f"choice({','.join(plain_text(part.strip()) for part in separated(match[1]))})"
    parts = separated(value)
    if name == "workload.prompt_text" and len(parts) > 1 and any(part.startswith(" ") for part in parts[1:]):
        told = f"{name}: {len(parts)} texts are swept, as -m takes a comma for the end of a value; one text is "
        print(told + quoted_in_shell(name, value), file=sys.stderr)
    return ",".join(plain_text(part.strip()) for part in parts) if len(parts) > 1 else plain_text(value)


def plain_text(value: str) -> str:
    """Hydra's form of a text: the same where Hydra takes it as it is, or where it was meant for Hydra."""
    if not value or "${" in value:
        return value
    if (override := parsed(value)) is not None and override.value_type is ValueType.ELEMENT:
        element = private.element(override)
        escaped = isinstance(element, str) and "\\" in value
        if element is None or isinstance(element, QuotedString) or element == value or escaped:
            return value
    return quoted(value)


def quoted(text: str) -> str:
    """As Hydra's command line takes it, whatever is in it."""
    return QuotedString(text, Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text of a value that may be quoted."""
    override = parsed(value)
    element = None if override is None else private.element(override)
    return element.text if isinstance(element, QuotedString) else value


def quoted_in_shell(key: str, text: str) -> str:
    """What to type for a text to get to a field as it is."""
    return shlex.quote(f"{key}={QuotedString(text, Quote.double).with_quotes()}")


def separated(value: str) -> list[str]:
    """The parts of a value between its commas, quotes respected."""
    parts, end = [], -1
    while end < len(value):
        match = QUOTED.match(value, end + 1) or PLAIN.match(value, end + 1)
        assert match is not None
        parts.append(match[0])
        end = match.end()
    return parts


def parsed(value: str) -> Override | None:
    """A value as Hydra reads it; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, ValueError, ArithmeticError):
        return None
