"""The device: names that can be files, errors that name the field, threads, memory."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gptbench.base import limits
from gptbench.base.errors import ConfigError
from gptbench.config import DeviceConfig, DeviceKind, Dtype
from gptbench.device import CLEAR_REFS, Device


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config(**values: Any) -> DeviceConfig:
    return DeviceConfig(_target_="gptbench.device.Device", name="test", **values)


def cpu(**values: Any) -> Device:
    return Device(config(kind=DeviceKind.cpu, **values))


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    device = Device(config())
    assert device.is_cuda == torch.cuda.is_available()
    assert device.torch.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.name


def test_cpu_is_taken_where_it_is_asked_for() -> None:
    device = cpu()
    assert device.torch == torch.device("cpu")
    assert not device.is_cuda
    device.synchronize()


@pytest.mark.parametrize("gpus", [1, 2, 8], ids="gpus={}".format)
def test_a_gpu_that_is_not_there(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError) as raised:
        Device(config(kind=DeviceKind.cuda, index=gpus))
    choices = ", ".join(str(index) for index in range(gpus))
    assert str(raised.value) == f"device.index={gpus}: expected one of {choices}"


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError) as raised:
        Device(config(kind=DeviceKind.cuda))
    assert raised.value.field == "device.kind"
    assert str(raised.value).startswith("device.kind=cuda: expected cpu or auto")


def test_a_cpu_has_one_index() -> None:
    with pytest.raises(ConfigError, match=r"^device\.index=1: expected 0 on a CPU$"):
        cpu(index=1)


@pytest.mark.parametrize("field", ["index", "threads"])
def test_negative_numbers_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^device\.{field}=-1: expected "):
        config(**{field: -1})


@pytest.mark.parametrize("dtype", list(Dtype), ids=lambda dtype: dtype.value)
def test_dtype(dtype: Dtype) -> None:
    expected = {
        Dtype.auto: torch.float32,
        Dtype.float32: torch.float32,
        Dtype.bfloat16: torch.bfloat16,
        Dtype.float16: torch.float16,
    }
    assert cpu(dtype=dtype).dtype == expected[dtype]


@pytest.mark.gpu
def test_dtype_auto_is_bfloat16_on_a_gpu() -> None:
    assert Device(config(kind=DeviceKind.cuda)).dtype == torch.bfloat16


@pytest.mark.parametrize("threads", [1, 2, 3], ids="threads={}".format)
def test_threads_are_applied(threads: int) -> None:
    cpu(threads=threads)
    assert torch.get_num_threads() == threads


def test_threads_null_is_not_what_an_earlier_device_had() -> None:
    threads = torch.get_num_threads()
    cpu(threads=threads + 1)
    cpu(threads=None)
    assert torch.get_num_threads() == threads


NAMES = [
    "AMD EPYC 9B14 96-Core Processor",
    "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "NVIDIA H200",
    '../a\\b:c*d?"e"<f>|g\n\t%$`',
    "Größe ² 処理装置",
]


@pytest.mark.parametrize("name", NAMES)
def test_key_can_be_a_file_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptbench.device.cpu_name", lambda: name)
    device = cpu(threads=2)
    assert device.name == name
    assert re.fullmatch(r"[\w-]+", device.key)
    assert device.key == device.key.lower()
    assert os.sep not in device.key
    (tmp_path / f"{device.key}.json").write_text("{}")
    assert [path.stem for path in tmp_path.iterdir()] == [device.key]


def test_key_of_a_cpu_tells_the_threads() -> None:
    """A read roof measured with one thread is none for two."""
    one, two = cpu(threads=1).key, cpu(threads=2).key
    assert one.endswith("-1-threads")
    assert two.endswith("-2-threads")
    assert one.removesuffix("1-threads") == two.removesuffix("2-threads")


def test_keys_of_different_processors_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for name in NAMES:
        monkeypatch.setattr("gptbench.device.cpu_name", lambda name=name: name)
        keys.add(cpu().key)
    assert len(keys) == len(NAMES)


def test_memory_and_threads_go_by_the_limits_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < cpu().free_memory() <= psutil.virtual_memory().total
    monkeypatch.setattr(limits, "free_memory", lambda: 12345)
    assert cpu().free_memory() == 12345
    monkeypatch.setattr("gptbench.device.DEFAULT_THREADS", 64)
    monkeypatch.setattr(limits, "cores", lambda: 2)
    assert (cpu().cores, cpu().threads, torch.get_num_threads()) == (2, 2, 2)
    assert cpu(threads=1).threads == 1
    assert cpu(threads=3).threads == 3, "what is asked for by name"
    monkeypatch.setattr(limits, "cores", lambda: 128)
    assert cpu().threads == 64


class Gpu:
    """What torch tells of one."""

    def __init__(self, name: str = "NVIDIA H200", uuid: str = "6d3b1a4e-0000-1111-2222-333344445555", sms: int = 132):
        self.name, self.uuid, self.multi_processor_count = name, uuid, sms
        self.major, self.minor = 9, 0


def test_kind_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are of a kind; what one card of eight has learnt serves the others."""
    device = cpu()
    device.is_cuda = True
    keys, kinds = set(), []
    for gpu in (Gpu(), Gpu(uuid="9a8b7c6d-0000-1111-2222-333344445555"), Gpu(sms=66), Gpu("NVIDIA H200 NVL")):
        device.name = gpu.name
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        keys.add(device.key)
        kinds.append(device.kind)
    assert len(keys) == 3
    assert kinds[0] == kinds[1] == "nvidia-h200-sm90-132-processors"
    assert len(set(kinds)) == 3
    assert cpu().kind == cpu().key


def test_our_kernels_are_refused_on_gpus_of_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls them cuda, too, and one kind has compute capability 9.0."""
    pytest.importorskip("triton")
    from gptbench.engine.fused import Fused
    from gptbench.kernels.launch import supports_pdl

    device = cpu()
    assert not device.is_amd
    device.is_cuda = True
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert Fused.unavailable_reason(device) is None
    assert supports_pdl(torch.device("cuda", 0))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert (Fused.unavailable_reason(device) or "").startswith("an NVIDIA GPU: its kernels use PTX instructions")
    assert not supports_pdl(torch.device("cuda", 0))


SIZE = 200_000_000


def use_memory(device: Device) -> None:
    """Allocates, touches and frees."""
    block = torch.ones(SIZE // 4, device=device.torch)
    assert block[-1] == 1
    del block
    device.release_memory()


def check_peak_memory(device: Device) -> None:
    device.release_memory()
    device.reset_peak_memory()
    before = device.peak_memory()
    use_memory(device)
    peak = device.peak_memory()
    assert before + 0.95 * SIZE < peak < before + 1.5 * SIZE
    device.reset_peak_memory()
    assert device.peak_memory() < before + 0.25 * SIZE
    # And a second use is seen again.
    use_memory(device)
    assert device.peak_memory() > before + 0.95 * SIZE


@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="this kernel cannot reset a process's peak")
def test_peak_memory_of_a_cpu_starts_anew() -> None:
    check_peak_memory(cpu())


@pytest.mark.gpu
def test_peak_memory_of_a_gpu_starts_anew() -> None:
    check_peak_memory(Device(config(kind=DeviceKind.cuda)))


def test_peak_memory_includes_what_is_in_use() -> None:
    device = cpu()
    block = torch.ones(SIZE // 4)
    device.reset_peak_memory()
    assert device.peak_memory() > SIZE
    assert block[0] == 1
