"""The read roof: the highest rate at which this device was seen to read its memory."""

import datetime
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock

from gptbench.device import Device
from gptbench.measure.environment import Environment

LAUNCHES = 35
PROGRAMS_PER_PROCESSOR = 4
CUDA_BUFFER_BYTES = 2**32
CPU_BUFFER_BYTES = 2**30
"""Both far larger than any cache."""


@dataclass
class Roof:
    """What was measured, and on what."""

    device: str
    """Name of the processor; for a CPU the number of threads counts, too (`Device.key`)."""
    gb_per_s: float
    """The read roof: bytes of the buffer over the shortest time, GB = 1e9 bytes."""
    kernel: str
    """What read."""
    buffer_bytes: int
    seconds: list[float]
    """Of every launch."""
    measured: str
    """When, ISO 8601."""
    environment: Environment
    """Driver, power limit and library versions then."""


def read_roof(device: Device, environment: Environment, folder: Path, again: bool) -> Roof:
    """The device's roof: the one that `folder` holds; or measured now, where it holds none that can be read, or one of
    another driver, power limit or library version, or `again` is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device.key}.json"
    # Two processes that measured at the same time would share the memory, and keep half of the roof.
    with FileLock(folder / "lock"):
        kept = None if again else kept_roof(path)
        if kept is not None and conditions(kept.environment) == conditions(environment):
            return kept
        roof = measure_roof(device, environment)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(roof), indent=1))
        new.replace(path)
        return roof


def kept_roof(path: Path) -> Roof | None:
    """What an earlier run wrote, or None if it cannot be read."""
    try:
        kept = json.loads(path.read_text())
        return Roof(**(kept | {"environment": Environment(**kept["environment"])}))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def conditions(environment: Environment) -> tuple[object, ...]:
    """What a roof depends on beside the device."""
    libraries = environment.libraries
    return environment.driver, environment.power_limit_w, libraries.get("torch"), libraries.get("triton")


def measure_roof(device: Device, environment: Environment) -> Roof:
    """Reads a buffer again and again; the best launch counts."""
    largest = CUDA_BUFFER_BYTES if device.is_cuda else CPU_BUFFER_BYTES
    count = min(largest, device.free_memory() // 2) // 4
    buffer = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32, device=device.torch)
    seconds = cuda_reads(buffer) if device.is_cuda else cpu_reads(buffer)
    kernel = "gptbench.kernels.read_reduce" if device.is_cuda else f"torch.sum, {torch.get_num_threads()} threads"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rate = buffer.nbytes / min(seconds) / 1e9
    return Roof(device.name, rate, kernel, buffer.nbytes, seconds, now, environment)


def cuda_reads(buffer: torch.Tensor) -> list[float]:
    """Seconds of each launch of our own kernel over an int32 buffer."""
    from gptbench.kernels.read_reduce import read_reduce

    processors = torch.cuda.get_device_properties(buffer.device).multi_processor_count
    out = torch.empty(PROGRAMS_PER_PROCESSOR * processors, dtype=torch.int32, device=buffer.device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(LAUNCHES + 1)]
    for _ in range(3):
        read_reduce(buffer, out)
    events[0].record()
    for event in events[1:]:
        read_reduce(buffer, out)
        event.record()
    torch.cuda.synchronize(buffer.device)
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def cpu_reads(buffer: torch.Tensor) -> list[float]:
    """Seconds of each sum over the buffer, by all of torch's threads. As float32: torch adds those up the fastest."""
    numbers = buffer.view(torch.float32)
    numbers.nan_to_num_()
    seconds = []
    for _ in range(LAUNCHES):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return seconds
