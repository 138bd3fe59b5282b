"""The devices of a run. There is only one today; code that would differ for several asks the group."""

from dataclasses import dataclass

from gptbench.config import DeviceConfig
from gptbench.config.targets import instantiate
from gptbench.device import Device


@dataclass(frozen=True)
class DeviceGroup:
    """Devices that share one model, each driven by a separate process."""

    devices: tuple[Device, ...]
    """Devices, by rank."""
    rank: int = 0
    """Rank of this process."""

    @classmethod
    def of(cls, config: DeviceConfig) -> "DeviceGroup":
        """Return the group for a configuration. Raises ConfigError if a device does not exist."""
        return cls((instantiate(config),))

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def local(self) -> Device:
        """Device that this process drives."""
        return self.devices[self.rank]

    @property
    def is_main(self) -> bool:
        """Whether this process shows and records the measurements of all processes."""
        return self.rank == 0
