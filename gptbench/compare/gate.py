"""Regression gate: whether recorded runs are worse than a baseline beyond noise.

Each of several runs of one configuration counts as one value. If both sides are a single run, their samples are
compared, and the interval is widened by process-to-process variance. A metric fails if the whole 95% confidence
interval of new / baseline lies beyond the margin of its kind on the worse side. If both sides are a single value, there
is no interval, and the metric fails if it is worse by more than the margin.

A metric that passes need not be as good as the baseline: few runs give a wide interval. A metric that may be worse by
more than the margin is undecided.
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
"""Reason for not comparing a metric that the baseline has by an earlier definition."""
ONE_PROMPT = (
    "recorded with one prompt for all rows of the batch, and now each row has its own: record it again, or measure "
    "with workload.same_prompt=true to do the same work"
)
"""Reason for not comparing a row that a run would belong to but for its prompts."""


@dataclass(frozen=True)
class Check:
    """Comparison of one metric of a baseline's row, or the reason why the row could not be compared."""

    row: str
    """Name of the row."""
    metric: str | None
    """Name of the metric; None if nothing of the row was compared."""
    failed: bool
    """Whether the gate fails because of it."""
    reason: str
    """Explanation of the outcome in a sentence; empty if there is nothing to explain."""
    baseline: float | None = None
    """The baseline's value, in the metric's unit."""
    now: float | None = None
    """The runs' value, in the metric's unit."""
    ratio: Ratio | None = None
    """New / baseline with its interval; None if not compared."""
    verdict: Verdict | None = None
    """What can be said of the runs; None if not compared."""
    basis: str = ""
    """Values that the interval is computed from: `3 runs and 1 run`."""
    possible: dict[Verdict, float] = field(default_factory=dict)
    """Changes that an undecided ratio leaves possible, each with the largest share it may amount to."""
    process_spread: ProcessSpread | None = None
    """Process-to-process variance by which the interval is widened, where each side is a single run; else None."""

    @property
    def undecided(self) -> bool:
        """Whether the metric may be worse without being shown to be, or has no verdict as the machine was busy."""
        return self.verdict is Verdict.busy or any(word.is_worse for word in self.possible)

    def withheld(self, kinds: Collection[str], why: str) -> "Check":
        """Return the check without a verdict if its metric is of a kind that the busy machine may have affected."""
        kind = None if self.metric is None else metric_of(self.metric).kind
        if self.ratio is None or kind is None or kind.name not in kinds:
            return self
        return replace(self, failed=False, reason=f"no verdict: {why}", verdict=Verdict.busy, possible={})


@dataclass(frozen=True)
class Gate:
    """Outcome of holding runs against all rows of a baseline."""

    checks: list[Check]
    """Comparison of each metric of each row."""
    differences: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Versions that differ, by name: the baseline's and those of the runs."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """Records that belong to no row, each with the reason."""
    remarks: list[str] = field(default_factory=list)
    """Caveats to the checks, such as throttled samples or a busy machine."""

    @property
    def failed(self) -> list[Check]:
        """Checks that make the gate fail."""
        return [check for check in self.checks if check.failed]

    @property
    def worse(self) -> list[Check]:
        """Failed checks whose metric was compared, and is worse."""
        return [check for check in self.failed if check.ratio is not None]

    @property
    def undecided(self) -> list[Check]:
        """Checks whose metric may be worse, or has no verdict."""
        return [check for check in self.checks if check.undecided]

    @property
    def busy(self) -> list[str]:
        """Names of the rows that have no verdict because the machine was busy."""
        return list(dict.fromkeys(check.row for check in self.checks if check.verdict is Verdict.busy))


def margins_of(config: BaselineConfig) -> dict[str, float]:
    """Return the margin of each kind of metric, as a share: the baseline's, or by default the kind's.

    Raises:
        ConfigError: the baseline has a margin for an unknown kind.
    """
    known = {name: kind.margin for name, kind in KINDS.items()}
    for name, margin in config.margins.items():
        if name not in known:
            raise ConfigError(f"baseline.margins.{name}", margin, f"one of {', '.join(known)}")
    return known | config.margins


def require_rows(config: BaselineConfig) -> None:
    """Raise UserError if a baseline has no rows."""
    margins_of(config)
    if not config.rows:
        raise UserError(
            f"baseline {config.name}: it has no rows to compare with; gptbench gate --record FILE RUN records one"
        )


def require_device(config: BaselineConfig, here: Environment) -> None:
    """Raise UserError if the device, its power limit, or the number of a CPU's cores is not the baseline's."""
    there, now = baseline_place(config), Place.of(here).kind
    if now["device"] != there["device"]:
        raise UserError(
            f"baseline {config.name} was recorded on {config.device}, and this is {here.device}: numbers are never "
            "compared across devices"
        )
    if now["power_limit_w"] != there["power_limit_w"]:
        raise UserError(
            f"baseline {config.name} was recorded on {config.device} at {power_limit_text(config.power_limit_w)}, and "
            f"this is at {power_limit_text(here.power_limit_w)}: numbers are never compared across power limits"
        )
    if now.get("cores", config.cores) != config.cores:
        raise UserError(
            f"baseline {config.name} was recorded on {config.cores} cores of {config.device}, and this is "
            f"{here.cores}: numbers are never compared across devices"
        )


def baseline_place(config: BaselineConfig) -> dict[str, Any]:
    """Return the device and power limit of a baseline, as in `Place.kind`."""
    return {"device": config.device, "power_limit_w": whole_watts(config.power_limit_w)}


def power_limit_text(limit: float | None) -> str:
    """Return a power limit, in watts, in words."""
    return "no known power limit" if limit is None else f"{limit:g} W"


def gate(
    config: BaselineConfig,
    selected: Sequence[SelectedRecord],
    failed_rows: Sequence[tuple[str, str]] = (),
    partial: bool = False,
    history: History = NO_HISTORY,
    even_if_busy: bool = False,
) -> Gate:
    """Hold runs against a baseline. Runs from a busy machine are left out if their row has others. If it has none, or
    the baseline itself was recorded on a busy machine, the metrics that the load may have affected get no verdict.

    Args:
        selected: recorded runs.
        failed_rows: rows that could not be measured, each with the reason; they fail.
        partial: whether rows without a run are skipped; else they fail.
        history: recorded runs from which process-to-process variance is estimated.
        even_if_busy: whether runs from a busy machine count like any others.

    Raises:
        UserError: the baseline has no rows, or a run was measured on another device.
    """
    require_rows(config)
    baseline = Baseline(config)
    runs: dict[str, list[SelectedRecord]] = {name: [] for name in config.rows}
    checks = [Check(row, None, True, why) for row, why in failed_rows]
    left_out = []
    one_prompt_rows: set[str] = set()
    results = []
    for entry in selected:
        result = entry.record
        if not isinstance(result, Result):
            left_out.append((entry.path, "not a single run of a model"))
            continue
        require_device(config, result.environment)
        results.append(result)
        if (row := baseline.row_of(result)) is None:
            reason = "the baseline has no row for what it measured"
            if result.prompts and (row := baseline.row_of(replace(result, prompts=[]))) is not None:
                one_prompt_rows.add(row)
                reason = f"{row} was {ONE_PROMPT}"
            left_out.append((entry.path, reason))
        elif (wrong := result.problem()) is not None:
            checks.append(Check(row, None, True, f"{entry.path}: {wrong}"))
        else:
            runs[row].append(entry)
    failed_already = {check.row for check in checks}
    remarks = []
    busy_runs: list[tuple[SelectedRecord, str]] = []
    for row, row_runs in runs.items():
        counted = row_runs if even_if_busy else without_busy_runs(row_runs, busy_runs)
        row_results = of_kind(Result, [entry.record for entry in counted])
        if row_results:
            busy_now = "; ".join(dict.fromkeys(why for result in row_results if (why := why_busy(result)) is not None))
            busy = {"baseline": config.rows[row].busy, "now": busy_now}
            busy_reasons = [f"{side}, {why}" for side, why in busy.items() if why]
            remarks += [f"{row}: {why}" for why in busy_reasons]
            of_row = row_checks(config, row, row_results, history)
            if busy_reasons and not even_if_busy:
                kinds = {kind for result in row_results for kind in result.busy_kinds()}
                if config.rows[row].busy is not None:
                    kinds |= set(config.rows[row].busy_kinds or PHASES)
                of_row = [check.withheld(kinds, "; ".join(busy_reasons)) for check in of_row]
            checks += of_row
            throttled = {"baseline": config.rows[row].throttled, "now": throttling(samples_of(row_results))}
            remarks += [f"{row}: {side}, {what}" for side, what in throttled.items() if what is not None]
        elif row not in failed_already:
            reason = f"it was {ONE_PROMPT}" if row in one_prompt_rows else "it was not measured"
            checks.append(Check(row, None, not partial, reason))
    left_out += [(entry.path, why) for entry, why in busy_runs]
    return Gate(checks, differences(config, results), left_out, remarks)


def is_of_single_run(row: BaselineRow) -> bool:
    """Return whether a row holds the samples of a single run."""
    return any(metric.of == "samples" for metric in row.metrics.values())


def row_checks(config: BaselineConfig, row: str, runs: list[Result], history: History = NO_HISTORY) -> list[Check]:
    """Return the check of every metric that a row has, for a row with runs."""
    margins = margins_of(config)
    throttled = throttling(samples_of(runs)) or ""
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
            spread = history.spread(name, runs) if before.of == now.of == "samples" else None
            exact = metric.is_counted and runs[0].environment.on_gpu
            outcome = check(row, metric, before, now, margins[metric.kind.name], spread, exact)
            if outcome.failed and throttled:
                outcome = replace(outcome, reason=f"{outcome.reason}; {throttled}")
            checks.append(outcome)
            continue
        required = is_required(metric, runs[0])
        reason = "the baseline has it, but the run does not"
        if not required:
            reason += ": it depends on what the compile cache held"
        checks.append(Check(row, name, required, reason, before.value))
    return checks


def samples_of(runs: list[Result]) -> list[Sample]:
    """Return the valid samples of some runs."""
    return [sample for result in runs for sample in valid_samples(result)]


def is_required(metric: Metric, result: Result) -> bool:
    """Return whether a run must have a metric that the baseline has. It measured the same, so it must have all but
    compile times: a run without a private compile cache may find a shared one cold or warm."""
    return metric.asked_by is None or bool(result.config["engine"].get(metric.asked_by))


def check(
    row: str,
    metric: Metric,
    before: BaselineMetric,
    now: BaselineMetric,
    margin: float,
    process_spread: ProcessSpread | None = None,
    exact: bool = False,
) -> Check:
    """Return the comparison of a metric that both the baseline and the runs have.

    Args:
        margin: smallest relative difference that counts.
        process_spread: process-to-process variance, where both sides are the samples of a single run.
        exact: whether processes that measure the same thing do not differ in it.
    """
    before, now = both_as_runs(before, now)
    ratio = ratio_of_groups(*(Moments(float(np.log(one.value)), one.spread**2, one.count) for one in (before, now)))
    if exact:
        ratio = exact_ratio(ratio)
    elif process_spread is not None:
        ratio = widened_by_process_spread(ratio, process_spread.value, process_spread.freedom)
    outcome, possible = verdict(ratio, metric, margin), possible_changes(ratio, metric, margin)
    reason = ""
    if outcome is Verdict.unknown:
        reason = f"one value each, judged by the margin of {100 * margin:.3g}% alone"
        if side := exact_ratio(ratio).beyond(margin):
            outcome = Verdict(metric.words[side > 0])
    elif outcome is Verdict.undecided and before.of == "tokens":
        # Both means are over the same tokens, which differ from each other by far more than two runs do. So an interval
        # over tokens is too wide, and the ratio of the means decides.
        possible = shares_beyond_noise(exact_ratio(ratio), metric, margin)
        outcome = Verdict.undecided if possible else Verdict.noise
    if outcome.is_worse:
        much = f"{abs(ratio.value - 1):.2%} {'more' if ratio.value > 1 else 'less'} than the baseline"
        if ratio.low is not None and ratio.high is not None:
            low, high = sorted((abs(ratio.low - 1), abs(ratio.high - 1)))
            reason = f"95% interval {low:.2%} to {high:.2%}, margin {100 * margin:.3g}%"
        reason = f"{outcome.value}: {much} ({reason})"
    elif possible:
        reason = f"undecided: up to {in_words(possible)} is possible"
    basis = " and ".join(f"{one.count} {one.of if one.count > 1 else one.of[:-1]}" for one in (before, now))
    return Check(
        row,
        metric.name,
        outcome.is_worse,
        reason,
        before.value,
        now.value,
        ratio,
        outcome,
        basis,
        possible,
        process_spread,
    )


def both_as_runs(before: BaselineMetric, now: BaselineMetric) -> tuple[BaselineMetric, BaselineMetric]:
    """Return both; if one is of samples and the other of runs, the samples count as one run, because they vary by less
    than runs do."""
    if {before.of, now.of} != {"samples", "runs"}:
        return before, now
    first, second = (
        replace(one, spread=0.0, count=1, of="runs") if one.of == "samples" else one for one in (before, now)
    )
    return first, second


def baseline_metric_of(runs: list[Result], metric: Metric, by_run: bool) -> BaselineMetric | None:
    """Return a metric of runs of one configuration as a baseline keeps it; None if a run does not have it, or it is 0.

    Args:
        by_run: whether each run counts as one value, even where its samples could be several.
    """
    # Means over tokens change with the order of summation, so the spread between tokens is kept for them. Perplexity's
    # would hide any loss: it is kept as one value.
    if metric.per_token is not None and not metric.per_token.is_logarithm:
        return token_metric_of(runs[0], metric, metric.per_token)  # the same in every run
    by_run = by_run or not metric.varies_in_run
    moments = metric_moments(runs, metric, by_run)
    if moments is None or moments.count < len(runs) or not math.isfinite(moments.mean):
        return None
    of = "runs" if by_run else "samples"
    return BaselineMetric(value=float(np.exp(moments.mean)), spread=moments.variance**0.5, count=moments.count, of=of)


def token_metric_of(result: Result, metric: Metric, per_token: PerToken) -> BaselineMetric | None:
    """Return a mean over tokens as a baseline keeps it. Its spread is relative to the mean, which to first order is the
    spread of the logarithms."""
    value = result.summary.get(metric.name)
    if result.quality is None or value is None or not value > 0:
        return None
    tokens = np.asarray(per_token.values(result.quality), dtype=float)
    spread = float(tokens.std(ddof=1)) / value if len(tokens) > 1 else 0.0
    return BaselineMetric(value=value, spread=spread, count=len(tokens), of="tokens")


def differences(config: BaselineConfig, results: list[Result]) -> dict[str, tuple[str, str]]:
    """Return the driver, commit and library versions that are not the baseline's, with the values of both."""
    before = {"driver": config.driver, "commit": config.commit} | dict(config.versions)
    differing = {}
    for name, value in before.items():
        now = sorted({str(Place.of(result.environment).versions.get(name)) for result in results})
        if now and now != [str(value)]:
            differing[name] = str(value), " / ".join(now)
    return differing
