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
"""Of the models that the benchmark has, by ours; its Mixtral has 16 layers, too."""
KERNEL_METRICS = {
    "gemv": ("memory_bandwidth(GB/s)", "gb_per_s"),
    "gather_gemv": ("memory_bandwidth(GB/s)", "gb_per_s"),
    "layer_norm": ("memory_bandwidth(GB/s)", "gb_per_s"),
    "mlp_layer_norm_gelu": ("flops_utilization", "gptfast_flops_utilisation"),
}
"""Micro-benchmark to the name of what it measures, the benchmark's and ours."""
COLUMNS = ("name", "metric", "target", "actual", "dtype", "device", "arch", "is_model")
MACHINE = re.compile(r"x86_64|amd64|aarch64|arm64|ppc64le|riscv64", re.IGNORECASE)
"""What Python's `platform.machine()` says, as it stands in the record's platform."""


@dataclass(frozen=True)
class Experiment:
    """One row."""

    name: str
    metric: str
    target: float | None
    """None where the baseline has none."""
    values: list[float]
    """Of each sample; of a compile time, and of a mean over shapes, the one that there is."""
    dtype: str
    device: str
    arch: str
    """The GPU's name, or the CPU's architecture."""
    is_model: bool
    origin: dict[str, str]
    """Where the number comes from: command, commit, driver, power limit and what ran."""

    @property
    def actual(self) -> float:
        return float(np.mean(self.values))

    def cells(self) -> list[str]:
        """In the order of `COLUMNS`."""
        target = "" if self.target is None else f"{self.target:g}"
        numbers = [target, f"{self.actual:.2f}"]
        return [self.name, self.metric, *numbers, self.dtype, self.device, self.arch, str(self.is_model)]

    def record(self) -> dict[str, Any]:
        """As PyTorch's benchmark database has it."""
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


def experiments(found: Iterable[SelectedRecord], baseline: Baseline, implementation: str) -> list[Experiment]:
    """The rows of every run that counts.

    Args:
        implementation: of the micro-benchmarks: kernel, inductor or library.

    Raises:
        UserError: a record measured nothing that the benchmark has, or does not count.
    """
    rows: list[Experiment] = []
    for each in found:
        record = each.record
        if (wrong := record.problem()) is not None:
            raise UserError(f"{each.path}: not a valid measurement: {wrong}")
        own = [row for run in of_kind(Result, [record]) for row in of_model(run, baseline)]
        own += [row for run in of_kind(KernelResult, [record]) for row in of_kernels(run, baseline, implementation)]
        if not own:
            raise UserError(
                f"{each.path}: expected a run of a model, or {', '.join(KERNEL_METRICS)} by {implementation}"
            )
        rows += own
    return rows


def of_model(result: Result, baseline: Baseline) -> Iterator[Experiment]:
    """What there is of the metrics that the benchmark reports."""
    model = result.config["model"]["name"]
    name = NAMES.get(model, model) if is_shipped(result, "model", model) else model
    targets = baseline.targets(result)
    compiled = [part_metrics(result, "compilations")]
    for own, metric in METRICS.items():
        values = [one[own] for one in result.sampled + compiled if own in one]
        if metric.gpt_fast is not None and values:
            target, weights = targets.get(own), result.weights
            yield experiment(result, name, metric.gpt_fast, target, values, weights, engine_of(result))


def of_kernels(result: KernelResult, baseline: Baseline, implementation: str) -> Iterator[Experiment]:
    """Of each micro-benchmark and type that was measured at more than one shape, the mean over the shapes; with the
    target where these are the benchmark's own."""
    families: dict[tuple[str, str], list[KernelTimes]] = {}
    for kernel in result.kernels:
        if kernel.name in KERNEL_METRICS:
            families.setdefault((kernel.name, kernel.dtype), []).append(kernel)
    for (name, dtype), kernels in families.items():
        rows = [kernel_metrics(result, kernel).get(implementation) for kernel in kernels]
        metric, own = KERNEL_METRICS[name]
        values = [float(getattr(row, own)) for row in rows if row is not None]
        if len(values) < len(rows) or len(values) < 2:
            continue
        same = [kernel.shape.get("D") for kernel in kernels] == GPTFAST_SIZES
        same = same and all(kernel.shape.get("B", 1) == 1 for kernel in kernels)
        target = baseline.config.targets.get(f"{name}/{dtype}", {}).get(own) if same else None
        mean = [float(np.mean(values))]
        yield experiment(result, name, metric, target, mean, dtype, {"implementation": implementation})


def engine_of(result: Result) -> dict[str, str]:
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
    """A row, with the place that it comes from."""
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
    """All rows under a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()
