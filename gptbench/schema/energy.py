"""Energy as it is recorded: joules of prefill and decode."""

from dataclasses import dataclass

from gptbench.schema.machine import Load


@dataclass(frozen=True)
class Spent:
    """One phase, repeated."""

    joules: float
    """By the counter, what is used while idle included."""
    seconds: float
    tokens: int
    """Of a prefill, the prompt's; of decode, the new ones; of all rows and repetitions."""

    @property
    def watts(self) -> float:
        return self.joules / self.seconds

    def joules_per_token(self, idle_w: float) -> float:
        """Without what the device would have used in the same time while idle."""
        return (self.joules - idle_w * self.seconds) / self.tokens


@dataclass(frozen=True)
class Energy:
    """What a run uses."""

    counter: str
    """Whose it is."""
    idle_w: float
    """Watts while nothing runs, with the model in memory."""
    prefill: Spent
    decode: Spent
    load: Load | None = None
    """What else the machine did meanwhile; None in a record of a version that did not look."""
