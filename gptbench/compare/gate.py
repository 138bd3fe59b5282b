"""Recorded runs against a baseline: whether anything is worse beyond noise.

Several runs of one configuration count as one value each; where both sides are single runs, their samples do, in an
interval widened by what starts of the same thing differ by. A metric fails where the whole 95% interval of new over
baseline lies beyond the margin of its kind, on the worse side. Where both sides have one value there is no interval: it
fails where it is worse by more than the margin.

What does not fail need not be as good: few runs have a wide interval. A metric that may be worse by more than the
margin is told as undecided.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptbench.base.errors import ConfigError, UserError
from gptbench.compare.baseline import (
    Baseline,
    is_outdated,
)
from gptbench.compare.comparison import without_busy_runs
from gptbench.compare.ratio import (
    Moments,
    Ratio,
    Verdict,
    in_words,
    possible_changes,
    ratio_of_groups,
    shares_beyond_noise,
    verdict,
    widened_by_process_spread,
)
from gptbench.compare.row import exact_ratio, metric_moments
from gptbench.compare.select import SelectedRecord
from gptbench.compare.starts import NO_HISTORY, History, ProcessSpread
from gptbench.config import BaselineConfig, BaselineMetric, BaselineRow
from gptbench.schema import Result
from gptbench.schema.busy import PHASES, why_busy
from gptbench.schema.machine import Environment
from gptbench.schema.metrics import KINDS, Metric, PerToken, metric_of
from gptbench.schema.place import Place, whole_watts
from gptbench.schema.record import of_kind
from gptbench.schema.sample import Sample, throttling
from gptbench.schema.statistics import valid_samples

OUTDATED = "not compared: recorded as the median of the samples' own percentiles; record the baseline again"
"""Of a metric that a baseline has by another definition than gptbench's."""
ONE_PROMPT = (
    "recorded with one prompt for all rows of the batch, and now each has its own: record it again, or with "
    "workload.same_prompt=true for the same work"
)
"""Of a row that a run would belong to, were it for that."""


@dataclass(frozen=True)
class Check:
    """One metric of a row of the baseline, or what hindered the row."""

    row: str
    metric: str | None
    """None where nothing of the row was compared."""
    failed: bool
    told: str
    """In a sentence; empty where there is nothing to say."""
    baseline: float | None = None
    now: float | None = None
    ratio: Ratio | None = None
    """New over baseline."""
    verdict: Verdict | None = None
    of: str = ""
    """What the interval is of: `3 runs and 1 run`."""
    possible: dict[Verdict, float] = field(default_factory=dict)
    """Of what is undecided, by up to which share it may be less, and more."""
    starts: ProcessSpread | None = None
    """What the interval is widened by, of single starts."""

    @property
    def undecided(self) -> bool:
        """Whether it may be worse, although nothing shows that it is; or there is no verdict."""
        return self.verdict is Verdict.busy or any(word.is_worse for word in self.possible)

    def withheld(self, kinds: Collection[str], why: str) -> "Check":
        """The same from a busy machine: without a verdict, if it is of these kinds of metrics."""
        kind = None if self.metric is None else metric_of(self.metric).kind
        if self.ratio is None or kind is None or kind.name not in kinds:
            return self
        return replace(self, failed=False, told=f"no verdict: {why}", verdict=Verdict.busy, possible={})


@dataclass(frozen=True)
class Gate:
    """All rows of a baseline."""

    checks: list[Check]
    differences: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Versions that differ: the baseline's and those now."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """Records that are of no row, and why."""
    remarks: list[str] = field(default_factory=list)
    """What a reader must know beside the checks: samples that were throttled."""

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.failed]

    @property
    def worse(self) -> list[Check]:
        """Those of the failed that were compared."""
        return [check for check in self.failed if check.ratio is not None]

    @property
    def undecided(self) -> list[Check]:
        return [check for check in self.checks if check.undecided]

    @property
    def busy(self) -> list[str]:
        """Rows without a verdict, as the machine was busy."""
        return list(dict.fromkeys(check.row for check in self.checks if check.verdict is Verdict.busy))


def margins_of(config: BaselineConfig) -> dict[str, float]:
    """By name of the kind.

    Raises:
        ConfigError: there is no such kind.
    """
    known = {name: kind.margin for name, kind in KINDS.items()}
    for name, margin in config.margins.items():
        if name not in known:
            raise ConfigError(f"baseline.margins.{name}", margin, f"one of {', '.join(known)}")
    return known | config.margins


def require_rows(config: BaselineConfig) -> None:
    """Raises UserError for a baseline that nothing can be held against."""
    margins_of(config)
    if not config.rows:
        raise UserError(f"baseline {config.name}: it has no rows; gptbench gate --record FILE RUN makes one that has")


def require_device(config: BaselineConfig, here: Environment) -> None:
    """Raises UserError where a number is of another device than the baseline's, power limit, or part of a CPU."""
    there, now = baseline_place(config), Place.of(here).kind
    if now["device"] != there["device"]:
        raise UserError(
            f"baseline {config.name} is of {config.device}, and this is {here.device}: never compared across devices"
        )
    if now["power_limit_w"] != there["power_limit_w"]:
        raise UserError(
            f"baseline {config.name} is of {config.device} at {power_limit_text(config.power_limit_w)}, and this is at "
            f"{power_limit_text(here.power_limit_w)}: never compared across power limits"
        )
    if now.get("cores", config.cores) != config.cores:
        raise UserError(
            f"baseline {config.name} is of {config.cores} cores of {config.device}, and this is of {here.cores}: never "
            "compared across devices"
        )


def baseline_place(config: BaselineConfig) -> dict[str, Any]:
    """As `Place.kind` has it, of a CPU with its cores."""
    return {"device": config.device, "power_limit_w": whole_watts(config.power_limit_w)}


def power_limit_text(limit: float | None) -> str:
    return "no known power limit" if limit is None else f"{limit:g} W"


def gate(
    config: BaselineConfig,
    found: Sequence[SelectedRecord],
    failed_rows: Sequence[tuple[str, str]] = (),
    partial: bool = False,
    history: History = NO_HISTORY,
    even_if_busy: bool = False,
) -> Gate:
    """Holds runs against a baseline. Of a row's runs those from a busy machine are left out; where there are no others,
    or the baseline's own were such, there is no verdict on what that changes.

    Args:
        found: recorded runs.
        hindered: rows that could not be measured, and why.
        partial: whether rows without a run are left out; else they fail.
        history: recorded runs that say what single starts differ by.
        even_if_busy: whether runs from a busy machine count as any others.

    Raises:
        UserError: the baseline has no rows, or a run is of another device.
    """
    require_rows(config)
    baseline = Baseline(config)
    runs: dict[str, list[SelectedRecord]] = {name: [] for name in config.rows}
    checks = [Check(row, None, True, why) for row, why in failed_rows]
    left_out = []
    of_one_prompt: set[str] = set()
    results = []
    for each in found:
        result = each.record
        if not isinstance(result, Result):
            left_out.append((each.path, "no single run of a model"))
            continue
        require_device(config, result.environment)
        results.append(result)
        if (row := baseline.row_of(result)) is None:
            reason = "the baseline has no row of what it measured"
            if result.prompts and (row := baseline.row_of(replace(result, prompts=[]))) is not None:
                of_one_prompt.add(row)
                reason = f"{row} was {ONE_PROMPT}"
            left_out.append((each.path, reason))
        elif (wrong := result.problem()) is not None:
            checks.append(Check(row, None, True, f"{each.path}: {wrong}"))
        else:
            runs[row].append(each)
    told = {check.row for check in checks}
    remarks = []
    busy_ones: list[tuple[SelectedRecord, str]] = []
    for row, of_row in runs.items():
        counting = of_row if even_if_busy else without_busy_runs(of_row, busy_ones)
        own = of_kind(Result, [each.record for each in counting])
        if own:
            now = "; ".join(dict.fromkeys(why for result in own if (why := why_busy(result)) is not None))
            marked = {"baseline": config.rows[row].busy, "now": now}
            told_busy = [f"{which}, {why}" for which, why in marked.items() if why]
            remarks += [f"{row}: {why}" for why in told_busy]
            found_here = row_checks(config, row, own, history)
            if told_busy and not even_if_busy:
                kinds = {kind for result in own for kind in result.busy_kinds()}
                if config.rows[row].busy is not None:
                    kinds |= set(config.rows[row].busy_kinds or PHASES)
                found_here = [check.withheld(kinds, "; ".join(told_busy)) for check in found_here]
            checks += found_here
            for which, held_back in (("baseline", config.rows[row].throttled), ("now", throttling(samples_of(own)))):
                if held_back is not None:
                    remarks.append(f"{row}: {which}, {held_back}")
        elif row not in told:
            reason = f"it was {ONE_PROMPT}" if row in of_one_prompt else "it was not measured"
            checks.append(Check(row, None, not partial, reason))
    left_out += [(each.path, why) for each, why in busy_ones]
    return Gate(checks, differences(config, results), left_out, remarks)


def is_of_single_run(row: BaselineRow) -> bool:
    """Whether its numbers are of the samples of one."""
    return any(metric.of == "samples" for metric in row.metrics.values())


def row_checks(config: BaselineConfig, row: str, runs: list[Result], history: History = NO_HISTORY) -> list[Check]:
    """Of a row with runs, every metric that the baseline has."""
    margins = margins_of(config)
    held_back = throttling(samples_of(runs)) or ""
    checks = []
    for name, before in config.rows[row].metrics.items():
        metric = metric_of(name)
        if metric.kind is None:
            checks.append(Check(row, name, False, "not compared: this gptbench has no such metric", before.value))
            continue
        if is_outdated(config, name):
            checks.append(Check(row, name, False, OUTDATED, before.value))
            continue
        now = baseline_metric_of(runs, metric, by_run=len(runs) > 1 or before.of == "runs")
        if now is not None:
            starts = history.spread(name, runs) if before.of == now.of == "samples" else None
            exact = metric.is_counted and runs[0].environment.on_gpu
            outcome = check(row, metric, before, now, margins[metric.kind.name], starts, exact)
            if outcome.failed and held_back:
                outcome = replace(outcome, told=f"{outcome.told}; {held_back}")
            checks.append(outcome)
            continue
        must = is_required(metric, runs[0])
        told = "the baseline has it, and the run has not"
        if not must:
            told += ": it depends on what the compile cache held"
        checks.append(Check(row, name, must, told, before.value))
    return checks


def samples_of(runs: list[Result]) -> list[Sample]:
    """The valid ones."""
    return [sample for result in runs for sample in valid_samples(result)]


def is_required(metric: Metric, result: Result) -> bool:
    """Whether a run must have what the baseline has. What it measured is the same, so all but compile times: without a
    cache of its own, a run may meet a cold one or a warm one."""
    return metric.asked_by is None or bool(result.config["engine"].get(metric.asked_by))


def check(
    row: str,
    metric: Metric,
    before: BaselineMetric,
    now: BaselineMetric,
    margin: float,
    starts: ProcessSpread | None = None,
    exact: bool = False,
) -> Check:
    """One metric that both have.

    Args:
        starts: what they differ by, where both are samples of a single one.
        exact: whether starts of the same thing do not differ in it.
    """
    before, now = both_as_runs(before, now)
    ratio = ratio_of_groups(*(Moments(float(np.log(one.value)), one.spread**2, one.count) for one in (before, now)))
    if exact:
        ratio = exact_ratio(ratio)
    elif starts is not None:
        ratio = widened_by_process_spread(ratio, starts.value, starts.freedom)
    outcome, may_be = verdict(ratio, metric, margin), possible_changes(ratio, metric, margin)
    told = ""
    if outcome is Verdict.unknown:
        told = f"one value each, so by the margin of {100 * margin:.3g}% alone"
        if side := exact_ratio(ratio).beyond(margin):
            outcome = Verdict(metric.words[side > 0])
    elif outcome is Verdict.undecided and before.of == "tokens":
        # Of the same tokens: between them they differ by far more than two runs do. So the mean itself tells.
        may_be = shares_beyond_noise(exact_ratio(ratio), metric, margin)
        outcome = Verdict.undecided if may_be else Verdict.noise
    if outcome.is_worse:
        much = f"{abs(ratio.value - 1):.2%} {'more' if ratio.value > 1 else 'less'} than the baseline"
        if ratio.low is not None and ratio.high is not None:
            low, high = sorted((abs(ratio.low - 1), abs(ratio.high - 1)))
            told = f"95% interval {low:.2%} to {high:.2%}, margin {100 * margin:.3g}%"
        told = f"{outcome.value}: {much} ({told})"
    elif may_be:
        told = f"undecided: up to {in_words(may_be)} is possible"
    counted = " and ".join(f"{one.count} {one.of if one.count > 1 else one.of[:-1]}" for one in (before, now))
    return Check(
        row, metric.name, outcome.is_worse, told, before.value, now.value, ratio, outcome, counted, may_be, starts
    )


def both_as_runs(before: BaselineMetric, now: BaselineMetric) -> tuple[BaselineMetric, BaselineMetric]:
    """Both, where one is of samples and the other of runs: a run's samples vary by less than runs do, so all of them
    count as one run."""
    if {before.of, now.of} != {"samples", "runs"}:
        return before, now
    first, second = (
        replace(one, spread=0.0, count=1, of="runs") if one.of == "samples" else one for one in (before, now)
    )
    return first, second


def baseline_metric_of(runs: list[Result], metric: Metric, by_run: bool) -> BaselineMetric | None:
    """What is kept of a metric of runs of one configuration; None where not all of them have it, or it is 0.

    Args:
        by_run: whether each run is one value, where its samples could be several.
    """
    # Means over tokens change with every order of summing: their spread between tokens counts. Perplexity's would hide
    # any loss: it stays one value.
    if metric.per_token is not None and not metric.per_token.is_logarithm:
        return token_metric_of(runs[0], metric, metric.per_token)  # the same in every run
    by_run = by_run or not metric.varies_in_run
    found = metric_moments(runs, metric, by_run)
    if found is None or found.count < len(runs) or not math.isfinite(found.mean):
        return None
    of = "runs" if by_run else "samples"
    return BaselineMetric(value=float(np.exp(found.mean)), spread=found.variance**0.5, count=found.count, of=of)


def token_metric_of(result: Result, metric: Metric, per_token: PerToken) -> BaselineMetric | None:
    """Of a mean over tokens; the spread is relative to it, which to first order is that of the logarithms."""
    value = result.summary.get(metric.name)
    if result.quality is None or value is None or not value > 0:
        return None
    tokens = np.asarray(per_token.values(result.quality), dtype=float)
    spread = float(tokens.std(ddof=1)) / value if len(tokens) > 1 else 0.0
    return BaselineMetric(value=value, spread=spread, count=len(tokens), of="tokens")


def differences(config: BaselineConfig, results: list[Result]) -> dict[str, tuple[str, str]]:
    """Driver, commit and versions that are not the baseline's."""
    before = {"driver": config.driver, "commit": config.commit} | dict(config.versions)
    told = {}
    for name, value in before.items():
        now = sorted({str(Place.of(result.environment).versions.get(name)) for result in results})
        if now and now != [str(value)]:
            told[name] = str(value), " / ".join(now)
    return told
