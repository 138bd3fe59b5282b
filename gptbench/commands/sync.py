"""`gptbench log` and `gptbench sync`: log recorded results to MLflow."""

import sys
from dataclasses import replace
from pathlib import Path

from gptbench.base.errors import TrackingError, UserError, counted
from gptbench.commands import parsers
from gptbench.record.settings import place_of
from gptbench.record.store import embedded_store, file_of, is_lost
from gptbench.record.sync import MARK, all_records, log_marked, marked, tracking_of, usable
from gptbench.record.tracking import AwayError, MLflowTracker
from gptbench.schema.files import load_record


def log_command(arguments: list[str]) -> int:
    """`gptbench log`: logs recorded results. Returns the exit code.

    Raises:
        UserError: a file is not a result (the others are logged), or the store rejects one.
    """
    options = parsers.log().parse_args(arguments)
    given = {"uri": options.uri, "experiment": options.experiment}
    changes = {key: value for key, value in given.items() if value is not None}
    unread = []
    for path in options.results:
        try:
            result = load_record(path)
            config = tracking_of(path, result, True, changes)
        except UserError as error:  # the others are still logged
            unread.append(str(error))
            continue
        assert config is not None
        outputs = options.outputs or Path(result.config.get("outputs", "outputs"))
        print(MLflowTracker(usable(config), outputs).log(result, path))
    if unread:
        raise UserError("\n".join(unread))
    return 0


def sync_command(arguments: list[str]) -> int:
    """`gptbench sync`: logs all records that could not be logged before. Returns the exit code: 1 if some still cannot
    be logged.

    Raises:
        UserError: the outputs folder does not exist."""
    options = parsers.sync().parse_args(arguments)
    outputs: Path = options.outputs.absolute()
    if not outputs.is_dir():
        raise UserError(f"{options.outputs}: expected an outputs folder (--outputs)")
    failed, unread = 0, 0
    away: set[tuple[str | None, str]] = set()  # servers that are unreachable and not tried again
    lost: dict[Path | None, bool] = {}  # whether each store was lost, before its first record creates it anew
    for path in all_records(outputs):
        try:
            result = load_record(path)
            if (section := tracking_of(path, result, default=False)) is None:
                continue
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            unread += 1
            continue
        if options.uri is not None and section.uri and place_of(section.uri) == place_of(options.uri):
            section = replace(section, uri=options.uri)
        if (file := file_of(section.uri or embedded_store(outputs))) not in lost:
            lost[file] = file is not None and is_lost(file)
        if options.all or lost[file]:
            path.with_name(f"{MARK}{path.name}").unlink(missing_ok=True)
        elif marked(path, section, outputs) is not None:
            continue
        to = (section.uri, section.experiment)
        if to in away:
            failed += 1
            continue
        try:
            print(log_marked(result, path, usable(section), outputs))
        except TrackingError as error:
            print(f"Not tracked: {error}")
            failed += 1
            if isinstance(error, AwayError):
                away.add(to)
    if unread:
        print(f"left out: {unread} files that cannot be read", file=sys.stderr)
    print(f"still not logged: {counted(failed, 'record')}" if failed else "all records are logged")
    return 1 if failed else 0
