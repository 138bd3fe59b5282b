"""Recording of baselines: a baseline's file made from recorded runs."""

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from gptbench.base.errors import UserError
from gptbench.compare.baseline import (
    NOT_MEASURED,
    parse_baseline,
    section_of,
)
from gptbench.compare.gate import baseline_metric_of, margins_of, power_limit_text, samples_of
from gptbench.compare.select import SelectedRecord
from gptbench.config import BaselineConfig
from gptbench.schema import Result
from gptbench.schema.busy import why_busy
from gptbench.schema.identity import measurement_of
from gptbench.schema.metrics import compared
from gptbench.schema.place import Place
from gptbench.schema.record import SCHEMA_VERSION
from gptbench.schema.sample import throttling

DIGITS = 6
"""Significant digits that a baseline keeps of a number."""
CPU_MARGINS = {"memory": 0.1}
"""Margins of a baseline recorded on a CPU, where peak memory is that of the whole process and so less exact."""


def recorded_text(
    name: str,
    selected: Sequence[SelectedRecord],
    command: str,
    margins: dict[str, float] | None = None,
    even_if_busy: bool = False,
) -> str:
    """Return the text of a baseline's file made from recorded runs.

    Args:
        name: name of the baseline.
        selected: recorded runs.
        command: command that records it, for the file's first line.
        margins: margins by kind of metric, in place of the kinds' own.
        even_if_busy: whether runs from a busy machine are accepted; their rows say so.

    Raises:
        UserError: a run is not valid, or the runs differ in device, power limit, commit or versions; or there is no
        such
            kind of metric.
    """
    runs = recordable_runs(selected, even_if_busy)
    here = runs[0].environment
    groups: list[tuple[dict[str, Any], list[Result]]] = []
    for result in runs:
        values = measurement_of(result)
        same = next((members for known, members in groups if known == values), None)
        if same is None:
            groups.append((values, [result]))
        else:
            same.append(result)
    rows: dict[str, Any] = {}
    for values, members in groups:
        row = free_name(row_name(members[0]), rows)
        rows[row] = {
            "overrides": overrides_of(members[0].command),
            "config": values,
            "metrics": metrics_of(members),
        }
        if (throttled := throttling(samples_of(members))) is not None:
            rows[row]["throttled"] = throttled
        if reasons := "; ".join(dict.fromkeys(why for result in members if (why := why_busy(result)) is not None)):
            kinds = sorted({kind for result in members for kind in result.busy_kinds()})
            rows[row] |= {"busy": reasons, "busy_kinds": kinds}
    content = {
        "_target_": BaselineConfig.TARGETS[0],
        "name": name,
        "device": here.device,
        "power_limit_w": here.power_limit_w,
        "cores": None if here.on_gpu else here.cores,
        "driver": here.driver,
        "commit": here.commit,
        "versions": here.libraries,
        "schema_version": SCHEMA_VERSION,
        "recorded": max(result.started for result in runs)[:10],
        "read_roof_gb_per_s": rounded(runs[0].roof.gb_per_s),
        "margins": ({} if here.on_gpu else CPU_MARGINS) | (margins or {}),
        "rows": rows,
    }
    text = f"# {' '.join(command.split())}\n{OmegaConf.to_yaml(OmegaConf.create(escaped(content)))}"
    margins_of(parse_baseline(text))  # so that no file is written that cannot be read back
    return text


def recordable_runs(selected: Sequence[SelectedRecord], even_if_busy: bool = False) -> list[Result]:
    """Return the runs of some records, checked to belong into one baseline.

    Raises:
        UserError: see `recorded_text`.
    """
    runs: list[Result] = []
    for entry in selected:
        result = entry.record
        if not isinstance(result, Result):
            raise UserError(f"{entry.path}: expected a run of a model, which is what a baseline is made from")
        if (wrong := result.problem()) is not None:
            raise UserError(f"{entry.path}: not a valid measurement: {wrong}")
        if not even_if_busy and (why := why_busy(result)) is not None:
            raise UserError(f"{entry.path}: {why}; measure again, or give --even-if-busy")
        here, first = (Place.of(one.environment) for one in (result, (runs or [result])[0]))
        if here.device != first.device:
            raise UserError(
                f"{entry.path}: expected runs on one device, but it ran on {here.device}, not {first.device}"
            )
        if here.power_limit_w != first.power_limit_w:
            limits = f"{power_limit_text(here.power_limit_w)}, not {power_limit_text(first.power_limit_w)}"
            raise UserError(f"{entry.path}: expected runs at one power limit, but it ran at {limits}")
        if here.kind != first.kind:
            raise UserError(f"{entry.path}: expected runs on {first.cores} cores, but it ran on {here.cores}")
        for name, version in here.versions.items():
            if version != (other := first.versions.get(name)):
                raise UserError(
                    f"{entry.path}: expected runs with one version of {name}, but it has {version}, not {other}"
                )
        runs.append(result)
    if not runs:
        raise UserError("no run to make a baseline from")
    return runs


def metrics_of(runs: list[Result]) -> dict[str, dict[str, Any]]:
    """Return what a baseline keeps of each metric that all runs of a row have."""
    metrics = {}
    for metric in compared():
        if (entry := baseline_metric_of(runs, metric, by_run=len(runs) > 1)) is not None:
            numbers = {"value": rounded(entry.value), "spread": rounded(entry.spread)}
            metrics[metric.name] = numbers | {"count": entry.count, "of": entry.of}
    return metrics


def rounded(value: float) -> float:
    """Return a number rounded to `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def row_name(result: Result) -> str:
    """Return a row's name for a run: its experiment and engine, or else the run's own name."""
    for override in result.command:
        key, _, value = override.partition("=")
        if key == "experiment":
            return f"{value}-{result.config['engine']['name']}"
    return result.run_name


def free_name(name: str, taken: dict[str, Any]) -> str:
    """Return the name, followed by a number if it is taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def overrides_of(command: list[str]) -> list[str]:
    """Return those overrides of a record's command line that determine what is measured."""
    config_dir = command[3:5] if command[3:4] == ["--config-dir"] else []
    overrides = command[3 + len(config_dir) :]
    return [*config_dir, *(override for override in overrides if section_of(override) not in NOT_MEASURED)]


def escaped(value: Any) -> Any:
    """Return plain data with its strings escaped so that OmegaConf reads them literally: `${` would begin an
    interpolation, and backslashes before it are significant."""
    if isinstance(value, dict):
        return {key: escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [escaped(entry) for entry in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
