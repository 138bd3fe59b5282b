"""Measures the read roof: the peak memory read bandwidth of the device (memory roofline).

The roof is the highest rate ever measured. Other load can only make a measurement slower, and nothing makes it faster
than the memory, so every measurement may raise the roof and none lowers it. `device.measure_roof=true` adds a
measurement, and so does a short probe before and after the samples. A probe far below the roof shows that something
else is using the memory; on a CPU it is compared with the usual probe instead, because the rate of a CPU varies from
process to process.

A roof is valid for a kind of GPU, or for the CPU of one host with a number of cores and threads, and for the conditions
of the measurement: driver, power limit and library versions.
"""

import datetime
import itertools
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from gptbench.base.errors import DoesNotFitError, UserError
from gptbench.base.inputs import is_finite_number, read_json
from gptbench.base.outputs import write_json
from gptbench.device import Device, file_name
from gptbench.device.group import DeviceGroup
from gptbench.schema.machine import FULL, PROBE, Environment, Probe, Roof
from gptbench.schema.place import Place

PROBES = "probes"
"""Key of the most recent probes in a roof file."""
LAUNCHES = 35
"""Number of launches of a full measurement."""
PROBE_S = 0.05
"""Duration of a probe in seconds."""
MIN_PROBE_LAUNCHES = 3
"""Minimum number of launches of a probe."""
MAX_PROBES = 100
"""Maximum number of recent probes that a file keeps besides the measurements."""
MIN_PROBES = 10
"""Minimum number of probes of the same device and conditions from which the usual rate is computed."""
USUAL = 0.8
"""Quantile of the rates of earlier probes that is the usual rate: some may be of a busy machine."""
PROGRAMS_PER_PROCESSOR = 4
"""Number of programs of the read kernel per streaming multiprocessor."""
CUDA_BUFFER_BYTES = 2**32
"""Minimum size of the buffer on a GPU, where there is memory for it."""
CPU_BUFFER_BYTES = 2**29
"""Minimum size of the buffer on a CPU, far larger than most caches; see `buffer_bytes`."""
CACHES = 8
"""Minimum size of the buffer as a multiple of the caches, since whatever they keep between launches is read faster than
memory."""
SPARE_BYTES = 2**29
"""Free GPU memory that a measurement leaves unused, in bytes."""
MIN_GPU_CACHES = 16
"""Minimum size, as a multiple of the L2 cache, of the smaller buffer that is used next to a large model."""
MIN_CUDA_BYTES = 2**30
"""Minimum size in bytes of the smaller buffer that is used next to a large model: an H200 reads 1 GiB 1.5% slower than
4 GiB, and 0.1 GiB 11% slower."""


class Roofs:
    """The stored roof measurements of the device that this process drives, under the current conditions.

    Args:
        devices: devices of the run.
        environment: current environment.
        folder: folder of roof files. A file has every full measurement, every probe that raised the roof, and the last
            `MAX_PROBES` probes.
    """

    def __init__(self, devices: DeviceGroup, environment: Environment, folder: Path) -> None:
        device = devices.local
        self.device, self.environment, self.folder = device, environment, folder
        name = file_name(device.name)
        if device.is_cuda:
            self.path = folder / f"{name}.json"
            self.older: str | None = f"{name}-*.json"  # older versions kept one file per card
        else:
            place = f"{file_name(platform.node())}-{environment.cores}-cores-{environment.threads}-threads"
            self.path, self.older = folder / f"{name}-{place}.json", None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder: processes that measured at the same time would each see half of the roof."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            yield

    def read(self, again: bool = False) -> Roof:
        """Return the highest measurement; measure now if there is no applicable one, or if `again`.

        Raises:
            DoesNotFitError: there is too little free memory to measure it.
        """
        with self.locked():
            roof = self.highest()
            if roof is None or again:
                roof = self.add(measure_roof(self.device, self.environment))
            return roof

    def probe(self, when: str) -> Probe | None:
        """Measure for `PROBE_S`, and raise the roof if the probe was faster; None if there is too little memory."""
        self.device.use()
        with self.locked():
            measured = measure_probe(self.device, self.environment)
            if measured is None:
                return None
            roof, usual = self.highest(), self.usual()
            if roof is None or measured.gb_per_s > roof.gb_per_s:
                self.add(measured)
            self.add(measured, PROBES)
            return Probe(when, measured.gb_per_s, measured.buffer_bytes, measured.seconds, measured.measured, usual)

    def usual(self) -> float | None:
        """Return the usual rate of this CPU's probes in GB/s; None if there are too few. It is None for GPUs, whose
        rates hardly vary."""
        if self.device.is_cuda:
            return None
        rates = [roof.gb_per_s for roof in measurements(self.path, PROBES) if self.applies(roof)]
        return float(np.quantile(rates, USUAL)) if len(rates) >= MIN_PROBES else None

    def highest(self) -> Roof | None:
        """Return the highest of all applicable measurements, or None."""
        files = [self.path, *(sorted(self.folder.glob(self.older)) if self.older is not None else ())]
        applicable = [roof for file in files for roof in measurements(file) if self.applies(roof)]
        return max(applicable, key=lambda roof: roof.gb_per_s, default=None)

    def applies(self, roof: Roof) -> bool:
        """Whether a measurement is of this device under these conditions, with a buffer that exceeds the caches."""
        there, here = Place.of(roof.environment, roof.host), Place.of(self.environment, platform.node())
        same = roof.device == here.device and there.of_roof == here.of_roof
        return same and roof.buffer_bytes >= min_bytes(self.device)

    def add(self, measured: Roof, to: str = "measurements") -> Roof:
        """Append a measurement to the file, and return the highest one."""
        if not self.device.is_cuda:
            measured.host = platform.node()
        lists = {name: measurements(self.path, name) for name in ("measurements", PROBES)}
        lists[to].append(measured)
        lists[PROBES] = lists[PROBES][-MAX_PROBES:]
        write_json(self.path, {name: [asdict(roof) for roof in roofs] for name, roofs in lists.items()})
        highest = self.highest()
        return measured if highest is None else highest


def measurements(path: Path, name: str = "measurements") -> list[Roof]:
    """Return the measurements in a file under a key; none if the file cannot be read."""
    try:
        raw = read_json(path)
        older = [] if name == PROBES or PROBES in raw else [raw]  # older versions kept a single measurement
        return [restored_roof(roof) for roof in raw.get(name, older)]
    except (UserError, TypeError, KeyError, ValueError, AttributeError):
        return []


def restored_roof(raw: dict[str, Any]) -> Roof:
    """Restore a measurement from its JSON object.

    Raises:
        TypeError, KeyError, ValueError: the object is not a measurement.
    """
    roof = Roof(**(raw | {"environment": Environment(**raw["environment"])}))
    if not (is_finite_number(roof.gb_per_s) and roof.gb_per_s > 0):
        raise ValueError(f"gb_per_s={roof.gb_per_s}: expected a finite number over 0")
    return roof


def measure_roof(device: Device, environment: Environment) -> Roof:
    """Measure the roof with a full measurement, which counts the fastest of its launches.

    Raises:
        DoesNotFitError: there is too little free memory for a buffer that exceeds the caches.
    """
    nbytes, minimum = available_bytes(device), min_bytes(device)
    if nbytes < minimum:
        raise DoesNotFitError(
            f"too little free memory to measure the read roof of {device.name}: there is room for a buffer of "
            f"{max(0, nbytes) / 1e9:.3g} GB, but caches hold too much of one under {minimum / 1e9:.3g} GB. Free some "
            "memory for one run: the outputs folder keeps the roof for later runs"
        )
    return measured_roof(device, environment, nbytes, FULL)


def measure_probe(device: Device, environment: Environment) -> Roof | None:
    """Measure for `PROBE_S`; None if there is too little free memory."""
    nbytes = available_bytes(device)
    return measured_roof(device, environment, nbytes, PROBE) if nbytes >= min_bytes(device) else None


def available_bytes(device: Device) -> int:
    """Return the size in bytes of the largest useful buffer that free memory allows."""
    free = device.free_memory()
    return min(buffer_bytes(device), free - SPARE_BYTES if device.is_cuda else free // 2)


def min_bytes(device: Device) -> int:
    """Return the minimum size in bytes of a valid buffer; a smaller one is partly read from the caches."""
    wanted = buffer_bytes(device)
    if device.is_cuda:
        return min(wanted, max(MIN_CUDA_BYTES, MIN_GPU_CACHES * gpu_cache_bytes(device)))
    return wanted // 2


def buffer_bytes(device: Device) -> int:
    """Return the size in bytes of the buffer when there is enough memory."""
    if device.is_cuda:
        return max(CUDA_BUFFER_BYTES, CACHES * gpu_cache_bytes(device))
    return max(CPU_BUFFER_BYTES, CACHES * cpu_cache_bytes(torch.get_num_threads()))


def gpu_cache_bytes(device: Device) -> int:
    """Return the size of the GPU's L2 cache in bytes."""
    size: int = torch.cuda.get_device_properties(device.torch).L2_cache_size
    return size


def cpu_cache_bytes(threads: int, cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the bytes of the last-level caches that a number of threads can use at once, each cache counted once; 0 if
    Linux does not report them."""
    caches: dict[str, int] = {}
    for level in ("index2", "index3"):
        sizes = {}
        for cache in cpus.glob(f"cpu[0-9]*/cache/{level}"):
            try:
                size = (cache / "size").read_text().strip()
                sizes[(cache / "shared_cpu_list").read_text().strip()] = int(size.removesuffix("K")) * 1024
            except (OSError, ValueError):
                continue
        caches = sizes or caches
    return sum(sorted(caches.values(), reverse=True)[:threads])


def measured_roof(device: Device, environment: Environment, nbytes: int, kind: str) -> Roof:
    """Take one measurement, full or probe, with a buffer of `nbytes`."""
    count = nbytes // 4
    if device.is_cuda:
        # A separate pool, so that all its memory returns to the device: torch's own cache belongs to the engine.
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool, device.torch):
            seconds = cuda_reads(cuda_buffer(count, device), kind)
        del pool
        kernel = "gptbench.kernels.read_reduce"
    else:
        seconds = cpu_reads(torch.ones(count), kind)
        kernel = f"torch.sum, {torch.get_num_threads()} threads"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Roof(device.name, 4 * count / min(seconds) / 1e9, kernel, 4 * count, seconds, now, environment, kind)


def cuda_buffer(count: int, device: Device) -> torch.Tensor:
    """Return random int32 numbers [count], without advancing torch's default generator."""
    generator = torch.Generator(device.torch)
    return torch.randint(-(2**31), 2**31 - 1, (count,), generator=generator, dtype=torch.int32, device=device.torch)


def cuda_reads(buffer: torch.Tensor, kind: str = FULL) -> list[float]:
    """Return the seconds of each launch of gptbench's read kernel over an int32 buffer."""
    from gptbench.kernels.read_reduce import read_reduce

    processors = torch.cuda.get_device_properties(buffer.device).multi_processor_count
    out = torch.empty(PROGRAMS_PER_PROCESSOR * processors, dtype=torch.int32, device=buffer.device)

    def timed(launches: int) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(launches + 1)]
        events[0].record()
        for event in events[1:]:
            read_reduce(buffer, out)
            event.record()
        torch.cuda.synchronize(buffer.device)
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]

    read_reduce(buffer, out)  # may have to be compiled first
    first = timed(2)
    launches = LAUNCHES if kind == FULL else max(MIN_PROBE_LAUNCHES, math.ceil(PROBE_S / min(first)))
    return timed(launches)


def cpu_reads(numbers: torch.Tensor, kind: str = FULL) -> list[float]:
    """Return the seconds of each sum over a float32 buffer with all of torch's threads; torch sums floats fastest."""
    seconds: list[float] = []
    while not is_enough(seconds, kind):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return seconds


def is_enough(seconds: list[float], kind: str) -> bool:
    """Whether a measurement has enough launches, and a probe enough time."""
    if kind == FULL:
        return len(seconds) >= LAUNCHES
    return len(seconds) >= MIN_PROBE_LAUNCHES and sum(seconds) >= PROBE_S
