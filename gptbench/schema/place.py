"""Where a number is from. What of a place must agree for one thing and for another is a choice among its fields."""

import re
from dataclasses import dataclass, field
from typing import Any

from gptbench.schema.machine import Environment

CODE = re.compile(
    r"(?!\w*NUM_THREADS)(?:(TORCHINDUCTOR|TORCHDYNAMO|TRITON|CUBLAS|CUBLASLT|CUDNN|KMP|MKL|DNNL|ONEDNN)_\w+|NVIDIA_TF32_OVERRIDE|"
    r"ATEN_CPU_CAPABILITY|CUDA_LAUNCH_BLOCKING|(PYTORCH_CUDA|PYTORCH)_ALLOC_CONF|OMP_(PROC_BIND|PLACES|SCHEDULE|WAIT_POLICY)|"
    r"GOMP_(CPU_AFFINITY|SPINCOUNT))"
)
"""Environment variables that choose other code, or bind its threads, and are the same for every job of a sweep: numbers
with different ones are of different measurements. Others may differ by job without meaning anything
(CUDA_VISIBLE_DEVICES tells which of several cards, OMP_NUM_THREADS is in the number of threads), and are recorded
only."""


@dataclass(frozen=True)
class Place:
    """A machine, as far as a number may depend on it."""

    device: str
    """Name of the processor that ran the model."""
    on_gpu: bool
    """Whether that is a GPU."""
    power_limit_w: float | None
    """Of the GPU, in whole watts: NVML tells fractions that nobody has set."""
    cores: int
    """Cores that the process may use."""
    threads: int
    """CPU threads for one torch operation."""
    driver: str | None
    """Of the GPU."""
    libraries: dict[str, str]
    """Version of each library that is installed."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that are set, see `Environment.variables`."""
    commit: str | None = None
    """Of gptbench; None where it was not asked for."""
    host: str | None = None
    """Name of the machine; None where it was not asked for."""

    @classmethod
    def of(cls, here: Environment, host: str | None = None) -> "Place":
        """That of an environment, which does not hold the machine's name."""
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
        """What must agree for two numbers to be held against each other, in a comparison or by a baseline: numbers of
        two devices or power limits never are, nor of different parts of a CPU, of which machines in a cloud have any
        number of cores. Machines of one kind are one place; versions may differ, and are told."""
        found = {"device": self.device, "power_limit_w": self.power_limit_w}
        return found if self.on_gpu else found | {"cores": self.cores}

    def of_job(self, libraries: tuple[str, ...]) -> dict[str, Any]:
        """What must agree for a job of a sweep to need no other measurement: the kind, on a CPU the threads, versions
        of the libraries that run the model, and variables that choose other code. Not the driver, and not the host, so
        that a sweep can be resumed on any machine of the kind."""
        threads = None if self.on_gpu else self.threads
        versions = {name: self.libraries.get(name) for name in libraries}
        chosen = {name: value for name, value in self.variables.items() if CODE.fullmatch(name)}
        return self.kind | {"threads": threads, "libraries": versions, "variables": chosen}

    @property
    def of_roof(self) -> dict[str, Any]:
        """What must agree for a read roof: on a GPU the kind, and what its kernel was compiled and run by; on a CPU
        that, and the one host with as many threads, as memory differs between hosts of the same CPU."""
        libraries = {name: self.libraries.get(name) for name in ("torch", "triton")}
        found = self.kind | {"driver": self.driver} | libraries
        return found if self.on_gpu else found | {"host": self.host, "threads": self.threads}

    @property
    def versions(self) -> dict[str, str | None]:
        """Of driver, gptbench and libraries: what is told where it differs between numbers that are held against each
        other, and must agree among those of one baseline."""
        return {"driver": self.driver, "commit": self.commit} | self.libraries


def whole_watts(limit: float | None) -> float | None:
    """A power limit as it was set."""
    return None if limit is None else float(round(limit))
