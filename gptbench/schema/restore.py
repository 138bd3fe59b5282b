"""Makes dataclasses from plain data that was read from a file, and rejects what they cannot hold.

Every field is checked against its annotation, at any depth. Beyond that, every number is finite and of a size that
statistics can be computed with: integers are not negative, and what is divided by, or whose logarithm is taken, is
positive. Names of fields and their ends (`_s` seconds) are as in `gptbench.schema.result`.
"""

import contextlib
import datetime
import functools
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

from gptbench.base.errors import InputError
from gptbench.base.inputs import is_finite_number
from gptbench.config import Config, Section
from gptbench.config.renamed import RECORDED, renamed

T = TypeVar("T")

MAX_NUMBER = 1e19
"""Maximum magnitude of a number: above all bytes, tokens, seconds and operations/s, with a square that is still
finite."""
MIN_POSITIVE = 1e-13
"""Minimum of a positive field; smaller seconds and rates cannot be measurements."""
MAX_DEPTH = 50
"""Maximum nesting of dicts and lists in a field of any type."""
MAX_SHOWN = 40
"""Maximum characters of a value in a message."""

POSITIVE = {
    "Sample": {"ttft_s", "step_s", "call_s"},
    "WarmUp": {"call_s"},
    "Roof": {"gb_per_s", "seconds"},
    "Probe": {"gb_per_s", "usual_gb_per_s"},
    "Traffic": {"weights"},
    "Breakdown": {"step_s"},
    "Spent": {"seconds", "tokens"},
    "Timing": {"seconds"},
    "KernelTimes": {"moved_bytes"},
    "KernelResult": {"peak_flops"},
    "Environment": {"cores", "threads"},
    "Load": {"seconds", "cores"},
    "ModelConfig": {"vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "context"},
    "WorkloadConfig": {"batch_size"},
}
"""Fields, by class, whose numbers must be positive."""
MAY_BE_NAN = {"Predictions": {"nll", "reference_nll", "kl"}, "Timing": {"error"}, "Outcome": {"metrics"}}
"""Fields, by class, whose numbers may be nan or infinite: invalid results are recorded as they are."""


def restored(kind: type[T], raw: Any, place: str = "") -> T:
    """Return a dataclass made from a dict of its fields.

    Args:
        place: dotted name of the dict, for messages; empty for the whole file.

    Raises:
        InputError: the message names the field and its value.
    """
    if not isinstance(raw, dict):
        raise wrong(place, raw, "an object")
    known = {entry.name: entry for entry in fields(kind) if entry.init}  # type: ignore[arg-type]
    try:
        raw = renamed(raw, RECORDED.get(kind.__name__, {}))
    except InputError as error:
        raise InputError(dotted(place, str(error))) from None
    for name in raw:
        if name not in known:
            raise InputError(f"{dotted(place, name)}: no such field")
    known_hints: dict[str, Any] = hints(kind)  # type: ignore[arg-type]
    values = {}
    for name, entry in known.items():
        where = dotted(place, name)
        if name in raw:
            values[name] = value_of(known_hints[name], raw[name], where, rule_of(kind, name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f"{where}: missing")
    return kind(**values)


def checked(kind: type, raw: dict[str, Any], place: str) -> None:
    """Check those fields of a dataclass that are in a dict against their annotations. Other keys are ignored: they
    belong to another version.

    Raises:
        InputError: the message names the field and its value.
    """
    for name, hint in hints(kind).items():
        if name in raw and raw[name] != "???":  # OmegaConf's marker of a missing value
            rule = "positive" if name in POSITIVE.get(kind.__name__, ()) else None
            value_of(hint, raw[name], dotted(place, name), rule)


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields."""
    names = {entry.name for entry in fields(kind)}
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if name in names}


def rule_of(kind: type, name: str) -> str | None:
    """Return the rule for a field's numbers beyond their type."""
    for rule, table in (("positive", POSITIVE), ("may be nan", MAY_BE_NAN)):
        if name in table.get(kind.__name__, ()):
            return rule
    return "not negative"


def value_of(hint: Any, raw: Any, place: str, rule: str | None) -> Any:
    """Return a value converted to the type of its annotation."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        check_plain(raw, place)
        return raw
    if origin in (typing.Union, types.UnionType):
        if raw is None and type(None) in of:
            return None
        kinds = [kind for kind in of if kind is not type(None)]
        for kind in kinds[:-1]:
            with contextlib.suppress(InputError):
                return value_of(kind, raw, place, rule)
        return value_of(kinds[-1], raw, place, rule)
    if origin in (list, tuple):
        if not isinstance(raw, list):
            raise wrong(place, raw, "a list")
        return [value_of(of[0], item, f"{place}[{index}]", rule) for index, item in enumerate(raw)]
    if origin is dict:
        if not isinstance(raw, dict):
            raise wrong(place, raw, "an object")
        return {key: value_of(of[1], item, dotted(place, key), rule) for key, item in raw.items()}
    if is_dataclass(hint):
        return restored(typing.cast(type, hint), raw, place)
    if hint in (int, float):
        check_number(hint, raw, place, rule)
        return raw
    expected = {str: "text", bool: "true or false"}
    if isinstance(hint, type) and issubclass(hint, Enum):
        hint = str
    if not isinstance(raw, hint):
        raise wrong(place, raw, expected[hint])
    return raw


def check_number(kind: type, raw: Any, place: str, rule: str | None) -> None:
    """Raise InputError for a value that is not a number of that type, or breaks the rule."""
    if rule == "may be nan" and isinstance(raw, float) and not is_finite_number(raw):
        return
    if not is_finite_number(raw) or (kind is int and not isinstance(raw, int)):
        raise wrong(place, raw, "a whole number" if kind is int else "a finite number")
    if not abs(raw) <= MAX_NUMBER:
        raise wrong(place, raw, f"at most {MAX_NUMBER:g}")
    if rule == "positive" and not raw >= MIN_POSITIVE:
        raise wrong(place, raw, "a number over 0")
    if rule == "not negative" and kind is int and raw < 0:
        raise wrong(place, raw, "a number of at least 0")


def check_plain(raw: Any, place: str, depth: int = MAX_DEPTH) -> None:
    """Raise InputError for a value that is nested deeper than any configuration."""
    if not isinstance(raw, dict | list):
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            check_number(float, raw, place, None)
        return
    if not depth:
        raise InputError(f"{place}: expected at most {MAX_DEPTH} nested objects and lists")
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        check_plain(value, dotted(place, str(key)), depth - 1)


def dotted(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def wrong(place: str, raw: Any, expected: str) -> InputError:
    """Return the error for a field that holds something else."""
    if isinstance(raw, dict | list):
        value = "an object" if isinstance(raw, dict) else f"a list of {len(raw)}"
    else:
        value = "null" if raw is None else repr(raw)
        value = value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}…"
    return InputError(f"{place or 'the file'}: expected {expected}, got {value}")


NAMED_BY = (
    *("model.name", "quant.name", "engine.name", "engine._target_", "sampling.name", "sampling.temperature"),
    *("workload.name", "workload.batch_size", "device.name"),
)
"""Fields of its configuration that every record is named by."""


def check_config(config: dict[str, Any], place: str) -> None:
    """Raise InputError for a configuration that lacks a field of `NAMED_BY`, or has a section with an invalid value.
    Other fields may be missing or unknown, as in other versions."""
    groups = {
        name: hint for name, hint in hints(Config).items() if isinstance(hint, type) and issubclass(hint, Section)
    }
    for group in groups.keys() & config.keys():
        require(isinstance(config[group], dict), f"{place}.{group}", "a section")
    for name in (*NAMED_BY, *(["task.name"] if "task" in config else [])):
        group, _, key = name.partition(".")
        require(config.get(group, {}).get(key) is not None, f"{place}.{name}", "a value")
    for group in groups.keys() & config.keys():
        # The rows of a baseline are checked when it is loaded.
        section = {key: value for key, value in config[group].items() if key != "rows"}
        for kind in (groups[group], *groups[group].__subclasses__()):
            if kind is groups[group] or section.get("_target_") in kind.TARGETS:
                checked(kind, section, f"{place}.{group}")
    checked(Config, {key: value for key, value in config.items() if key not in groups}, place)


def require(holds: bool, place: str, expected: str) -> None:
    """Raise InputError for the field `place` unless the condition holds."""
    if not holds:
        raise InputError(f"{place}: expected {expected}")


def is_time(text: str) -> bool:
    """Return whether a text is a valid point in time, ISO 8601."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp() >= 0
    except (ValueError, OverflowError, OSError):
        return False


def of_list(raw: Any) -> list[Any]:
    """Return the value if it is a list, otherwise an empty list."""
    return raw if isinstance(raw, list) else []
