"""Names and types of all fields that a command line can set."""

import functools
import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum

from gptbench.config import Config, Section


@functools.cache
def text_fields() -> frozenset[str]:
    """Dotted names of all fields that hold a text."""
    return frozenset(name for name, kind in field_types().items() if kind is str and not name.endswith("_target_"))


def field_types() -> dict[str, object]:
    """Dotted name and type of every field that a command line can set; of an optional one, what it is otherwise."""
    return {name: unwrapped(kind) for name, kind in field_hints().items()}


def unwrapped(kind: object) -> object:
    """Of an optional type, what it is otherwise."""
    if isinstance(kind, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not type(None))
    return kind


def field_hints() -> dict[str, object]:
    """The same, with whether it is optional."""
    found: dict[str, object] = {}
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
            found.setdefault(f"{prefix}{entry.name}", hints[entry.name])
    return found


def choices_of(hint: object) -> list[str]:
    """Of a field that has some."""
    kind = unwrapped(hint)
    return [each.name for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def in_words(name: str, hint: object) -> str:
    """What a field holds."""
    kind = unwrapped(hint)
    if typing.get_origin(kind) is list:
        of = "token ids such as" if name in ("sampling.stop_tokens", "workload.prompt") else "values such as"
        eos = "; a checkpoint's own is eos_token_id in its config.json" if name == "sampling.stop_tokens" else ""
        example = "[[2,7],[3]]" if name == "workload.prompts" else "[2,7]"
        return f"a list in brackets, of {of} {name}={example}{eos}"
    words = IN_WORDS.get(kind) or ("one of " + ", ".join(choices_of(kind)) if choices_of(kind) else "fields and values")
    return words + (", or null" if kind is not hint else "")


IN_WORDS: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
"""What of a type can be typed."""
