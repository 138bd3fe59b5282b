"""Results as PyTorch's gpt_fast benchmark reports its own: one row for each number, as CSV, or as a record of PyTorch's
benchmark database.

The benchmark: https://github.com/pytorch/pytorch/tree/main/benchmarks/gpt_fast. The records (schema v3):
https://github.com/pytorch/pytorch/wiki/How-to-integrate-with-PyTorch-OSS-benchmark-database. Names, units and
definitions are the benchmark's: tokens/s take in the prefill, and are means over the samples.
"""

import csv
import io
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptbench.base.errors import UserError
from gptbench.compare.baseline import Baseline, is_shipped
from gptbench.compare.select import SelectedRecord
from gptbench.schema import KernelResult, Measured, Result
from gptbench.schema.kernels import GPTFAST_SIZES, KernelTimes, kernel_metrics
from gptbench.schema.metrics import METRICS
from gptbench.schema.record import of_kind
from gptbench.schema.summary import part_metrics

NAMES = {"llama2_7b": "Llama-2-7b-chat-hf", "mixtral_16l": "Mixtral-8x7B-v0.1"}
"""The benchmark's name of each model that it has, by gptbench's name; its Mixtral has 16 layers, too."""
KERNEL_METRICS = {
    "gemv": ("memory_bandwidth(GB/s)", "gb_per_s"),
    "gather_gemv": ("memory_bandwidth(GB/s)", "gb_per_s"),
    "layer_norm": ("memory_bandwidth(GB/s)", "gb_per_s"),
    "mlp_layer_norm_gelu": ("flops_utilization", "gptfast_flops_utilisation"),
}
"""Metric of each micro-benchmark: the benchmark's name of it, and gptbench's."""
COLUMNS = ("name", "metric", "target", "actual", "dtype", "device", "arch", "is_model")
MACHINE = re.compile(r"x86_64|amd64|aarch64|arm64|ppc64le|riscv64", re.IGNORECASE)
"""Architecture as Python's `platform.machine()` names it, to be found in a record's platform."""


@dataclass(frozen=True)
class Experiment:
    """One row of the benchmark's output."""

    name: str
    """Name of the model or micro-benchmark."""
    metric: str
    """The benchmark's name of the metric."""
    target: float | None
    """Target of the baseline; None if it has none."""
    values: list[float]
    """Value of each sample; a single value for a compile time, and for a mean over shapes."""
    dtype: str
    """Format of the weights."""
    device: str
    """Type of device: `cuda` or `cpu`."""
    arch: str
    """Name of the GPU, or architecture of the CPU."""
    is_model: bool
    """Whether a model was measured, and not a kernel."""
    origin: dict[str, str]
    """Origin of the number: command, commit, driver, power limit and what ran."""

    @property
    def actual(self) -> float:
        """Mean of the values."""
        return float(np.mean(self.values))

    def cells(self) -> list[str]:
        """Return the row's cells in the order of `COLUMNS`."""
        target = "" if self.target is None else f"{self.target:g}"
        numbers = [target, f"{self.actual:.2f}"]
        return [self.name, self.metric, *numbers, self.dtype, self.device, self.arch, str(self.is_model)]

    def record(self) -> dict[str, Any]:
        """Return the row as a record of PyTorch's benchmark database."""
        place = {"is_model": self.is_model, "device": self.device, "arch": self.arch}
        metric = {"name": self.metric, "benchmark_values": self.values}
        return {
            "benchmark": {
                "name": "PyTorch gpt-fast benchmark",
                "mode": "inference",
                "dtype": self.dtype,
                "extra_info": place | self.origin,
            },
            "model": {
                "name": self.name,
                "type": "OSS model" if self.is_model else "micro-benchmark",
                "origins": ["pytorch"],
            },
            "metric": metric if self.target is None else metric | {"target_value": self.target},
        }


def experiments(selected: Iterable[SelectedRecord], baseline: Baseline, implementation: str) -> list[Experiment]:
    """Return the rows of all records.

    Args:
        implementation: implementation of the micro-benchmarks: kernel, inductor or library.

    Raises:
        UserError: a record is not a valid measurement, or measured nothing that the benchmark has.
    """
    rows: list[Experiment] = []
    for entry in selected:
        record = entry.record
        if (wrong := record.problem()) is not None:
            raise UserError(f"{entry.path}: not a valid measurement: {wrong}")
        new = [row for run in of_kind(Result, [record]) for row in model_rows(run, baseline)]
        new += [row for run in of_kind(KernelResult, [record]) for row in kernel_rows(run, baseline, implementation)]
        if not new:
            raise UserError(
                f"{entry.path}: expected a run of a model, or {', '.join(KERNEL_METRICS)} by {implementation}"
            )
        rows += new
    return rows


def model_rows(result: Result, baseline: Baseline) -> Iterator[Experiment]:
    """Yield the rows of a model's run: those metrics of the benchmark that it has."""
    model = result.config["model"]["name"]
    name = NAMES.get(model, model) if is_shipped(result, "model", model) else model
    targets = baseline.targets(result)
    compiled = [part_metrics(result, "compilations")]
    for metric_name, metric in METRICS.items():
        values = [entry[metric_name] for entry in result.sampled + compiled if metric_name in entry]
        if metric.gpt_fast is not None and values:
            target, weights = targets.get(metric_name), result.weights
            yield experiment(result, name, metric.gpt_fast, target, values, weights, engine_of(result))


def kernel_rows(result: KernelResult, baseline: Baseline, implementation: str) -> Iterator[Experiment]:
    """Yield, for each micro-benchmark and dtype measured at more than one shape, the mean over the shapes; with a
    target if the shapes are the benchmark's own."""
    families: dict[tuple[str, str], list[KernelTimes]] = {}
    for kernel in result.kernels:
        if kernel.name in KERNEL_METRICS:
            families.setdefault((kernel.name, kernel.dtype), []).append(kernel)
    for (name, dtype), kernels in families.items():
        rows = [kernel_metrics(result, kernel).get(implementation) for kernel in kernels]
        metric, attribute = KERNEL_METRICS[name]
        values = [float(getattr(row, attribute)) for row in rows if row is not None]
        if len(values) < len(rows) or len(values) < 2:
            continue
        same = [kernel.shape.get("D") for kernel in kernels] == GPTFAST_SIZES
        same = same and all(kernel.shape.get("B", 1) == 1 for kernel in kernels)
        target = baseline.config.targets.get(f"{name}/{dtype}", {}).get(attribute) if same else None
        mean = [float(np.mean(values))]
        yield experiment(result, name, metric, target, mean, dtype, {"implementation": implementation})


def engine_of(result: Result) -> dict[str, str]:
    """Return the engine of a run, as a row's origin names it."""
    return {"engine": result.config["engine"]["name"]}


def experiment(
    result: Measured,
    name: str,
    metric: str,
    target: float | None,
    values: list[float],
    dtype: str,
    what_ran: dict[str, str],
) -> Experiment:
    """Return a row with its origin."""
    here = result.environment
    machine = MACHINE.search(here.platform)
    known = {
        "command": shlex.join(result.command),
        "commit": here.commit,
        "driver": here.driver,
        "power_limit_w": None if here.power_limit_w is None else f"{here.power_limit_w:g}",
        "torch": here.libraries.get("torch"),
    }
    return Experiment(
        name=name,
        metric=metric,
        target=target,
        values=values,
        dtype=dtype,
        device="cuda" if here.on_gpu else "cpu",
        arch=here.device if here.on_gpu or machine is None else machine.group(),
        is_model="engine" in what_ran,
        origin=what_ran | {key: value for key, value in known.items() if value is not None},
    )


def as_csv(rows: list[Experiment]) -> str:
    """Return all rows as CSV, below a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()
