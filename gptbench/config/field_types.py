"""Names and types of all fields that a command line can set, and how a message describes them."""

import functools
import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum

from gptbench.config import Config, Section


@functools.cache
def text_fields() -> frozenset[str]:
    """Return the dotted names of all fields that hold text."""
    return frozenset(name for name, kind in field_types().items() if kind is str and not name.endswith("_target_"))


def field_types() -> dict[str, object]:
    """Return the dotted name and type of every field that a command line can set, without `| None` of optional ones."""
    return {name: unwrapped(kind) for name, kind in field_hints().items()}


def unwrapped(kind: object) -> object:
    """Return an optional type without its `| None`."""
    if isinstance(kind, types.UnionType):
        return next(argument for argument in typing.get_args(kind) if argument is not type(None))
    return kind


def field_hints() -> dict[str, object]:
    """Return the dotted name and type hint of every field, with the `| None` of optional ones."""
    hints_by_name: dict[str, object] = {}
    sections: list[tuple[str, type]] = [("", Config)]
    kinds = [Section]
    while kinds:
        kinds += kinds.pop(0).__subclasses__()
        sections += [(f"{kind.GROUP}.", kind) for kind in kinds if kind.GROUP]
    while sections:
        prefix, section = sections.pop()
        hints = typing.get_type_hints(section)
        for entry in fields(section):
            kind = unwrapped(hints[entry.name])
            if is_dataclass(kind) and not (isinstance(kind, type) and issubclass(kind, Section)):
                sections.append((f"{prefix}{entry.name}.", typing.cast(type, kind)))
            hints_by_name.setdefault(f"{prefix}{entry.name}", hints[entry.name])
    return hints_by_name


def choices_of(hint: object) -> list[str]:
    """Return the choices of a field whose type is an Enum; empty for any other."""
    kind = unwrapped(hint)
    return [choice.name for choice in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def in_words(name: str, hint: object) -> str:
    """Return a description of the values that a field can hold, for a message."""
    kind = unwrapped(hint)
    if typing.get_origin(kind) is list:
        entries = "token ids" if name in ("sampling.stop_tokens", "workload.prompt") else "values"
        eos = "; a checkpoint's stop token is eos_token_id in its config.json" if name == "sampling.stop_tokens" else ""
        example = "[[2,7],[3]]" if name == "workload.prompts" else "[2,7]"
        return f"a list of {entries} in brackets, such as {name}={example}{eos}"
    words = IN_WORDS.get(kind) or (
        "one of " + ", ".join(choices_of(kind)) if choices_of(kind) else "fields with values"
    )
    return words + (", or null" if kind is not hint else "")


IN_WORDS: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""Types of fields, mapped to a description of the values that a command line can give them."""
