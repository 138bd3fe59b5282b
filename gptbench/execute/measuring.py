"""Measures what a baseline is to be made of, or held against: each run in a process of its own, as users start it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptbench.base.errors import JobError, UserError
from gptbench.compare.gate import Gate, gate, is_of_single_run, require_device, require_rows
from gptbench.compare.select import SelectedRecord
from gptbench.compare.starts import NO_HISTORY, History
from gptbench.config import BaselineConfig, plugins
from gptbench.device import cpu_name
from gptbench.schema import Measured
from gptbench.schema.files import load_record
from gptbench.schema.record import of_kind

USER_ERROR = 2
"""Exit code of a gptbench that the user can put right."""
MIN_RUNS = 3
"""New runs that what is measured again has, where the baseline is of a single run: two would have one degree of freedom
between them, and an interval that hides nearly all."""


class NotMeasuredError(JobError):
    """A run that was started, and did not end well."""


def measured_gate(
    config: BaselineConfig,
    repeats: int,
    more: list[str],
    tell: Callable[[str], None],
    history: History = NO_HISTORY,
    even_if_busy: bool = False,
) -> Gate:
    """Measures all rows of a baseline now, and once more what is worse: of many metrics some are so by chance. Then all
    runs of such a row count, of both times. Rows for which the machine was busy are measured again, too.

    Args:
        repeats: how often each row is measured.
        more: overrides beside a row's own.
        tell: is told what is measured, and what had been worse at first.
        history: recorded runs that say what single starts differ by.
        even_if_busy: whether runs from a busy machine count as any others.

    Raises:
        UserError: a row cannot be measured here, or this is not the baseline's device.
    """
    require_rows(config)
    require_device_here(config)
    found, hindered = measure_rows(config, dict.fromkeys(config.rows, repeats), more, tell)
    failures = list(hindered.items())
    held = gate(config, every(found), failures, history=history, even_if_busy=even_if_busy)
    hopeless = {row for row in held.busy if config.rows[row].busy is not None}
    busy = [row for row in held.busy if row not in hopeless]
    if not held.worse and not busy:
        return held
    told = (["is worse"] if held.worse else []) + (["was measured on a busy machine"] if busy else [])
    tell(f"what {' or '.join(told)} is measured again")
    times = dict.fromkeys(busy, repeats)
    for check in held.worse:
        single = is_of_single_run(config.rows[check.row])
        times[check.row] = max(repeats, MIN_RUNS - repeats) if single else repeats
    again, lost = measure_rows(config, times, more, tell)
    for row in again.keys() - lost.keys():  # what could not be measured again stays as it was
        found[row] += again[row]
    pooled = gate(config, every(found), failures, history=history, even_if_busy=even_if_busy)
    left = {(check.row, check.metric) for check in pooled.worse}
    for check in held.worse:
        if (check.row, check.metric) not in left:
            tell(f"{check.row} {check.metric}: not worse with the runs of both times; at first {check.reason}")
    return pooled


def measure_rows(
    config: BaselineConfig, times: dict[str, int], more: list[str], tell: Callable[[str], None]
) -> tuple[dict[str, list[SelectedRecord]], dict[str, str]]:
    """Measures rows of a baseline now, in turns.

    Args:
        times: how often, by row.

    Returns:
        Runs by row; and why one could not be measured, by row.

    Raises:
        UserError: a row cannot be measured here, or this is not the baseline's device.
    """
    found: dict[str, list[SelectedRecord]] = {row: [] for row in times}
    hindered: dict[str, str] = {}
    for turn in range(max(times.values())):
        for row, wanted in times.items():
            if turn >= wanted or row in hindered:
                continue
            try:
                run = measure([*config.rows[row].overrides, *more], tell)
            except NotMeasuredError as error:
                hindered[row] = str(error)
                continue
            except UserError as error:
                raise UserError(f"{row}: {error}") from error
            for record in of_kind(Measured, [run.record]):
                require_device(config, record.environment)  # before minutes are spent on the others
            found[row].append(run)
    return found, hindered


def require_device_here(config: BaselineConfig) -> None:
    """Raises UserError where this machine has no such device at all, before minutes are spent on a row."""
    names = [cpu_name(), *gpu_names()]
    if not any(config.device.startswith(name) for name in names):  # a part of a GPU (MIG) has a longer name
        raise UserError(
            f"baseline {config.name} is of {config.device}, and this machine has {', '.join(names)}: never compared "
            "across devices"
        )


def gpu_names() -> list[str]:
    """Of all GPUs, by NVML: nothing is set up on them, and no memory taken."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except pynvml.NVMLError:
        return []


def every(found: dict[str, list[SelectedRecord]]) -> list[SelectedRecord]:
    """Runs of all rows."""
    return [run for own in found.values() for run in own]


def measure(overrides: list[str], tell: Callable[[str], None]) -> SelectedRecord:
    """Runs gptbench in a process of its own, and finds its record.

    Raises:
        UserError: it cannot be measured here until the user puts something right.
        NotMeasuredError: it did not end well.
    """
    tell(f"measuring {shlex.join(overrides)}")
    # What it tells a person goes where ours does; its lines for programs are ours to read.
    command = [sys.executable, "-m", "gptbench", *plugins.options(), *overrides]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    line = last_line(process.stdout)
    if process.returncode == USER_ERROR:
        raise UserError(f"{shlex.join(overrides)}: it cannot be measured; the message above says why")
    if process.returncode:
        why = line.get("reason") or f"exit code {process.returncode}"
        raise NotMeasuredError(f"{shlex.join(overrides)}: {why}")
    if "result" not in line:
        raise NotMeasuredError(f"{shlex.join(overrides)}: it told of no record")
    path = Path(line["result"])
    return SelectedRecord(path, load_record(path))


def last_line(printed: str) -> dict[str, Any]:
    """The last line that is a JSON object; empty where there is none."""
    for text in reversed(printed.splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            return line
    return {}
