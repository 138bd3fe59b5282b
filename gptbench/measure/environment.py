"""Records the environment of a measurement: code, processor, driver, power limit, libraries and variables."""

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
"""Names of environment variables that a measurement may depend on."""
IRRELEVANT = re.compile(r"_(DIR|PATH|HOME|FILE|LOG\w*)$|^TORCH_LOGS|^PYTORCH_NVML_BASED_CUDA_CHECK$|COMPILE_THREADS$")
"""Names of variables that affect no measurement: paths, logging, number of compile jobs, and what gptbench sets."""
ADDED = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Variables that scikit-learn, joblib, threadpoolctl and torch's compiler set when they are imported, and that child
processes inherit. They only allow OpenMP to be loaded twice and to fork."""


def place(device: Device, libraries: tuple[str, ...] = ()) -> Place:
    """Return the `Place` of a device of this machine, without the commit, and with the versions of `libraries` too."""
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
    """Return the versions of gptbench and of the installed ones among `LIBRARIES` and `libraries`."""
    installed = {name: version(name) for name in (*LIBRARIES, *libraries)}
    return {"gptbench": __version__} | {name: number for name, number in installed.items() if number is not None}


def environment(devices: DeviceGroup, commit: str | None) -> Environment:
    """Return the environment of this process; `commit` None means to look the commit up."""
    device = devices.local
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
    """Return the relevant environment variables that this process started with, for `Environment.variables`."""
    relevant = {
        name: value
        for name, value in STARTED_WITH.items()
        if VARIABLES.fullmatch(name) and not IRRELEVANT.search(name) and name not in ADDED
    }
    return dict(redacted(dict(sorted(relevant.items()))))


@functools.cache
def compiler() -> str | None:
    """Return the first line that the C++ compiler prints for --version; None if there is no compiler."""
    for command in (os.environ.get("CXX"), "g++", "clang++"):
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            if command:
                done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=10)
                return done.stdout.partition("\n")[0].strip() or None
    return None


def git_commit() -> str | None:
    """Return the commit of the checkout that this file is in; None without git or a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_settings(device: Device) -> dict[str, Any]:
    """Return the fields of `Environment` for the settings of the GPU, except those that NVML does not report."""
    if not device.is_cuda:
        return {}
    import pynvml

    queries: dict[str, Callable[[Any], Any]] = {
        "ecc": lambda handle: bool(pynvml.nvmlDeviceGetEccMode(handle)[0]),
        "mig": lambda handle: bool(pynvml.nvmlDeviceGetMigMode(handle)[0]),
        "application_clock_mhz": lambda handle: pynvml.nvmlDeviceGetApplicationsClock(handle, pynvml.NVML_CLOCK_SM),
        "max_clock_mhz": lambda handle: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
    }
    settings = {}
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{device.uuid}")
        for name, query in queries.items():
            with contextlib.suppress(pynvml.NVMLError, AttributeError):  # AttributeError: an older version of pynvml
                settings[name] = query(handle)
    return settings


def gpu_state(device: Device) -> tuple[str | None, float | None]:
    """Return the driver version and the enforced power limit in watts, from NVML; each is None on a CPU or if NVML
    fails."""
    if not device.is_cuda:
        return None, None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device.torch).uuid}")
        return pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError:
        return None, None
