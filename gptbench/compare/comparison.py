"""Recorded runs beside others: per metric the ratio, its interval, and a verdict.

Speed and time are compared by geometric means, whose ratio is what the interval is of; the medians that a run reports
may lie beside them. What varies between runs of the same thing is more than what varies between the samples of one. So
where a side has several runs of one configuration, each counts as one value; where both have one, their samples are
compared, in an interval widened by what starts of the same thing differ by, and `Row.of` says so. Peak memory is one
value of a run; percentiles of decode steps are of a run's pooled steps, and what they vary by is told by leaving out
one sample after another.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptbench.base.errors import UserError
from gptbench.compare.ratio import (
    Verdict,
    of_pairs,
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

CLOCKS_APART = 0.005
"""Share by which clocks must differ to be told."""


@dataclass(frozen=True)
class Pair:
    """Runs that are compared."""

    key: dict[str, str]
    """By what both sides vary, and where these agree; empty where a side is one configuration."""
    a: list[SelectedRecord]
    b: list[SelectedRecord]
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """All of A beside all of B."""

    pairs: list[Pair]
    differences: dict[str, tuple[str, str]]
    """Fields of the configuration and of the environment in which the sides differ: A's value and B's."""
    remarks: list[str]
    """What a reader must know beside the ratios: samples that were throttled, clocks that differ."""
    left_out: list[tuple[SelectedRecord, str]]
    """Records that are not compared, and why."""
    overall: Row | None = None
    """Of several pairs: decode tokens/s, each pair one value."""
    busy: list[tuple[SelectedRecord, str]] = field(default_factory=list)
    """Runs that were measured on a busy machine, and count, in a sentence each."""


def compare(
    a: Iterable[SelectedRecord],
    b: Iterable[SelectedRecord],
    margin: float | None = None,
    history: History = NO_HISTORY,
    even_if_busy: bool = False,
) -> Comparison:
    """Compares what counts of two sides. Of runs of the same thing those from a busy machine are left out; where a side
    has no others, there is no verdict on what that changes.

    Args:
        margin: of speed: ratios nearer to 1 are no verdict; None takes that of its `Kind`.
        history: recorded runs that say what single starts differ by.
        even_if_busy: whether runs from a busy machine count as any others.

    Raises:
        UserError: nothing of A can be compared with anything of B.
    """
    left_out: list[tuple[SelectedRecord, str]] = []
    sides = [counting(side, left_out) for side in (a, b)]
    for name, side in zip("AB", sides, strict=True):
        if not side:
            why = "; ".join(f"{found.path}: {reason}" for found, reason in left_out)
            raise UserError(f"{name} has no measurement that counts ({why})")
    settings = [[fields(found) for found in side] for side in sides]
    keys = sorted(set().union(*(varied(side) for side in settings)))
    groups = [grouped(side, values, keys) for side, values in zip(sides, settings, strict=True)]
    if not even_if_busy:
        groups = [{key: quiet(own, left_out) for key, own in group.items()} for group in groups]
    apart = telling(keys, sides, settings)
    pairs = [
        Pair(
            told_apart(own[0], apart),
            own,
            groups[1][key],
            judged(own, groups[1][key], margin, history, even_if_busy),
        )
        for key, own in groups[0].items()
        if key in groups[1]
    ]
    if not pairs:
        differing = ", ".join(told_apart(sides[0][0], apart))
        raise UserError(f"no run of A has its like in B: they differ by {differing}")
    for own, other, name in ((groups[0], groups[1], "B"), (groups[1], groups[0], "A")):
        left_out += [(found, f"{name} has no such run") for key in own if key not in other for found in own[key]]
    told = [*not_alike(pairs), *remarks(sides)]
    marked = [
        (found, reasons)
        for pair in pairs
        for found in (*pair.a, *pair.b)
        if (reasons := why_busy(found.record)) is not None
    ]
    return Comparison(pairs, differences(settings, sides, keys), told, left_out, overall(pairs, margin), marked)


def quiet(side: list[SelectedRecord], left_out: list[tuple[SelectedRecord, str]]) -> list[SelectedRecord]:
    """Runs of one configuration without those from a busy machine, which go to `left_out`; all where there are no
    others."""
    told = {id(found): why_busy(found.record) for found in side}
    kept = [found for found in side if told[id(found)] is None]
    if not kept:
        return side
    left_out += [(found, reasons) for found in side if (reasons := told[id(found)]) is not None]
    return kept


def judged(
    a: list[SelectedRecord], b: list[SelectedRecord], margin: float | None, history: History, even_if_busy: bool
) -> list[Row]:
    """Rows of a pair, without verdicts where a side is from a busy machine."""
    found = rows(a, b, margin, history)
    kinds = set() if even_if_busy else {kind for each in (*a, *b) for kind in each.record.busy_kinds()}
    return [row.withheld(kinds) for row in found]


def counting(side: Iterable[SelectedRecord], left_out: list[tuple[SelectedRecord, str]]) -> list[SelectedRecord]:
    """Measurements that mean something; the others go to `left_out`."""
    kept = []
    for found in side:
        reason = found.record.problem()
        if reason is None and not found.record.IS_RUN:
            reason = "no single run"
        if reason is None:
            kept.append(found)
        else:
            left_out.append((found, reason))
    return kept


def fields(found: SelectedRecord) -> dict[str, str]:
    """What a record's numbers depend on beside versions, as text."""
    record = measurement(found)
    here = {f"environment.{key}": str(value) for key, value in Place.of(record.environment).kind.items()}
    return here | {key: str(value) for key, value in measurement_of(record).items() if value is not None}


def measurement(found: SelectedRecord) -> Measured:
    """Of what counts."""
    assert isinstance(found.record, Measured)
    return found.record


def telling(
    keys: list[str], sides: list[list[SelectedRecord]], settings: list[list[dict[str, str]]]
) -> dict[str, dict[str | None, list[str]]]:
    """Of each section with a field that is varied, by what it is called: the fields that tell runs with it apart."""
    everything = [
        (names(found), own) for side in zip(sides, settings, strict=True) for found, own in zip(*side, strict=True)
    ]
    apart = {}
    for group in dict.fromkeys(key.partition(".")[0] for key in keys):
        inner = [key for key in keys if key.partition(".")[0] == group and key != group]
        alike: dict[str | None, list[dict[str, str]]] = {}
        for called, own in everything:
            alike.setdefault(called.get(group), []).append(own)
        apart[group] = {
            name: [key for key in inner if len(alike) == 1 or len({own.get(key) for own in some}) > 1]
            for name, some in alike.items()
        }
    return apart


def told_apart(found: SelectedRecord, apart: dict[str, dict[str | None, list[str]]]) -> dict[str, str]:
    """What a run is told from others by, of what `telling` has found: the name of a section, where that says it all."""
    called, own = names(found), fields(found)
    told = {}
    for group, by_name in apart.items():
        if len(by_name) > 1:
            told[group] = called.get(group, "")
        told |= {key: own.get(key, "") for key in by_name[called.get(group)]}
    return told


def names(found: SelectedRecord) -> dict[str, str]:
    """Of each section."""
    return {group: found.record.config[group]["name"] for group in IDENTITY_SECTIONS if group in found.record.config}


def environment(found: SelectedRecord) -> dict[str, str]:
    """What else it depends on."""
    record = measurement(found)
    here = vars(record.environment) | {"read_roof_gb_per_s": f"{record.roof.gb_per_s:.4g}"}
    return dict(flat(here, "environment."))


def varied(side: list[dict[str, str]]) -> set[str]:
    """Fields that are not the same for all of a side."""
    keys = {key for values in side for key in values}
    return {key for key in keys if len({values.get(key) for values in side}) > 1}


def remarks(sides: list[list[SelectedRecord]]) -> list[str]:
    """Of a side of several versions, samples that were throttled, and clocks that were not the same."""
    told: list[str] = []
    clocks: dict[str, list[list[float]]] = {which: [] for which in CLOCKS}
    for name, side in zip("AB", sides, strict=True):
        told += mixed(name, list(map(measurement, side)))
        results = of_kind(Result, map(measurement, side))
        samples = [sample for result in results for sample in valid_samples(result)]
        if (held_back := throttling(samples)) is not None:
            told.append(f"{name}: {held_back}")
        for which, key in CLOCKS.items():
            read = [device_state(result, key) for result in results]
            clocks[which].append([clock for clock in read if clock is not None])
    for which, (a, b) in clocks.items():
        if a and b:
            told += clocks_apart(a, b, which)
    return told


def not_alike(pairs: list[Pair]) -> list[str]:
    """A remark where a pair did not do the same work."""
    told = [different_work([workload_of(side[0].record) for side in (pair.a, pair.b)]) for pair in pairs]
    return list(dict.fromkeys(remark for remark in told if remark is not None))


def workload_of(record: Recorded) -> dict[str, Any]:
    """As it was asked for, with the prompts that rows of a batch got, where these differ: of the same words, an earlier
    version gave all rows the same."""
    section: dict[str, Any] = record.config["workload"]
    return section | {"prompts": getattr(record, "prompts", None) or section.get("prompts")}


def mixed(side: str, records: list[Measured]) -> list[str]:
    """A remark for each of commit, driver and libraries of which a side has several."""
    versions = [Place.of(record.environment).versions for record in records]
    told = []
    for name in dict.fromkeys(name for each in versions for name in each):
        several = sorted({str(each.get(name)) for each in versions})
        if len(several) > 1:
            told.append(f"{side} has runs of several versions of {name}: {', '.join(several)}")
    return told


CLOCKS = {"the clock": "clock_mhz", "the memory clock": "memory_clock_mhz"}


def clocks_apart(a: list[float], b: list[float], which: str = "the clock") -> list[str]:
    """A remark where the mean of a clock, in MHz, was not the same for A and B."""
    first, second = float(np.mean(a)), float(np.mean(b))
    if abs(second - first) <= CLOCKS_APART * first:
        return []
    clocks = f"{which} was {first:.0f} MHz for A and {second:.0f} MHz for B"
    return [f"{clocks}: part of the difference may be the clock's"]


def grouped(
    side: list[SelectedRecord], settings: list[dict[str, str]], keys: list[str]
) -> dict[tuple[Any, ...], list[SelectedRecord]]:
    """Runs by their values of the fields."""
    groups: dict[tuple[Any, ...], list[SelectedRecord]] = {}
    for found, values in zip(side, settings, strict=True):
        groups.setdefault(tuple(values.get(key, "") for key in keys), []).append(found)
    return groups


def differences(
    settings: list[list[dict[str, str]]], sides: list[list[SelectedRecord]], keys: list[str]
) -> dict[str, tuple[str, str]]:
    """Fields in which the sides differ, without those that they vary themselves."""
    told: dict[str, tuple[str, str]] = {}
    called = [[names(found) for found in side] for side in sides]
    around = [[environment(found) for found in side] for side in sides]
    for first, second in (called, settings, around):
        for key in dict.fromkeys(key for values in (*first, *second) for key in values):
            values = [" / ".join(sorted({each.get(key, "") for each in side})) for side in (first, second)]
            if key not in keys and values[0] != values[1]:
                told[key] = values[0], values[1]
    return told


def rows(
    a: list[SelectedRecord], b: list[SelectedRecord], margin: float | None, history: History = NO_HISTORY
) -> list[Row]:
    """Of one pair, each metric that both sides have."""
    of_kernels = [of_kind(KernelResult, map(measurement, side)) for side in (a, b)]
    if all(of_kernels):
        return kernel_rows(of_kernels[0], of_kernels[1], margin)
    found = []
    first, second = (of_kind(Result, map(measurement, side)) for side in (a, b))
    if not first or not second:
        raise UserError(f"{a[0].path} and {b[0].path}: one measured kernels, the other generations")
    for metric in compared():
        if metric.per_token is not None:
            row = quality_row(metric, metric.per_token, first[0], second[0])
        else:
            row = run_row(metric, first, second, margin if metric.kind is SPEED else None, history)
        if row is not None:
            found.append(row)
    return found


def kernel_rows(a: list[KernelResult], b: list[KernelResult], margin: float | None) -> list[Row]:
    """Of `task=kernels`: each implementation of each kernel, by its rounds; of several runs, by their medians."""
    several = len(a) > 1 or len(b) > 1
    sides: list[dict[str, list[float]]] = [{}, {}]
    for times, side in zip(sides, (a, b), strict=True):
        for each in side:
            for kernel in each.kernels:
                for name, timing in kernel.timings.items():
                    if timing.median_s is not None:
                        values = times.setdefault(f"{kernel.label}/{name}", [])
                        values += [timing.median_s] if several else timing.seconds
    first, second = sides
    what = "run" if several else "round"
    return [kernel_row(name, first[name], second[name], what, margin) for name in first if name in second]


def overall(pairs: list[Pair], margin: float | None) -> Row | None:
    """Several pairs as one: the geometric mean of their ratios, each pair one value."""
    found = [row for pair in pairs for row in pair.rows if row.name == HEADLINE]
    if len(found) < 2:
        return None
    ratio = of_pairs([float(np.log(row.ratio.value)) for row in found])
    middles = geometric_mean([row.a for row in found]), geometric_mean([row.b for row in found])
    row = Row.judged(METRICS[HEADLINE], *middles, ratio, f"{len(found)} pairs", margin)
    return row.withheld(["speed"]) if any(each.verdict is Verdict.busy for each in found) else row
