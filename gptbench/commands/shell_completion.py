"""Shell completion: what Hydra completes, and gptbench's commands and options, which Hydra does not know.

`eval "$(gptbench --shell-completion install=bash)"` makes the shell call `gptbench --shell-completion query=bash` with
the typed line in COMP_LINE. Hydra completes only groups and fields, and rejects everything else; so everything else is
completed here, and removed from the line before Hydra sees it.
"""

import argparse
from collections.abc import Iterator, MutableMapping, Sequence

from gptbench.base.streams import FORMATS
from gptbench.commands.parsers import PARSERS
from gptbench.config.commandline import COMMANDS, DRY_RUN, FORMAT, QUIET, is_checkpoint
from gptbench.config.plugins import OPTION, without_plugins
from gptbench.private import hydra as private

LINE = "COMP_LINE"
"""Environment variable in which the shell passes the line."""
QUERY = "query="
"""Beginning of the argument with which a shell asks for completions."""
WITH_VALUE = (OPTION, FORMAT)
"""gptbench's options that take a value."""


def is_query(arguments: Sequence[str]) -> bool:
    """Whether the command line is a shell's request for completions."""
    has_option = any(argument in ("-sc", "--shell-completion") for argument in arguments)
    return has_option and any(argument.startswith(QUERY) for argument in arguments)


def answer(environment: MutableMapping[str, str]) -> tuple[list[str], bool]:
    """Return the completions of the last word of the line, and whether Hydra has to be asked as well.

    For Hydra, everything that it does not know is removed from the line in `environment`. Plugins that the line names
    are imported, so that their options can be completed.

    Raises:
        UserError: a plugin of the line cannot be imported.
    """
    line = environment.get(LINE, "")
    program, *words = line.split() or [""]
    last = "" if line.endswith(" ") or not words else words.pop()
    before = words[-1] if words else ""
    if words and words[0] in COMMANDS:
        return matching(last, of_command(words[0], before)), False
    if before == FORMAT:
        return matching(last, FORMATS), False
    if before == OPTION:
        return [], False  # a file, which the shell itself completes
    if last.startswith("-"):
        own_options = (*QUIET, *DRY_RUN, *WITH_VALUE)
        hydra_options = [
            name for action in private.options(private.arguments_parser()) for name in action.option_strings
        ]
        return matching(last, [*hydra_options, *own_options]), False
    left = list(without_values(without_plugins(words)))
    environment[LINE] = " ".join([program, *left, last])
    return ([] if words else matching(last, COMMANDS)), True


def without_values(words: Sequence[str]) -> Iterator[str]:
    """Yield the words without gptbench's options and their values, and without checkpoints."""
    rest = iter(words)
    for word in rest:
        if word == FORMAT:
            next(rest, None)
        elif word not in (*QUIET, *DRY_RUN) and not word.startswith(f"{FORMAT}=") and not is_checkpoint(word):
            yield word


def of_command(command: str, before: str) -> list[str]:
    """Return the options of a command and the values of its arguments.

    Args:
        before: the word before the one that is completed.
    """
    actions = private.options(PARSERS[command]())
    if before == FORMAT and any(FORMAT in action.option_strings for action in actions):
        return list(FORMATS)
    chosen = next((action for action in actions if before in action.option_strings), None)
    if chosen is not None and chosen.nargs != 0:
        return list(chosen.choices or ())
    return [name for action in actions for name in action.option_strings] + positional(PARSERS[command]())


def positional(parser: argparse.ArgumentParser) -> list[str]:
    """Return the values of a command's positional arguments, as far as they are known."""
    return [str(value) for action in private.arguments(parser) for value in action.choices or ()]


def matching(word: str, choices: Sequence[str] | dict[str, str]) -> list[str]:
    """Return the choices that begin with a word."""
    return [choice for choice in choices if choice.startswith(word)]
