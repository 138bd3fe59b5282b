"""The read roof: the highest rate seen, on which device, under which conditions; and the probes that may raise it."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gptbench.base.errors import DoesNotFitError
from gptbench.config import DeviceConfig, DeviceKind
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.measure import roof as module
from gptbench.measure.environment import environment
from gptbench.measure.roof import PROBES, Roofs, cpu_cache_bytes, measured_roof, measurements
from gptbench.schema.machine import FULL, PROBE, Environment, Roof
from gptbench.schema.result import Result
from tests.results import made_result

SMALL = 2**20


def device(kind: str = "cpu", threads: int | None = 1) -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name=kind, kind=DeviceKind(kind), threads=threads))


def group(of: Device) -> DeviceGroup:
    return DeviceGroup((of,))


@pytest.fixture
def on() -> Iterator[Device]:
    before = torch.get_num_threads()
    yield device()
    torch.set_num_threads(before)


@pytest.fixture
def here(on: Device) -> Environment:
    return environment(group(on), "x")


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next measurements, full ones and probes, give."""
    left: list[float] = []

    def measure(device: Device, environment: Environment, nbytes: int, kind: str) -> Roof:
        rate = left.pop(0)
        return Roof(device.name, rate, "made", nbytes, [nbytes / rate / 1e9], f"at {rate}", environment, kind)

    monkeypatch.setattr(module, "measured_roof", measure)
    return left


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_BUFFER_BYTES", SMALL)
    monkeypatch.setattr(module, "CACHES", 0)
    monkeypatch.setattr(module, "LAUNCHES", 3)
    monkeypatch.setattr(module, "PROBE_S", 0.001)


def test_the_roof_is_the_highest_rate_seen(on: Device, here: Environment, rates: list[float], tmp_path: Path) -> None:
    rates += [50.0, 7.0, 60.0]
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 50
    assert Roofs(group(on), here, tmp_path).read(again=True).gb_per_s == 50, "measured again on a busy machine"
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 50
    assert Roofs(group(on), here, tmp_path).read(again=True).gb_per_s == 60
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 60
    (file,) = tmp_path.glob("*.json")
    assert [(one.gb_per_s, one.kind, one.measured) for one in measurements(file)] == [
        (50, FULL, "at 50.0"),
        (7, FULL, "at 7.0"),
        (60, FULL, "at 60.0"),
    ], "all of them are kept"
    assert all(one.environment == here and one.host == platform.node() for one in measurements(file))


def test_a_probe_may_only_raise_it(on: Device, here: Environment, rates: list[float], tmp_path: Path) -> None:
    rates += [10.0, 8.0, 12.0, 11.0]
    roofs = Roofs(group(on), here, tmp_path)
    assert roofs.read().gb_per_s == 10
    before = roofs.probe("before")
    assert before is not None
    assert (before.when, before.gb_per_s, roofs.read().gb_per_s) == ("before", 8, 10)
    after = roofs.probe("after")
    assert after is not None
    assert (after.gb_per_s, roofs.read().gb_per_s) == (12, 12)
    roofs.probe("before")
    assert [(one.gb_per_s, one.kind) for one in measurements(roofs.path)] == [(10, FULL), (12, PROBE)]
    assert [one.gb_per_s for one in measurements(roofs.path, PROBES)] == [8, 12, 11]


def test_what_probes_of_a_cpu_usually_read_is_known_of_ten(
    on: Device, here: Environment, rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PROBES", 15)  # of 100, which take seconds to write
    roofs, other = (
        Roofs(group(on), here, tmp_path),
        Roofs(group(on), replace(here, driver="570.1"), tmp_path),
    )
    rates += [100.0, 99.0, *[60.0, 40.0] * 5, 70.0, 70.0]
    roofs.read()
    other.probe("before")
    found = [roofs.probe("before") for _ in range(11)]
    assert [probe and probe.usual_gb_per_s for probe in found] == [None] * 10 + [60], "four of five were no faster"
    on.is_cuda = True
    assert roofs.usual() is None, "a GPU's are alike"
    on.is_cuda = False
    assert other.usual() is None
    rates += [50.0] * module.MAX_PROBES
    for _ in range(module.MAX_PROBES):
        roofs.probe("before")
    assert len(measurements(roofs.path, PROBES)) == module.MAX_PROBES
    assert roofs.read().gb_per_s == 100, "the measurements stay"


def test_a_roof_is_of_one_host_with_its_cores_and_threads(
    on: Device, here: Environment, rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates += [50.0, 40.0, 30.0, 20.0]
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 50
    assert Roofs(group(on), replace(here, cores=here.cores + 62), tmp_path).read().gb_per_s == 40
    assert Roofs(group(on), replace(here, threads=here.threads + 1), tmp_path).read().gb_per_s == 30
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 50
    monkeypatch.setattr(platform, "node", lambda: "another/host")
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 20, "of the same name, and another machine"
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_a_roof_is_of_one_driver_power_limit_and_library(
    on: Device, here: Environment, rates: list[float], tmp_path: Path
) -> None:
    other = [
        replace(here, driver="570.1"),
        replace(here, power_limit_w=350.0),
        replace(here, libraries=here.libraries | {"torch": "9"}),
    ]
    rates += [50.0, 40.0, 30.0, 20.0]
    for number, each in enumerate([here, *other]):
        assert Roofs(group(on), each, tmp_path).read().gb_per_s == 50 - 10 * number
    assert Roofs(group(on), here, tmp_path).read().gb_per_s == 50
    (file,) = tmp_path.glob("*.json")
    assert len(measurements(file)) == 4


def older(roof: Roof) -> str:
    """A file of a version that kept one measurement."""
    return json.dumps({key: value for key, value in asdict(roof).items() if key not in ("kind", "host")})


def test_a_file_of_a_gpu_of_an_older_version_counts(
    here: Environment, rates: list[float], tmp_path: Path, on: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept one for each card; the kind of card counts now."""
    on.name, on.is_cuda = "NVIDIA H200", True
    there = replace(here, device=on.name, driver="570.1", power_limit_w=700.0)
    monkeypatch.setattr(module, "gpu_cache_bytes", lambda device: 2**26)
    monkeypatch.setattr(Device, "free_memory", lambda device: 2**34)
    kept = Roof(on.name, 4700.0, "gptbench.kernels.read_reduce", 2**32, [0.0009], "2026-11-26", there)
    (tmp_path / "nvidia-h200-5b1a.json").write_text(older(kept))
    (tmp_path / "nvidia-h200-77aa.json").write_text(older(replace(kept, gb_per_s=4650.0)))
    (tmp_path / "nvidia-h200-nvl-0000.json").write_text(older(replace(kept, device="NVIDIA H200 NVL", gb_per_s=9e9)))
    (tmp_path / "nvidia-h200-ffff.json").write_text("{}")
    assert Roofs(group(on), there, tmp_path).read().gb_per_s == 4700
    rates += [4710.0]
    Roofs(group(on), there, tmp_path).probe("before")
    assert Roofs(group(on), there, tmp_path).read().gb_per_s == 4710
    (kept,) = measurements(tmp_path / "nvidia-h200.json")
    assert kept.buffer_bytes == 2**32
    monkeypatch.setattr(Device, "free_memory", lambda device: 2**30 + 2**29 + 5)
    rates += [4600.0]
    found = Roofs(group(on), there, tmp_path).probe("before")
    assert found is not None
    assert found.buffer_bytes == 2**30 + 5, "beside a large model, less of it"
    monkeypatch.setattr(Device, "free_memory", lambda device: 2**30)
    assert Roofs(group(on), there, tmp_path).probe("before") is None, "too little to be read at the same rate"


def test_a_file_of_a_cpu_of_an_older_version_is_read_and_does_not_count(
    on: Device, here: Environment, rates: list[float], tmp_path: Path
) -> None:
    """It does not say of which of all machines with such a processor it is."""
    roofs = Roofs(group(on), here, tmp_path)
    roofs.path.write_text(older(Roof(on.name, 99.0, "made", 2**30, [0.1], "2026-11-26", here)))
    rates += [50.0]
    assert roofs.read().gb_per_s == 50
    assert [one.gb_per_s for one in measurements(roofs.path)] == [99, 50], "nor is it lost"


def test_a_damaged_file_is_measured_over(on: Device, here: Environment, rates: list[float], tmp_path: Path) -> None:
    roofs = Roofs(group(on), here, tmp_path)
    good = asdict(Roof(on.name, 99.0, "made", 2**30, [0.1], "2026-11-26", here, host=platform.node()))
    wrong = [
        "",
        "{}",
        "[]",
        "null",
        '{"measurements": 3}',
        '{"measurements": [null]}',
        *(json.dumps({"measurements": [good | {"gb_per_s": rate}]}) for rate in (0, -1, "x", None, True, float("nan"))),
    ]
    for content in wrong:
        roofs.path.write_text(content)
        rates += [50.0]
        assert roofs.read().gb_per_s == 50, content
        assert rates == []


@pytest.mark.usefixtures("small")
def test_a_measurement_reads_the_buffer_and_counts_the_fastest(on: Device, here: Environment) -> None:
    found = measured_roof(on, here, SMALL, FULL)
    assert (found.buffer_bytes, len(found.seconds), found.kind) == (SMALL, 3, FULL)
    assert found.gb_per_s == pytest.approx(SMALL / min(found.seconds) / 1e9)
    assert found.gb_per_s > 0.01
    short = measured_roof(on, here, SMALL, PROBE)
    assert len(short.seconds) >= module.MIN_PROBE_LAUNCHES
    assert sum(short.seconds) >= module.PROBE_S
    assert sum(short.seconds[:-1]) < module.PROBE_S or len(short.seconds) == module.MIN_PROBE_LAUNCHES
    assert short.kind == PROBE


@pytest.mark.usefixtures("small")
def test_there_is_no_probe_without_memory_for_it(
    on: Device, here: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roofs = Roofs(group(on), here, tmp_path)
    roofs.read()
    monkeypatch.setattr(Device, "free_memory", lambda device: SMALL - 1)
    assert roofs.probe("before") is None
    monkeypatch.setattr(Device, "free_memory", lambda device: SMALL)
    assert roofs.probe("before") is not None


def test_the_roof_is_not_that_of_a_cache(
    on: Device, here: Environment, rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits in caches is read at their rate, whether it is measured now or is in a file."""
    roofs = Roofs(group(on), here, tmp_path)
    cached = Roof(on.name, 98.0, "made", 2**21, [0.1], "2026-12-01", here, host=platform.node())
    module.write_json(roofs.path, {"measurements": [asdict(cached)]})
    for free in (2**22, 0):
        monkeypatch.setattr(Device, "free_memory", lambda device, free=free: free)
        with pytest.raises(DoesNotFitError, match=r"too little free memory .* room for a buffer of .* GB"):
            roofs.read()
    assert [one.gb_per_s for one in measurements(roofs.path)] == [98], "nothing is added, and nothing lost"
    monkeypatch.setattr(Device, "free_memory", lambda device: 2**40)
    rates += [10.0]
    assert roofs.read().gb_per_s == 10
    monkeypatch.setattr(Device, "free_memory", lambda device: 0)
    assert roofs.read().gb_per_s == 10, "which is known from then on"
    assert roofs.probe("before") is None


def test_the_buffer_is_many_times_what_the_caches_hold(
    tmp_path: Path, on: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, shared in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        for level, size, own in (("index2", "1024K", str(cpu)), ("index3", "98304K", shared)):
            cache = tmp_path / f"cpu{cpu}" / "cache" / level
            cache.mkdir(parents=True)
            (cache / "size").write_text(f"{size}\n")
            (cache / "shared_cpu_list").write_text(f"{own}\n")
    assert cpu_cache_bytes(4, tmp_path) == 2 * 96 * 2**20
    assert cpu_cache_bytes(4, tmp_path / "none") == 0
    assert cpu_cache_bytes(1, tmp_path) == 96 * 2**20, "one thread fills no more than one"
    for cache in tmp_path.glob("*/cache/index3"):
        (cache / "size").unlink()
    assert cpu_cache_bytes(4, tmp_path) == 4 * 2**20, "the last level is the second"
    monkeypatch.setattr(module, "cpu_cache_bytes", lambda threads: 2**40)
    assert module.buffer_bytes(on) == 8 * 2**40
    monkeypatch.setattr(module, "cpu_cache_bytes", lambda threads: 0)
    assert module.buffer_bytes(on) == module.CPU_BUFFER_BYTES


def test_probes_are_recorded_and_old_records_have_none(tmp_path: Path) -> None:
    result = made_result()
    result.probes = [module.Probe("before", 3900.0, 2**32, [0.0011], "2026-12-01")]
    path = result.save(tmp_path)
    assert Result.load(path).probes == result.probes
    raw = json.loads(path.read_text())
    del raw["probes"], raw["roof"]["kind"], raw["roof"]["host"]
    path.write_text(json.dumps(raw))
    assert Result.load(path).probes == []
    assert Result.load(path).roof.kind == FULL


@pytest.mark.gpu
def test_roof_of_a_gpu(tmp_path: Path) -> None:
    on = device("cuda", None)
    roofs = Roofs(group(on), environment(group(on), None), tmp_path)
    roof = roofs.read(again=True)
    assert roof.environment.driver
    assert roof.environment.power_limit_w
    if "H200" in on.name:
        assert 0.88 * 4800 < roof.gb_per_s < 4800, "rates of cards differ: 4465 and 4663 GB/s were read"
    torch.cuda.synchronize()
    reserved, free = torch.cuda.memory_reserved(), on.free_memory()
    own = torch.cuda.get_rng_state()
    found = roofs.probe("before")
    assert found is not None
    assert found.gb_per_s == pytest.approx(roof.gb_per_s, rel=0.02)
    assert torch.cuda.memory_reserved() == reserved
    assert on.free_memory() >= free - 2**24, "the buffer goes back to the device"
    assert torch.equal(torch.cuda.get_rng_state(), own)
