"""What people type, as Hydra takes it; and what Hydra has to say against it, in our words.

Hydra's grammar makes numbers, lists and functions of values. A field that holds text, such as a prompt or a path, is to
get the very text that was typed: it is quoted here, where the grammar would make anything else of it. A model may be a
folder, or the name of one in Hugging Face's cache.
"""

import argparse
import difflib
import functools
import os
import re
import shlex
import sys
import traceback
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from gptbench import config as schemas
from gptbench.architecture import CONFIG_FILE, of_checkpoint
from gptbench.base.errors import UserError
from gptbench.base.hub import expanded, is_hub_name
from gptbench.base.paths import conf_folder
from gptbench.base.redaction import redacted
from gptbench.config import Config, Section, explain

COMMANDS = {
    "compare": "gptbench.commands.compare:compare_command",
    "ab": "gptbench.commands.ab:ab_command",
    "gate": "gptbench.commands.gate:gate_command",
    "report": "gptbench.commands.report:report_command",
    "explain": "gptbench.commands.explain:explain_command",
    "rows": "gptbench.commands.rows:rows_command",
    "export": "gptbench.commands.export:export_command",
    "log": "gptbench.commands.sync:log_command",
    "sync": "gptbench.commands.sync:sync_command",
    "cache": "gptbench.commands.cache:cache_command",
}
"""By name, the function that runs a command; its module is imported when it is asked for."""
MULTIRUN = ("-m", "--multirun")
QUIET = ("--quiet", "-q")
"""Options of ours for which Hydra knows no name."""
QUOTED = re.compile(r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\s*(?=,|$)", re.DOTALL)
"""A whole part of a list, in quotes."""
PLAIN = re.compile(r"(?:[^,\\]|\\.|\\$)*", re.DOTALL)
"""A part without; Hydra takes a comma behind a backslash for one that separates nothing."""
FUNCTION = re.compile(
    r"\s*(choice|range|interval|glob|sort|shuffle|tag|int|float|bool|str|json_str|extend_list)\(.*\)\s*"
)
"""Hydra's own."""


class CommandLineError(UserError):
    """A command line that says nothing that can be done."""


class Parser(argparse.ArgumentParser):
    """One that raises where another ends the process."""

    def error(self, message: str) -> NoReturn:
        raise CommandLineError(message)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options, with their values, and overrides, in whatever order they were typed.

    Raises:
        CommandLineError: there is no such option, or it lacks its value.
    """
    parser = Parser(add_help=False, allow_abbrev=True)
    names: list[str] = []
    for action in get_args_parser()._actions:  # Hydra's own, which it has no other list of
        if not action.option_strings:
            continue
        names += action.option_strings
        if action.nargs == 0:
            parser.add_argument(*action.option_strings, dest=action.dest, action="store_true")
        else:
            parser.add_argument(*action.option_strings, dest=action.dest, nargs=action.nargs)
    parser.add_argument("overrides", nargs="*")
    found, unknown = parser.parse_known_intermixed_args(list(arguments))
    wrong = [argument for argument in unknown if argument.startswith("-")]
    if wrong:
        name = wrong[0].partition("=")[0]
        raise CommandLineError(f"{wrong[0]}: no such option{did_you_mean(name, [*names, *QUIET])}")
    overrides = [*found.overrides, *(argument for argument in unknown if argument not in wrong)]
    left, options = list(overrides), []
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            options.append(argument)
    return options, overrides


def typed(arguments: Sequence[str]) -> list[str]:
    """A command line of a run or a sweep as Hydra takes it: options, then overrides.

    Raises:
        CommandLineError: an option or an override is none.
    """
    arguments, quiet = without_quiet(arguments)
    options, overrides = split(arguments)
    sweep = any(option in MULTIRUN for option in options)
    prepared_ones = prepared(overrides, sweep, config_dir_of(options))
    return [*options, *prepared_ones, *(["quiet=true"] if quiet else [])]


def without_quiet(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The same without `--quiet`, and whether that was there."""
    left = [argument for argument in arguments if argument not in QUIET]
    return left, len(left) < len(arguments)


def config_dir_of(options: Sequence[str]) -> str | None:
    """The folder of configurations of the user's own, if one is named."""
    found, _ = get_args_parser().parse_known_args(list(options))
    given: str | None = found.config_dir
    return given


def prepared(overrides: Sequence[str], sweep: bool = False, config_dir: str | None = None) -> list[str]:
    """The same as Hydra takes them.

    Args:
        sweep: whether a comma stands between values of several jobs.
        config_dir: folder with configurations of the user's own.

    Raises:
        CommandLineError: one is no override, and no checkpoint.
    """
    taken = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.startswith("~") and not is_checkpoint(override):
            taken.append(override)
        elif not equals or not re.fullmatch(r"\+{0,2}[\w./@:$-]+", key, re.ASCII):
            if not is_checkpoint(override) and not all(map(is_checkpoint, separated(override))):
                raise CommandLineError(no_override(override, config_dir))
            taken += models(override, sweep, config_dir)
        elif key == "model":
            taken += models(value, sweep, config_dir)
        elif key.lstrip("+") in text_fields():
            taken.append(f"{key}={as_text(value, key.lstrip('+'), sweep)}")
        else:
            taken.append(override)
    return taken


def models(value: str, sweep: bool, config_dir: str | None) -> list[str]:
    """Overrides for `model=`, of options and checkpoints."""
    parts = separated(value) if sweep and not FUNCTION.fullmatch(value) else [value]
    names = [unquoted(part) for part in parts]
    options = [is_option("model", name, config_dir) or not is_checkpoint(name) for name in names]
    if all(options):
        return [f"model={value}"]
    if len(parts) == 1:
        return ["model=auto", f"model.checkpoint={plain_text(expanded(names[0]))}"]
    # Of a sweep: options as they are, checkpoints in quotes (see `gptbench.sweep.space`).
    return ["model=" + ",".join(name if known else quoted(name) for name, known in zip(names, options, strict=True))]


def is_option(group: str, name: str, config_dir: str | None) -> bool:
    """Whether a group has an option of that name."""
    folders = [conf_folder(), *([Path(config_dir)] if config_dir else [])]
    return any((folder / group / f"{name}.yaml").is_file() for folder in folders if len(os.fsencode(name)) < 200)


def is_checkpoint(name: str) -> bool:
    """Whether it is meant as one: a path, the name of a model on the hub, or a folder that holds one."""
    if not name or "\0" in name or "=" in name.partition("/")[0] or name in ("null", "???"):
        return False
    if name.startswith(("/", "./", "../", "~/")) or name in (".", "..", "~") or is_hub_name(name):
        return True
    folder = Path(name)
    return ("/" in name and folder.is_dir()) or (folder / CONFIG_FILE).is_file() or (folder / "snapshots").is_dir()


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
        element = override._value
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
    element = None if override is None else override._value
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
        hints = typing.get_type_hints(section, vars(schemas))
        for entry in fields(section):
            kind = unwrapped(hints[entry.name])
            if is_dataclass(kind) and not (isinstance(kind, type) and issubclass(kind, Section)):
                sections.append((f"{prefix}{entry.name}.", typing.cast(type, kind)))
            found.setdefault(f"{prefix}{entry.name}", hints[entry.name])
    return found


def did_you_mean(name: str, choices: Collection[str], value: str = "") -> str:
    """`; did you mean X?` for the choice that is most like it, with a value behind that; empty where none is."""
    if (known := ALIASES.get(name)) in choices:
        return f"; did you mean {known}{value}?"
    near = difflib.get_close_matches(name, choices, 1, 0.6)
    return f"; did you mean {near[0]}{value}?" if near else ""


def no_override(argument: str, config_dir: str | None) -> str:
    """Message for an argument that says nothing."""
    word = argument.partition("=")[0]
    options = [path.stem for path in sorted((conf_folder() / "model").glob("*.yaml"))]
    if is_option("model", argument, config_dir):
        return f"{argument}: did you mean model={argument}?"
    if "=" in argument:
        return f"{argument}: expected FIELD=VALUE, and {word!r} is no field's name"
    leaves = [f"{name}=…" for name in field_types() if name.rpartition(".")[2] == word]
    if (said := of_checkpoint(argument)) is not None:
        return f"{argument}: {said}"
    if word in ("help", "usage", "?"):
        return f"{argument}: no command; gptbench --help says what there is, and gptbench COMMAND --help what it takes"
    near = f"; did you mean {leaves[0]}?" if leaves else did_you_mean(word, COMMANDS)
    near = near or did_you_mean(word, options).replace("you mean ", "you mean model=")
    return f"{argument}: expected a command ({', '.join(COMMANDS)}), FIELD=VALUE, or the folder of a checkpoint{near}"


def told(error: Exception, arguments: Sequence[str] = ()) -> str:
    """What a composing error means: what is wrong, and what to type instead.

    Args:
        arguments: the command line's.
    """
    if isinstance(error, OverrideParseException):
        return of_grammar(error.override)
    if isinstance(error, OSError) and "run_job" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}:
        return of_folder(error, arguments)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MissingConfigException):
        cause = cause.__cause__
    if cause is not None and (group := re.match(r"(?:In '[^']*': )?Could not find '([^']*)/([^'/]*)'", str(cause))):
        key, name = group[1], group[2]
        options = sorted(cause.options or ())
        near = did_you_mean(name, options)
        if key == "model" and (said := of_checkpoint(name)) is not None:
            return f"{key}={name}: {said}"
        listed = f"; the options are {', '.join(options)}" if options else ""
        return f"{key}={name}: no such option{listed}{near}"
    message = explain(error)
    for pattern in (r"Could not override '([^']*)'", r"([^\s:]+): no such field"):
        if (match := re.match(pattern, message)) is not None:
            return of_field(match[1], message, arguments)
    if match := re.match(r"Ambiguous value for argument '([^=]*)=(.*?)'\n", message, re.DOTALL):
        key, value = match[1], match[2]
        kind = field_types().get(key.lstrip("+"))
        one = f"; one text: {quoted_in_shell(key, value)}" if kind is str else ""
        one = f"; one list: {shlex.quote(f'{key}=[{value}]')}" if typing.get_origin(kind) is list else one
        return f"{key}={value}: several values need -m, which runs a job for each{one}"
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if message.startswith("Config group override must be") and (conf_folder() / key).is_dir():
            there = sorted(path.stem for path in (conf_folder() / key).glob("*.yaml"))
            if value not in there and parsed(value) is not None:
                return f"{argument}: no such option; the options are {', '.join(there)}"
        if message.startswith("Unexpected type for root") and key.count(".") > 1:
            whole = key.rpartition(".")[0]
            return f"{argument}: {whole} is null; give all of it: {shlex.quote(f'{whole}={{NAME: VALUE, …}}')}"
    if (error_in := re.match(r"In '([^']*)': .*Invalid type assigned: list", message, re.DOTALL)) is not None:
        return f"{error_in[1]}: expected fields and values, and no list"
    name = re.split(r"[:\[]", message, maxsplit=1)[0]
    if not isinstance(error, UserError) and (hint := field_hints().get(name)) is not None:
        value = refused_value(name, error, message)
        return f"{name}={value}: expected {in_words(name, hint)}{did_you_mean(value, choices_of(hint))}"
    return message.partition("\nSee https://hydra.cc")[0]


def refused_value(name: str, error: Exception, message: str) -> str:
    """What a field was given that cannot hold it."""
    override = re.match(r"Error merging override \+{0,2}([\w.]+)=(.*)", str(error), re.DOTALL)
    if override is not None and override[1] == name:
        return override[2]
    said = re.search(r"[Vv]alue '(.*?)'", message)
    return "null" if said is None else said[1]


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
ALIASES = {"gpu": "cuda", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""What people call choices of ours."""


def of_folder(error: OSError, arguments: Sequence[str]) -> str:
    """Message for the folder of a run that Hydra cannot make."""
    value = given_value(own := "hydra.run.dir", arguments)
    named = f"{own}={value}" if value else f"outputs={given_value('outputs', arguments) or Config.outputs}"
    return f"{redacted(named)}: expected a folder that can be made ({error.strerror})"


def given_value(name: str, arguments: Sequence[str]) -> str:
    """What a command line gives a field that is no list; empty where it does not."""
    values = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith(f"{name}=")]
    return values[-1] if values and not values[-1].lstrip().startswith("[") else ""


def of_field(name: str, message: str, arguments: Sequence[str]) -> str:
    """Message for a field or a group that is not there, with the one that is most like it."""
    given = next((argument for argument in arguments if argument.lstrip("+").partition("=")[0] == name), name)
    value = given.partition("=")[2]
    section, _, leaf = name.rpartition(".")
    fields_there = message.partition("the fields are ")[2]
    names = [*field_types(), *(path.name for path in conf_folder().iterdir() if path.is_dir())]
    same = [each for each in names if each.rpartition(".")[2] == leaf and each != name]
    value = f"={value}" if value else ""
    near = f"; did you mean {same[0]}{value}?" if same else ""
    if section and fields_there:  # of those that this section has, and not another engine's
        names = []
        near = near or did_you_mean(leaf, fields_there.split(", "), value).replace("you mean ", f"you mean {section}.")
    near = near or did_you_mean(name, names, value)
    return f"{given}: no such field" + (f"; the fields are {fields_there}" if fields_there else "") + near


def of_grammar(override: str) -> str:
    """Message for what Hydra cannot read."""
    key, equals, value = override.partition("=")
    if not equals:
        return no_override(override, None)
    if "${" in value and parsed(value) is None:
        return f"{override}: ${{ begins an interpolation such as ${{model.name}}, and this one does not end as one does"
    return (
        f"{override}: expected a value, and this one cannot be read: it has a quote, a bracket, a comma or another "
        f"character that means something; as one text: {quoted_in_shell(key, value)}"
    )
