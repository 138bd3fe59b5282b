"""Completion in a shell: what Hydra completes, with gptbench's commands, and options for which Hydra has no name.

`eval "$(gptbench --shell-completion install=bash)"` has the shell ask `gptbench --shell-completion query=bash` with the
line that is typed in COMP_LINE. Hydra answers for groups and fields alone, and refuses everything else; so what it does
not know is answered here and taken out of the line.
"""

import argparse
from collections.abc import Iterator, MutableMapping, Sequence

from gptbench.base.streams import FORMATS
from gptbench.commands.parsers import PARSERS
from gptbench.config.commandline import COMMANDS, DRY_RUN, FORMAT, QUIET, is_checkpoint
from gptbench.config.plugins import OPTION, without_plugins
from gptbench.private import hydra as private

LINE = "COMP_LINE"
"""Variable in which a shell hands over the line."""
QUERY = "query="
"""Beginning of what is asked of `--shell-completion`."""
WITH_VALUE = (OPTION, FORMAT)
"""Options of ours that take a value."""


def is_query(arguments: Sequence[str]) -> bool:
    """Whether a shell asks what it may complete."""
    return any(one in ("-sc", "--shell-completion") for one in arguments) and any(
        one.startswith(QUERY) for one in arguments
    )


def answer(environment: MutableMapping[str, str]) -> tuple[list[str], bool]:
    """What may stand in the place of the last word of the line, and whether Hydra is to be asked as well: the line is
    then without what Hydra does not know. Plugins that it names are imported, as what they bring can be completed.

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
        ours = (*QUIET, *DRY_RUN, *WITH_VALUE)
        hydras = [name for action in private.options(private.arguments_parser()) for name in action.option_strings]
        return matching(last, [*hydras, *ours]), False
    left = list(without_values(without_plugins(words)))
    environment[LINE] = " ".join([program, *left, last])
    return ([] if words else matching(last, COMMANDS)), True


def without_values(words: Sequence[str]) -> Iterator[str]:
    """Words without options of ours and their values, and without checkpoints."""
    rest = iter(words)
    for word in rest:
        if word == FORMAT:
            next(rest, None)
        elif word not in (*QUIET, *DRY_RUN) and not word.startswith(f"{FORMAT}=") and not is_checkpoint(word):
            yield word


def of_command(command: str, before: str) -> list[str]:
    """Options of a command, and what its arguments can be.

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
    """Values of a command's arguments, where these are known."""
    return [str(value) for action in private.arguments(parser) for value in action.choices or ()]


def matching(word: str, choices: Sequence[str] | dict[str, str]) -> list[str]:
    """Choices that begin with a word."""
    return [choice for choice in choices if choice.startswith(word)]
