"""Sensors of the device: clocks, power, temperature, throttling, and an energy counter.

On an NVIDIA GPU they are NVML's (https://docs.nvidia.com/deploy/nvml-api). On a CPU they are Linux's: clocks and
thermal throttling from /sys/devices/system/cpu, and energy from the powercap interface
(https://docs.kernel.org/power/powercap/powercap.html), which on many machines only root can read, and which virtual
machines do not have. A value that is not available is None.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from gptbench.device.group import DeviceGroup
from gptbench.schema.machine import DeviceState

T = TypeVar("T")

INTERVAL_S = 0.05
"""Seconds between readings of a GPU during a sample. NVML updates clocks about as often, and power every 0.1 s."""
MIN_ACTIVE_PERCENT = 3
"""Minimum SM utilisation, in percent of a sampling period of the driver (at most about a second), for a process to
count as active on a GPU."""

THROTTLING = {
    "power cap": "SwPowerCap",
    "hardware slowdown": "HwSlowdown",
    "thermal slowdown": "SwThermalSlowdown",
    "hardware thermal slowdown": "HwThermalSlowdown",
    "power brake": "HwPowerBrakeSlowdown",
}
"""Reasons for throttling: their names in records, and the suffixes of NVML's names. NVML's other reasons for a lower
clock are a user's choice, such as locked clocks, or idleness."""


@dataclass(frozen=True)
class Reading:
    """One reading of the sensors of a device."""

    clock_mhz: float | None = None
    """Clock of a GPU's SMs, or the mean over a CPU's cores, in MHz."""
    memory_clock_mhz: float | None = None
    """Clock of the memory in MHz."""
    power_w: float | None = None
    """Power in watts."""
    temperature_c: float | None = None
    """Temperature in degrees Celsius."""
    throttled: tuple[str, ...] = ()
    """Reasons of `THROTTLING` that are active."""


@dataclass(frozen=True)
class Neighbours:
    """Use of a GPU by other processes."""

    processes: int
    """Number of other visible processes with a context on the GPU."""
    other_bytes: int
    """Bytes of GPU memory in use by anything but this process."""


class Sensor:
    """A device without sensors, and the interface of those that have some."""

    polls = False
    """Whether the sensor can be read during a sample without slowing it down."""
    counter: str | None = None
    """Name of the energy counter; None if there is none."""

    def read(self) -> Reading:
        """Read clocks, power, temperature and throttling."""
        return Reading()

    def energy_j(self) -> float:
        """Return the energy used since an arbitrary start, in joules. Raises OSError or RuntimeError if there is no
        `counter` or it cannot be read."""
        raise RuntimeError("this device has no energy counter")

    def throttled_s(self) -> dict[str, float]:
        """Return the seconds that the device has been throttled so far, by reason; empty if it does not count them."""
        return {}

    def neighbours(self) -> Neighbours | None:
        """Return the use of the device by other processes; None if unknown."""
        return None

    def active_neighbours(self, since: float) -> int | None:
        """Return the number of other processes that computed on the device after `since`, in seconds since the epoch;
        None if unknown."""
        return None


NO_SENSOR = Sensor()


class NvmlSensor(Sensor):
    """The sensors of an NVIDIA GPU.

    Args:
        handle: NVML's handle of the device.
    """

    polls = True

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        if self.query(self.nvml.nvmlDeviceGetTotalEnergyConsumption, handle) is not None:
            self.counter = "NVML's total energy consumption"
        bits = {name: getattr(self.nvml, f"nvmlClocksEventReason{end}", None) for name, end in THROTTLING.items()}
        older = {name: getattr(self.nvml, f"nvmlClocksThrottleReason{end}", 0) for name, end in THROTTLING.items()}
        # Older versions of the library and of the driver know the second name only.
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        self.reason_queries = [function for name in names if (function := getattr(self.nvml, name, None)) is not None]
        self.reasons = {name: older[name] if bit is None else bit for name, bit in bits.items()}

    @property
    def nvml(self) -> Any:
        import pynvml

        return pynvml

    def query(self, function: Callable[..., T], *args: Any) -> T | None:
        """Call a function of NVML; None if this GPU does not support it."""
        try:
            return function(*args)
        except self.nvml.NVMLError:
            return None

    def read(self) -> Reading:
        nvml = self.nvml
        clock = self.query(nvml.nvmlDeviceGetClockInfo, self.handle, nvml.NVML_CLOCK_SM)
        memory = self.query(nvml.nvmlDeviceGetClockInfo, self.handle, nvml.NVML_CLOCK_MEM)
        power = self.power_mw()
        temperature = self.query(nvml.nvmlDeviceGetTemperature, self.handle, nvml.NVML_TEMPERATURE_GPU)
        answers = (self.query(function, self.handle) for function in self.reason_queries)
        reasons = next((bits for bits in answers if bits is not None), 0)
        return Reading(
            clock_mhz=None if clock is None else float(clock),
            memory_clock_mhz=None if memory is None else float(memory),
            power_w=None if power is None else power / 1e3,
            temperature_c=None if temperature is None else float(temperature),
            throttled=tuple(name for name, bit in self.reasons.items() if reasons & bit),
        )

    def power_mw(self) -> int | None:
        """Return the power in mW: instantaneous if the GPU supports that, else the mean over the last second."""
        field = getattr(self.nvml, "NVML_FI_DEV_POWER_INSTANT", None)
        values = None if field is None else self.query(self.nvml.nvmlDeviceGetFieldValues, self.handle, [field])
        if values and values[0].nvmlReturn == self.nvml.NVML_SUCCESS:
            return int(values[0].value.uiVal)
        return self.query(self.nvml.nvmlDeviceGetPowerUsage, self.handle)

    def energy_j(self) -> float:
        if self.counter is None:
            raise RuntimeError("this GPU has no energy counter")
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3

    def throttled_s(self) -> dict[str, float]:
        policies = {
            "power cap": self.nvml.NVML_PERF_POLICY_POWER,
            "thermal slowdown": self.nvml.NVML_PERF_POLICY_THERMAL,
        }
        statuses = {
            name: self.query(self.nvml.nvmlDeviceGetViolationStatus, self.handle, policy)
            for name, policy in policies.items()
        }
        return {name: status.violationTime / 1e9 for name, status in statuses.items() if status is not None}

    def neighbours(self) -> Neighbours | None:
        processes = self.query(self.nvml.nvmlDeviceGetComputeRunningProcesses, self.handle)
        memory = self.query(self.nvml.nvmlDeviceGetMemoryInfo, self.handle)
        if processes is None or memory is None:
            return None
        # In a container NVML may list this process under another PID. It has a context, so one entry is this process.
        used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        own_bytes = used[0] if used and used[0] is not None else torch.cuda.memory_reserved()
        return Neighbours(max(0, len(processes) - 1), max(0, memory.used - own_bytes))

    def active_neighbours(self, since: float) -> int | None:
        samples = self.query(self.nvml.nvmlDeviceGetProcessUtilization, self.handle, int(since * 1e6))
        processes = self.query(self.nvml.nvmlDeviceGetComputeRunningProcesses, self.handle)
        if samples is None or processes is None:
            return None
        active = {
            sample.pid for sample in samples if sample.smUtil >= MIN_ACTIVE_PERCENT and sample.timeStamp >= since * 1e6
        }
        is_listed = any(process.pid == os.getpid() for process in processes)  # see `neighbours`
        return len(active - {os.getpid()}) if is_listed else max(0, len(active) - 1)


class CpuSensor(Sensor):
    """The sensors of a CPU under Linux.

    Args:
        system: mount point of sysfs.
    """

    def __init__(self, system: Path = Path("/sys")) -> None:
        cores = system / "devices/system/cpu"
        self.clocks = sorted(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self.throttle_times = sorted(cores.glob("cpu[0-9]*/thermal_throttle/core_throttle_total_time_ms"))
        self.zones = counted_zones(system / "class/powercap")
        self.last: dict[Path, float] = {}
        self.wrapped: dict[Path, float] = {}
        try:
            self.counter = f"powercap ({', '.join(self.zones)})" if self.zones and self.energy_j() >= 0 else None
        except (OSError, ValueError):  # only root may read it
            self.counter = None

    def read(self) -> Reading:
        clocks = [number for path in self.clocks if (number := whole_number(path)) is not None]
        if clocks:
            clock: float | None = sum(clocks) / len(clocks) / 1e3
        else:
            frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
            clock = frequency.current if frequency is not None and frequency.current else None
        return Reading(clock_mhz=clock)

    def energy_j(self) -> float:
        if not self.zones:
            raise RuntimeError("this machine has no energy counter")
        total = 0.0
        for zone in self.zones.values():
            now = float((zone / "energy_uj").read_text())
            if now < self.last.get(zone, 0.0):  # the counter has wrapped around
                limit = float((zone / "max_energy_range_uj").read_text())
                self.wrapped[zone] = self.wrapped.get(zone, 0.0) + limit
            self.last[zone] = now
            total += now + self.wrapped.get(zone, 0.0)
        return total / 1e6

    def throttled_s(self) -> dict[str, float]:
        times = [number for path in self.throttle_times if (number := whole_number(path)) is not None]
        return {"thermal slowdown": max(times) / 1e3} if times else {}


def counted_zones(powercap: Path) -> dict[str, Path]:
    """Return the powercap zones that together count each joule once, by name: packages and DRAM.

    Parts of a package, such as its cores, are included in it, and psys is the whole board. The control types intel-rapl
    and intel-rapl-mmio read the same counters, so the first zone of a name is taken.
    """
    counted: dict[str, Path] = {}
    zones = (file.parent for file in powercap.glob("*:[0-9]*/energy_uj"))
    for path in sorted(zones, key=lambda zone: (len(zone.name), zone.name)):
        name = sysfs_text(path / "name")
        parts = path.name.split(":")
        if len(parts) == 2 and name != "psys":
            counted.setdefault(name or path.name, path)
        elif len(parts) == 3 and name == "dram":
            counted.setdefault(f"{sysfs_text(path.parent / ':'.join(parts[:2]) / 'name')} dram", path)
    return counted


def sysfs_text(path: Path) -> str:
    """Return the text of a sysfs file; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def whole_number(path: Path) -> int | None:
    """Return the number in a sysfs file; None if it cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def sensor_of(devices: DeviceGroup) -> Sensor:
    """Return the sensor of the device that this process drives; one without any readings if NVML is not available."""
    device = devices.local
    if not device.is_cuda:
        return CpuSensor()
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device.torch).uuid
        return NvmlSensor(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return Sensor()


@contextlib.contextmanager
def watched(sensor: Sensor) -> Iterator[DeviceState]:
    """Yield a `DeviceState` that is filled in while the context is active.

    The sensor is read at the start and at the end, and, if it allows polling, every `INTERVAL_S` in between by a
    separate thread (its cost is in docs/log). Throttling at the start does not count.
    """
    state = DeviceState()
    reasons: set[str] = set()
    start = time.perf_counter()

    def record() -> None:
        reading = sensor.read()
        if state.at_s:
            reasons.update(reading.throttled)
        state.at_s.append(time.perf_counter() - start)
        for name in ("clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
            if (value := getattr(reading, name)) is not None:
                getattr(state, name).append(value)

    def poll() -> None:
        while not stop.wait(INTERVAL_S):
            record()

    before = sensor.throttled_s()
    record()
    stop = threading.Event()
    thread = threading.Thread(target=poll, name="gptbench.sensors", daemon=True) if sensor.polls else None
    if thread is not None:
        thread.start()
    try:
        yield state
    finally:
        stop.set()
        if thread is not None:
            thread.join()
        record()
        after = sensor.throttled_s()
        growth = {name: seconds - before.get(name, seconds) for name, seconds in after.items()}
        reasons.update(name for name, seconds in growth.items() if seconds > 0)
        state.throttled = sorted(reasons)
        state.throttled_s = max(growth.values()) if growth else None
