"""Turns Hydra's errors about a command line into messages that say what is wrong and what to type instead."""

import re
import shlex
import traceback
import typing
from collections.abc import Sequence

from hydra.errors import MissingConfigException, OverrideParseException

from gptbench.architecture import checkpoint_hint
from gptbench.base.errors import UserError
from gptbench.base.paths import conf_folder
from gptbench.base.redaction import redacted
from gptbench.config import Config, explain
from gptbench.config.commandline import did_you_mean, no_override
from gptbench.config.field_types import choices_of, field_hints, field_types, in_words
from gptbench.config.grammar import parsed, quoted_in_shell


def message_for(error: Exception, arguments: Sequence[str] = ()) -> str:
    """Return the message for an error raised while composing: what is wrong, and what to type instead.

    Args:
        arguments: arguments of the command line.
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
        near = did_you_mean(name, options).replace("you mean ", f"you mean {key}=")
        if key == "model" and (said := checkpoint_hint(name)) is not None:
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
        single = f"; as one text: {quoted_in_shell(key, value)}" if kind is str else ""
        single = f"; as one list: {shlex.quote(f'{key}=[{value}]')}" if typing.get_origin(kind) is list else single
        return f"{key}={value}: several values need -m, which runs a job for each{single}"
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if message.startswith("Config group override must be") and (conf_folder() / key).is_dir():
            there = sorted(path.stem for path in (conf_folder() / key).glob("*.yaml"))
            if value not in there and parsed(value) is not None:
                return f"{argument}: no such option; the options are {', '.join(there)}"
        if message.startswith("Unexpected type for root") and key.count(".") > 1:
            whole = key.rpartition(".")[0]
            return f"{argument}: {whole} is null; set all of its fields: {shlex.quote(f'{whole}={{NAME: VALUE, …}}')}"
    if (error_in := re.match(r"In '([^']*)': .*Invalid type assigned: list", message, re.DOTALL)) is not None:
        return f"{error_in[1]}: expected fields with values, not a list"
    name = re.split(r"[:\[]", message, maxsplit=1)[0]
    if not isinstance(error, UserError) and (hint := field_hints().get(name)) is not None:
        value = refused_value(name, error, message)
        return f"{name}={value}: expected {in_words(name, hint)}{did_you_mean(value, choices_of(hint))}"
    return message.partition("\nSee https://hydra.cc")[0]


def refused_value(name: str, error: Exception, message: str) -> str:
    """Return the value that a field cannot hold."""
    override = re.match(r"Error merging override \+{0,2}([\w.]+)=(.*)", str(error), re.DOTALL)
    if override is not None and override[1] == name:
        return override[2]
    said = re.search(r"[Vv]alue '(.*?)'", message)
    return "null" if said is None else said[1]


def of_folder(error: OSError, arguments: Sequence[str]) -> str:
    """Return the message for a run's folder that Hydra cannot create."""
    value = given_value(field := "hydra.run.dir", arguments)
    named = f"{field}={value}" if value else f"outputs={given_value('outputs', arguments) or Config.outputs}"
    return f"{redacted(named)}: expected a folder that can be created ({error.strerror})"


def given_value(name: str, arguments: Sequence[str]) -> str:
    """Return the value that a command line sets a field to; empty if it does not set it, or sets it to a list."""
    values = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith(f"{name}=")]
    return values[-1] if values and not values[-1].lstrip().startswith("[") else ""


def of_field(name: str, message: str, arguments: Sequence[str]) -> str:
    """Return the message for a field or group that does not exist, with the most similar one that does."""
    given = next((argument for argument in arguments if argument.lstrip("+").partition("=")[0] == name), name)
    value = given.partition("=")[2]
    section, _, leaf = name.rpartition(".")
    fields_there = message.partition("the fields are ")[2]
    names = [*field_types(), *(path.name for path in conf_folder().iterdir() if path.is_dir())]
    same = [known for known in names if known.rpartition(".")[2] == leaf and known != name]
    value = f"={value}" if value else ""
    near = f"; did you mean {same[0]}{value}?" if same else ""
    if section and fields_there:  # only fields of this section, not of another engine
        names = []
        near = near or did_you_mean(leaf, fields_there.split(", "), value).replace("you mean ", f"you mean {section}.")
    near = near or did_you_mean(name, names, value)
    return f"{given}: no such field" + (f"; the fields are {fields_there}" if fields_there else "") + near


def of_grammar(override: str) -> str:
    """Return the message for an override that Hydra cannot parse."""
    key, equals, value = override.partition("=")
    if not equals:
        return no_override(override, None)
    if "${" in value and parsed(value) is None:
        return f"{override}: ${{ begins an interpolation such as ${{model.name}}, and this one is malformed"
    return (
        f"{override}: expected a value that can be parsed, but this one has a quote, a bracket, a comma or another "
        f"character with a special meaning; as one text: {quoted_in_shell(key, value)}"
    )
