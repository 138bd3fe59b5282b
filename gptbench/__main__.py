"""The one way in: `python -m gptbench [overrides]`, and `python -m gptbench COMMAND` for what needs no run."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

import hydra

from gptbench import guard
from gptbench.config import explain, register
from gptbench.errors import BadResultError, JobError, UserError
from gptbench.job import RaisedError, job
from gptbench.paths import conf_folder
from gptbench.streams import lasting, outlive_terminal
from gptbench.sweep import sweeper


def log(arguments: list[str]) -> int:
    """Logs recorded results to a tracking server."""
    from gptbench.record.sync import log_command

    return log_command(arguments)


def sync(arguments: list[str]) -> int:
    """Logs what could not be logged before."""
    from gptbench.record.sync import sync_command

    return sync_command(arguments)


def cache(arguments: list[str]) -> int:
    """Saves what was compiled to a file, or loads it."""
    from gptbench.compile_cache import cache_command

    return cache_command(arguments)


def compare(arguments: list[str]) -> int:
    """Compares recorded runs."""
    from gptbench.commands.compare import compare_command

    return compare_command(arguments)


def ab(arguments: list[str]) -> int:
    """Measures two configurations in turns."""
    from gptbench.commands.ab import ab_command

    return ab_command(arguments)


def gate(arguments: list[str]) -> int:
    """Fails on what is worse than a baseline, or records one."""
    from gptbench.commands.gate import gate_command

    return gate_command(arguments)


def report(arguments: list[str]) -> int:
    """Writes a page about recorded runs."""
    from gptbench.commands.report import report_command

    return report_command(arguments)


def explain_run(arguments: list[str]) -> int:
    """Tells where a run's step time goes."""
    from gptbench.commands.explain import explain_command

    return explain_command(arguments)


def rows(arguments: list[str]) -> int:
    """Writes runs as rows of PyTorch's benchmark."""
    from gptbench.commands.rows import rows_command

    return rows_command(arguments)


def export(arguments: list[str]) -> int:
    """Writes runs as one table."""
    from gptbench.commands.export import export_command

    return export_command(arguments)


MULTIRUN = ("-m", "--multirun")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What an operating system says of a full or read-only disk, and of a folder of somebody else's."""


def flags_first(arguments: list[str]) -> list[str]:
    """The same, a sweep's flag before what it sweeps over: argparse refuses one between Hydra's overrides."""
    return sorted(arguments, key=lambda argument: argument not in MULTIRUN)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "compare": compare,
    "ab": ab,
    "gate": gate,
    "report": report,
    "explain": explain_run,
    "rows": rows,
    "export": export,
    "log": log,
    "sync": sync,
    "cache": cache,
}


def main() -> int:
    """Runs what the command line asks for. The exit code is of that: what is measured is kept, wherever it is printed.
    Only a command whose output is what it is for fails where that cannot be written."""
    outlive_terminal()
    with lasting() as output:
        code = called()
        output.flush()
        if output.lost_output:
            print(f"gptbench: standard output: {output.failure}", file=sys.stderr)
            code = code or int(sys.argv[1:2] != [] and sys.argv[1] in COMMANDS)
        return code


def called() -> int:
    """Runs what the command line asks for; the exit code is 2 where the user can put it right."""
    tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return run(sys.argv[1:])
    except (BadResultError, JobError) as error:
        print(f"gptbench: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE and not tracebacks:
            print(f"gptbench: {error.filename or 'outputs'}: {error.strerror}", file=sys.stderr)
            return 1
        # Whatever goes wrong before the job began is about what was asked for; after that, only a UserError is.
        if tracebacks or not (isinstance(error, UserError) or is_composing(error)):
            raise
        print(f"gptbench: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"gptbench: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    """A command, a run or a sweep. Raises what that raises."""
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    # Hydra would end the process with exit code 1 and a traceback of its own; we tell its errors from ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = flags_first(arguments)
    guard.check_arguments(sys.argv[1:])
    register()
    guard.install()
    sweeper.register()
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
    except RaisedError as raised:
        raise raised.error from None
    return 0


def is_composing(error: Exception) -> bool:
    """Whether Hydra raised it before any job began."""
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return "decorated_main" in names and not {job.__name__, sweeper.launch.__name__} & names


if __name__ == "__main__":
    sys.exit(main())
