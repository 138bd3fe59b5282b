"""Energy as it is recorded: joules of prefill and decode."""

from dataclasses import dataclass

from gptbench.schema.machine import Load


@dataclass(frozen=True)
class Spent:
    """Energy of the repetitions of one phase."""

    joules: float
    """Energy in joules by the counter, idle power included."""
    seconds: float
    """Seconds of all repetitions."""
    tokens: int
    """Number of tokens over all rows and repetitions: those of the prompt for prefill, new ones for decode."""

    @property
    def watts(self) -> float:
        """Mean power in watts, idle power included."""
        return self.joules / self.seconds

    def joules_per_token(self, idle_w: float) -> float:
        """Return the joules per token above the idle power."""
        return (self.joules - idle_w * self.seconds) / self.tokens


@dataclass(frozen=True)
class Energy:
    """Energy that a run uses."""

    counter: str
    """Name of the counter that was read."""
    idle_w: float
    """Idle power in watts, with the model in memory."""
    prefill: Spent
    decode: Spent
    load: Load | None = None
    """Load on the machine while energy was measured; None in records of versions that did not read it."""
