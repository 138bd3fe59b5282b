"""The record of `task=kernels`, as `kernels.json` holds it, and the statistics of its raw times."""

import functools
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from gptbench.schema.metrics import View, shown_in
from gptbench.schema.publication import FAILED, FINISHED, Publication, write_table
from gptbench.schema.record import Measured

GPTFAST_PEAK_TFLOPS = 312
"""The seed's, whatever device it runs on."""
GPTFAST_SIZES = [1024, 4096, 8192, 16384]
"""Its micro-benchmarks' D."""


@dataclass
class Timing:
    """One implementation."""

    seconds: list[float] = field(default_factory=list)
    """Of one call, as the mean over a round; for each round."""
    error: float | None = None
    """Largest difference from the reference over its largest magnitude."""
    failed: str | None = None
    """Why there are no seconds: what it raised, or that it is wrong."""

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class KernelTimes:
    """What came of a `Case`."""

    name: str
    shape: dict[str, int]
    dtype: str
    label: str
    moved_bytes: int
    flops: int
    """Of one call; bytes likewise."""
    sets: int
    """Of arguments, which took turns."""
    timings: dict[str, Timing]
    """By implementation: kernel (ours), inductor, library. Where the reference fails, that alone."""
    note: str | None = None
    """Why it was not measured."""

    @property
    def failed(self) -> bool:
        """Whether an implementation raised something, or is wrong; what does not fit into memory did not."""
        return any(timing.failed is not None for timing in self.timings.values())


@dataclass(kw_only=True)
class KernelResult(Measured):
    """Every kernel that was measured."""

    FILE: ClassVar[str] = "kernels"
    IS_RUN: ClassVar[bool] = True
    NAMED_BY: ClassVar[tuple[str, ...]] = ("task", "model", "quant")

    wall_s: float
    """Seconds that measuring them took, with all compiling."""
    peak_flops: float | None
    """Of the device, bfloat16 operations a second by its datasheet; None where it is not known."""
    kernels: list[KernelTimes]
    interrupted: bool = False
    """Whether some were left out because of Ctrl-C."""

    def problem(self) -> str | None:
        if self.interrupted:
            return "it was interrupted"
        if failed := [kernel.label for kernel in self.kernels if kernel.failed]:
            return f"not all of it could be measured, or was right: {', '.join(failed)}"
        if not any(timing.median_s is not None for kernel in self.kernels for timing in kernel.timings.values()):
            return "nothing was measured"
        return None

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        """`gemv/D4096/int8/inductor/gb_per_s` and so on."""
        found = {"read_roof_gb_per_s": self.roof.gb_per_s}
        for row in all_metrics(self):
            for one in shown_in(View.kernels):
                if (value := getattr(row, one.name)) is not None:
                    found[f"{row.label}/{row.implementation}/{one.name}"] = value
        return found | means(self)

    def publication(self) -> Publication:
        return replace(
            super().publication(),
            name=f"kernels-{self.config['model']['name']}-{self.weights}",
            seconds=self.wall_s,
            status=FAILED if any(kernel.failed for kernel in self.kernels) else FINISHED,
        )

    def write_files(self, folder: Path) -> None:
        super().write_files(folder)
        rows = [asdict(row) for row in all_metrics(self)]
        write_table(folder / "kernels.csv", rows[0] if rows else [], [row.values() for row in rows])


@dataclass(frozen=True)
class KernelMetrics:
    """One implementation that was timed.

    gptfast_flops_utilisation is the seed's figure, which multiplies operations with time where it means to divide them
    by it: the longer it takes, the higher. It is there to stand beside the seed's target.
    """

    label: str
    implementation: str
    seconds: float
    """Median of the rounds."""
    moved_bytes: int
    """By a call, read and written."""
    gb_per_s: float
    """Those bytes over the time."""
    share_of_roof: float
    flops_utilisation: float | None
    """Operations over the time, over the device's peak; of bfloat16 where that is known."""
    gptfast_flops_utilisation: float


def kernel_metrics(result: KernelResult, kernel: KernelTimes) -> dict[str, KernelMetrics]:
    """By implementation, of those that were timed."""
    found = {}
    for name, timing in kernel.timings.items():
        if (seconds := timing.median_s) is not None:
            rate = kernel.moved_bytes / seconds / 1e9
            known = result.peak_flops is not None and kernel.dtype == "bfloat16"
            found[name] = KernelMetrics(
                label=kernel.label,
                implementation=name,
                seconds=seconds,
                moved_bytes=kernel.moved_bytes,
                gb_per_s=rate,
                share_of_roof=rate / result.roof.gb_per_s,
                flops_utilisation=kernel.flops / seconds / result.peak_flops if known and result.peak_flops else None,
                gptfast_flops_utilisation=seconds * 1e6 * kernel.flops / 1e9 / GPTFAST_PEAK_TFLOPS,
            )
    return found


def all_metrics(result: KernelResult) -> Iterator[KernelMetrics]:
    for kernel in result.kernels:
        yield from kernel_metrics(result, kernel).values()


def means(result: KernelResult) -> dict[str, float]:
    """`gemv/int8/inductor/gb_per_s`: mean over several shapes, which is what the seed reports, of each metric that the
    baseline has a target of; nothing of an implementation that was not timed at every shape."""
    found = {}
    for family, targets in baseline_targets(result).items():
        members = [kernel for kernel in result.kernels if f"{kernel.name}/{kernel.dtype}" == family]
        rows = [kernel_metrics(result, kernel) for kernel in members]
        for implementation in rows[0] if len(rows) > 1 else ():
            for name in targets:
                values = [getattr(row.get(implementation), name, None) for row in rows]
                known = [value for value in values if value is not None]
                if len(known) == len(rows):
                    found[f"{family}/{implementation}/{name}"] = sum(known) / len(known)
    return found


def gptfast_targets(result: KernelResult) -> dict[str, dict[str, float]]:
    """`gemv/int8` to metric to the baseline's target of its mean, of what was measured at the seed's very shapes."""
    found = {}
    for family, targets in baseline_targets(result).items():
        shapes = [kernel.shape for kernel in result.kernels if f"{kernel.name}/{kernel.dtype}" == family]
        if [shape.get("D") for shape in shapes] == GPTFAST_SIZES and all(shape.get("B", 1) == 1 for shape in shapes):
            found[family] = targets
    return found


def baseline_targets(result: KernelResult) -> dict[str, dict[str, float]]:
    """Those of the result's configuration, of models, too."""
    return result.config.get("baseline", {}).get("targets", {})
