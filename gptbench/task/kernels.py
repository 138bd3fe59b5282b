"""Times single kernels and compares them with the read roof, Inductor's code and the vendor's library.

Every implementation is first checked against the reference, on random data and with poisoned outputs, and is timed only
if it is correct. A round is a number of calls, each with different arguments, so many that no cache holds them. On a
GPU a round is a CUDA graph, whose replays are timed with events.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptbench.base.errors import ConfigError, UserError, in_one_line
from gptbench.base.numbers import gb
from gptbench.config import Config, KernelsConfig, Tuning
from gptbench.device import Device
from gptbench.engine import caches
from gptbench.engine.inductor import compile_graph, compile_options, trust_vector_instructions
from gptbench.schema.kernels import KernelResult, KernelTimes, Timing
from gptbench.task.kernel_cases import Call, Case, gemv_kernel, micro_cases, model_cases, no_model_cases, tiles_used
from gptbench.task.standalone import Standalone

ROUND_BYTES = 2**28
"""Minimum bytes moved per round: four times the size of an H200's L2 cache."""
MAX_SETS = 256
"""Maximum number of calls per round. Arguments of a kernel that moves less than a megabyte then stay in the cache, as
they do in a decode step."""
WARM_UPS = 3
"""Number of untimed rounds before the timed ones, on a GPU."""
SHARE_OF_FREE = 0.9
"""Share of the free memory that arguments may take."""

Returned = Tensor | tuple[Tensor, ...] | None
"""What a launch returns: its results, or the first of them, or None if they are in the call's tensors."""

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 operations per second, by a part of the device's name. Source: datasheets, SXM."""
SLOWER = ("PCIe", "NVL")
"""Parts of the names of cards for which `PEAK_FLOPS` is wrong, except for the A100."""


class Kernels(Standalone):
    """Checks and times the kernels that the task selects.

    Args:
        task: task section of the configuration.
        config: configuration of the run.
        device: device to measure.

    Attributes:
        cases: kernels to measure.
        left_out: reason that the kernels of the model are left out, or None.

    Raises:
        ConfigError: `task.only` selects no kernel.
        UserError: the folder of TorchInductor's cache cannot be created.
    """

    def __init__(self, task: KernelsConfig, config: Config, device: Device) -> None:
        try:
            caches.inductor_folder()
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
            raise UserError(f"task=kernels cannot create a folder in {caches.INDUCTOR_VARIABLE} ({reason})") from error
        super().__init__(task, config, device)
        micro = micro_cases(task.sizes, config.workload.batch_size, gemv_kernel(config, device))
        cases = [*model_cases(config, device), *micro]
        # Matches only at the start of a part of the label: `gemv` must not select `gather_gemv`.
        self.cases = [case for case in cases if task.only is None or f"/{task.only}" in f"/{case.label}"]
        self.left_out = no_model_cases(config, device)
        if self.left_out is not None:
            self.remark = f"Without the kernels of {config.model.name}: {self.left_out}"
        if not self.cases:
            names = ", ".join(dict.fromkeys(case.name for case in cases))
            without = f"; the kernels of the model are left out: {self.left_out}" if self.left_out else ""
            raise ConfigError("task.only", task.only, f"the beginning of one of {names}{without}")

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        return tiles_used(config, device)

    @property
    def parts(self) -> int:
        return len(self.cases)

    def measure(self, stage: Callable[[str], AbstractContextManager[None]]) -> Iterator[KernelTimes]:
        """Measure and yield one kernel after the other, each within a `stage` of its label."""
        for case in self.cases:
            with stage(case.label):
                times = measure_case(case, self.device, self.config.workload.seed, self.task.replays)
                self.device.release_memory()
            yield times

    def record(self, parts: list[KernelTimes], **fields: Any) -> KernelResult:
        return KernelResult(kernels=parts, peak_flops=peak_flops(self.device.name), **fields)


def peak_flops(device: str) -> float | None:
    """Return a device's peak bfloat16 operations per second by its name, or None if unknown."""
    if "A100" not in device and any(card in device for card in SLOWER):
        return None
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)


@torch.no_grad()
def measure_case(case: Case, device: Device, seed: int, replays: int) -> KernelTimes:
    """Check and time each implementation. A failure is recorded, and the other implementations are still measured."""
    times = KernelTimes(case.name, case.shape, case.dtype, case.label, case.moved_bytes, case.flops, 0, {})
    try:
        generator = torch.Generator(device.torch).manual_seed(seed)
        free = int(SHARE_OF_FREE * device.free_memory()) - case.workspace_bytes
        sets = min(MAX_SETS, -(-ROUND_BYTES // case.moved_bytes), free // case.set_bytes)
        if sets < 1:
            needed = gb(case.set_bytes + case.workspace_bytes)
            times.note = f"needs {needed}, but only {gb(device.free_memory())} are free"
            return times
        calls = [case.call(generator) for _ in range(sets)]
        check = Check(case, calls[0])
        times.sets = sets
    except torch.OutOfMemoryError as error:
        times.note = in_one_line(error)
        return times
    except Exception as error:  # of any class, so that the other cases are still measured
        times.timings["reference"] = Timing(failed=in_one_line(error))
        return times
    for name, bind in implementations(case):
        try:
            times.timings[name] = check_and_time(check, [bind(call) for call in calls], device, replays)
        except Exception as error:
            times.timings[name] = Timing(failed=in_one_line(error))
    torch.compiler.reset()  # torch keeps at most 8 shapes of the same code
    return times


class Check:
    """Compares implementations with the reference, on one call.

    Args:
        case: kernel and shape.
        call: arguments of the call.
    """

    def __init__(self, case: Case, call: Call) -> None:
        self.call, self.tolerance = call, case.tolerance
        self.before = [tensor.clone() for tensor in call.updated]
        case.reference(*call.arguments)
        self.expected = [tensor.clone() for tensor in call.results()]

    def error(self, launch: Callable[[], Returned]) -> float:
        """Run a launch on the call, and return its relative error; NaN if the launch produces NaN or writes nothing."""
        for out in self.call.outputs:
            poison(out)
        for tensor, before in zip(self.call.updated, self.before, strict=True):
            tensor.copy_(before)
        returned = launch()
        results = self.call.results() if returned is None else returned
        if isinstance(results, Tensor):
            results = (results,)
        errors = list(map(relative_error, results, self.expected))
        return max(errors, key=lambda error: (math.isnan(error), error))


def implementations(case: Case) -> Iterator[tuple[str, Callable[[Call], Callable[[], Returned]]]]:
    """Iterate over the name of each implementation and a function that binds it to a call."""
    if (kernel := case.kernel) is not None:
        yield "kernel", lambda call: kernel(*call.arguments)
    trust_vector_instructions()
    reference = compile_graph(case.reference, compile_options(cudagraphs=False, tuning=Tuning.descent))
    yield "inductor", lambda call: partial(reference, *call.arguments)
    if (library := case.library) is not None:
        yield "library", lambda call: partial(library, *call.arguments)


def check_and_time(check: Check, launches: list[Callable[[], Returned]], device: Device, replays: int) -> Timing:
    """Check an implementation on its first call, and time all of them if it is correct."""
    error = check.error(launches[0])
    if not error <= check.tolerance:  # true for NaN
        return Timing(error=error, failed=f"wrong: relative error {error:.2g}")
    return Timing((cuda_rounds if device.is_cuda else cpu_rounds)(launches, replays), error)


def poison(out: Tensor) -> None:
    """Fill a tensor with a value that no kernel may leave there: NaN, or a large integer."""
    out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).max - 4)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude; NaN if there is any NaN. For integers it is 0
    if all are equal, else infinity."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)}, not {tuple(expected.shape)}"
    if not actual.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else math.inf
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def cuda_rounds(launches: list[Callable[[], Returned]], replays: int) -> list[float]:
    """Return the mean seconds per launch of each replay of a CUDA graph with all launches."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [launch() for launch in launches]  # keeps the outputs, so that none reuses another's memory
    for _ in range(WARM_UPS):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    del kept
    return [a.elapsed_time(b) / 1e3 / len(launches) for a, b in itertools.pairwise(events)]


def cpu_rounds(launches: list[Callable[[], Returned]], replays: int) -> list[float]:
    """Return the mean seconds per launch of each round."""
    seconds = []
    for number in range(1 + replays):
        start = time.perf_counter()
        kept = [launch() for launch in launches]
        if number:  # the first is the warm-up
            seconds.append((time.perf_counter() - start) / len(launches))
        del kept
    return seconds
