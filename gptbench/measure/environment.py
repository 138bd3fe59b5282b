"""What a number depends on beside the configuration: code, processor, driver, power limit, libraries."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptbench import __version__, limits
from gptbench.device import Device, cpu_name

LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "mlflow",
    "numpy",
)


@dataclass
class Environment:
    """Where a run took place."""

    commit: str | None
    """Commit of the code, with -dirty where tracked files differ from it; None where it cannot be told."""
    device: str
    """Name of the processor that ran the model."""
    cpu: str
    cores: int
    """Cores that this process may use: by affinity, and by the CPU quota of its control groups, rounded down."""
    threads: int
    """CPU threads for one torch operation."""
    driver: str | None
    """Of the GPU."""
    power_limit_w: float | None
    """Of the GPU, enforced, in watts."""
    cuda: str | None
    """CUDA version that torch was built with."""
    python: str
    platform: str
    libraries: dict[str, str]
    """Version of each of `LIBRARIES` that is installed, and of gptbench."""
    cpu_quota: float | None = None
    """CPUs' worth of time that the process's control groups allow, as by `docker run --cpus`; None where they set no
    quota."""
    memory_limit_bytes: int | None = None
    """Memory that the process's control groups allow; None where they set no limit."""

    @property
    def on_gpu(self) -> bool:
        return self.device != self.cpu

    @property
    def place(self) -> dict[str, Any]:
        """What kind of place it is: see `place_of`."""
        return place_of(self.device, self.on_gpu, self.power_limit_w, self.cores)


def place_of(device: str, on_gpu: bool, power_limit_w: float | None, cores: int) -> dict[str, Any]:
    """What kind of place a number is from, by field of `Environment`. Numbers of different places are never held
    against each other: not of two devices, power limits, nor parts of a CPU, of which machines in a cloud have any
    number of cores. Machines of one kind are one place, so that a sweep can be resumed on any of them."""
    found = {"device": device, "power_limit_w": power_limit_w}
    return found if on_gpu else found | {"cores": cores}


def place(device: Device) -> dict[str, Any]:
    """The same of a device that is here."""
    return place_of(device.name, device.is_cuda, gpu_state(device)[1], device.cores)


def environment(device: Device, commit: str | None) -> Environment:
    """Looks everything up; the commit only where it is not given."""
    driver, power_limit = gpu_state(device)
    versions = {"gptbench": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        commit=commit or git_commit(),
        device=device.name,
        cpu=cpu_name(),
        cores=device.cores,
        threads=torch.get_num_threads(),
        driver=driver,
        power_limit_w=power_limit,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        platform=platform.platform(),
        libraries=versions,
        cpu_quota=limits.cpu_quota(),
        memory_limit_bytes=limits.memory_limit(),
    )


def git_commit() -> str | None:
    """Commit of the checkout that this file is in, if git and a checkout are there."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_state(device: Device) -> tuple[str | None, float | None]:
    """Driver version and enforced power limit (watts), from NVML; None on a CPU and where NVML does not tell."""
    if not device.is_cuda:
        return None, None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device.torch).uuid}")
        return pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError:
        return None, None
