"""The jobs of a sweep: the full product of the swept values, or points sampled from the space that they span.

A point has a coordinate from 0 to 1 for each dimension. For a list, each value has an equal share of that range; for an
interval, the coordinate maps to a number between its ends, linearly or logarithmically.
"""

import itertools
import math
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from gptbench.base.errors import ConfigError, UserError
from gptbench.config import MAX_JOBS, SampledSweepConfig, SweepConfig
from gptbench.config.field_types import text_fields
from gptbench.config.grammar import plain_text, quoted_in_shell
from gptbench.private import hydra as private

Overrides = tuple[str, ...]
"""Overrides of one job, or of one value of a dimension: `sampling.top_k=5`."""

MAX_TRIES = 1000
"""Number of samples in a row that are not new, after which a space counts as exhausted."""


@dataclass(frozen=True)
class Interval:
    """All numbers from start to end; integers only if both ends are integers."""

    key: str
    """Key of the override."""
    start: float
    end: float
    logarithmic: bool = False
    """Whether each power of ten is equally likely."""

    def at(self, coordinate: float) -> Overrides:
        whole = isinstance(self.start, int) and isinstance(self.end, int)
        low, high = self.start, self.end + 1 if whole else self.end
        if self.logarithmic:
            value = math.exp(math.log(low) + coordinate * (math.log(high) - math.log(low)))
        else:
            value = low + coordinate * (high - low)
        value = min(math.floor(value), self.end) if whole else float(f"{value:.6g}")
        return (f"{self.key}={value!r}",)


@dataclass(frozen=True)
class Dimension:
    """A list of values, each of which is the override of one key, or of several paired keys."""

    values: tuple[Overrides, ...]

    def at(self, coordinate: float) -> Overrides:
        return self.values[min(int(coordinate * len(self.values)), len(self.values) - 1)]


Axis = Dimension | Interval


@dataclass(frozen=True)
class Space:
    """The space that a command line spans."""

    fixed: Overrides
    """Overrides of all jobs."""
    axes: tuple[Axis, ...]
    """Swept lists and intervals."""
    swept: tuple[str, ...]
    """Keys that differ between jobs."""

    @classmethod
    def of(cls, overrides: list[Override], paired: list[str]) -> "Space":
        """Return the space of Hydra's overrides, each with one value or several; those of `paired` become one
        dimension.

        Raises:
            UserError: a paired override is not a list, paired lists differ in length, or an interval is empty.
        """
        axes: dict[str, Axis] = {}
        for override in overrides:
            key = override.get_key_element()
            axes[key] = axis_of(key, override)  # as in Hydra, the last one counts
        several = [key for key, axis in axes.items() if isinstance(axis, Interval) or len(axis.values) > 1]
        swept = tuple(dict.fromkeys(itertools.chain(*(varied(axes[key]) for key in several))))
        for key in several:
            if key.lstrip("+").partition(".")[0].partition("@")[0] in ("sweep", "isolation", "outputs", "tracking"):
                example = quoted_in_shell(key, "…")
                comma = f"; quote a value that contains a comma: {example}" if key == "tracking.uri" else ""
                raise UserError(f"{key}: expected one value, which applies to the whole sweep{comma}")
        fixed = tuple(itertools.chain(*(axes.pop(key).at(0.0) for key in list(axes) if key not in several)))
        if paired:
            axes = pair(axes, paired)
        return cls(fixed, tuple(axes.values()), swept)

    def job(self, values: Iterable[Overrides]) -> Overrides:
        """Return the job with one value for each axis."""
        return self.fixed + tuple(itertools.chain(*values))

    def at(self, coordinates: list[float]) -> Overrides:
        """Return the job at a point."""
        return self.job(axis.at(at) for axis, at in zip(self.axes, coordinates, strict=True))


def axis_of(key: str, override: Override) -> Axis:
    if override.is_interval_sweep():
        interval = override.value()
        assert isinstance(interval, IntervalSweep)
        start, end = interval.start, interval.end
        logarithmic = "log" in interval.tags
        assert start is not None and end is not None
        if not start <= end or (logarithmic and not start > 0):
            expected = "an interval over 0, as it is logarithmic" if logarithmic else "the lower end first"
            raise UserError(f"{key}=interval({start},{end}): expected {expected}")
        return Interval(key, start, end, logarithmic)
    if override.is_sweep_override():
        values = tuple(overrides_of(key, value) for value in values_of(override))
        if not values:
            raise UserError(f"{override.input_line}: expected at least one value")
        if len(values) > MAX_JOBS:
            raise UserError(f"{key}: a list of {len(values)} values: expected at most {MAX_JOBS}")
        return Dimension(values)
    return Dimension(((f"{key}={override.get_value_element_as_str()}",),))


def values_of(override: Override) -> list[str]:
    """Return the values of a list or a range, or of Hydra's functions of them. Raises UserError."""
    try:
        if isinstance(swept := private.element(override), RangeSweep):
            numbers = [repr(number) for number in numbers_of(swept)]
            if not swept.shuffle:
                return numbers
        return list(override.sweep_string_iterator())
    except (HydraException, ValueError, ArithmeticError) as error:
        raise UserError(f"{override.input_line}: {error}") from error


def numbers_of(sweep: RangeSweep) -> list[int] | list[float]:
    """Return the numbers of a range as they would be typed: 0.3 and not 0.30000000000000004, which would be another
    measurement."""
    count = count_of(sweep)
    if count > MAX_JOBS:
        expected = (
            f"a range of at most {MAX_JOBS} numbers; sweep=random and sobol sample from int(interval(…)) of any size"
        )
        raise UserError(f"range({sweep.start},{sweep.stop},{sweep.step}): {count} numbers: expected {expected}")
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None and stop is not None
    if all(isinstance(value, int) for value in (start, stop, step)):
        return list(range(int(start), int(stop), int(step)))
    first, between = Decimal(repr(start)), Decimal(repr(step))
    return [float(first + number * between) for number in range(count)]


def count_of(sweep: RangeSweep) -> int:
    """Return how many numbers a range has, without making them. Raises ValueError if it is infinite."""
    ends = (sweep.start, sweep.stop, sweep.step)
    if not sweep.step or not all(value is not None and math.isfinite(value) for value in ends):
        raise ValueError("expected finite numbers, and a step that is not 0")
    first, last, between = (Decimal(repr(value)) for value in ends)
    return max(0, math.ceil((last - first) / between))


def overrides_of(key: str, value: str) -> Overrides:
    """Return the overrides of one value of a dimension. A model in quotes is a checkpoint (see
    `gptbench.config.commandline`)."""
    if key == "model" and value[:1] == "'":
        return ("model=auto", f"model.checkpoint={value}")
    return (f"{key}={plain_text(value) if key.lstrip('+') in text_fields() else value}",)


def varied(axis: Axis) -> list[str]:
    """Return the keys that differ between the values of an axis."""
    if isinstance(axis, Interval):
        return [axis.key]
    values = [dict(override.split("=", 1) for override in overrides) for overrides in axis.values]
    keys = list(dict.fromkeys(itertools.chain(*values)))
    return [key for key in keys if len({value.get(key) for value in values}) > 1] or keys


def overrides_parser(config_loader: ConfigLoader | None = None) -> OverridesParser:
    """Return Hydra's parser with a `sort` that sorts the numbers of a range. (Hydra's own swaps the ends, which gives
    other numbers.)"""
    parser = OverridesParser.create(config_loader)
    parser.functions.functions["sort"] = sort
    return parser


def sort(*arguments: Any, **options: Any) -> Any:
    """Sort a list or a range, as Hydra's `sort` does."""
    arguments = (options.pop("sweep"), *arguments) if options.get("sweep") is not None else arguments
    lists = [ChoiceSweep(list=[*numbers_of(item)]) if isinstance(item, RangeSweep) else item for item in arguments]
    return private.sort(*lists, **options)


def pair(axes: dict[str, Axis], keys: list[str]) -> dict[str, Axis]:
    """Return the axes with the dimensions of these keys merged into one."""
    lists: dict[str, Dimension] = {}
    for key in keys:
        axis = axes.get(key)
        if not isinstance(axis, Dimension):
            swept = [name for name, other in axes.items() if isinstance(other, Dimension)]
            raise ConfigError("sweep.paired", key, f"lists that are swept: {', '.join(swept) or 'there are none'}")
        lists[key] = axis
    lengths = {key: len(axis.values) for key, axis in lists.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ConfigError("sweep.paired", ",".join(keys), f"lists of the same length: {described} values")
    together = zip(*(axis.values for axis in lists.values()), strict=True)
    merged = Dimension(tuple(tuple(itertools.chain(*values)) for values in together))
    # It takes the position of the first of them.
    return {key: merged if key == keys[0] else axis for key, axis in axes.items() if key == keys[0] or key not in lists}


class Product:
    """Every combination; the values of the last override vary fastest."""

    def __init__(self, config: SweepConfig) -> None:
        self.config = config

    def draw(self, space: Space) -> list[Overrides]:
        """Return the jobs. Raises UserError if there are infinitely many, or more than `MAX_JOBS`."""
        lists = []
        for axis in space.axes:
            if isinstance(axis, Interval):
                override = f"{axis.key}=interval({axis.start},{axis.end})"
                raise UserError(
                    f"{override}: expected a list with sweep=product; sweep=random and sobol sample from intervals"
                )
            lists.append(axis.values)
        if (count := math.prod(map(len, lists))) > MAX_JOBS:
            product = " × ".join(str(len(values)) for values in lists)
            raise UserError(
                f"a sweep of {product} = {count} jobs: expected at most {MAX_JOBS}; sweep=sobol samples some of them"
            )
        return [space.job(values) for values in itertools.product(*lists)]


class Random:
    """Points that are sampled independently and uniformly, each job once."""

    def __init__(self, config: SampledSweepConfig) -> None:
        self.config = config

    def points(self, dimensions: int) -> Iterator[list[float]]:
        """Yield coordinates without end."""
        generator = random.Random(self.config.seed)
        while True:
            yield [generator.random() for _ in range(dimensions)]

    def draw(self, space: Space) -> list[Overrides]:
        """Return the jobs: fewer than asked for if the space has no more."""
        if not space.axes:
            return [space.fixed]
        jobs: dict[Overrides, None] = {}
        tries = 0
        for point in self.points(len(space.axes)):
            before = len(jobs)
            jobs.setdefault(space.at(point))
            tries = 0 if len(jobs) > before else tries + 1
            if len(jobs) == self.config.jobs:
                break
            if tries == MAX_TRIES:
                print(f"sweep.jobs={self.config.jobs}: the space has only {len(jobs)}", file=sys.stderr)
                break
        return list(jobs)


class Sobol(Random):
    """Points of a scrambled Sobol sequence, which cover the space evenly (Owen, "Scrambling Sobol' and
    Niederreiter-Xing points", 1998)."""

    def points(self, dimensions: int) -> Iterator[list[float]]:
        import torch  # takes seconds
        from torch.quasirandom import SobolEngine

        if dimensions > SobolEngine.MAXDIM:
            raise UserError(f"sweep=sobol: expected at most {SobolEngine.MAXDIM} swept overrides, got {dimensions}")
        engine = SobolEngine(dimensions, scramble=True, seed=self.config.seed)
        while True:
            yield engine.draw(1, dtype=torch.float64)[0].tolist()
