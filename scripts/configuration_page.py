"""Writes docs/configuration.md from the dataclasses in gptbench/config/:  python scripts/configuration_page.py

The page has every group with its options, and every field with its type, default, unit and meaning, which is the
docstring below the field. After a change there, run this again: tests/test_docs.py compares.
"""

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from gptbench.config import Config, Section, shipped

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

<!-- By scripts/configuration_page.py from the docstrings in gptbench/config/. Change those and run it again. -->

`GROUP=OPTION` chooses an option of a group, and `GROUP.FIELD=VALUE` sets one of its fields. The defaults of a group are
those of its default option; what other options set differently stands below the table. `gptbench --cfg job` prints all
values that a command composes, and `gptbench list` what the options are. How values are written:
[Command line](command-line.md).
"""
DATA = ("baseline", "model")
"""Groups whose options are data, so that the default of a field is not that of the default option."""
UNITS = {
    "_s": "s", "_w": "W", "_gb_per_s": "GB/s", "_length": "tokens", "context": "tokens", "new_tokens": "tokens",
    "original_context": "tokens", "sliding_window": "tokens", "tokens": "tokens",
}  # fmt: skip
"""Names of fields, or how they end, and what the number counts or measures; the longest that fits counts."""
TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true`, `false`",
    types.NoneType: "`null`",
}


def field_docstrings(section: type) -> dict[str, str]:
    """The docstring below each field that a dataclass declares itself, by the field's name."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        entry.target.id: " ".join(str(ast.literal_eval(after.value)).split())
        for entry, after in zip(body.body, body.body[1:], strict=False)
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and isinstance(after, ast.Expr)
    }


def type_name(hint: Any) -> str:
    """A type as a user knows its values: the choices of an Enum, `text or null`, `list of integer`."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, arguments))
    if typing.get_origin(hint) is list:
        return f"list of {type_name(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if hint is Any:
        return "any value"
    if issubclass(hint, Enum):
        return ", ".join(f"`{one.name}`" for one in hint)
    return TYPES.get(hint, "fields")


def in_yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def default_of(entry: dataclasses.Field[Any], chosen: Mapping[str, Any]) -> str:
    """The default of a field as it is written in YAML, of the chosen option where that sets it; empty where the field
    has to be given."""
    value = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
    if not str(chosen.get(entry.name, "${")).startswith("${"):
        value = chosen[entry.name]
    if value in (dataclasses.MISSING, MISSING):
        return ""
    return f"`{in_yaml(value.name if isinstance(value, Enum) else value)}`"


def unit_of(name: str) -> str:
    """What a field's number counts or measures; empty where its name does not say that."""
    fitting = [end for end in UNITS if name == end or (end.startswith("_") and name.endswith(end))]
    return UNITS[max(fitting, key=len)] if fitting else ""


def rows(section: type, chosen: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """The cells of each field that a dataclass declares itself, and of the fields of a dataclass in it."""
    hints, texts = typing.get_type_hints(section), field_docstrings(section)
    for entry in dataclasses.fields(section):
        if entry.name in texts:
            name = f"{prefix}{entry.name}"
            kind, value = type_name(hints[entry.name]), default_of(entry, chosen)
            yield [f"`{name}`", kind, value, unit_of(entry.name), texts[entry.name]]
            keyed = ".NAME" if typing.get_origin(hints[entry.name]) is dict else ""
            for inner in (hints[entry.name], *typing.get_args(hints[entry.name])):
                if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                    yield from rows(inner, {}, f"{name}{keyed}.")


def table(section: type, chosen: Mapping[str, Any]) -> str:
    """The fields that a dataclass declares itself as a Markdown table; empty where it declares none."""
    cells = [["field", "type", "default", "unit", "meaning"], ["---"] * 5, *rows(section, chosen)]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells]
    return "\n".join(f"| {line} |" for line in lines) if len(lines) > 2 else ""


def own_subclasses(base: type) -> Iterator[type[Section]]:
    """Subclasses at any depth that gptbench declares: plugins declare others."""
    for section in base.__subclasses__():
        if section.__module__.startswith("gptbench.config."):
            yield section
            yield from own_subclasses(section)


def summary(section: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join(inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].split())


def target(group: str, name: str) -> str:
    """The class that an option builds: its `_target_`, or that of the option which it begins with."""
    values = shipped(group, name)
    return str(values["_target_"]) if "_target_" in values else target(group, values["defaults"][0])


def names(group: str) -> list[str]:
    """The options of a group; those that begin with another one stand behind it."""
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return sorted(found, key=lambda name: "_target_" not in shipped(group, name))


def listed(options: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in options)


def differences(group: str, first: str, name: str) -> str:
    """What an option sets to another value than the option of which the table is; empty where that is nothing."""
    values = [
        f"`{key}: {in_yaml(value)}`"
        for key, value in shipped(group, name).items()
        if key not in ("_target_", "name", "defaults") and shipped(group, first).get(key) != value
    ]
    return f"`{group}={name}` takes {', '.join(values)}." if values else ""


def parts() -> Iterator[str]:
    """Headings, paragraphs and tables, in order."""
    root = yaml.safe_load((CONF / "config.yaml").read_text())
    chosen = {group: name for entry in root["defaults"] if isinstance(entry, dict) for group, name in entry.items()}
    yield HEAD
    yield "## Without a group"
    yield table(Config, {})
    for base in typing.get_type_hints(Config).values():
        if not (isinstance(base, type) and issubclass(base, Section)):
            continue
        group = base.GROUP
        yield f"## `{group}`"
        yield f"Options: {listed(names(group))}. The default is `{chosen[group]}`."
        for section in (base, *own_subclasses(base)):
            options = [name for name in names(group) if target(group, name) in section.TARGETS]
            if section is not base:
                yield "### " + ", ".join(f"`{group}={name}`" for name in options)
            yield summary(section)
            first = chosen[group] if chosen[group] in options or section is base else options[0]
            yield table(section, {} if group in DATA else shipped(group, first))
            if group not in DATA:
                yield from (differences(group, first, name) for name in options if name != first)
    yield "## `experiment`"
    yield f"Options: {listed(names('experiment'))}. An experiment sets options and fields of several groups."
    yield "## `hydra/launcher`"
    where = "[Sweeps](sweeps.md#several-gpus-and-machines)"
    yield f"Options beside Hydra's: {listed(names('hydra/launcher'))}. See {where}."


def page() -> str:
    """The text of the page."""
    return "\n\n".join(part.strip() for part in parts() if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
