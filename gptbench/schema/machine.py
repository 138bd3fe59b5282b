"""The machine that something was measured on: its environment, its sensors, what else it did, and its read roof."""

from dataclasses import dataclass, field

POWER_SETTLES_S = 0.15
"""From the beginning of a load until every reading of NVML's power is of the load (an H100: docs/log)."""

RESOLUTION_S = 0.01
"""In which Linux counts each core's used and stolen time."""

FULL, PROBE = "full", "probe"
"""Kinds of measurements."""


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
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables by which torch, Triton and their libraries choose other code or other processors: those
    that are set of `VARIABLES`, without folders and secrets."""
    plugins: dict[str, str] = field(default_factory=dict)
    """Of each plugin that the command line named its absolute path or the module's name, and the hash of its source."""
    compiler: str | None = None
    """C++ compiler that is found first, with its version."""
    ecc: bool | None = None
    """Whether the GPU corrects errors of its memory; None on a CPU and where NVML does not tell, as all below."""
    mig: bool | None = None
    """Whether the GPU is cut into instances."""
    application_clock_mhz: int | None = None
    """Clock of the GPU's processors that applications are to run at, in MHz: less than the largest where someone has
    set it."""
    max_clock_mhz: int | None = None
    """Largest clock of the GPU's processors, in MHz."""

    @property
    def on_gpu(self) -> bool:
        return self.device != self.cpu


@dataclass
class Load:
    """During one sample, or what else is timed, from just before it to just after it."""

    seconds: float
    """Of the clock on the wall."""
    cores: int
    """That this process may run on; times below are of these, all together."""
    own_s: float
    """CPU time of this process, in seconds."""
    other_s: float | None = None
    """CPU time of all other processes and of the kernel, in seconds: what all used less `own_s`. The former is counted
    in hundredths of a second (`RESOLUTION_S`), so that in a short sample it may come out below 0."""
    stolen_s: float | None = None
    """Seconds that the host gave to other virtual machines, while this one had work."""
    iowait_s: float | None = None
    """Seconds idle, while a process waited for a disk."""
    waiting_s: float | None = None
    """Seconds that threads of this process were ready to run, and waited for a core."""
    pressure_s: float | None = None
    """Seconds that some task of this process's control group waited for a core (cpu.pressure); None where the group
    has no such file, as of version 1, or is the top one."""
    system_pressure_s: float | None = None
    """The same of the whole machine, in seconds."""
    quota_s: float | None = None
    """Seconds that this process's control groups were stopped, their CPU quota used up."""
    load_average: float | None = None
    """Tasks that ran or waited to, mean over the last minute, at the end."""
    gpu_processes: int | None = None
    """Other processes with a context on the GPU, at the beginning or the end, whichever was more; None on a CPU."""
    gpu_other_bytes: int | None = None
    """Of the GPU's memory, bytes in use that are not this process's, at most; what a driver takes is among them."""
    gpu_active: int | None = None
    """Other processes that computed on the GPU meanwhile; None where nothing tells, as of a sample of less than the
    second or so between two looks of the driver."""


@dataclass
class DeviceState:
    """A device during a sample: what was read just before it, during it (of a GPU) and just after it."""

    at_s: list[float] = field(default_factory=list)
    """Seconds from the sample's beginning, of each reading."""
    clock_mhz: list[float] = field(default_factory=list)
    """Of the processors, by reading; empty where nothing tells it, as all below."""
    memory_clock_mhz: list[float] = field(default_factory=list)
    power_w: list[float] = field(default_factory=list)
    temperature_c: list[float] = field(default_factory=list)
    throttled: list[str] = field(default_factory=list)
    """Reasons that were at work at some reading but the first, or for which the device's own counters have grown."""
    throttled_s: float | None = None
    """Seconds that the device was held back by power or heat during the sample, by its own counters; None where it has
    none."""

    def during(self, name: str) -> list[float]:
        """Of the readings of that name, those between the first and the last, which are taken outside of the timed
        region; all, where there is none between: of a CPU, or a sample of less than `INTERVAL_S`. Of power, only what
        was read after it had settled: none of a sample that is too short for it."""
        readings: list[float] = getattr(self, name)
        if name == "power_w":
            settled = [value for second, value in zip(self.at_s, readings, strict=False) if second >= POWER_SETTLES_S]
            return settled[:-1]
        return readings[1:-1] if len(readings) > 2 else readings


@dataclass
class Roof:
    """One measurement of the rate: what was measured, and on what."""

    device: str
    """Name of the processor."""
    gb_per_s: float
    """Bytes of the buffer over the shortest time, GB = 1e9 bytes."""
    kernel: str
    """What read."""
    buffer_bytes: int
    seconds: list[float]
    """Of every launch."""
    measured: str
    """When, ISO 8601."""
    environment: Environment
    """Driver, power limit and library versions then."""
    kind: str = FULL
    """full, or probe: a short one before or after samples."""
    host: str | None = None
    """Name of the machine, of a CPU; None of a GPU, and in a record of a version that did not write it down."""


@dataclass
class Probe:
    """A short measurement of the rate, just before or just after samples."""

    when: str
    """before or after."""
    gb_per_s: float
    """Bytes of the buffer over the shortest time, GB = 1e9 bytes."""
    buffer_bytes: int
    seconds: list[float]
    """Of every launch."""
    measured: str
    """When, ISO 8601."""
    usual_gb_per_s: float | None = None
    """On a CPU, the rate that one in five of the earlier probes passed; None of fewer than ten, and on a GPU."""
