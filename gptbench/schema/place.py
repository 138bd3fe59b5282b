"""Where a number was measured, and which fields of that place must agree for which purpose."""

import re
from dataclasses import dataclass, field
from typing import Any

from gptbench.schema.machine import Environment

CODE = re.compile(
    r"(?!\w*NUM_THREADS)(?:(TORCHINDUCTOR|TORCHDYNAMO|TRITON|CUBLAS|CUBLASLT|CUDNN|KMP|MKL|DNNL|ONEDNN)_\w+|NVIDIA_TF32_OVERRIDE|"
    r"ATEN_CPU_CAPABILITY|CUDA_LAUNCH_BLOCKING|(PYTORCH_CUDA|PYTORCH)_ALLOC_CONF|OMP_(PROC_BIND|PLACES|SCHEDULE|WAIT_POLICY)|"
    r"GOMP_(CPU_AFFINITY|SPINCOUNT))"
)
"""Environment variables that choose other code or bind its threads, and are the same for every job of a sweep: numbers
with different values are different measurements. Other variables may differ between jobs without consequence
(CUDA_VISIBLE_DEVICES selects one of several cards, OMP_NUM_THREADS is in the number of threads) and are only
recorded."""


@dataclass(frozen=True)
class Place:
    """Properties of a machine that a number may depend on."""

    device: str
    """Name of the processor that ran the model."""
    on_gpu: bool
    """Whether that processor is a GPU."""
    power_limit_w: float | None
    """Power limit of the GPU, rounded to whole watts: NVML reports fractions that nobody has set."""
    cores: int
    """Number of cores that the process may use."""
    threads: int
    """Number of CPU threads per torch operation."""
    driver: str | None
    """Driver version of the GPU."""
    libraries: dict[str, str]
    """Version of each installed library."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that are set: see `Environment.variables`."""
    commit: str | None = None
    """Commit of gptbench; None if it was not determined."""
    host: str | None = None
    """Host name; None if it was not determined."""

    @classmethod
    def of(cls, here: Environment, host: str | None = None) -> "Place":
        """Return the place of an environment, which does not have the host name."""
        return cls(
            device=here.device,
            on_gpu=here.on_gpu,
            power_limit_w=whole_watts(here.power_limit_w),
            cores=here.cores,
            threads=here.threads,
            driver=here.driver,
            libraries=here.libraries,
            variables=here.variables,
            commit=here.commit,
            host=host,
        )

    @property
    def kind(self) -> dict[str, Any]:
        """Fields that must agree for two numbers to be compared, with each other or with a baseline. Numbers of
        different devices or power limits are never compared, nor, as machines in a cloud have any number of cores,
        numbers of different shares of a CPU. Machines of one kind are one place; versions may differ, and the
        difference is reported."""
        shared = {"device": self.device, "power_limit_w": self.power_limit_w}
        return shared if self.on_gpu else shared | {"cores": self.cores}

    def of_job(self, libraries: tuple[str, ...]) -> dict[str, Any]:
        """Return the fields that must agree for a job of a sweep to need no new measurement: the kind, the threads on a
        CPU, versions of the libraries that run the model, and variables that choose other code. Driver and host are
        left out, so that a sweep can be resumed on any machine of the kind."""
        threads = None if self.on_gpu else self.threads
        versions = {name: self.libraries.get(name) for name in libraries}
        chosen = {name: value for name, value in self.variables.items() if CODE.fullmatch(name)}
        return self.kind | {"threads": threads, "libraries": versions, "variables": chosen}

    @property
    def of_roof(self) -> dict[str, Any]:
        """Fields that must agree for a read roof: on a GPU the kind, and what its kernel was compiled and run by; on a
        CPU also host and threads, because memory differs between hosts with the same CPU."""
        libraries = {name: self.libraries.get(name) for name in ("torch", "triton")}
        shared = self.kind | {"driver": self.driver} | libraries
        return shared if self.on_gpu else shared | {"host": self.host, "threads": self.threads}

    @property
    def versions(self) -> dict[str, str | None]:
        """Versions of driver, gptbench and libraries: reported where they differ between numbers that are compared, and
        equal among those of one baseline."""
        return {"driver": self.driver, "commit": self.commit} | self.libraries


def whole_watts(limit: float | None) -> float | None:
    """Return a power limit as it was set, in whole watts."""
    return None if limit is None else float(round(limit))
