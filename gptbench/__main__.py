"""The one way in: `python -m gptbench [overrides]`, and `python -m gptbench COMMAND` for what needs no run."""

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
"""Packages that no part of it does without."""
PYTHON = (3, 11)
"""The oldest that runs gptbench."""


def main() -> int:
    """Runs what the command line asks for. The exit code is of that: what is measured is kept, wherever it is printed.
    Only a command whose output is what it is for fails where that cannot be written."""
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
    """Runs what the command line asks for; the exit code is 2 where the user can put it right."""
    from gptbench.base.errors import BadResultError, JobError, NotBegunError, UserError, is_unwritable
    from gptbench.config.mistakes import message_for

    tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return run(arguments)
    except (BadResultError, JobError) as error:
        print(f"gptbench: {error}", file=sys.stderr)
        return 1
    except NotBegunError as not_begun:  # whatever it is, it is about what was asked for
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
    """A command, a run or a sweep. Raises what that raises."""
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
        given, quiet = without_quiet(arguments[1:])
        parsed(arguments[0], given)  # what is wrong is said before anything large is imported
        module, _, function = COMMANDS[arguments[0]].partition(":")
        command = getattr(importlib.import_module(module), function)
        if quiet:
            from gptbench.present.console import console

            console.quiet = True
        code: int = command(given)
        return code
    return run_hydra(arguments)


def complete(arguments: list[str]) -> int:
    """Prints what a shell may complete. What is wrong with the line is not said: it is being typed."""
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
    """A run, a sweep, or what else Hydra does. Raises what that raises."""
    import hydra

    from gptbench.base.errors import NotBegunError
    from gptbench.base.paths import conf_folder
    from gptbench.config import guard, register
    from gptbench.config.commandline import DRY_RUN, typed, without_format, without_options
    from gptbench.execute.dry_run import dry_run
    from gptbench.execute.job import RaisedError, job
    from gptbench.sweep import sweeper

    arguments, is_dry = without_options(arguments, DRY_RUN)
    arguments, to = without_format(arguments)
    if to is not None:
        from gptbench.present.console import console

        console.format = to
    task = dry_run if is_dry else job

    # Hydra would end the process with exit code 1 and a traceback of its own; we tell its errors from ours.
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
    """Python's own, without secrets."""
    from gptbench.base.redaction import redacted_message

    sys.stderr.write(redacted_message("".join(traceback.format_exception(kind, error, trace))))


def wrong_python() -> "str | None":
    """Why this Python cannot run gptbench, and what to do; None where it can. It may be an older one than this code is
    for: nothing here is newer."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return f"{sys.executable} is Python {version}, and gptbench needs {wanted} or newer; {ELSEWHERE}"
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}, which gptbench needs; {ELSEWHERE}"
    return None


ELSEWHERE = "scripts/bench uses an environment of its own (.venv), and `pip install .` installs it into another one"
"""Where gptbench runs instead."""

if __name__ == "__main__":
    sys.exit(main())
