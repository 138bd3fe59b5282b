"""The devices of a run. Today it has one; what would be different for several is asked here."""

from dataclasses import dataclass

from gptbench.config import DeviceConfig
from gptbench.config.targets import instantiate
from gptbench.device import Device


@dataclass(frozen=True)
class DeviceGroup:
    """Devices that one model is spread over, each driven by a process of its own."""

    devices: tuple[Device, ...]
    """By rank."""
    rank: int = 0
    """Of this process."""

    @classmethod
    def of(cls, config: DeviceConfig) -> "DeviceGroup":
        """The group that a configuration asks for. Raises ConfigError where a device is not there."""
        return cls((instantiate(config),))

    @property
    def size(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    @property
    def own(self) -> Device:
        """The one that this process drives."""
        return self.devices[self.rank]

    @property
    def records(self) -> bool:
        """Whether this process is the one that shows and records what all have measured."""
        return self.rank == 0
