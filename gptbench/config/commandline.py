"""Prepares the command line that a user types for Hydra.

Hydra's grammar turns values into numbers, lists and functions. A field that holds text, such as a prompt or a path,
gets exactly the text that was typed: text that the grammar would change is quoted here. A model may also be given as a
folder, or as the name of a model in the Hugging Face cache.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from gptbench.architecture import CONFIG_FILE, checkpoint_hint
from gptbench.base.errors import UserError
from gptbench.base.hub import expanded, is_hub_name
from gptbench.base.paths import conf_folder
from gptbench.base.streams import FORMATS
from gptbench.config import renamed
from gptbench.config.field_types import field_types, text_fields
from gptbench.config.grammar import FUNCTION, as_text, plain_text, quoted, separated, unquoted
from gptbench.config.plugins import OPTION
from gptbench.private import hydra as private

COMMANDS = {
    "compare": "gptbench.commands.compare:compare_command",
    "ab": "gptbench.commands.ab:ab_command",
    "gate": "gptbench.commands.gate:gate_command",
    "report": "gptbench.commands.report:report_command",
    "explain": "gptbench.commands.explain:explain_command",
    "rows": "gptbench.commands.rows:rows_command",
    "export": "gptbench.commands.export:export_command",
    "list": "gptbench.commands.listing:list_command",
    "log": "gptbench.commands.sync:log_command",
    "sync": "gptbench.commands.sync:sync_command",
    "cache": "gptbench.commands.cache:cache_command",
}
"""Names of commands, mapped to the function that runs each; its module is imported when the command is run."""
MULTIRUN = ("-m", "--multirun")
QUIET = ("--quiet", "-q")
DRY_RUN = ("--dry-run",)
FORMAT = "--format"
"""Options that gptbench adds to Hydra's."""


class CommandLineError(UserError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises CommandLineError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise CommandLineError(message)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options with their values, and the overrides, of arguments in any order.

    Raises:
        CommandLineError: an option does not exist or lacks its value.
    """
    parser = Parser(add_help=False, allow_abbrev=True)
    names: list[str] = []
    for action in private.options(private.arguments_parser()):
        names += action.option_strings
        if action.nargs == 0:
            parser.add_argument(*action.option_strings, dest=action.dest, action="store_true")
        else:
            parser.add_argument(*action.option_strings, dest=action.dest, nargs=action.nargs)
    parser.add_argument("overrides", nargs="*")
    known, unknown = parser.parse_known_intermixed_args(list(arguments))
    wrong = [argument for argument in unknown if argument.startswith("-")]
    if wrong:
        name = wrong[0].partition("=")[0]
        raise CommandLineError(
            f"{wrong[0]}: no such option{did_you_mean(name, [*names, *QUIET, *DRY_RUN, FORMAT, OPTION])}"
        )
    overrides = [*known.overrides, *(argument for argument in unknown if argument not in wrong)]
    left, options = list(overrides), []
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            options.append(argument)
    return options, overrides


def typed(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a run or a sweep as Hydra has to read it: options, then overrides.

    Raises:
        CommandLineError: an argument is neither an option nor an override.
    """
    arguments, quiet = without_quiet(arguments)
    options, overrides = split(arguments)
    sweep = any(option in MULTIRUN for option in options)
    prepared_overrides = prepared(overrides, sweep, config_dir_of(options))
    return [*options, *prepared_overrides, *(["quiet=true"] if quiet else [])]


def without_quiet(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--quiet`, and whether it was among them."""
    return without_options(arguments, QUIET)


def without_options(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], bool]:
    """Return the arguments without the named options, which take no value, and whether one was among them."""
    left = [argument for argument in arguments if argument not in names]
    return left, len(left) < len(arguments)


def without_format(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the arguments without `--format`, and its value, or None if it is not among them.

    Raises:
        CommandLineError: it has no value, or one that is not a format.
    """
    left, chosen = [], None
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != FORMAT:
            left.append(argument)
            continue
        chosen = value if equals else next(rest, "")
        if chosen not in FORMATS:
            raise CommandLineError(f"{FORMAT}={chosen}: expected one of {', '.join(FORMATS)}")
    return left, chosen


def config_dir_of(options: Sequence[str]) -> str | None:
    """Return the folder of the user's configurations, or None if `--config-dir` is not given."""
    known, _ = private.arguments_parser().parse_known_args(list(options))
    folder: str | None = known.config_dir
    return folder


def prepared(overrides: Sequence[str], sweep: bool = False, config_dir: str | None = None) -> list[str]:
    """Return the overrides as Hydra has to read them.

    Args:
        sweep: whether a comma separates the values of several jobs.
        config_dir: folder of the user's configurations.

    Raises:
        CommandLineError: one is neither an override nor a checkpoint.
    """
    taken = []
    for typed_override in overrides:
        override = renamed.current_override(typed_override)
        if override != typed_override:
            note = f"renamed to {override}; the next version accepts only the new name"
            print(f"gptbench: {typed_override}: {note}", file=sys.stderr)
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
    """Return the overrides for a value of `model=` that names options and checkpoints."""
    parts = separated(value) if sweep and not FUNCTION.fullmatch(value) else [value]
    names = [unquoted(part) for part in parts]
    options = [is_option("model", name, config_dir) or not is_checkpoint(name) for name in names]
    if all(options):
        return [f"model={value}"]
    if len(parts) == 1:
        return ["model=auto", f"model.checkpoint={plain_text(expanded(names[0]))}"]
    # In a sweep, options stay as they are and checkpoints are quoted (see `gptbench.sweep.space`).
    return ["model=" + ",".join(name if known else quoted(name) for name, known in zip(names, options, strict=True))]


def is_option(group: str, name: str, config_dir: str | None) -> bool:
    """Whether a group has an option of that name."""
    folders = [conf_folder(), *([Path(config_dir)] if config_dir else [])]
    return any((folder / group / f"{name}.yaml").is_file() for folder in folders if len(os.fsencode(name)) < 200)


def is_checkpoint(name: str) -> bool:
    """Whether a name means a checkpoint: a path, the name of a model on the hub, or a folder that holds one."""
    if not name or "\0" in name or "=" in name.partition("/")[0] or name in ("null", "???"):
        return False
    if name.startswith(("/", "./", "../", "~/")) or name in (".", "..", "~") or is_hub_name(name):
        return True
    folder = Path(name)
    return ("/" in name and folder.is_dir()) or (folder / CONFIG_FILE).is_file() or (folder / "snapshots").is_dir()


def did_you_mean(name: str, choices: Collection[str], value: str = "") -> str:
    """Return `; did you mean X?` for the most similar choice, followed by a value; empty if no choice is similar."""
    if (known := ALIASES.get(name)) in choices:
        return f"; did you mean {known}{value}?"
    near = difflib.get_close_matches(name, choices, 1, 0.6)
    return f"; did you mean {near[0]}{value}?" if near else ""


def no_override(argument: str, config_dir: str | None) -> str:
    """Return the message for an argument that is neither an option, an override nor a checkpoint."""
    word = argument.partition("=")[0]
    options = [path.stem for path in sorted((conf_folder() / "model").glob("*.yaml"))]
    if is_option("model", argument, config_dir):
        return f"{argument}: did you mean model={argument}?"
    if "=" in argument:
        return f"{argument}: expected FIELD=VALUE, but {word!r} is not the name of a field"
    leaves = [f"{name}=…" for name in field_types() if name.rpartition(".")[2] == word]
    if (said := checkpoint_hint(argument)) is not None:
        return f"{argument}: {said}"
    if word in ("help", "usage", "?"):
        return f"{argument}: no such command; gptbench --help lists the commands, gptbench COMMAND --help its options"
    near = f"; did you mean {leaves[0]}?" if leaves else did_you_mean(word, COMMANDS)
    near = near or did_you_mean(word, options).replace("you mean ", "you mean model=")
    return f"{argument}: expected a command ({', '.join(COMMANDS)}), FIELD=VALUE, or the folder of a checkpoint{near}"


ALIASES = renamed.ALIASES | {"gpu": "cuda", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""Common other names of choices, and former names of options and fields, mapped to the names used here."""
