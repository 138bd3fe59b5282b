"""Comparison of recorded runs: for each metric the ratio, its confidence interval, and a verdict.

Speeds and times are compared by geometric means, and the interval is that of their ratio; the medians that a run
reports may differ from these means. Runs of the same configuration vary by more than the samples within one of them. So
where a side has several runs of a configuration, each run counts as one value. Where both sides have a single run,
their samples are compared, and the interval is widened by process-to-process variance, which `Row.basis` says. Peak
memory is one value per run. Percentiles of decode steps are taken over a run's pooled steps, and their variance is a
jackknife over samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptbench.base.errors import UserError
from gptbench.compare.ratio import (
    Verdict,
    ratio_of_pairs,
)
from gptbench.compare.row import Row, geometric_mean, kernel_row, quality_row, run_row
from gptbench.compare.select import SelectedRecord
from gptbench.compare.starts import NO_HISTORY, History
from gptbench.compare.work import different_work
from gptbench.schema import KernelResult, Measured, Recorded, Result
from gptbench.schema.busy import why_busy
from gptbench.schema.identity import IDENTITY_SECTIONS, measurement_of
from gptbench.schema.labels import flat
from gptbench.schema.metrics import HEADLINE, METRICS, SPEED, compared
from gptbench.schema.place import Place
from gptbench.schema.record import of_kind
from gptbench.schema.sample import throttling
from gptbench.schema.statistics import device_state, valid_samples

MIN_CLOCK_DIFFERENCE = 0.005
"""Relative difference between the clocks of both sides from which on a remark is made."""


@dataclass(frozen=True)
class Pair:
    """Runs of one configuration of A, and the runs of B that they are compared with."""

    key: dict[str, str]
    """Values, by field, that identify the pair among others; empty where each side is one configuration."""
    a: list[SelectedRecord]
    """Runs of A."""
    b: list[SelectedRecord]
    """Runs of B."""
    rows: list[Row]
    """Comparison of each metric."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of all runs of A with all runs of B."""

    pairs: list[Pair]
    """Comparison of each configuration that both sides have."""
    differences: dict[str, tuple[str, str]]
    """Fields of the configuration and of the environment in which the sides differ, with A's value and B's."""
    remarks: list[str]
    """Caveats to the ratios, such as throttled samples, or clocks that differ."""
    left_out: list[tuple[SelectedRecord, str]]
    """Records that are not compared, each with the reason."""
    overall: Row | None = None
    """Decode tokens/s over all pairs, each pair counting as one value; None for a single pair."""
    busy: list[tuple[SelectedRecord, str]] = field(default_factory=list)
    """Runs that were measured on a busy machine and are compared nevertheless, each with the reasons."""


def compare(
    a: Iterable[SelectedRecord],
    b: Iterable[SelectedRecord],
    margin: float | None = None,
    history: History = NO_HISTORY,
    even_if_busy: bool = False,
) -> Comparison:
    """Compare the valid runs of two sides. Runs from a busy machine are left out if the same configuration has others;
    if it has none, the metrics that the load may have affected get no verdict.

    Args:
        margin: smallest relative difference in speed that counts; None takes the margin of its `Kind`.
        history: recorded runs from which process-to-process variance is estimated.
        even_if_busy: whether runs from a busy machine count like any others.

    Raises:
        UserError: no run of A can be compared with any run of B.
    """
    left_out: list[tuple[SelectedRecord, str]] = []
    sides = [valid_measurements(side, left_out) for side in (a, b)]
    for name, side in zip("AB", sides, strict=True):
        if not side:
            why = "; ".join(f"{run.path}: {reason}" for run, reason in left_out)
            raise UserError(f"{name} has no valid measurement ({why})")
    settings = [[settings_of(run) for run in side] for side in sides]
    keys = sorted(set().union(*(varied_fields(side) for side in settings)))
    groups = [grouped_by(side, values, keys) for side, values in zip(sides, settings, strict=True)]
    if not even_if_busy:
        groups = [{key: without_busy_runs(runs, left_out) for key, runs in group.items()} for group in groups]
    distinguishing = distinguishing_fields(keys, sides, settings)
    pairs = [
        Pair(
            distinguishing_values(runs[0], distinguishing),
            runs,
            groups[1][key],
            judged_rows(runs, groups[1][key], margin, history, even_if_busy),
        )
        for key, runs in groups[0].items()
        if key in groups[1]
    ]
    if not pairs:
        differing = ", ".join(distinguishing_values(sides[0][0], distinguishing))
        raise UserError(f"no run of A has a counterpart in B: they differ in {differing}")
    for runs_of, other, name in ((groups[0], groups[1], "B"), (groups[1], groups[0], "A")):
        left_out += [(run, f"{name} has no such run") for key in runs_of if key not in other for run in runs_of[key]]
    caveats = [*different_work_remarks(pairs), *remarks(sides)]
    busy_runs = [
        (run, reasons) for pair in pairs for run in (*pair.a, *pair.b) if (reasons := why_busy(run.record)) is not None
    ]
    return Comparison(pairs, differences(settings, sides, keys), caveats, left_out, overall(pairs, margin), busy_runs)


def without_busy_runs(side: list[SelectedRecord], left_out: list[tuple[SelectedRecord, str]]) -> list[SelectedRecord]:
    """Return the runs of one configuration that were not measured on a busy machine, and add the others to `left_out`;
    if there are only others, return these."""
    busy = {id(run): why_busy(run.record) for run in side}
    quiet = [run for run in side if busy[id(run)] is None]
    if not quiet:
        return side
    left_out += [(run, reasons) for run in side if (reasons := busy[id(run)]) is not None]
    return quiet


def judged_rows(
    a: list[SelectedRecord], b: list[SelectedRecord], margin: float | None, history: History, even_if_busy: bool
) -> list[Row]:
    """Return the rows of a pair, without verdicts on what a busy machine may have affected."""
    kinds = set() if even_if_busy else {kind for run in (*a, *b) for kind in run.record.busy_kinds()}
    return [row.withheld(kinds) for row in rows(a, b, margin, history)]


def valid_measurements(
    side: Iterable[SelectedRecord], left_out: list[tuple[SelectedRecord, str]]
) -> list[SelectedRecord]:
    """Return the valid measurements of a side, and add other records to `left_out`."""
    valid = []
    for selected in side:
        reason = selected.record.problem()
        if reason is None and not selected.record.IS_RUN:
            reason = "not a single run"
        if reason is None:
            valid.append(selected)
        else:
            left_out.append((selected, reason))
    return valid


def settings_of(selected: SelectedRecord) -> dict[str, str]:
    """Return what a record's numbers depend on apart from versions: values as text, by dotted field."""
    record = measured_record(selected)
    here = {f"environment.{key}": str(value) for key, value in Place.of(record.environment).kind.items()}
    return here | {key: str(value) for key, value in measurement_of(record).items() if value is not None}


def measured_record(selected: SelectedRecord) -> Measured:
    """Return the record of a valid measurement."""
    assert isinstance(selected.record, Measured)
    return selected.record


def distinguishing_fields(
    keys: list[str], sides: list[list[SelectedRecord]], settings: list[list[dict[str, str]]]
) -> dict[str, dict[str | None, list[str]]]:
    """Return, for each section with a varied field and each name of the section, the fields that distinguish runs with
    that name."""
    runs = [
        (section_names(run), values)
        for side in zip(sides, settings, strict=True)
        for run, values in zip(*side, strict=True)
    ]
    distinguishing = {}
    for group in dict.fromkeys(key.partition(".")[0] for key in keys):
        inner = [key for key in keys if key.partition(".")[0] == group and key != group]
        by_name: dict[str | None, list[dict[str, str]]] = {}
        for section_name, values in runs:
            by_name.setdefault(section_name.get(group), []).append(values)
        distinguishing[group] = {
            name: [key for key in inner if len(by_name) == 1 or len({values.get(key) for values in same_name}) > 1]
            for name, same_name in by_name.items()
        }
    return distinguishing


def distinguishing_values(
    run: SelectedRecord, distinguishing: dict[str, dict[str | None, list[str]]]
) -> dict[str, str]:
    """Return what distinguishes a run from others: names of sections, and the fields that `distinguishing_fields` gives
    for these names."""
    section_name, settings = section_names(run), settings_of(run)
    values = {}
    for group, by_name in distinguishing.items():
        if len(by_name) > 1:
            values[group] = section_name.get(group, "")
        values |= {key: settings.get(key, "") for key in by_name[section_name.get(group)]}
    return values


def section_names(run: SelectedRecord) -> dict[str, str]:
    """Return the name of each section of a run's configuration that its identity depends on."""
    return {group: run.record.config[group]["name"] for group in IDENTITY_SECTIONS if group in run.record.config}


def environment_of(run: SelectedRecord) -> dict[str, str]:
    """Return the environment that a run was measured in, the read roof included: values as text, by dotted field."""
    record = measured_record(run)
    here = vars(record.environment) | {"read_roof_gb_per_s": f"{record.roof.gb_per_s:.4g}"}
    return dict(flat(here, "environment."))


def varied_fields(side: list[dict[str, str]]) -> set[str]:
    """Return the fields whose values differ within a side."""
    keys = {key for values in side for key in values}
    return {key for key in keys if len({values.get(key) for values in side}) > 1}


def remarks(sides: list[list[SelectedRecord]]) -> list[str]:
    """Return remarks on sides of several versions, on throttled samples, and on clocks that differ."""
    lines: list[str] = []
    clocks: dict[str, list[list[float]]] = {clock: [] for clock in CLOCKS}
    for name, side in zip("AB", sides, strict=True):
        lines += version_remarks(name, list(map(measured_record, side)))
        results = of_kind(Result, map(measured_record, side))
        samples = [sample for result in results for sample in valid_samples(result)]
        if (throttled := throttling(samples)) is not None:
            lines.append(f"{name}: {throttled}")
        for clock, key in CLOCKS.items():
            readings = [device_state(result, key) for result in results]
            clocks[clock].append([mhz for mhz in readings if mhz is not None])
    for clock, (a, b) in clocks.items():
        if a and b:
            lines += clock_remark(a, b, clock)
    return lines


def different_work_remarks(pairs: list[Pair]) -> list[str]:
    """Return a remark for each pair whose sides did not do the same work."""
    lines = [different_work([workload_of(side[0].record) for side in (pair.a, pair.b)]) for pair in pairs]
    return list(dict.fromkeys(remark for remark in lines if remark is not None))


def workload_of(record: Recorded) -> dict[str, Any]:
    """Return a record's workload with the prompts of the batch's rows where these differ: for the same configuration,
    an earlier version gave all rows one prompt."""
    section: dict[str, Any] = record.config["workload"]
    return section | {"prompts": getattr(record, "prompts", None) or section.get("prompts")}


def version_remarks(side: str, records: list[Measured]) -> list[str]:
    """Return a remark for the commit, the driver and each library of which the runs of a side had several versions."""
    versions = [Place.of(record.environment).versions for record in records]
    lines = []
    for name in dict.fromkeys(name for by_name in versions for name in by_name):
        several = sorted({str(by_name.get(name)) for by_name in versions})
        if len(several) > 1:
            lines.append(f"{side} has runs with different versions of {name}: {', '.join(several)}")
    return lines


CLOCKS = {"the clock": "clock_mhz", "the memory clock": "memory_clock_mhz"}
"""Clock, as remarks call it, to the name of its readings."""


def clock_remark(a: list[float], b: list[float], clock: str = "the clock") -> list[str]:
    """Return a remark, or none, on the means of a clock's readings for A and B, in MHz."""
    first, second = float(np.mean(a)), float(np.mean(b))
    if abs(second - first) <= MIN_CLOCK_DIFFERENCE * first:
        return []
    clocks = f"{clock} averaged {first:.0f} MHz for A and {second:.0f} MHz for B"
    return [f"{clocks}, which may explain part of the difference"]


def grouped_by(
    side: list[SelectedRecord], settings: list[dict[str, str]], keys: list[str]
) -> dict[tuple[Any, ...], list[SelectedRecord]]:
    """Return a side's runs by their values of some fields."""
    groups: dict[tuple[Any, ...], list[SelectedRecord]] = {}
    for run, values in zip(side, settings, strict=True):
        groups.setdefault(tuple(values.get(key, "") for key in keys), []).append(run)
    return groups


def differences(
    settings: list[list[dict[str, str]]], sides: list[list[SelectedRecord]], keys: list[str]
) -> dict[str, tuple[str, str]]:
    """Return the fields in which the sides differ, with the values of both, except fields varied within a side."""
    differing: dict[str, tuple[str, str]] = {}
    sections = [[section_names(run) for run in side] for side in sides]
    environments = [[environment_of(run) for run in side] for side in sides]
    for first, second in (sections, settings, environments):
        for key in dict.fromkeys(key for values in (*first, *second) for key in values):
            values = [" / ".join(sorted({fields.get(key, "") for fields in side})) for side in (first, second)]
            if key not in keys and values[0] != values[1]:
                differing[key] = values[0], values[1]
    return differing


def rows(
    a: list[SelectedRecord], b: list[SelectedRecord], margin: float | None, history: History = NO_HISTORY
) -> list[Row]:
    """Return the row of each metric that both sides of a pair have."""
    of_kernels = [of_kind(KernelResult, map(measured_record, side)) for side in (a, b)]
    if all(of_kernels):
        return kernel_rows(of_kernels[0], of_kernels[1], margin)
    compared_rows = []
    first, second = (of_kind(Result, map(measured_record, side)) for side in (a, b))
    if not first or not second:
        raise UserError(f"{a[0].path} and {b[0].path}: one is a run of kernels, the other of a model")
    for metric in compared():
        if metric.per_token is not None:
            row = quality_row(metric, metric.per_token, first[0], second[0])
        else:
            row = run_row(metric, first, second, margin if metric.kind is SPEED else None, history)
        if row is not None:
            compared_rows.append(row)
    return compared_rows


def kernel_rows(a: list[KernelResult], b: list[KernelResult], margin: float | None) -> list[Row]:
    """Return the rows of `task=kernels`, one for each implementation of each kernel: compared by its rounds, or by the
    runs' medians if a side has several runs."""
    several = len(a) > 1 or len(b) > 1
    sides: list[dict[str, list[float]]] = [{}, {}]
    for times, side in zip(sides, (a, b), strict=True):
        for result in side:
            for kernel in result.kernels:
                for name, timing in kernel.timings.items():
                    if timing.median_s is not None:
                        values = times.setdefault(f"{kernel.label}/{name}", [])
                        values += [timing.median_s] if several else timing.seconds
    first, second = sides
    what = "run" if several else "round"
    return [kernel_row(name, first[name], second[name], what, margin) for name in first if name in second]


def overall(pairs: list[Pair], margin: float | None) -> Row | None:
    """Return the geometric mean of all pairs' ratios of decode tokens/s; None for a single pair."""
    headlines = [row for pair in pairs for row in pair.rows if row.name == HEADLINE]
    if len(headlines) < 2:
        return None
    ratio = ratio_of_pairs([float(np.log(row.ratio.value)) for row in headlines])
    means = geometric_mean([row.a for row in headlines]), geometric_mean([row.b for row in headlines])
    row = Row.from_ratio(METRICS[HEADLINE], *means, ratio, f"{len(headlines)} pairs", margin)
    return row.withheld(["speed"]) if any(entry.verdict is Verdict.busy for entry in headlines) else row
