"""The machine of a measurement: its environment, its sensors, its load, and its read roof."""

from dataclasses import dataclass, field

POWER_SETTLES_S = 0.15
"""Seconds from the beginning of a load until all of NVML's power readings reflect it (on an H100: docs/log)."""

RESOLUTION_S = 0.01
"""Resolution in seconds of Linux's counters of each core's used and stolen time."""

FULL, PROBE = "full", "probe"
"""Kinds of measurements of the read roof."""


@dataclass
class Environment:
    """Hardware and software that a run was measured on."""

    commit: str | None
    """Commit of gptbench, with -dirty if tracked files differ from it; None if it is unknown."""
    device: str
    """Name of the processor that ran the model."""
    cpu: str
    """Name of the CPU."""
    cores: int
    """Number of cores that the process may use: by affinity and by the CPU quota of its control groups, rounded
    down."""
    threads: int
    """Number of CPU threads per torch operation."""
    driver: str | None
    """Driver version of the GPU; None on a CPU."""
    power_limit_w: float | None
    """Enforced power limit of the GPU in watts; None on a CPU."""
    cuda: str | None
    """CUDA version that torch was built with; None for a build without CUDA."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and architecture."""
    libraries: dict[str, str]
    """Version of gptbench, and of each of `LIBRARIES` that is installed."""
    cpu_quota: float | None = None
    """Number of CPUs that the process's control groups allow, as set by `docker run --cpus`; None without a quota."""
    memory_limit_bytes: int | None = None
    """Memory in bytes that the process's control groups allow; None without a limit."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of `VARIABLES` that are set, without folders and secrets. They make torch, Triton and their
    libraries choose other code or other processors."""
    plugins: dict[str, str] = field(default_factory=dict)
    """Plugins named on the command line: absolute path or module name to the hash of the source."""
    compiler: str | None = None
    """First C++ compiler on the path, with its version."""
    ecc: bool | None = None
    """Whether ECC of the GPU's memory is on; None on a CPU and where NVML does not report it, as for the fields
    below."""
    mig: bool | None = None
    """Whether the GPU is partitioned into MIG instances."""
    application_clock_mhz: int | None = None
    """Application clock of the GPU's processors in MHz: below the maximum if someone has set it."""
    max_clock_mhz: int | None = None
    """Maximum clock of the GPU's processors in MHz."""

    @property
    def on_gpu(self) -> bool:
        return self.device != self.cpu


@dataclass
class Load:
    """Load on the machine from just before a sample, or another timed part, to just after it."""

    seconds: float
    """Wall-clock seconds."""
    cores: int
    """Number of cores that the process may run on. The times below are totals over these cores."""
    own_s: float
    """CPU time of this process in seconds."""
    other_s: float | None = None
    """CPU time in seconds of all other processes and of the kernel: the total less `own_s`. The total is counted in
    steps of `RESOLUTION_S`, so for a short sample the value may be negative."""
    stolen_s: float | None = None
    """Seconds that the host gave to other virtual machines while this one had work (steal time)."""
    iowait_s: float | None = None
    """Idle seconds while a process waited for a disk."""
    waiting_s: float | None = None
    """Seconds that threads of this process were runnable and waited for a core."""
    pressure_s: float | None = None
    """Seconds that some task of this process's control group waited for a core (cpu.pressure); None if the group has no
    such file, as with version 1 or as the root group."""
    system_pressure_s: float | None = None
    """Seconds that some task of the whole machine waited for a core."""
    quota_s: float | None = None
    """Seconds that this process's control groups were stopped because their CPU quota was used up."""
    load_average: float | None = None
    """Load average at the end: tasks that ran or waited to, mean over the last minute."""
    gpu_processes: int | None = None
    """Number of other processes with a context on the GPU, at the beginning or the end, whichever is higher; None on a
    CPU."""
    gpu_other_bytes: int | None = None
    """Peak bytes of the GPU's memory that are in use and not by this process; the driver's own are included."""
    gpu_active: int | None = None
    """Number of other processes that computed on the GPU meanwhile; None if unknown, as for samples shorter than the
    driver's sampling period of about a second."""


@dataclass
class DeviceState:
    """Readings of a device just before, during (on a GPU) and just after a sample."""

    at_s: list[float] = field(default_factory=list)
    """Time of each reading in seconds since the beginning of the sample."""
    clock_mhz: list[float] = field(default_factory=list)
    """Clock of the processors at each reading in MHz; empty if it cannot be read, as for the fields below."""
    memory_clock_mhz: list[float] = field(default_factory=list)
    """Clock of the memory at each reading in MHz."""
    power_w: list[float] = field(default_factory=list)
    """Power draw at each reading in watts."""
    temperature_c: list[float] = field(default_factory=list)
    """Temperature at each reading in °C."""
    throttled: list[str] = field(default_factory=list)
    """Reasons for throttling: those active at any reading but the first, and those whose counters on the device have
    grown."""
    throttled_s: float | None = None
    """Seconds that the device was power- or thermal-throttled during the sample, by its own counters; None if it has
    none."""

    def during(self, name: str) -> list[float]:
        """Return the readings of that name within the timed region: those between the first and the last, or all if
        there are none between, as on a CPU or for samples shorter than `INTERVAL_S`. For power, only readings after it
        has settled are returned: none for a sample that is too short."""
        readings: list[float] = getattr(self, name)
        if name == "power_w":
            settled = [value for second, value in zip(self.at_s, readings, strict=False) if second >= POWER_SETTLES_S]
            return settled[:-1]
        return readings[1:-1] if len(readings) > 2 else readings


@dataclass
class Roof:
    """One measurement of the read roof, with what was measured and where."""

    device: str
    """Name of the processor."""
    gb_per_s: float
    """Read bandwidth in GB/s (GB = 1e9 bytes): bytes of the buffer over the shortest time."""
    kernel: str
    """Kernel that read the buffer."""
    buffer_bytes: int
    """Size of the buffer in bytes."""
    seconds: list[float]
    """Seconds of each launch."""
    measured: str
    """Time of the measurement, ISO 8601."""
    environment: Environment
    """Environment of the measurement, with driver, power limit and library versions."""
    kind: str = FULL
    """full, or probe: a short measurement before or after samples."""
    host: str | None = None
    """Host name for a CPU; None for a GPU, and in records of versions that did not have it."""


@dataclass
class Probe:
    """A short measurement of the read bandwidth just before or just after samples."""

    when: str
    """before or after the samples."""
    gb_per_s: float
    """Read bandwidth in GB/s (GB = 1e9 bytes): bytes of the buffer over the shortest time."""
    buffer_bytes: int
    """Size of the buffer in bytes."""
    seconds: list[float]
    """Seconds of each launch."""
    measured: str
    """Time of the measurement, ISO 8601."""
    usual_gb_per_s: float | None = None
    """On a CPU, the rate in GB/s that one in five of the earlier probes exceeded; None with fewer than ten of them, and
    on a GPU."""
