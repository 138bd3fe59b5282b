"""The device of a run: a common interface to a GPU and to the CPU."""

import contextlib
import ctypes
import platform
from pathlib import Path

import psutil
import torch

from gptbench.base import limits
from gptbench.base.errors import ConfigError
from gptbench.config import DeviceConfig, DeviceKind, Dtype


class Device:
    """One GPU, or the CPU.

    Attributes:
        is_cuda: whether it is a GPU.
        torch: torch device.
        dtype: type of activations, KV cache and unquantised weights.
        name: vendor's name of the processor.
        cores: number of CPU cores that this process may use.
        threads: number of CPU threads per torch operation.

    Raises:
        ConfigError: the device in the configuration does not exist.
    """

    def __init__(self, config: DeviceConfig) -> None:
        kind = config.kind
        if kind is DeviceKind.auto:
            kind = DeviceKind.cuda if torch.cuda.is_available() else DeviceKind.cpu
        self.is_cuda = kind is DeviceKind.cuda
        if self.is_cuda:
            count = torch.cuda.device_count()
            if count == 0:
                raise ConfigError("device.kind", "cuda", "cpu or auto: torch sees no GPU here")
            if config.index >= count:
                raise ConfigError("device.index", config.index, range(count))
            self.torch = torch.device("cuda", config.index)
            torch.cuda.set_device(self.torch)
            self.name = torch.cuda.get_device_name(self.torch)
        else:
            if config.index != 0:
                raise ConfigError("device.index", config.index, "0 on a CPU")
            self.torch = torch.device("cpu")
            self.name = cpu_name()
        self.cores = limits.cores()
        self.threads = config.threads or min(DEFAULT_THREADS, self.cores)
        self.use()
        self.dtype = torch.bfloat16 if self.is_cuda else torch.float32
        if config.dtype is not Dtype.auto:
            self.dtype = getattr(torch, config.dtype.value)

    @property
    def is_amd(self) -> bool:
        """Whether it is an AMD GPU, which torch also calls `cuda`."""
        return self.is_cuda and torch.version.hip is not None

    def use(self) -> None:
        """Set the process's number of CPU threads to this device's, which another device may have changed."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    @property
    def dtype_name(self) -> str:
        """Name of the type as in the configuration, such as bfloat16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def key(self) -> str:
        """File name for results of this very device: a GPU by its UUID, a CPU by its number of threads."""
        return file_name(f"{self.name} {self.uuid if self.is_cuda else f'{torch.get_num_threads()} threads'}")

    @property
    def kind(self) -> str:
        """File name for results of all devices of this kind: GPUs of the same name, compute capability and number of
        streaming multiprocessors. For a CPU it is `key`."""
        if not self.is_cuda:
            return self.key
        properties = torch.cuda.get_device_properties(self.torch)
        capability = f"sm{properties.major}{properties.minor}"
        return file_name(f"{self.name} {capability} {properties.multi_processor_count} processors")

    @property
    def uuid(self) -> str | None:
        """UUID of a GPU; None on a CPU."""
        return str(torch.cuda.get_device_properties(self.torch).uuid) if self.is_cuda else None

    def free_memory(self) -> int:
        """Return the number of bytes that can still be allocated."""
        if self.is_cuda:
            return torch.cuda.mem_get_info(self.torch)[0]
        return limits.free_memory()

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def release_memory(self) -> None:
        """Return the memory that torch's allocator caches to the system, so that other processes can use it."""
        if self.is_cuda:
            torch.cuda.empty_cache()
        elif platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)

    def reset_peak_memory(self) -> None:
        """Reset the peak to the memory that is in use now."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)
        elif CLEAR_REFS.exists():
            with contextlib.suppress(OSError):  # some containers forbid it: the peak is then that of the whole process
                CLEAR_REFS.write_text("5")  # resets VmHWM: proc(5)

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: the allocator's on a GPU, the resident set of the process on a CPU, there
        since the last reset, or since the process began where the kernel cannot reset it."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch)
        status = Path("/proc/self/status")
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if "VmHWM" in fields:
                return int(fields["VmHWM"].split()[0]) * 1024
        return psutil.Process().memory_info().rss


DEFAULT_THREADS = torch.get_num_threads()
"""Number of threads that torch chose when this process began."""

CLEAR_REFS = Path("/proc/self/clear_refs")
"""File of proc(5) that resets the peak of the resident set."""


def file_name(name: str) -> str:
    """Return a name in lower case, with a dash for each character that is neither a letter nor a digit."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def cpu_name() -> str:
    """Return the name of the CPU as the kernel reports it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
