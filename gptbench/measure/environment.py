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
from gptbench.private import version
from gptbench.schema.machine import Environment, place_of

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
CODE = re.compile(
    r"(?!\w*NUM_THREADS)(?:(TORCHINDUCTOR|TORCHDYNAMO|TRITON|CUBLAS|CUBLASLT|CUDNN|KMP|MKL|DNNL|ONEDNN)_\w+|NVIDIA_TF32_OVERRIDE|"
    r"ATEN_CPU_CAPABILITY|CUDA_LAUNCH_BLOCKING|(PYTORCH_CUDA|PYTORCH)_ALLOC_CONF|OMP_(PROC_BIND|PLACES|SCHEDULE|WAIT_POLICY)|"
    r"GOMP_(CPU_AFFINITY|SPINCOUNT))"
)
"""Those of them that choose other code, or bind its threads, and are the same for every job of a sweep: numbers with
different ones are of different measurements. Others may differ by job without meaning anything (CUDA_VISIBLE_DEVICES
tells which of several cards, OMP_NUM_THREADS is in the number of threads), and are recorded only."""
PLACES = re.compile(r"_(DIR|PATH|HOME|FILE|LOG\w*)$|^TORCH_LOGS|^PYTORCH_NVML_BASED_CUDA_CHECK$|COMPILE_THREADS$")
"""Those that say where something lies, what is printed, how many compile, or that gptbench sets itself."""
ADDED = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Those that scikit-learn, joblib, threadpoolctl and torch's compiler set when they are imported, as a process that a
later one inherits from may have done. They only let OpenMP be loaded twice and forked."""


def place(device: Device) -> dict[str, Any]:
    """The same of a device that is here."""
    return place_of(device.name, device.is_cuda, gpu_state(device)[1], device.cores)


def environment(device: Device, commit: str | None) -> Environment:
    """Looks everything up; the commit only where it is not given."""
    driver, power_limit = gpu_state(device)
    versions = {"gptbench": __version__}
    versions |= {name: found for name in LIBRARIES if (found := version(name)) is not None}
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
        variables=variables(),
        plugins=dict(plugins.loaded),
        compiler=compiler(),
        **gpu_settings(device),
    )


def variables(needed: re.Pattern[str] = VARIABLES) -> dict[str, str]:
    """Environment variables that were set when this process began, by name, of those that match; see
    `Environment.variables`."""
    found = {name: value for name, value in STARTED_WITH.items() if needed.fullmatch(name)}
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
