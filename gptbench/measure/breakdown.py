"""Breaks a decode step down into its kernels and the gaps between them.

A few decode steps run under torch's profiler, separately from the samples because tracing costs time. They are queued
back to back, as in a sample; a step lasts from the start of its first kernel to the start of the next step's first
kernel. The step of median duration is kept. On a CPU the entries are torch operations, a call of a compiled graph
counting as one, and a step lasts from call to call.
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
"""Number of profiled steps, of which the median is kept. One more is run, because its start ends the last one."""
STEP = "gptbench.step"
"""Name of the profiler annotation around each step."""
SILENT = "6"
"""Log level above all those of Kineto, the profiler's library, which would print a line at each start and stop."""


def break_down(engine: Engine, workload: Workload) -> Breakdown:
    """Profile steps in the middle of a generation of the workload, and return the one of median duration.

    Raises:
        RuntimeError: the profiler recorded nothing, or too little to separate the steps.
    """
    count = min(PROFILED + 1, engine.length - engine.prompt_length)  # the cache has room for at least two
    before = max(0, (workload.new_tokens - 1 - count) // 2)
    os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * engine.device.is_cuda
    engine.prefill(workload.prompt)
    with profile(activities=activities):  # the profiler's first start takes as long as many steps
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
    if chosen is not None and chosen_before is not None:  # average over steps and layers
        experts = engine.experts_read(chosen - chosen_before, count) / count / len(engine.model.mixtures)
    annotate(median.launches, engine.kernels([median.position] * engine.batch, experts))
    return median


def annotate(launches: list[Launch], known: list[KnownKernel]) -> None:
    """Fill in what the engine knows about each launch. Launches of the same name are matched in order."""
    waiting: dict[str, deque[KnownKernel]] = defaultdict(deque)
    for kernel in known:
        waiting[kernel.name].append(kernel)
    for launch in launches:
        if waiting[launch.name]:
            kernel = waiting[launch.name].popleft()
            launch.bytes_read, launch.part = kernel.bytes_read, kernel.part


def find_steps(events: list[dict[str, Any]], on_gpu: bool, first: int) -> list[Breakdown]:
    """Return every step but the last of a profiler's trace.

    Args:
        events: events of the Chrome trace, with times in µs.
        on_gpu: whether steps consist of GPU kernels, rather than of torch operations on a CPU.
        first: position of the first step's token.

    Raises:
        RuntimeError: there are fewer than two steps, or a step has no kernel.
    """
    complete = sorted((event for event in events if event.get("ph") == "X"), key=lambda event: event["ts"])
    calls = [event for event in complete if event.get("cat") == "user_annotation" and event["name"] == STEP]
    events_of_step: list[list[dict[str, Any]]] = [[] for _ in calls]
    for event, launch_time in kernels(complete) if on_gpu else operations(complete):
        for call, step_events in zip(calls, events_of_step, strict=True):
            if call["ts"] <= launch_time <= call["ts"] + call["dur"]:
                step_events.append(event)
    if len(events_of_step) < 2 or not all(events_of_step):
        count = sum(map(len, events_of_step))
        raise RuntimeError(
            f"the profiler recorded {len(events_of_step)} steps with {count} kernels: expected at least 2 steps, each"
            " with kernels"
        )
    begins = [
        step_events[0]["ts"] if on_gpu else call["ts"] for call, step_events in zip(calls, events_of_step, strict=True)
    ]
    steps = []
    for index, step_events in enumerate(events_of_step[:-1]):
        begin = begins[index]
        launches = [
            Launch(
                name=short_name(event["name"]),
                start_s=(event["ts"] - begin) / 1e6,
                duration_s=event["dur"] / 1e6,
                grid=event["args"].get("grid"),
            )
            for event in step_events
        ]
        # A kernel may still run when the next step's first one starts.
        end = max((begins[index + 1] - begin) / 1e6, *(launch.end_s for launch in launches))
        steps.append(Breakdown(first + index, end, launches))
    return steps


def kernels(events: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Iterate over everything that ran on the GPU, with the time of the host's call that launched it."""
    launch_times = {event["args"].get("correlation"): event["ts"] for event in events if event.get("cat") in LAUNCHING}
    for event in events:
        if event.get("cat") in ON_GPU:
            correlation = event["args"].get("correlation")
            if correlation not in launch_times:
                raise RuntimeError(f"the profiler recorded no launch of {event['name']}")
            yield event, launch_times[correlation]


def operations(events: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Iterate over outermost torch operations, with the time of each call."""
    latest = 0.0
    for event in events:
        if event.get("cat") == OPERATION and not event["name"].startswith(NOT_OPERATIONS) and event["ts"] >= latest:
            latest = event["ts"] + event["dur"]
            yield event, event["ts"]


def short_name(name: str) -> str:
    """Return the profiler's name of an event, shortening the hash of a compiled graph to eight characters."""
    return f"compiled graph {name.removeprefix(COMPILED)[:8]}" if name.startswith(COMPILED) else name
