"""What the device tells of itself: clocks, power, temperature, throttling, and a counter of the energy it has used.

On an NVIDIA GPU all of it comes from NVML (https://docs.nvidia.com/deploy/nvml-api). On a CPU it comes from where Linux
tells it: clocks and the counts of thermal throttling from /sys/devices/system/cpu, energy from the counters of the
powercap interface (https://docs.kernel.org/power/powercap/powercap.html), which many machines give to root alone, and
virtual ones to nobody. What is not told is None.
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
"""Between two readings of a GPU during a sample. NVML renews clocks about as often, and power every 0.1 s."""
MIN_ACTIVE_PERCENT = 3
"""Of the time between two looks of the driver, about a second at most, for which a process has to compute on a GPU to
count as active."""

THROTTLING = {
    "power cap": "SwPowerCap",
    "hardware slowdown": "HwSlowdown",
    "thermal slowdown": "SwThermalSlowdown",
    "hardware thermal slowdown": "HwThermalSlowdown",
    "power brake": "HwPowerBrakeSlowdown",
}
"""Reasons for which a GPU runs below the clock that was asked for, that make it slower than it could be: our name, and
the end of NVML's. Others are of someone's choosing, such as locked clocks, or of idleness."""


@dataclass(frozen=True)
class Reading:
    """One look at a device."""

    clock_mhz: float | None = None
    """Of the processors: a GPU's SMs; the mean over a CPU's cores."""
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    """Of `THROTTLING`, what is at work now."""


@dataclass(frozen=True)
class Neighbours:
    """What others have on a GPU."""

    processes: int
    """Other processes that have a context on it, of those that can be seen from here."""
    other_bytes: int
    """Of its memory, bytes in use that are not this process's."""


class Sensor:
    """A device that tells nothing."""

    polls = False
    """Whether it can be read while a sample runs, without taking time from it."""
    counter: str | None = None
    """What counts the energy; None where nothing does."""

    def read(self) -> Reading:
        return Reading()

    def energy_j(self) -> float:
        """Joules used since some moment. Raises OSError or RuntimeError where `counter` is None, or cannot be read."""
        raise RuntimeError("there is no counter")

    def throttled_s(self) -> dict[str, float]:
        """Seconds so far, by reason, that the device was held back; empty where it does not count."""
        return {}

    def neighbours(self) -> Neighbours | None:
        """Who else is on the device; None where nothing tells."""
        return None

    def active_neighbours(self, since: float) -> int | None:
        """How many others computed on it since then, a time of the clock on the wall; None where nothing tells."""
        return None


NO_SENSOR = Sensor()


class NvmlSensor(Sensor):
    """An NVIDIA GPU.

    Args:
        handle: NVML's.
    """

    polls = True

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        if self.told(self.nvml.nvmlDeviceGetTotalEnergyConsumption, handle) is not None:
            self.counter = "NVML's total energy consumption"
        bits = {name: getattr(self.nvml, f"nvmlClocksEventReason{end}", None) for name, end in THROTTLING.items()}
        older = {name: getattr(self.nvml, f"nvmlClocksThrottleReason{end}", 0) for name, end in THROTTLING.items()}
        # The second is the first's name in older versions of the library and of the driver.
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        self.asked = [ask for name in names if (ask := getattr(self.nvml, name, None)) is not None]
        self.reasons = {name: older[name] if bit is None else bit for name, bit in bits.items()}

    @property
    def nvml(self) -> Any:
        import pynvml

        return pynvml

    def told(self, ask: Callable[..., T], *args: Any) -> T | None:
        """What NVML answers, or None where this GPU does not tell."""
        try:
            return ask(*args)
        except self.nvml.NVMLError:
            return None

    def read(self) -> Reading:
        nvml = self.nvml
        clock = self.told(nvml.nvmlDeviceGetClockInfo, self.handle, nvml.NVML_CLOCK_SM)
        memory = self.told(nvml.nvmlDeviceGetClockInfo, self.handle, nvml.NVML_CLOCK_MEM)
        power = self.power_mw()
        heat = self.told(nvml.nvmlDeviceGetTemperature, self.handle, nvml.NVML_TEMPERATURE_GPU)
        reasons = next((bits for ask in self.asked if (bits := self.told(ask, self.handle)) is not None), 0)
        return Reading(
            clock_mhz=None if clock is None else float(clock),
            memory_clock_mhz=None if memory is None else float(memory),
            power_w=None if power is None else power / 1e3,
            temperature_c=None if heat is None else float(heat),
            throttled=tuple(name for name, bit in self.reasons.items() if reasons & bit),
        )

    def power_mw(self) -> int | None:
        """At this moment, where the GPU tells; else the mean over the last second."""
        field = getattr(self.nvml, "NVML_FI_DEV_POWER_INSTANT", None)
        values = None if field is None else self.told(self.nvml.nvmlDeviceGetFieldValues, self.handle, [field])
        if values and values[0].nvmlReturn == self.nvml.NVML_SUCCESS:
            return int(values[0].value.uiVal)
        return self.told(self.nvml.nvmlDeviceGetPowerUsage, self.handle)

    def energy_j(self) -> float:
        if self.counter is None:
            raise RuntimeError("this GPU has no counter of its energy")
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3

    def throttled_s(self) -> dict[str, float]:
        policies = {
            "power cap": self.nvml.NVML_PERF_POLICY_POWER,
            "thermal slowdown": self.nvml.NVML_PERF_POLICY_THERMAL,
        }
        counted = {
            name: self.told(self.nvml.nvmlDeviceGetViolationStatus, self.handle, policy)
            for name, policy in policies.items()
        }
        return {name: status.violationTime / 1e9 for name, status in counted.items() if status is not None}

    def neighbours(self) -> Neighbours | None:
        found = self.told(self.nvml.nvmlDeviceGetComputeRunningProcesses, self.handle)
        memory = self.told(self.nvml.nvmlDeviceGetMemoryInfo, self.handle)
        if found is None or memory is None:
            return None
        # In a container NVML may give another number to this process than the container does. It has a context there,
        # so one of the processes that are listed is this one.
        own = [process.usedGpuMemory for process in found if process.pid == os.getpid()]
        taken = own[0] if own and own[0] is not None else torch.cuda.memory_reserved()
        return Neighbours(max(0, len(found) - 1), max(0, memory.used - taken))

    def active_neighbours(self, since: float) -> int | None:
        looks = self.told(self.nvml.nvmlDeviceGetProcessUtilization, self.handle, int(since * 1e6))
        found = self.told(self.nvml.nvmlDeviceGetComputeRunningProcesses, self.handle)
        if looks is None or found is None:
            return None
        active = {look.pid for look in looks if look.smUtil >= MIN_ACTIVE_PERCENT and look.timeStamp >= since * 1e6}
        known = any(process.pid == os.getpid() for process in found)  # see above
        return len(active - {os.getpid()}) if known else max(0, len(active) - 1)


class CpuSensor(Sensor):
    """A CPU, as Linux tells of it.

    Args:
        system: where sysfs is.
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
        except (OSError, ValueError):  # for root alone
            self.counter = None

    def read(self) -> Reading:
        clocks = [number for path in self.clocks if (number := whole_number(path)) is not None]
        if clocks:
            clock: float | None = sum(clocks) / len(clocks) / 1e3
        else:
            told = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
            clock = told.current if told is not None and told.current else None
        return Reading(clock_mhz=clock)

    def energy_j(self) -> float:
        if not self.zones:
            raise RuntimeError("this machine has no counter of its energy")
        total = 0.0
        for zone in self.zones.values():
            now = float((zone / "energy_uj").read_text())
            if now < self.last.get(zone, 0.0):  # it starts again from 0 where it has no more digits
                most = float((zone / "max_energy_range_uj").read_text())
                self.wrapped[zone] = self.wrapped.get(zone, 0.0) + most
            self.last[zone] = now
            total += now + self.wrapped.get(zone, 0.0)
        return total / 1e6

    def throttled_s(self) -> dict[str, float]:
        times = [number for path in self.throttle_times if (number := whole_number(path)) is not None]
        return {"thermal slowdown": max(times) / 1e3} if times else {}


def counted_zones(powercap: Path) -> dict[str, Path]:
    """Zones of the powercap interface that together count each joule once, by name: packages, and the memory beside
    them. Parts of a package, such as its cores, are in it; psys is the whole board. Two control types may have zones of
    one name, intel-rapl and intel-rapl-mmio: two ways to read the same counter, of which the first is taken."""
    found: dict[str, Path] = {}
    zones = (each.parent for each in powercap.glob("*:[0-9]*/energy_uj"))
    for path in sorted(zones, key=lambda zone: (len(zone.name), zone.name)):
        name = first_line(path / "name")
        parts = path.name.split(":")
        if len(parts) == 2 and name != "psys":
            found.setdefault(name or path.name, path)
        elif len(parts) == 3 and name == "dram":
            found.setdefault(f"{first_line(path.parent / ':'.join(parts[:2]) / 'name')} dram", path)
    return found


def first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def whole_number(path: Path) -> int | None:
    """What a file of sysfs holds; None where it cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def sensor_of(devices: DeviceGroup) -> Sensor:
    """The sensor of the device that this process drives; one that tells nothing where NVML cannot be asked."""
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
    """Fills in the state of a device while something runs: read before it, after it, and, if the sensor allows, every
    `INTERVAL_S` meanwhile, by a thread of its own (what that costs: docs/log). What throttled before does not count."""
    state = DeviceState()
    reasons: set[str] = set()
    start = time.perf_counter()

    def look() -> None:
        reading = sensor.read()
        if state.at_s:
            reasons.update(reading.throttled)
        state.at_s.append(time.perf_counter() - start)
        for name in ("clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
            if (value := getattr(reading, name)) is not None:
                getattr(state, name).append(value)

    def poll() -> None:
        while not over.wait(INTERVAL_S):
            look()

    held_back = sensor.throttled_s()
    look()
    over = threading.Event()
    thread = threading.Thread(target=poll, name="gptbench.sensors", daemon=True) if sensor.polls else None
    if thread is not None:
        thread.start()
    try:
        yield state
    finally:
        over.set()
        if thread is not None:
            thread.join()
        look()
        after = sensor.throttled_s()
        grown = {name: seconds - held_back.get(name, seconds) for name, seconds in after.items()}
        reasons.update(name for name, seconds in grown.items() if seconds > 0)
        state.throttled = sorted(reasons)
        state.throttled_s = max(grown.values()) if grown else None
