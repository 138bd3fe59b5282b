"""The device that a run uses, and what differs between a GPU and a CPU."""

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
        torch: the torch device.
        dtype: type of activations, KV cache and unquantised weights.
        name: the vendor's name of the processor.
        cores: CPU cores that this process may use.
        threads: CPU threads for one torch operation.

    Raises:
        ConfigError: the device that the configuration names is not there.
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
        """Whether it is a GPU that torch drives through ROCm, under the names that CUDA's have."""
        return self.is_cuda and torch.version.hip is not None

    def use(self) -> None:
        """Sets the process's number of CPU threads to this device's, where another one was made since."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    @property
    def dtype_name(self) -> str:
        """As it is written in the configuration."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def key(self) -> str:
        """Name for files about this one device: GPUs of one kind differ, and a CPU by its number of threads."""
        return file_name(f"{self.name} {self.uuid if self.is_cuda else f'{torch.get_num_threads()} threads'}")

    @property
    def kind(self) -> str:
        """Name for files about every device of this kind: of GPUs those of one name, compute capability and number of
        streaming multiprocessors; of CPUs as `key`."""
        if not self.is_cuda:
            return self.key
        found = torch.cuda.get_device_properties(self.torch)
        return file_name(f"{self.name} sm{found.major}{found.minor} {found.multi_processor_count} processors")

    @property
    def uuid(self) -> str | None:
        """Of a GPU."""
        return str(torch.cuda.get_device_properties(self.torch).uuid) if self.is_cuda else None

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        if self.is_cuda:
            return torch.cuda.mem_get_info(self.torch)[0]
        return limits.free_memory()

    def synchronize(self) -> None:
        """Waits until all work given to the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def release_memory(self) -> None:
        """Gives back what torch's allocator keeps, so that another process can have it."""
        if self.is_cuda:
            torch.cuda.empty_cache()
        elif platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)

    def reset_peak_memory(self) -> None:
        """Starts the peak again from what is in use now."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)
        elif CLEAR_REFS.exists():
            with contextlib.suppress(OSError):  # some containers refuse it: then the peak is the process's
                CLEAR_REFS.write_text("5")  # resets VmHWM: proc(5)

    def peak_memory(self) -> int:
        """Bytes: the allocator's peak on a GPU, the process's resident peak on a CPU (of the process where the
        kernel cannot reset it)."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch)
        status = Path("/proc/self/status")
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if "VmHWM" in fields:
                return int(fields["VmHWM"].split()[0]) * 1024
        return psutil.Process().memory_info().rss


DEFAULT_THREADS = torch.get_num_threads()
"""As torch chose them when this process began."""

CLEAR_REFS = Path("/proc/self/clear_refs")


def file_name(name: str) -> str:
    """The same in lower case, with a dash for whatever is neither letter nor digit."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def cpu_name() -> str:
    """The processor's name, as the kernel tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
