"""Samples as they are recorded, and the bytes of their steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gptbench.base.errors import counted
from gptbench.schema.machine import DeviceState, Load
from gptbench.schema.restore import require


@dataclass
class Sample:
    """One generation of the whole workload, raw."""

    ttft_s: float
    """Time to first token: seconds of the prefill, the drawing of its token included."""
    step_s: list[float]
    """Seconds of each decode step; see `gptbench.schema.steps.Steps`."""
    call_s: float
    """Seconds of the whole call by the host's clock, waiting for the device included: what the seed measures."""
    compiles: int
    """Graphs and kernels compiled or recorded meanwhile; a sample with any is left out of the statistics."""
    allocations: int | None
    """Requests to the GPU's allocator meanwhile; None on a CPU."""
    peak_memory_bytes: int
    """Most memory in use during this sample: the allocator's on a GPU, the process's on a CPU."""
    finite: bool
    """Whether the last logits and all that was cached are finite; checked after the timed region."""
    tokens: list[list[int]]
    """New tokens of each row."""
    text: list[str] = field(default_factory=list)
    """The answer of each row as text, if the model has a tokenizer."""
    generated: list[int] = field(default_factory=list)
    """Tokens of each row's answer: those up to its first stop token, which counts; all where it drew none."""
    step_tokens: list[list[int]] = field(default_factory=list)
    """Tokens that each decode step emitted for each row; empty where each step emitted one for each."""
    experts_chosen: int | None = None
    """Experts of a mixture that some row of the batch chose, added up over layers and decode steps: an expert that
    several rows choose in the same step counts once. None of a dense model, and in a record of a version that did not
    count."""
    experts_read: int | None = None
    """Experts whose matrices the engine read in these steps: one for each pair of row and choice where it gathers
    them, all where it goes through all, and otherwise those that were chosen. None as above."""
    state: DeviceState | None = None
    """Clocks, power, temperature and throttling meanwhile; None in a record of a version that did not look."""
    load: Load | None = None
    """What else the machine did meanwhile; None in a record of a version that did not look."""

    @property
    def throttled(self) -> bool:
        """Whether the device was held back by power or heat."""
        return self.state is not None and bool(self.state.throttled)

    def check(self, place: str) -> None:
        """Raises InputError where its lists do not go together."""
        rows = len(self.tokens)
        require(len(self.step_s) > 0, f"{place}.step_s", "at least one step")
        require(rows > 0 and len(self.tokens[0]) > 0, f"{place}.tokens", "at least one token")
        if self.step_tokens:
            self.check_emitted(f"{place}.step_tokens")
        else:
            require(len({len(row) for row in self.tokens}) == 1, f"{place}.tokens", "rows of the same length")
        for name in ("text", "generated"):
            count = len(getattr(self, name))
            require(count in (0, rows), f"{place}.{name}", f"{rows} entries, one for each row, or none")

    def check_emitted(self, place: str) -> None:
        """The same of the tokens that each step says it emitted."""
        steps, rows = len(self.step_s), len(self.tokens)
        each = all(len(step) == rows for step in self.step_tokens)
        require(len(self.step_tokens) == steps and each, place, f"{steps} lists of a number for each of {rows} rows")
        emitted = [sum(step[row] for step in self.step_tokens) for row in range(rows)]
        told = "as many tokens for each row as it got after its first, and any at all"
        require(any(emitted) and emitted == [len(row) - 1 for row in self.tokens], place, told)


def throttling(samples: Sequence[Sample]) -> str | None:
    """How many were held back by power or heat, by what of it, and how long; None where none was."""
    states = [sample.state for sample in samples if sample.state is not None and sample.throttled]
    if not states:
        return None
    reasons = sorted({reason for state in states for reason in state.throttled})
    seconds = sum(state.throttled_s or 0.0 for state in states)
    told = f", {seconds:.2g} s by the device's counters" if seconds else ""
    were = "was" if len(samples) == 1 else "were"
    return f"{len(states)} of {counted(len(samples), 'sample')} {were} throttled: {', '.join(reasons)}{told}"


@dataclass
class WarmUp:
    """A generation before the samples."""

    call_s: float
    """Seconds by the host's clock."""
    compiles: int
    """Graphs and kernels compiled or recorded meanwhile."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of decode steps, for the whole batch, but for what samples have counted: the experts of a mixture."""

    weights: int
    """Bytes of the weights that each step needs at least: of a mixture's experts those of one token, of an embedding
    that is not the head one row for each sequence, scales included, what is shared once."""
    kv_per_position: int
    """Bytes of the keys and values of one position, in all layers and sequences."""
    positions_read: list[int]
    """Cached positions that a step reads, padding included: of the step that is fed the first new token, the second,
    and so on. So are the lists below."""
    kv_len: list[int]
    """Cached positions that then hold a token, the step's own included."""
    positions_attended: list[int] = field(default_factory=list)
    """Of those the ones that the step's token attends to, its own included: fewer where a window slides. Empty in a
    record of a version that did not tell them."""
    positions_moved: list[int] = field(default_factory=list)
    """Cached positions that a step reads or writes, one that is read and written counted twice. Empty as above."""
    expert_bytes: int = 0
    """Bytes of one expert of one layer; 0 of a dense model, and in a record of a version that counted no experts, whose
    `weights` hold one for each pair of row and choice, or all."""
    experts_least: int = 0
    """Experts that `weights` holds, in all layers together."""
    kv_needed: list[int] = field(default_factory=list)
    """Bytes of keys and values that each step reads and writes at least, where layers attend to different positions;
    empty where all are alike, and in a record of an earlier version: then `kv_per_position` times
    `positions_attended`."""
    kv_moved: list[int] = field(default_factory=list)
    """Bytes of keys and values that each step reads and writes, where layers differ; empty as `kv_needed`: then
    `kv_per_position` times `positions_moved`."""

    @property
    def attended(self) -> list[int]:
        """`positions_attended`, or for an older record what comes nearest."""
        return self.positions_attended or list(map(min, self.kv_len, self.positions_read))

    def needed(self, experts: int | None = None, steps: int | None = None) -> list[int]:
        """Bytes that each step cannot do without: weights, keys and values of the positions that its token attends to,
        of which its own are written and the others read.

        Args:
            experts: that were chosen in all steps together; None for as few as possible. Each step gets an equal share.
            steps: how many there were; None for one at each position.
        """
        weights = self.weights_with(experts, steps)
        caches = self.kv_needed or [self.kv_per_position * positions for positions in self.attended]
        return [weights + cache for cache in caches]

    def moved(self, experts: int | None = None, steps: int | None = None) -> list[int]:
        """Bytes that each step reads and writes: padding, what is written and read back, and experts that nobody chose
        included. `experts`: as many as were read in all steps together."""
        moved = self.positions_moved or [read + 1 for read in self.positions_read]
        weights = self.weights_with(experts, steps)
        caches = self.kv_moved or [self.kv_per_position * positions for positions in moved]
        return [weights + cache for cache in caches]

    def weights_with(self, experts: int | None, steps: int | None = None) -> int:
        """Bytes of weights of one step, on average over all, where these have so many experts together."""
        if experts is None:
            return self.weights
        return self.weights + round(
            self.expert_bytes * (experts / (steps or len(self.positions_read)) - self.experts_least)
        )
