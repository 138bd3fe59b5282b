"""The entry point: `python -m gptbench [OVERRIDES]` for a run or sweep, `python -m gptbench COMMAND` for a command."""

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import traceback
from types import TracebackType

import gptbench

REQUIRED = ("filelock", "hydra", "mlflow", "numpy", "omegaconf", "psutil", "rich", "safetensors", "torch")
"""Packages without which nothing in gptbench works."""
PYTHON = (3, 11)
"""Oldest supported version of Python."""


def main() -> int:
    """Runs the command line and returns the exit code.

    A run does not fail because its output cannot be printed, as its result is recorded; a command does.
    """
    arguments = sys.argv[1:]
    if arguments[:1] in (["--version"], ["-V"]):
        print("gptbench", gptbench.__version__)
        return 0
    if (wrong := wrong_python()) is not None:
        print("gptbench:", wrong, file=sys.stderr)
        return 2
    from gptbench.base.redaction import remember
    from gptbench.base.streams import lasting, outlive_terminal
    from gptbench.config.commandline import COMMANDS

    outlive_terminal()
    sys.excepthook = show_traceback
    for argument in arguments:
        remember(argument)
    with lasting() as output:
        code = called(arguments)
        output.flush()
        if output.lost_output:
            print(f"gptbench: standard output: {output.failure}", file=sys.stderr)
            code = code or int(arguments[:1] != [] and arguments[0] in COMMANDS)
        return code


def called(arguments: list[str]) -> int:
    """Runs the command line and reports errors. Returns the exit code, 2 for a mistake that the user can correct."""
    from gptbench.base.errors import BadResultError, JobError, NotBegunError, UserError, is_unwritable
    from gptbench.config.mistakes import message_for

    tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return run(arguments)
    except (BadResultError, JobError) as error:
        print(f"gptbench: {error}", file=sys.stderr)
        return 1
    except NotBegunError as not_begun:  # any error before the first job concerns the command line
        if tracebacks:
            raise not_begun.error from None
        print(f"gptbench: {message_for(not_begun.error, arguments)}", file=sys.stderr)
        return 2
    except Exception as error:
        if tracebacks:
            raise
        if isinstance(error, OSError) and is_unwritable(error):
            print(f"gptbench: {error.filename or 'outputs'}: {error.strerror}", file=sys.stderr)
            return 1
        if not isinstance(error, UserError):
            raise
        print(f"gptbench: {message_for(error, arguments)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"gptbench: {str(interrupt) or 'interrupted; nothing was recorded'}", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    """Runs a command, a run or a sweep, and returns the exit code. Raises what that raises."""
    from gptbench.commands.parsers import PARSERS, parsed
    from gptbench.commands.shell_completion import is_query
    from gptbench.config.commandline import COMMANDS, without_quiet

    if is_query(arguments):
        return complete(arguments)
    if any(argument.partition("=")[0] == "--plugin" for argument in arguments):
        from gptbench.config.plugins import without_plugins

        arguments = without_plugins(arguments)
    if arguments[:1] and arguments[0] in COMMANDS:
        if {"-h", "--help"} & set(arguments):
            PARSERS[arguments[0]]().print_help()
            return 0
        command_arguments, quiet = without_quiet(arguments[1:])
        parsed(arguments[0], command_arguments)  # reports mistakes before anything large is imported
        module, _, function = COMMANDS[arguments[0]].partition(":")
        command = getattr(importlib.import_module(module), function)
        if quiet:
            from gptbench.present.console import console

            console.quiet = True
        code: int = command(command_arguments)
        return code
    return run_hydra(arguments)


def complete(arguments: list[str]) -> int:
    """Prints a shell's completions. Errors in the line are not reported, as it is still being typed."""
    from gptbench.commands.shell_completion import answer

    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(Exception, SystemExit),
    ):
        choices, asks_hydra = answer(os.environ)
        if choices:
            print(" ".join(choices))
        if asks_hydra:
            run_hydra(arguments)
    return 0


def run_hydra(arguments: list[str]) -> int:
    """Runs a run, a sweep or another function of Hydra, and returns the exit code. Raises what that raises."""
    import hydra

    from gptbench.base.errors import NotBegunError
    from gptbench.base.paths import conf_folder
    from gptbench.config import guard, register
    from gptbench.config.commandline import DRY_RUN, typed, without_format, without_options
    from gptbench.execute.dry_run import dry_run
    from gptbench.execute.job import RaisedError, job
    from gptbench.sweep import sweeper

    arguments, is_dry = without_options(arguments, DRY_RUN)
    arguments, table_format = without_format(arguments)
    if table_format is not None:
        from gptbench.present.console import console

        console.format = table_format
    task = dry_run if is_dry else job

    # Hydra would print the error and end the process with exit code 1; with this variable it raises the error.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    guard.check_arguments(arguments)
    sys.argv[1:] = typed(arguments)
    register()
    guard.install()
    sweeper.register()
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(task)()
    except RaisedError as raised:
        raise raised.error from None
    except Exception as error:
        raise NotBegunError(error) from error
    return 0


def show_traceback(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """Prints a traceback as Python does, but without secrets."""
    from gptbench.base.redaction import redacted_message

    sys.stderr.write(redacted_message("".join(traceback.format_exception(kind, error, trace))))


def wrong_python() -> "str | None":
    """Return why this Python cannot run gptbench and what to do, or None if it can.

    This function must run on older versions of Python, too.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return f"{sys.executable} is Python {version}, but gptbench needs {wanted} or newer; {ELSEWHERE}"
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}, which gptbench needs; {ELSEWHERE}"
    return None


ELSEWHERE = "scripts/bench uses its own environment (.venv), and `pip install .` installs gptbench into another one"
"""Hint on where gptbench runs instead."""

if __name__ == "__main__":
    sys.exit(main())
