"""Baselines, made of recorded runs."""

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
"""That a baseline keeps of a number."""
CPU_MARGINS = {"memory": 0.1}
"""Of a baseline from a CPU, where peak memory is the whole process's."""


def recorded_text(
    name: str,
    found: Sequence[SelectedRecord],
    command: str,
    margins: dict[str, float] | None = None,
    even_if_busy: bool = False,
) -> str:
    """A baseline's file, of recorded runs.

    Args:
        name: the baseline's.
        command: what makes it, for the first line.
        margins: of kinds of metrics, in the place of their own.
        even_if_busy: whether runs from a busy machine are taken, too; their rows say so.

    Raises:
        UserError: a run does not count, or the runs are not all of one device, power limit and state of the code; or
            there is no such kind.
    """
    runs = countable(found, even_if_busy)
    here = runs[0].environment
    groups: list[tuple[dict[str, Any], list[Result]]] = []
    for result in runs:
        values = measurement_of(result)
        same = next((own for known, own in groups if known == values), None)
        if same is None:
            groups.append((values, [result]))
        else:
            same.append(result)
    rows: dict[str, Any] = {}
    for values, own in groups:
        row = free_name(row_name(own[0]), rows)
        rows[row] = {"overrides": overrides_of(own[0].command), "config": values, "metrics": metrics_of(own)}
        if (held_back := throttling(samples_of(own))) is not None:
            rows[row]["throttled"] = held_back
        if reasons := "; ".join(dict.fromkeys(why for result in own if (why := why_busy(result)) is not None)):
            rows[row] |= {"busy": reasons, "busy_kinds": sorted({kind for one in own for kind in one.busy_kinds()})}
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
    margins_of(parse_baseline(text))  # nothing is written that could not be read
    return text


def countable(found: Sequence[SelectedRecord], even_if_busy: bool = False) -> list[Result]:
    """Runs that one baseline can be made of."""
    runs: list[Result] = []
    for each in found:
        result = each.record
        if not isinstance(result, Result):
            raise UserError(f"{each.path}: expected a run of a model (a baseline is made of such)")
        if (wrong := result.problem()) is not None:
            raise UserError(f"{each.path}: it does not count: {wrong}")
        if not even_if_busy and (why := why_busy(result)) is not None:
            raise UserError(f"{each.path}: {why}; measure again, or give --even-if-busy")
        here, first = (Place.of(one.environment) for one in (result, (runs or [result])[0]))
        if here.device != first.device:
            raise UserError(f"{each.path}: expected runs of one device, and it is of {here.device}, not {first.device}")
        if here.power_limit_w != first.power_limit_w:
            limits = f"{power_limit_text(here.power_limit_w)}, not {power_limit_text(first.power_limit_w)}"
            raise UserError(f"{each.path}: expected runs at one power limit, and it is at {limits}")
        if here.kind != first.kind:
            raise UserError(f"{each.path}: expected runs of {first.cores} cores, and it is of {here.cores}")
        for name, version in here.versions.items():
            if version != (other := first.versions.get(name)):
                raise UserError(
                    f"{each.path}: expected runs of one version of {name}, and it has {version}, not {other}"
                )
        runs.append(result)
    if not runs:
        raise UserError("no run to make a baseline of")
    return runs


def metrics_of(runs: list[Result]) -> dict[str, dict[str, Any]]:
    """By metric, of those that all runs of a row have."""
    kept = {}
    for metric in compared():
        if (found := baseline_metric_of(runs, metric, by_run=len(runs) > 1)) is not None:
            numbers = {"value": rounded(found.value), "spread": rounded(found.spread)}
            kept[metric.name] = numbers | {"count": found.count, "of": found.of}
    return kept


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def row_name(result: Result) -> str:
    """The experiment that it was asked for by, or what it is of; and the engine."""
    for override in result.command:
        key, _, value = override.partition("=")
        if key == "experiment":
            return f"{value}-{result.config['engine']['name']}"
    return result.run_name


def free_name(name: str, taken: dict[str, Any]) -> str:
    """The name, with a number behind it where another row has it."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def overrides_of(command: list[str]) -> list[str]:
    """Of a record's command line, what says what is measured."""
    config_dir = command[3:5] if command[3:4] == ["--config-dir"] else []
    given = command[3 + len(config_dir) :]
    return [*config_dir, *(override for override in given if section_of(override) not in NOT_MEASURED)]


def escaped(value: Any) -> Any:
    """The same, for OmegaConf to read as it stands: `${` begins an interpolation, and backslashes before it count."""
    if isinstance(value, dict):
        return {key: escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [escaped(entry) for entry in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
