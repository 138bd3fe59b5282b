"""The record of `task=kernels`, as stored in `kernels.json`, and statistics of its raw times."""

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
"""Peak TFLOPS that gpt_fast assumes, whatever device it runs on."""
GPTFAST_SIZES = [1024, 4096, 8192, 16384]
"""Sizes D of gpt_fast's micro-benchmarks."""


@dataclass
class Timing:
    """Timing of one implementation of a kernel."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of one call, as the mean over a round; one entry per round."""
    error: float | None = None
    """Largest absolute difference from the reference over the reference's largest magnitude."""
    failed: str | None = None
    """Reason why there are no seconds: the error that was raised, or that the result is wrong."""

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class KernelTimes:
    """Measurement of one `Case`."""

    name: str
    """Name of the kernel."""
    shape: dict[str, int]
    """Sizes of its arguments by name."""
    dtype: str
    """Dtype, or weight format, of the matrix."""
    label: str
    """Name with the shape and the dtype."""
    moved_bytes: int
    """Bytes that one call reads and writes."""
    flops: int
    """Floating-point operations of one call."""
    sets: int
    """Number of argument sets that the calls alternate between."""
    timings: dict[str, Timing]
    """Timing by implementation: kernel (gptbench's), inductor, library. If the reference fails, it is the only
    entry."""
    note: str | None = None
    """Reason why it was not measured; None if it was."""

    @property
    def failed(self) -> bool:
        """Whether an implementation raised an error or is wrong; a case that does not fit into memory has not
        failed."""
        return any(timing.failed is not None for timing in self.timings.values())


@dataclass(kw_only=True)
class KernelResult(Measured):
    """Record of all kernels that were measured."""

    FILE: ClassVar[str] = "kernels"
    IS_RUN: ClassVar[bool] = True
    NAMED_BY: ClassVar[tuple[str, ...]] = ("task", "model", "quant")

    wall_s: float
    """Seconds of the whole measurement, including all compiling."""
    peak_flops: float | None
    """Peak bfloat16 operations/s of the device by its datasheet; None if unknown."""
    kernels: list[KernelTimes]
    """Measurements in the order in which they were taken."""
    interrupted: bool = False
    """Whether Ctrl-C ended it before all kernels were measured."""

    def problem(self) -> str | None:
        if self.interrupted:
            return "it was interrupted"
        if failed := [kernel.label for kernel in self.kernels if kernel.failed]:
            return f"some kernels failed or gave wrong results: {', '.join(failed)}"
        if not any(timing.median_s is not None for kernel in self.kernels for timing in kernel.timings.values()):
            return "nothing was measured"
        return None

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        """Metrics by name, such as `gemv/D4096/int8/inductor/gb_per_s`."""
        metrics = {"read_roof_gb_per_s": self.roof.gb_per_s}
        for row in all_metrics(self):
            for metric in shown_in(View.kernels):
                if (value := getattr(row, metric.name)) is not None:
                    metrics[f"{row.label}/{row.implementation}/{metric.name}"] = value
        return metrics | means(self)

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
    """Metrics of one implementation that was timed.

    gptfast_flops_utilisation is computed as gpt_fast does, which multiplies operations by time where it means to
    divide: the slower a kernel, the higher the figure. It is reported only for comparison with gpt_fast's target.
    """

    label: str
    """Name of the kernel with its shape and dtype."""
    implementation: str
    """Name of the implementation."""
    seconds: float
    """Seconds of one call, median over the rounds."""
    moved_bytes: int
    """Bytes that one call reads and writes."""
    gb_per_s: float
    """Bytes moved over the time of a call in GB/s."""
    share_of_roof: float
    """`gb_per_s` as a share of the read roof."""
    flops_utilisation: float | None
    """Operations over the time of a call, as a share of the device's peak; None except for bfloat16 on a device with a
    known peak."""
    gptfast_flops_utilisation: float
    """FLOPS utilisation as gpt_fast computes it."""


def kernel_metrics(result: KernelResult, kernel: KernelTimes) -> dict[str, KernelMetrics]:
    """Return the metrics of each implementation that was timed."""
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
    """Return means over several shapes, as gpt_fast reports them (`gemv/int8/inductor/gb_per_s`), of each metric for
    which the baseline has a target. Implementations that were not timed at every shape are left out."""
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
    """Return the baseline's targets of the means, by family (`gemv/int8`) and metric, for families that were measured
    at exactly gpt_fast's shapes."""
    found = {}
    for family, targets in baseline_targets(result).items():
        shapes = [kernel.shape for kernel in result.kernels if f"{kernel.name}/{kernel.dtype}" == family]
        if [shape.get("D") for shape in shapes] == GPTFAST_SIZES and all(shape.get("B", 1) == 1 for shape in shapes):
            found[family] = targets
    return found


def baseline_targets(result: KernelResult) -> dict[str, dict[str, float]]:
    """Return all targets of the result's baseline, including those of models."""
    return result.config.get("baseline", {}).get("targets", {})
