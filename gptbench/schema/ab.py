"""The record of an interleaved measurement of two configurations, as stored in `ab.json`."""

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
from gptbench.schema.record import Measured, upgrade_config
from gptbench.schema.restore import check_config, of_list, require
from gptbench.schema.sample import Sample, Traffic
from gptbench.schema.summary import interleaved_metrics, log_middles, log_ratios

BLOCK = 4
"""Number of samples in a block, two of each side."""


@dataclass
class Round:
    """Measurements of one pair of engines."""

    built: str
    """Order in which the engines were made: AB or BA."""
    order: str = ""
    """Order of the samples by side, such as ABBABAAB."""
    at_s: list[float] = field(default_factory=list)
    """Start of each sample in seconds since the first round began."""
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {"A": [], "B": []})
    """Samples of A and of B, in the order in which they were taken."""
    load_s: dict[str, float] = field(default_factory=dict)
    """Seconds to allocate and fill the weights of each side."""
    compilations: dict[str, Compilation] = field(default_factory=dict)
    """Compilation of each side, from torch's usual compile cache in whatever state that was."""
    seconds: float = 0.0
    """Seconds of the round, including making the engines."""
    probes: list[Probe] = field(default_factory=list)
    """Short measurements of the read bandwidth before and after the samples; empty if there was no memory for one."""

    def blocks(self) -> list[tuple[list[Sample], list[Sample]]]:
        """Return A's and B's samples of each whole block during which nothing was compiled."""
        whole = []
        for number in range(len(self.order) // BLOCK):
            block = slice(number * BLOCK // 2, (number + 1) * BLOCK // 2)
            pair = self.samples["A"][block], self.samples["B"][block]
            if not any(sample.compiles for samples in pair for sample in samples):
                whole.append(pair)
        return whole


@dataclass
class Side:
    """Configuration of A or B."""

    overrides: list[str]
    """Overrides of the side, including those that both sides share."""
    config: dict[str, Any]
    """Resolved configuration."""
    dtype: str
    """Dtype of activations, KV cache and unquantised weights."""
    traffic: Traffic
    """Bytes that the decode steps move."""

    def __post_init__(self) -> None:
        self.overrides, self.config = redacted(self.overrides), redacted(self.config)


@dataclass(kw_only=True)
class AbResult(Measured):
    """Record of an interleaved measurement. Its `config` and `dtype` are those of A."""

    FILE: ClassVar[str] = "ab"

    sides: dict[str, Side]
    """Configurations of A and B."""
    half_width: float
    """Half width of the interval around the ratio of decode tokens/s at which the measurement was to end."""
    margin: float
    """Smallest relative difference that gets a verdict (0.01 is 1%)."""
    budget_s: float
    """Seconds after which the measurement was to end in any case."""
    rounds: list[Round] = field(default_factory=list)
    """Rounds in the order in which they were measured."""
    seconds: float = 0.0
    """Seconds of all rounds, including making the engines."""
    ended: str = "killed"
    """How it ended. narrow: the interval was narrow enough; budget: the time was used up; interrupted: Ctrl-C; failed:
    an error; killed: the process ended before any of these."""
    reason: str | None = None
    """Reason of a failure; None without one."""

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        """Remove a field of versions whose compile times could be shared: those in an interleaved measurement never
        were. Upgrade the configurations of both sides."""
        sides = raw.get("sides")
        for side in sides.values() if isinstance(sides, dict) else ():
            if isinstance(side, dict):
                upgrade_config(side.get("config"))
        for entry in of_list(raw.get("rounds")):
            compilations = entry.get("compilations") if isinstance(entry, dict) else None
            for compilation in compilations.values() if isinstance(compilations, dict) else ():
                if isinstance(compilation, dict):
                    compilation.pop("shared", None)

    def samples(self, side: str) -> list[Sample]:
        """Return the samples of A or B over all rounds."""
        return [sample for taken in self.rounds for sample in taken.samples[side]]

    def update(self, path: Path) -> None:
        """Overwrite the file that `save` wrote with the current content."""
        write_json(path, self.plain())

    def check(self) -> None:
        super().check()
        require(set(self.sides) == {"A", "B"}, "sides", "A and B")
        for name, side in self.sides.items():
            check_config(side.config, f"sides.{name}.config")
        for number, taken in enumerate(self.rounds):
            place = f"rounds[{number}]"
            require(set(taken.samples) == {"A", "B"}, f"{place}.samples", "A and B")
            for name, samples in taken.samples.items():
                require(taken.order.count(name) == len(samples), f"{place}.samples.{name}", f"as many as {place}.order")
                for index, sample in enumerate(samples):
                    sample.check(f"{place}.samples.{name}[{index}]")

    def problem(self) -> str | None:
        if not self.is_finite:
            return "logits or cached values are not finite"
        whole = any(taken.blocks() for taken in self.rounds)
        return None if whole else "no whole block was measured without compiling"

    @property
    def is_finite(self) -> bool:
        """Whether all logits and cached values are finite."""
        return all(sample.finite for name in self.sides for sample in self.samples(name))

    def busy_rounds(self) -> dict[int, list[str]]:
        """Return the reasons to think that the machine was busy, by number of the round, from 1. Rounds without a
        reason are left out."""
        judged = {
            number: busy_round(taken.samples.values(), taken.probes, self.roof, self.environment)
            for number, taken in enumerate(self.rounds, 1)
        }
        return {number: reasons for number, reasons in judged.items() if reasons}

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
        """Yield the mean ratio, the medians of both sides, and the metrics of all samples."""
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
        middles = {name: statistics.median(values_of_side) for name, values_of_side in values.items()}
        for shown in shown_in(View.interleaved):
            if shown.share is not None:  # as `gptbench ab` shows them
                sides = zip(self.sides, zip(*log_middles(self, shown.name), strict=True), strict=False)
                middles |= {f"brief/{name}_{shown.name}": math.exp(statistics.fmean(logs)) for name, logs in sides}
        if known := log_ratios(self):
            yield f"brief/B_over_A_{HEADLINE}", math.exp(statistics.fmean(known)), 0
        yield from ((name, value, 0) for name, value in middles.items())
        yield from sampled
