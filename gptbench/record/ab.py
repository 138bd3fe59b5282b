"""The record of an interleaved measurement of two configurations, as `ab.json` holds it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from gptbench.guard import redacted
from gptbench.measure.compilation import Compilation
from gptbench.measure.samples import Sample
from gptbench.measure.traffic import Traffic
from gptbench.record.result import Measured, restored_sample

BLOCK = 4
"""Samples of a block, two of each side."""


@dataclass
class Side:
    """A or B."""

    overrides: list[str]
    """What it was asked for by, those that both sides share included."""
    config: dict[str, Any]
    """Resolved."""
    dtype: str
    traffic: Traffic
    load_s: float
    """Seconds to make and fill the weights."""
    compilation: Compilation
    """From torch's usual compile cache, whatever was in it."""
    samples: list[Sample] = field(default_factory=list)
    """In the order in which they were taken."""

    def __post_init__(self) -> None:
        self.overrides, self.config = redacted(self.overrides), redacted(self.config)


@dataclass(kw_only=True)
class AbResult(Measured):
    """Both sides. `config` and `dtype` of the record are A's."""

    FILE: ClassVar[str] = "ab"

    a: Side
    b: Side
    order: str
    """Whose sample came when, such as ABBABAAB."""
    at_s: list[float]
    """Seconds from the first sample to each."""
    half_width: float
    """Of the interval around the ratio of decode tokens/s, at which it was to end."""
    margin: float
    """Ratios nearer to 1 count as noise."""
    budget_s: float
    """Seconds after which it was to end anyway."""
    seconds: float
    """That the samples took, with all between them."""
    ended: str
    """narrow: the interval was narrow enough; budget: the time was over; interrupted: Ctrl-C."""

    @property
    def sides(self) -> dict[str, Side]:
        return {"A": self.a, "B": self.b}

    def blocks(self) -> list[tuple[list[Sample], list[Sample]]]:
        """A's and B's samples of each whole block during which nothing was compiled."""
        found = []
        for number in range(len(self.order) // BLOCK):
            own = slice(number * BLOCK // 2, (number + 1) * BLOCK // 2)
            pair = self.a.samples[own], self.b.samples[own]
            if not any(sample.compiles for samples in pair for sample in samples):
                found.append(pair)
        return found

    @classmethod
    def restore(cls, raw: dict[str, Any]) -> None:
        super().restore(raw)
        for name in "ab":
            side = raw[name]
            side["traffic"] = Traffic(**side["traffic"])
            side["compilation"] = Compilation(**side["compilation"])
            side["samples"] = [restored_sample(sample) for sample in side["samples"]]
            raw[name] = Side(**side)
