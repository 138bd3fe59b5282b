"""What the device tells of itself: read from where it is told, and nothing where it is not; counters counted right."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptbench.config import DeviceConfig
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.measure import sensors
from gptbench.measure.sensors import THROTTLING, CpuSensor, NvmlSensor, Reading, Sensor, sensor_of, watched
from gptbench.schema.machine import DeviceState


class NVMLError(Exception):
    pass


class FakeNvml:
    """Answers as NVML does; what is not in `told` is not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 186, 0
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvmlClocksThrottleReasonHwThermalSlowdown = 64
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128

    def __init__(self, **told: Any) -> None:
        self.told = told

    def answer(self, name: str, *args: Any) -> Any:
        if name not in self.told:
            raise NVMLError("not supported")
        value = self.told[name]
        return value(*args) if callable(value) else value

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDevice"):
            raise AttributeError(name)
        return lambda handle, *args: self.answer(name, *args)


def nvml_sensor(monkeypatch: pytest.MonkeyPatch, **told: Any) -> NvmlSensor:
    monkeypatch.setattr(NvmlSensor, "nvml", FakeNvml(**told))
    return NvmlSensor("handle")


def test_a_gpu_is_read_in_our_units(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = nvml_sensor(
        monkeypatch,
        nvmlDeviceGetTotalEnergyConsumption=12_345,
        nvmlDeviceGetClockInfo=lambda which: {1: 1980, 2: 3201}[which],
        nvmlDeviceGetPowerUsage=622_500,
        nvmlDeviceGetTemperature=lambda which: 51,
        nvmlDeviceGetCurrentClocksThrottleReasons=4 | 1,
        nvmlDeviceGetViolationStatus=lambda policy: SimpleNamespace(violationTime=(policy + 1) * 10**9),
    )
    assert sensor.counter
    assert sensor.energy_j() == 12.345
    assert sensor.read() == Reading(1980.0, 3201.0, 622.5, 51.0, ("power cap",)), "idle (1) is no throttling"
    assert sensor.throttled_s() == {"power cap": 1.0, "thermal slowdown": 2.0}


def test_power_of_the_moment_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=500_000))]
    sensor = nvml_sensor(monkeypatch, nvmlDeviceGetFieldValues=lambda which: fields, nvmlDeviceGetPowerUsage=300_000)
    assert sensor.read().power_w == 500.0
    fields[0].nvmlReturn = 3
    assert sensor.read().power_w == 300.0


def test_a_gpu_that_tells_nothing_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = nvml_sensor(monkeypatch)
    assert sensor.counter is None
    assert sensor.read() == Reading()
    assert sensor.throttled_s() == {}
    with pytest.raises(RuntimeError):
        sensor.energy_j()


@pytest.mark.parametrize(("name", "bit"), list(zip(THROTTLING, (4, 8, 32, 64, 128), strict=True)))
def test_each_reason_is_told(monkeypatch: pytest.MonkeyPatch, name: str, bit: int) -> None:
    sensor = nvml_sensor(monkeypatch, nvmlDeviceGetCurrentClocksEventReasons=bit | 2)
    assert sensor.read().throttled == (name,)
    older = nvml_sensor(monkeypatch, nvmlDeviceGetCurrentClocksThrottleReasons=bit | 2)
    assert older.read().throttled == (name,), "a driver that knows the first name only"
    lacking = FakeNvml(nvmlDeviceGetCurrentClocksThrottleReasons=bit | 2)
    lacking.nvmlDeviceGetCurrentClocksEventReasons = None
    monkeypatch.setattr(NvmlSensor, "nvml", lacking)
    assert NvmlSensor("handle").read().throttled == (name,), "a library that knows the first name only"


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def cpu_system(root: Path) -> Path:
    for core, (clock, throttled) in enumerate([(2_000_000, 0), (3_000_000, 70)]):
        write(root / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", clock)
        write(root / f"devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_total_time_ms", throttled)
    powercap = root / "class/powercap"
    for zone, name, joules in (
        ("intel-rapl:0", "package-0", 100),
        ("intel-rapl:1", "package-1", 200),
        ("intel-rapl:0:0", "core", 50),
        ("intel-rapl:1:0", "dram", 30),
        ("intel-rapl:2", "psys", 900),
        ("intel-rapl-mmio:0", "package-0", 101),
    ):
        write(powercap / zone / "energy_uj", joules * 10**6)
        write(powercap / zone / "max_energy_range_uj", 1000 * 10**6)
        write(powercap / zone / "name", name)
    return root


def test_a_cpu_is_read_from_sysfs(tmp_path: Path) -> None:
    sensor = CpuSensor(cpu_system(tmp_path))
    assert sensor.read().clock_mhz == 2500.0
    assert sensor.throttled_s() == {"thermal slowdown": 0.07}
    assert sensor.counter == "powercap (package-0, package-1, package-1 dram)"
    assert sensor.energy_j() == 330.0, "packages once, memory, neither a package's parts nor the whole board"


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    sensor = CpuSensor(cpu_system(tmp_path))
    zone = tmp_path / "class/powercap/intel-rapl:1/energy_uj"
    for now, total in ((900, 1030), (50, 1180), (60, 1190), (10, 2140)):
        write(zone, now * 10**6)
        assert sensor.energy_j() == total


def test_a_cpu_that_tells_nothing_has_no_counter(tmp_path: Path) -> None:
    sensor = CpuSensor(tmp_path)
    assert sensor.counter is None
    assert sensor.throttled_s() == {}
    with pytest.raises(RuntimeError):
        sensor.energy_j()


def test_a_counter_for_root_alone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_system(tmp_path)
    read = Path.read_text

    def refused(self: Path, *args: Any, **more: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(self)
        return read(self, *args, **more)

    monkeypatch.setattr(Path, "read_text", refused)
    assert CpuSensor(tmp_path).counter is None


class Scripted(Sensor):
    """Gives one reading after the other, the last one again and again."""

    def __init__(self, readings: list[Reading], held_back: list[float], polls: bool = False) -> None:
        self.readings, self.held, self.polls = readings, held_back, polls

    def read(self) -> Reading:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def throttled_s(self) -> dict[str, float]:
        return {"power cap": self.held.pop(0)} if self.held else {}


def test_a_state_has_what_was_read_before_and_after() -> None:
    sensor = Scripted([Reading(1000.0, power_w=300.0), Reading(900.0)], [5.0, 5.25])
    with watched(sensor) as state:
        assert state.clock_mhz == [1000.0]
    assert (state.clock_mhz, state.power_w, state.memory_clock_mhz) == ([1000.0, 900.0], [300.0], [])
    assert len(state.at_s) == 2
    assert state.throttled == ["power cap"], "its counter has grown"
    assert state.throttled_s == 0.25


def test_power_counts_once_it_has_settled() -> None:
    """As an H100 told it: the first readings are of the idle time before."""
    state = DeviceState([0.0, 0.05, 0.1, 0.15, 0.2, 0.21], power_w=[120.0, 120.0, 347.0, 571.0, 575.0, 574.0])
    assert state.during("power_w") == [571.0, 575.0]
    assert DeviceState([0.0, 0.011], power_w=[121.0, 122.0]).during("power_w") == []
    assert DeviceState([0.0, 0.011], clock_mhz=[1980.0, 1970.0]).during("clock_mhz") == [1980.0, 1970.0]


def test_a_counter_that_stands_still_marks_nothing() -> None:
    with watched(Scripted([Reading()], [5.0, 5.0])) as state:
        pass
    assert state.throttled == []
    assert state.throttled_s == 0.0
    with watched(Scripted([Reading()], [])) as state:
        pass
    assert state.throttled_s is None


def test_a_gpu_is_read_meanwhile_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "INTERVAL_S", 0.001)
    sensor = Scripted([Reading(1.0), Reading(2.0, throttled=("thermal slowdown",)), Reading(3.0)], [], polls=True)
    with watched(sensor) as state:
        while len(state.clock_mhz) < 3:
            time.sleep(0.001)
    assert state.clock_mhz[:3] == [1.0, 2.0, 3.0]
    assert state.at_s == sorted(state.at_s)
    assert state.throttled == ["thermal slowdown"]


def test_what_throttled_before_does_not_count_and_readings_outside_are_left_out() -> None:
    sensor = Scripted([Reading(100.0, throttled=("power brake",)), Reading(200.0)], [])
    with watched(sensor) as state:
        pass
    assert state.throttled == []
    assert state.during("clock_mhz") == [100.0, 200.0], "there is none between"
    state.clock_mhz = [100.0, 1980.0, 1970.0, 200.0]
    assert state.during("clock_mhz") == [1980.0, 1970.0]


def test_the_state_is_complete_where_a_sample_fails() -> None:
    with pytest.raises(ZeroDivisionError), watched(Scripted([Reading(1.0)], [])) as state:
        _ = 1 / 0
    assert len(state.clock_mhz) == 2


def test_this_machine_can_be_asked() -> None:
    device = Device(DeviceConfig(_target_="gptbench.device.Device", name="auto"))
    sensor = sensor_of(DeviceGroup((device,)))
    with watched(sensor) as state:
        pass
    assert len(state.at_s) >= 2


@pytest.mark.gpu
def test_a_real_gpu_tells_all_of_it() -> None:
    import torch

    sensor = sensor_of(DeviceGroup((Device(DeviceConfig(_target_="gptbench.device.Device", name="cuda")),)))
    assert isinstance(sensor, NvmlSensor)
    work = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    before = sensor.energy_j()
    with watched(sensor) as state:
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            work @ work
            torch.cuda.synchronize()
    assert 5 <= len(state.at_s) <= 20
    for values in (state.clock_mhz, state.memory_clock_mhz, state.power_w, state.temperature_c):
        assert len(values) == len(state.at_s)
        assert min(values) > 0
    assert 20 < sensor.energy_j() - before < 1000
