"""Where the time of a decode step goes: every kernel, and the gaps in which none runs.

A few decode steps run under torch's profiler, after the samples and apart from them, since tracing costs time. They
follow one another without waiting, as in a sample; a step lasts from the start of its first kernel to that of the next
step's. One step is kept: that of median duration. On a CPU torch's operations are what is told apart, a call of a
compiled graph being one, and a step lasts from call to call.
"""

import json
import os
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from gptbench.engine import Engine
from gptbench.engine.base import KnownKernel
from gptbench.generate import Workload
from gptbench.private.torch import COMPILED, LAUNCHING, NOT_OPERATIONS, ON_GPU, OPERATION
from gptbench.schema.breakdown import Breakdown, Launch

PROFILED = 5
"""Steps of which the median is kept. One more is run, whose start is the end of the last."""
STEP = "gptbench.step"
SILENT = "6"
"""Level of Kineto, the profiler's library, above all of its own; it would print a line for each start and stop."""


def break_down(engine: Engine, workload: Workload) -> Breakdown:
    """Profiles steps in the middle of a generation of the workload.

    Raises:
        RuntimeError: the profiler saw nothing, or too little to tell the steps apart.
    """
    count = min(PROFILED + 1, engine.length - engine.prompt_length)  # the cache has room for two at least
    before = max(0, (workload.new_tokens - 1 - count) // 2)
    os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * engine.device.is_cuda
    engine.prefill(workload.prompt)
    with profile(activities=activities):  # the profiler's own start takes as long as many steps
        engine.decode()
        engine.device.synchronize()
    engine.seed(workload.config.seed)
    engine.prefill(workload.prompt)
    for _ in range(before):
        engine.decode()
    engine.device.synchronize()
    chosen_before = engine.experts_chosen(before)
    with profile(activities=activities) as profiler:
        for _ in range(count):
            with record_function(STEP):
                engine.decode()
        engine.device.synchronize()
    chosen = engine.experts_chosen(before + count)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    first = engine.prompt_length + before
    steps = sorted(find_steps(events, engine.device.is_cuda, first), key=attrgetter("step_s"))
    median = steps[(len(steps) - 1) // 2]
    experts = None
    if chosen is not None and chosen_before is not None:  # the steps' average, in one layer
        experts = engine.experts_read(chosen - chosen_before, count) / count / len(engine.model.mixtures)
    tell(median.launches, engine.kernels([median.position] * engine.batch, experts))
    return median


def tell(launches: list[Launch], known: list[KnownKernel]) -> None:
    """Adds to launches what an engine knows of them: those of one name come in its order."""
    waiting: dict[str, deque[KnownKernel]] = defaultdict(deque)
    for kernel in known:
        waiting[kernel.name].append(kernel)
    for launch in launches:
        if waiting[launch.name]:
            kernel = waiting[launch.name].popleft()
            launch.bytes_read, launch.part = kernel.bytes_read, kernel.part


def find_steps(events: list[dict[str, Any]], on_gpu: bool, first: int) -> list[Breakdown]:
    """Every step but the last of a profiler's trace (times in µs), the first of them at position `first`."""
    complete = sorted((event for event in events if event.get("ph") == "X"), key=lambda event: event["ts"])
    calls = [event for event in complete if event.get("cat") == "user_annotation" and event["name"] == STEP]
    found: list[list[dict[str, Any]]] = [[] for _ in calls]
    for event, called in kernels(complete) if on_gpu else operations(complete):
        for call, launches in zip(calls, found, strict=True):
            if call["ts"] <= called <= call["ts"] + call["dur"]:
                launches.append(event)
    if len(found) < 2 or not all(found):
        raise RuntimeError(f"the profiler saw {len(found)} steps with {sum(map(len, found))} kernels")
    begins = [launches[0]["ts"] if on_gpu else call["ts"] for call, launches in zip(calls, found, strict=True)]
    steps = []
    for index, launches in enumerate(found[:-1]):
        begin = begins[index]
        each = [
            Launch(
                name=short_name(event["name"]),
                start_s=(event["ts"] - begin) / 1e6,
                duration_s=event["dur"] / 1e6,
                grid=event["args"].get("grid"),
            )
            for event in launches
        ]
        # A kernel may still run when the next step's first one starts.
        end = max((begins[index + 1] - begin) / 1e6, *(launch.end_s for launch in each))
        steps.append(Breakdown(first + index, end, each))
    return steps


def kernels(events: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Everything that ran on the GPU, with the time of the host's call that launched it."""
    called = {event["args"].get("correlation"): event["ts"] for event in events if event.get("cat") in LAUNCHING}
    for event in events:
        if event.get("cat") in ON_GPU:
            correlation = event["args"].get("correlation")
            if correlation not in called:
                raise RuntimeError(f"the profiler saw no launch of {event['name']}")
            yield event, called[correlation]


def operations(events: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Torch's operations, and not those that they call, each with the time of its call."""
    latest = 0.0
    for event in events:
        if event.get("cat") == OPERATION and not event["name"].startswith(NOT_OPERATIONS) and event["ts"] >= latest:
            latest = event["ts"] + event["dur"]
            yield event, event["ts"]


def short_name(name: str) -> str:
    """As the profiler has it; of a compiled graph only as much of its hash as tells it from others."""
    return f"compiled graph {name.removeprefix(COMPILED)[:8]}" if name.startswith(COMPILED) else name
