"""Single kernels: time, against the read roof, the same compiled by Inductor, and the vendor's library.

Every implementation is first compared with the reference, on random data and with poisoned outputs, and is not timed
where it is wrong. Then each call of a round has arguments of its own, so many that no cache holds what it reads. On a
GPU a round is a CUDA graph, and its replays are timed by events.
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
"""Moved in a round: four times what an H200's second-level cache holds."""
MAX_SETS = 256
"""Calls of a round. Of what moves less than a megabyte, caches do hold the arguments, as they do in a decode step."""
WARM_UPS = 3
"""Rounds before those that are timed, on a GPU."""
SHARE_OF_FREE = 0.9
"""Of the memory that is free, what arguments may take."""

Returned = Tensor | tuple[Tensor, ...] | None
"""By a launch: its results, or the first of them, or None where they are left in the call's tensors."""

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""bfloat16 operations a second by what a device's name holds: datasheets, dense, SXM."""
SLOWER = ("PCIe", "NVL")
"""Cards of the same names that have other figures (but for the A100, whose are the same)."""


class Kernels(Standalone):
    """Measures the cases that the task asks for.

    Args:
        task: the task's section.
        config: the run's.
        device: where it runs.

    Attributes:
        cases: what is measured.
        left_out: why the model's kernels are not among them, if they are not.

    Raises:
        ConfigError: there is no such case.
        UserError: the folder of TorchInductor's cache cannot be made.
    """

    def __init__(self, task: KernelsConfig, config: Config, device: Device) -> None:
        try:
            caches.inductor_folder()
        except OSError as error:
            what = f"a folder in {caches.INDUCTOR_VARIABLE} that can be made ({error.strerror}: {error.filename})"
            raise UserError(f"task=kernels needs {what}") from error
        super().__init__(task, config, device)
        micro = micro_cases(task.sizes, config.workload.batch_size, gemv_kernel(config, device))
        cases = [*model_cases(config, device), *micro]
        # From the beginning of a part of the label on: `gemv` is not `gather_gemv`.
        self.cases = [case for case in cases if task.only is None or f"/{task.only}" in f"/{case.label}"]
        self.left_out = no_model_cases(config, device)
        if self.left_out is not None:
            self.remark = f"Without the kernels of {config.model.name}: {self.left_out}"
        if not self.cases:
            names = ", ".join(dict.fromkeys(case.name for case in cases))
            without = f"; no kernels of the model: {self.left_out}" if self.left_out else ""
            raise ConfigError("task.only", task.only, f"the beginning of a name, or more of it, of {names}{without}")

    @classmethod
    def code_used(cls, config: Config, device: Device) -> Any:
        return tiles_used(config, device)

    @property
    def parts(self) -> int:
        return len(self.cases)

    def measure(self, stage: Callable[[str], AbstractContextManager[None]]) -> Iterator[KernelTimes]:
        """All of them, one after the other, each within a `stage` of its name."""
        for case in self.cases:
            with stage(case.label):
                found = measure_case(case, self.device, self.config.workload.seed, self.task.replays)
                self.device.release_memory()
            yield found

    def record(self, parts: list[KernelTimes], **fields: Any) -> KernelResult:
        return KernelResult(kernels=parts, peak_flops=peak_flops(self.device.name), **fields)


def peak_flops(device: str) -> float | None:
    """Of a device by its name: bfloat16 operations a second, or None where it is not known."""
    if "A100" not in device and any(card in device for card in SLOWER):
        return None
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)


@torch.no_grad()
def measure_case(case: Case, device: Device, seed: int, replays: int) -> KernelTimes:
    """Checks and times each implementation; whatever fails is told, and the rest goes on."""
    found = KernelTimes(case.name, case.shape, case.dtype, case.label, case.moved_bytes, case.flops, 0, {})
    try:
        generator = torch.Generator(device.torch).manual_seed(seed)
        free = int(SHARE_OF_FREE * device.free_memory()) - case.workspace_bytes
        sets = min(MAX_SETS, -(-ROUND_BYTES // case.moved_bytes), free // case.set_bytes)
        if sets < 1:
            found.note = f"needs {gb(case.set_bytes + case.workspace_bytes)}, and there are {gb(device.free_memory())}"
            return found
        calls = [case.call(generator) for _ in range(sets)]
        check = Check(case, calls[0])
        found.sets = sets
    except torch.OutOfMemoryError as error:
        found.note = in_one_line(error)
        return found
    except Exception as error:  # of whatever kind: the other cases are to be measured
        found.timings["reference"] = Timing(failed=in_one_line(error))
        return found
    for name, bind in implementations(case):
        try:
            found.timings[name] = check_and_time(check, [bind(call) for call in calls], device, replays)
        except Exception as error:
            found.timings[name] = Timing(failed=in_one_line(error))
    torch.compiler.reset()  # torch keeps at most 8 shapes of the same code
    return found


class Check:
    """Compares implementations with the reference, on one call."""

    def __init__(self, case: Case, call: Call) -> None:
        self.call, self.tolerance = call, case.tolerance
        self.before = [tensor.clone() for tensor in call.updated]
        case.reference(*call.arguments)
        self.expected = [tensor.clone() for tensor in call.results()]

    def error(self, launch: Callable[[], Returned]) -> float:
        """Relative error of what is launched on that call; NaN where it leaves or makes one."""
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
    """Each with its name, as something that makes a launch of it for a call."""
    if (kernel := case.kernel) is not None:
        yield "kernel", lambda call: kernel(*call.arguments)
    trust_vector_instructions()
    reference = compile_graph(case.reference, compile_options(cudagraphs=False, tuning=Tuning.descent))
    yield "inductor", lambda call: partial(reference, *call.arguments)
    if (library := case.library) is not None:
        yield "library", lambda call: partial(library, *call.arguments)


def check_and_time(check: Check, launches: list[Callable[[], Returned]], device: Device, replays: int) -> Timing:
    """Times an implementation, bound to each call, if it is right on the first."""
    error = check.error(launches[0])
    if not error <= check.tolerance:  # nor NaN
        return Timing(error=error, failed=f"wrong: relative error {error:.2g}")
    return Timing((cuda_rounds if device.is_cuda else cpu_rounds)(launches, replays), error)


def poison(out: Tensor) -> None:
    """Fills with what no kernel may leave: NaN, or a large integer."""
    out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).max - 4)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude; NaN where anything is; of integers, infinity where
    any differs."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)}, not {tuple(expected.shape)}"
    if not actual.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else math.inf
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def cuda_rounds(launches: list[Callable[[], Returned]], replays: int) -> list[float]:
    """Seconds of a launch in each replay of a graph that holds all of them once."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [launch() for launch in launches]  # so that none writes where another has written
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
    """Seconds of a launch in each round."""
    seconds = []
    for number in range(1 + replays):
        start = time.perf_counter()
        kept = [launch() for launch in launches]
        if number:  # the first is the warm-up
            seconds.append((time.perf_counter() - start) / len(launches))
        del kept
    return seconds
