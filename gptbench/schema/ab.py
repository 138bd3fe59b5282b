"""The record of an interleaved measurement of two configurations, as `ab.json` holds it."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from gptbench.base.outputs import write_json
from gptbench.base.redaction import redacted
from gptbench.schema.busy import busy_round, by_kind
from gptbench.schema.compilation import Compilation
from gptbench.schema.machine import Probe
from gptbench.schema.metrics import HEADLINE, View, shown_in
from gptbench.schema.publication import FAILED, FINISHED, KILLED, Publication
from gptbench.schema.record import Measured
from gptbench.schema.restore import check_config, of_list, require
from gptbench.schema.sample import Sample, Traffic
from gptbench.schema.summary import interleaved_metrics, log_middles, log_ratios

BLOCK = 4
"""Samples of a block, two of each side."""


@dataclass
class Round:
    """What was measured with one pair of engines."""

    built: str
    """AB or BA: whose engine was made first."""
    order: str = ""
    """Whose sample came when, such as ABBABAAB."""
    at_s: list[float] = field(default_factory=list)
    """When each sample began, in seconds since the first round did."""
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {"A": [], "B": []})
    """Of A and of B, in the order in which they were taken."""
    load_s: dict[str, float] = field(default_factory=dict)
    """Seconds to make and fill the weights, of each side."""
    compilations: dict[str, Compilation] = field(default_factory=dict)
    """From torch's usual compile cache, whatever was in it."""
    seconds: float = 0.0
    """That it took, with making the engines."""
    probes: list[Probe] = field(default_factory=list)
    """Short measurements of the read roof before and after its samples; empty where there was no memory for it."""

    def blocks(self) -> list[tuple[list[Sample], list[Sample]]]:
        """A's and B's samples of each whole block during which nothing was compiled."""
        found = []
        for number in range(len(self.order) // BLOCK):
            own = slice(number * BLOCK // 2, (number + 1) * BLOCK // 2)
            pair = self.samples["A"][own], self.samples["B"][own]
            if not any(sample.compiles for samples in pair for sample in samples):
                found.append(pair)
        return found


@dataclass
class Side:
    """A or B."""

    overrides: list[str]
    """What it was asked for by, those that both sides share included."""
    config: dict[str, Any]
    """Resolved."""
    dtype: str
    traffic: Traffic

    def __post_init__(self) -> None:
        self.overrides, self.config = redacted(self.overrides), redacted(self.config)


@dataclass(kw_only=True)
class AbResult(Measured):
    """Both sides. `config` and `dtype` of the record are A's."""

    FILE: ClassVar[str] = "ab"

    sides: dict[str, Side]
    """A and B."""
    half_width: float
    """Of the interval around the ratio of decode tokens/s, at which it was to end."""
    margin: float
    """Ratios nearer to 1 are no verdict: a share."""
    budget_s: float
    """Seconds after which it was to end anyway."""
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    """That all rounds took, with making the engines."""
    ended: str = "killed"
    """narrow: the interval was narrow enough; budget: the time was over; interrupted: Ctrl-C; failed; killed: its
    process ended before any of these."""
    reason: str | None = None
    """Why it failed."""

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        """Of a version whose compile times could be shared: none of these was."""
        for each in of_list(raw.get("rounds")):
            compilations = each.get("compilations") if isinstance(each, dict) else None
            for entry in compilations.values() if isinstance(compilations, dict) else ():
                if isinstance(entry, dict):
                    entry.pop("shared", None)

    def samples(self, side: str) -> list[Sample]:
        """A's or B's, of all rounds."""
        return [sample for each in self.rounds for sample in each.samples[side]]

    def update(self, path: Path) -> None:
        """Writes what there is by now over what `save` wrote."""
        write_json(path, self.plain())

    def check(self) -> None:
        super().check()
        require(set(self.sides) == {"A", "B"}, "sides", "A and B")
        for name, side in self.sides.items():
            check_config(side.config, f"sides.{name}.config")
        for number, each in enumerate(self.rounds):
            place = f"rounds[{number}]"
            require(set(each.samples) == {"A", "B"}, f"{place}.samples", "A and B")
            for name, samples in each.samples.items():
                require(each.order.count(name) == len(samples), f"{place}.samples.{name}", f"as many as {place}.order")
                for index, sample in enumerate(samples):
                    sample.check(f"{place}.samples.{name}[{index}]")

    def problem(self) -> str | None:
        if not self.is_finite:
            return "logits or cached values are not finite"
        whole = any(each.blocks() for each in self.rounds)
        return None if whole else "no whole block was measured without compiling"

    @property
    def is_finite(self) -> bool:
        """Whether all logits and cached values are."""
        return all(sample.finite for name in self.sides for sample in self.samples(name))

    def busy_rounds(self) -> dict[int, list[str]]:
        """Reasons to think that the machine was busy, by number of the round, from 1; of those alone that were."""
        found = {
            number: busy_round(each.samples.values(), each.probes, self.roof, self.environment)
            for number, each in enumerate(self.rounds, 1)
        }
        return {number: reasons for number, reasons in found.items() if reasons}

    def busy_kinds(self) -> dict[str, list[str]]:
        rounds = self.busy_rounds().items()
        return by_kind(speed=[f"round {number}: {why}" for number, reasons in rounds for why in reasons])

    def publication(self) -> Publication:
        unfinished = {"failed": FAILED, "killed": KILLED}
        return replace(
            super().publication(),
            name=f"ab-{self.config['model']['name']}",
            seconds=self.seconds,
            status=unfinished.get(self.ended, FINISHED if self.is_finite else FAILED),
            tags=self.tags(rounds=str(len(self.rounds)), ended=self.ended),
            params=self.config | {name: " ".join(side.overrides) for name, side in self.sides.items()},
            metrics=list(self.published_metrics()),
        )

    def published_metrics(self) -> Iterator[tuple[str, float, int]]:
        """The mean ratio, what both sides come to, and the samples of both."""
        sampled = [
            (f"sample_{name}/{metric}", value, step)  # MLflow shows sections by name: after `brief`
            for name in self.sides
            for step, sample in enumerate(self.samples(name))
            if not sample.compiles
            for metric, value in interleaved_metrics(self, name, sample).items()
        ]
        values: dict[str, list[float]] = {}
        for name, value, _ in sampled:
            side, metric = name.removeprefix("sample_").split("/")
            values.setdefault(f"brief/{side}_{metric}", []).append(value)
        middles = {name: statistics.median(each) for name, each in values.items()}
        for one in shown_in(View.interleaved):
            if one.share is not None:  # as `gptbench ab` shows them
                sides = zip(self.sides, zip(*log_middles(self, one.name), strict=True), strict=False)
                middles |= {f"brief/{name}_{one.name}": math.exp(statistics.fmean(each)) for name, each in sides}
        if known := log_ratios(self):
            yield f"brief/B_over_A_{HEADLINE}", math.exp(statistics.fmean(known)), 0
        yield from ((name, value, 0) for name, value in middles.items())
        yield from sampled
