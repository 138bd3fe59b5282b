"""What a number depends on beside the configuration: code, processor, driver, power limit, libraries."""

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from gptbench import __version__
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
    """Cores that this process may use."""
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

    @property
    def on_gpu(self) -> bool:
        return self.device != self.cpu


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
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        driver=driver,
        power_limit_w=power_limit,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        platform=platform.platform(),
        libraries=versions,
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
