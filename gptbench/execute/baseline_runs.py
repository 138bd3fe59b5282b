"""Measures the runs that a baseline is made of, or is compared with: each in a separate process, as users start it."""

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
"""Exit code of gptbench for an error that the user can correct."""
MIN_RUNS = 3
"""Minimum number of new runs when something is measured again and the baseline has a single run: two runs have one
degree of freedom, and their interval hides almost any difference."""


class NotMeasuredError(JobError):
    """A run that was started and failed."""


def measured_gate(
    config: BaselineConfig,
    repeats: int,
    more: list[str],
    report: Callable[[str], None],
    history: History = NO_HISTORY,
    even_if_busy: bool = False,
) -> Gate:
    """Measure all rows of a baseline now, and again those that are worse, because among many metrics some are worse by
    chance. All runs of such a row then count, of both times. Rows that were measured on a busy machine are measured
    again, too.

    Args:
        repeats: number of runs of each row.
        more: overrides beside those of a row.
        report: function that reports what is measured, and what was worse only at first.
        history: recorded runs that show the process-to-process variance.
        even_if_busy: whether runs from a busy machine count like any others.

    Raises:
        UserError: a row cannot be measured here, or this is not the baseline's device.
    """
    require_rows(config)
    require_device_here(config)
    runs, failed = measure_rows(config, dict.fromkeys(config.rows, repeats), more, report)
    failures = list(failed.items())
    held = gate(config, every(runs), failures, history=history, even_if_busy=even_if_busy)
    hopeless = {row for row in held.busy if config.rows[row].busy is not None}
    busy = [row for row in held.busy if row not in hopeless]
    if not held.worse and not busy:
        return held
    reasons = (["are worse"] if held.worse else []) + (["were measured on a busy machine"] if busy else [])
    report(f"measuring rows again that {' or '.join(reasons)}")
    times = dict.fromkeys(busy, repeats)
    for check in held.worse:
        single = is_of_single_run(config.rows[check.row])
        times[check.row] = max(repeats, MIN_RUNS - repeats) if single else repeats
    again, lost = measure_rows(config, times, more, report)
    for row in again.keys() - lost.keys():  # what could not be measured again keeps its first runs
        runs[row] += again[row]
    pooled = gate(config, every(runs), failures, history=history, even_if_busy=even_if_busy)
    left = {(check.row, check.metric) for check in pooled.worse}
    for check in held.worse:
        if (check.row, check.metric) not in left:
            report(f"{check.row} {check.metric}: not worse with the runs of both times; at first {check.reason}")
    return pooled


def measure_rows(
    config: BaselineConfig, times: dict[str, int], more: list[str], report: Callable[[str], None]
) -> tuple[dict[str, list[SelectedRecord]], dict[str, str]]:
    """Measure rows of a baseline now, interleaved.

    Args:
        times: number of runs by row.

    Returns:
        Runs by row, and the reason by row if it could not be measured.

    Raises:
        UserError: a row cannot be measured here, or this is not the baseline's device.
    """
    runs: dict[str, list[SelectedRecord]] = {row: [] for row in times}
    failed: dict[str, str] = {}
    for index in range(max(times.values())):
        for row, count in times.items():
            if index >= count or row in failed:
                continue
            try:
                run = measure([*config.rows[row].overrides, *more], report)
            except NotMeasuredError as error:
                failed[row] = str(error)
                continue
            except UserError as error:
                raise UserError(f"{row}: {error}") from error
            for record in of_kind(Measured, [run.record]):
                require_device(config, record.environment)  # before minutes are spent on the others
            runs[row].append(run)
    return runs, failed


def require_device_here(config: BaselineConfig) -> None:
    """Raise UserError if this machine has no such device, before minutes are spent on a row."""
    names = [cpu_name(), *gpu_names()]
    if not any(config.device.startswith(name) for name in names):  # a part of a GPU (MIG) has a longer name
        raise UserError(
            f"baseline {config.name} is of {config.device}, and this machine has {', '.join(names)}: never compared "
            "across devices"
        )


def gpu_names() -> list[str]:
    """Return the names of all GPUs by NVML, without creating a context or allocating memory on them."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except pynvml.NVMLError:
        return []


def every(runs: dict[str, list[SelectedRecord]]) -> list[SelectedRecord]:
    """Return the runs of all rows."""
    return [run for of_row in runs.values() for run in of_row]


def measure(overrides: list[str], report: Callable[[str], None]) -> SelectedRecord:
    """Run gptbench in a separate process, and return its record.

    Raises:
        UserError: it cannot be measured until the user corrects something.
        NotMeasuredError: it failed.
    """
    report(f"measuring {shlex.join(overrides)}")
    # Its stderr goes where ours goes; its stdout holds the JSON lines.
    command = [sys.executable, "-m", "gptbench", *plugins.options(), *overrides]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    line = last_line(process.stdout)
    if process.returncode == USER_ERROR:
        raise UserError(f"{shlex.join(overrides)}: it cannot be measured; the message above says why")
    if process.returncode:
        why = line.get("reason") or f"exit code {process.returncode}"
        raise NotMeasuredError(f"{shlex.join(overrides)}: {why}")
    if "result" not in line:
        raise NotMeasuredError(f"{shlex.join(overrides)}: its output names no record")
    path = Path(line["result"])
    return SelectedRecord(path, load_record(path))


def last_line(printed: str) -> dict[str, Any]:
    """Return the last line that is a JSON object; empty if there is none."""
    for text in reversed(printed.splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            return line
    return {}
