"""What a number depends on beside the configuration: code, processor, driver, power limit, libraries."""

import contextlib
import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptbench import STARTED_WITH, __version__
from gptbench.base import limits
from gptbench.base.redaction import redacted
from gptbench.config import plugins
from gptbench.device import Device, cpu_name
from gptbench.device.group import DeviceGroup
from gptbench.private import version
from gptbench.schema.machine import Environment
from gptbench.schema.place import Place, whole_watts

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
VARIABLES = re.compile(
    r"(TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|ATEN|TRITON|CUDA|CUBLAS|CUBLASLT|CUDNN|NCCL|HIP|ROCR|OMP|GOMP|KMP|MKL|DNNL|"
    r"ONEDNN|OPENBLAS|MALLOC)_\w+|NVIDIA_TF32_OVERRIDE|GLIBC_TUNABLES|LD_PRELOAD|CC|CXX|CFLAGS|CXXFLAGS"
)
"""Environment variables that a number may depend on."""
PLACES = re.compile(r"_(DIR|PATH|HOME|FILE|LOG\w*)$|^TORCH_LOGS|^PYTORCH_NVML_BASED_CUDA_CHECK$|COMPILE_THREADS$")
"""Those that say where something lies, what is printed, how many compile, or that gptbench sets itself."""
ADDED = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Those that scikit-learn, joblib, threadpoolctl and torch's compiler set when they are imported, as a process that a
later one inherits from may have done. They only let OpenMP be loaded twice and forked."""


def place(device: Device, libraries: tuple[str, ...] = ()) -> Place:
    """Of a device that is here, without the commit; with versions of these libraries, too."""
    driver, power_limit = gpu_state(device)
    return Place(
        device=device.name,
        on_gpu=device.is_cuda,
        power_limit_w=whole_watts(power_limit),
        cores=device.cores,
        threads=torch.get_num_threads(),
        driver=driver,
        libraries=versions(libraries),
        variables=variables(),
        host=platform.node(),
    )


def versions(libraries: tuple[str, ...] = ()) -> dict[str, str]:
    """Of gptbench, and of each of `LIBRARIES` and of these that is installed."""
    found = {name: version(name) for name in (*LIBRARIES, *libraries)}
    return {"gptbench": __version__} | {name: known for name, known in found.items() if known is not None}


def environment(devices: DeviceGroup, commit: str | None) -> Environment:
    """Looks everything up; the commit only where it is not given."""
    device = devices.own
    driver, power_limit = gpu_state(device)
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
        libraries=versions(),
        cpu_quota=limits.cpu_quota(),
        memory_limit_bytes=limits.memory_limit(),
        variables=variables(),
        plugins=dict(plugins.loaded),
        compiler=compiler(),
        **gpu_settings(device),
    )


def variables() -> dict[str, str]:
    """Environment variables that were set when this process began, by name; see `Environment.variables`."""
    found = {name: value for name, value in STARTED_WITH.items() if VARIABLES.fullmatch(name)}
    found = {name: value for name, value in found.items() if not PLACES.search(name) and name not in ADDED}
    return dict(redacted(dict(sorted(found.items()))))


@functools.cache
def compiler() -> str | None:
    """Of C++: the first line of what it says of itself; None where there is none."""
    for command in (os.environ.get("CXX"), "g++", "clang++"):
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            if command:
                done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=10)
                return done.stdout.partition("\n")[0].strip() or None
    return None


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


def gpu_settings(device: Device) -> dict[str, Any]:
    """Fields of `Environment` that say how the GPU is set; without those that NVML does not tell."""
    if not device.is_cuda:
        return {}
    import pynvml

    asked: dict[str, Callable[[Any], Any]] = {
        "ecc": lambda handle: bool(pynvml.nvmlDeviceGetEccMode(handle)[0]),
        "mig": lambda handle: bool(pynvml.nvmlDeviceGetMigMode(handle)[0]),
        "application_clock_mhz": lambda handle: pynvml.nvmlDeviceGetApplicationsClock(handle, pynvml.NVML_CLOCK_SM),
        "max_clock_mhz": lambda handle: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
    }
    found = {}
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{device.uuid}")
        for name, ask in asked.items():
            with contextlib.suppress(pynvml.NVMLError, AttributeError):  # an older library
                found[name] = ask(handle)
    return found


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
