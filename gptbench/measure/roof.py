"""The read roof: the highest rate at which this device was ever seen to read its memory.

Every measurement may raise it, and none lowers it: what keeps a machine busy makes a measurement slower, and nothing
makes it faster than the memory is. `device.measure_roof=true` adds a measurement; a short probe before and after the
samples is one, too. A probe that stays far behind the roof shows that something else uses the memory; on a CPU, one
that stays far behind what most probes there read, as a CPU's rate differs from process to process.

A roof belongs to a kind of GPU, or to one host's CPU with so many cores and threads; and to the conditions that it was
measured under: driver, power limit and library versions.
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
"""Of a file, where the last ones are."""
LAUNCHES = 35
"""Of a full measurement."""
PROBE_S = 0.05
"""Seconds that a probe reads for."""
MIN_PROBE_LAUNCHES = 3
MAX_PROBES = 100
"""The last ones, that a file keeps beside the measurements."""
MIN_PROBES = 10
"""Of the same device and conditions, of which it is known what is usual."""
USUAL = 0.8
"""Quantile of the rates of earlier probes that is: some may have been of a busy machine."""
PROGRAMS_PER_PROCESSOR = 4
CUDA_BUFFER_BYTES = 2**32
CPU_BUFFER_BYTES = 2**29
"""Far larger than most caches; see `buffer_bytes`."""
CACHES = 8
"""A buffer has at least so many times the size of the caches: what they keep of it from launch to launch is read faster
than the memory can be."""
SPARE_BYTES = 2**29
"""Of a GPU's free memory, what a measurement leaves."""
MIN_GPU_CACHES = 16
MIN_CUDA_BYTES = 2**30
"""Beside a large model there is room for less than the whole buffer, but so much and so many times the caches it has to
be: on an H200 1 GiB is read 1.5% slower than 4 GiB, and 0.1 GiB 11%."""


class Roofs:
    """All that a folder keeps of the roof of the device that this process drives, under the conditions of now.

    Args:
        folder: where roofs are kept; a file has every full measurement, every probe that raised the roof, and the last
            `MAX_PROBES` probes.
    """

    def __init__(self, devices: DeviceGroup, environment: Environment, folder: Path) -> None:
        device = devices.local
        self.device, self.environment, self.folder = device, environment, folder
        name = file_name(device.name)
        if device.is_cuda:
            self.path = folder / f"{name}.json"
            self.older: str | None = f"{name}-*.json"  # of a version that kept one for each card
        else:
            place = f"{file_name(platform.node())}-{environment.cores}-cores-{environment.threads}-threads"
            self.path, self.older = folder / f"{name}-{place}.json", None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Two processes that measured at the same time would share the memory, and keep half of the roof."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            yield

    def read(self, again: bool = False) -> Roof:
        """The highest rate seen; measured now where none is kept that counts here, or `again` is asked for.

        Raises:
            DoesNotFitError: there is too little free memory to measure it.
        """
        with self.locked():
            kept = self.highest()
            if kept is None or again:
                kept = self.add(measure_roof(self.device, self.environment))
            return kept

    def probe(self, when: str) -> Probe | None:
        """Measures for `PROBE_S`, and raises the roof where it was faster; None where there is no memory for it."""
        self.device.use()
        with self.locked():
            found = measure_probe(self.device, self.environment)
            if found is None:
                return None
            kept, usual = self.highest(), self.usual()
            if kept is None or found.gb_per_s > kept.gb_per_s:
                self.add(found)
            self.add(found, PROBES)
            return Probe(when, found.gb_per_s, found.buffer_bytes, found.seconds, found.measured, usual)

    def usual(self) -> float | None:
        """Rate of this CPU's probes; None where it is not known yet. GPUs differ too little for it."""
        if self.device.is_cuda:
            return None
        rates = [one.gb_per_s for one in measurements(self.path, PROBES) if self.counts(one)]
        return float(np.quantile(rates, USUAL)) if len(rates) >= MIN_PROBES else None

    def highest(self) -> Roof | None:
        """Of all measurements of this device under these conditions."""
        files = [self.path, *(sorted(self.folder.glob(self.older)) if self.older is not None else ())]
        counting = [one for file in files for one in measurements(file) if self.counts(one)]
        return max(counting, key=lambda one: one.gb_per_s, default=None)

    def counts(self, one: Roof) -> bool:
        """Whether a measurement is of this device and these conditions, and of memory."""
        there, here = Place.of(one.environment, one.host), Place.of(self.environment, platform.node())
        same = one.device == here.device and there.of_roof == here.of_roof
        return same and one.buffer_bytes >= min_bytes(self.device)

    def add(self, measured: Roof, to: str = "measurements") -> Roof:
        """Writes a measurement to the others; returns the highest."""
        if not self.device.is_cuda:
            measured.host = platform.node()
        known = {name: measurements(self.path, name) for name in ("measurements", PROBES)}
        known[to].append(measured)
        known[PROBES] = known[PROBES][-MAX_PROBES:]
        write_json(self.path, {name: [asdict(one) for one in own] for name, own in known.items()})
        highest = self.highest()
        return measured if highest is None else highest


def measurements(path: Path, name: str = "measurements") -> list[Roof]:
    """What a file holds under that name; nothing where it cannot be read."""
    try:
        raw = read_json(path)
        older = [] if name == PROBES or PROBES in raw else [raw]  # which kept one alone
        found = raw.get(name, older)
        return [restored_roof(one) for one in found]
    except (UserError, TypeError, KeyError, ValueError, AttributeError):
        return []


def restored_roof(raw: dict[str, Any]) -> Roof:
    """A measurement as it was before it became plain data.

    Raises:
        TypeError, KeyError, ValueError: it was none.
    """
    roof = Roof(**(raw | {"environment": Environment(**raw["environment"])}))
    if not (is_finite_number(roof.gb_per_s) and roof.gb_per_s > 0):
        raise ValueError(f"gb_per_s={roof.gb_per_s}: expected a finite number over 0")
    return roof


def measure_roof(device: Device, environment: Environment) -> Roof:
    """Reads a buffer again and again; the best launch counts.

    Raises:
        DoesNotFitError: there is too little free memory for a buffer that caches do not keep.
    """
    nbytes, least = room(device), min_bytes(device)
    if nbytes < least:
        raise DoesNotFitError(
            f"too little free memory to measure the read roof of {device.name}: there is room for a buffer of "
            f"{max(0, nbytes) / 1e9:.3g} GB, and of less than {least / 1e9:.3g} GB caches keep too much. Free some "
            "memory for one run: the outputs folder keeps the roof for others"
        )
    return measured_roof(device, environment, nbytes, FULL)


def measure_probe(device: Device, environment: Environment) -> Roof | None:
    """The same for `PROBE_S`; None where there is too little free memory."""
    nbytes = room(device)
    return measured_roof(device, environment, nbytes, PROBE) if nbytes >= min_bytes(device) else None


def room(device: Device) -> int:
    """Bytes of the buffer for which there is memory now."""
    free = device.free_memory()
    return min(buffer_bytes(device), free - SPARE_BYTES if device.is_cuda else free // 2)


def min_bytes(device: Device) -> int:
    """Of a buffer that counts: a smaller one is read at another rate, that of the caches in the end."""
    wanted = buffer_bytes(device)
    if device.is_cuda:
        return min(wanted, max(MIN_CUDA_BYTES, MIN_GPU_CACHES * gpu_cache_bytes(device)))
    return wanted // 2


def buffer_bytes(device: Device) -> int:
    """Of the buffer that is read, where there is memory for it."""
    if device.is_cuda:
        return max(CUDA_BUFFER_BYTES, CACHES * gpu_cache_bytes(device))
    return max(CPU_BUFFER_BYTES, CACHES * cpu_cache_bytes(torch.get_num_threads()))


def gpu_cache_bytes(device: Device) -> int:
    """Of its L2."""
    size: int = torch.cuda.get_device_properties(device.torch).L2_cache_size
    return size


def cpu_cache_bytes(threads: int, cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Of the last-level caches that so many threads may use at once, each once; 0 where Linux does not say."""
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
    """One measurement, with a buffer of so many bytes."""
    count = nbytes // 4
    if device.is_cuda:
        # In a pool of its own, all of which goes back to the device: what torch's allocator keeps is an engine's.
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
    """Random, without a draw from torch's own generator."""
    own = torch.Generator(device.torch)
    return torch.randint(-(2**31), 2**31 - 1, (count,), generator=own, dtype=torch.int32, device=device.torch)


def cuda_reads(buffer: torch.Tensor, kind: str = FULL) -> list[float]:
    """Seconds of each launch of our own kernel over an int32 buffer."""
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

    read_reduce(buffer, out)  # which may have to be compiled
    first = timed(2)
    launches = LAUNCHES if kind == FULL else max(MIN_PROBE_LAUNCHES, math.ceil(PROBE_S / min(first)))
    return timed(launches)


def cpu_reads(numbers: torch.Tensor, kind: str = FULL) -> list[float]:
    """Seconds of each sum over a float32 buffer, by all of torch's threads: torch adds those up the fastest."""
    seconds: list[float] = []
    while not is_enough(seconds, kind):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return seconds


def is_enough(seconds: list[float], kind: str) -> bool:
    if kind == FULL:
        return len(seconds) >= LAUNCHES
    return len(seconds) >= MIN_PROBE_LAUNCHES and sum(seconds) >= PROBE_S
