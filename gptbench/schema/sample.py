"""Samples as they are recorded, and the bytes that their decode steps move."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gptbench.base.errors import counted
from gptbench.schema.machine import DeviceState, Load
from gptbench.schema.restore import require


@dataclass
class Sample:
    """Raw measurements of one generation of the whole workload."""

    ttft_s: float
    """Time to first token in seconds: prefill, and sampling of the first token."""
    step_s: list[float]
    """Seconds of each decode step; see `gptbench.schema.steps.Steps`."""
    call_s: float
    """Seconds of the whole call by the host's clock, including the wait for the device: the time that gpt_fast
    measures."""
    compiles: int
    """Number of graphs and kernels compiled or recorded during the sample; a sample with any is left out of the
    statistics."""
    allocations: int | None
    """Number of requests to the GPU's allocator during the sample; None on a CPU."""
    peak_memory_bytes: int
    """Peak memory use during the sample in bytes: that of torch's allocator on a GPU, that of the process on a CPU."""
    finite: bool
    """Whether the last logits and all cached keys and values are finite; checked after the timed region."""
    tokens: list[list[int]]
    """New token ids of each row."""
    text: list[str] = field(default_factory=list)
    """Answer of each row as text; empty if the model has no tokenizer."""
    generated: list[int] = field(default_factory=list)
    """Number of tokens in each row's answer: those up to and including its first stop token, or all if it sampled
    none."""
    step_tokens: list[list[int]] = field(default_factory=list)
    """Number of tokens that each decode step emitted for each row; empty if every step emitted one per row."""
    experts_chosen: int | None = None
    """Number of experts of a mixture that some row of the batch chose, summed over layers and decode steps: an expert
    that several rows choose in the same step counts once. None for a dense model, and in records of versions that did
    not count it."""
    experts_read: int | None = None
    """Number of experts whose matrices the engine read in these steps: one per pair of row and choice if it gathers
    them, all if it loops over all, otherwise those that were chosen. None as for `experts_chosen`."""
    state: DeviceState | None = None
    """Clocks, power, temperature and throttling during the sample; None in records of versions that did not read
    them."""
    load: Load | None = None
    """Load on the machine during the sample; None in records of versions that did not read it."""

    @property
    def throttled(self) -> bool:
        """Whether the device was power- or thermal-throttled."""
        return self.state is not None and bool(self.state.throttled)

    def check(self, place: str) -> None:
        """Raise InputError if the lengths of the lists contradict each other."""
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
        """Raise InputError if `step_tokens` contradicts the other lists."""
        steps, rows = len(self.step_s), len(self.tokens)
        shaped = len(self.step_tokens) == steps and all(len(step) == rows for step in self.step_tokens)
        require(shaped, place, f"{steps} lists of {rows} numbers, one for each row")
        emitted = [sum(step[row] for step in self.step_tokens) for row in range(rows)]
        expected = "numbers that add up to the tokens of each row after its first, and are not all 0"
        require(any(emitted) and emitted == [len(row) - 1 for row in self.tokens], place, expected)


def throttling(samples: Sequence[Sample]) -> str | None:
    """Return a phrase on how many samples were throttled, for what reasons and how long; None if none was."""
    states = [sample.state for sample in samples if sample.state is not None and sample.throttled]
    if not states:
        return None
    reasons = sorted({reason for state in states for reason in state.throttled})
    seconds = sum(state.throttled_s or 0.0 for state in states)
    duration = f", {seconds:.2g} s by the device's counters" if seconds else ""
    were = "was" if len(samples) == 1 else "were"
    return f"{len(states)} of {counted(len(samples), 'sample')} {were} throttled: {', '.join(reasons)}{duration}"


@dataclass
class WarmUp:
    """One generation before the samples."""

    call_s: float
    """Seconds of the call by the host's clock."""
    compiles: int
    """Number of graphs and kernels compiled or recorded during the call."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that decode steps move for the whole batch, apart from what samples count: the experts of a mixture."""

    weights: int
    """Minimum bytes of weights per step, scales included and shared tensors counted once. It has the experts of one
    token only, and of an embedding that is not also the head, one row per sequence."""
    kv_per_position: int
    """Bytes of the keys and values of one position, over all layers and sequences."""
    positions_read: list[int]
    """Cached positions that a step reads, padding included; one entry per step, beginning with the step that is fed the
    first new token. The lists below are indexed the same way."""
    kv_len: list[int]
    """Valid KV entries of each step: cached positions that hold a token, the step's own included."""
    positions_attended: list[int] = field(default_factory=list)
    """Cached positions that the step's token attends to, its own included: fewer than `kv_len` with a sliding window.
    Empty in records of versions that did not have it."""
    positions_moved: list[int] = field(default_factory=list)
    """Cached positions that a step reads or writes; one that it reads and writes counts twice. Empty in records of
    versions that did not have it."""
    expert_bytes: int = 0
    """Bytes of one expert of one layer. It is 0 for a dense model, and in records of versions that did not count
    experts, where `weights` has one expert per pair of row and choice, or all of them."""
    experts_least: int = 0
    """Number of experts included in `weights`, over all layers."""
    kv_needed: list[int] = field(default_factory=list)
    """Minimum bytes of keys and values that each step reads and writes, if layers attend to different positions. Empty
    if all layers are alike, and in records of earlier versions: then it is `kv_per_position` times
    `positions_attended`."""
    kv_moved: list[int] = field(default_factory=list)
    """Bytes of keys and values that each step reads and writes, if layers attend to different positions. Empty as
    `kv_needed`: then it is `kv_per_position` times `positions_moved`."""

    @property
    def attended(self) -> list[int]:
        """`positions_attended`, or the closest estimate for an older record."""
        return self.positions_attended or list(map(min, self.kv_len, self.positions_read))

    def needed(self, experts: int | None = None, steps: int | None = None) -> list[int]:
        """Return the minimum bytes that each step has to move: weights, and the keys and values of the positions that
        its token attends to; its own are written, the others read.

        Args:
            experts: number chosen in all steps together, spread evenly over the steps; None for the minimum.
            steps: number of steps; None for one at each position.
        """
        weights = self.weights_with(experts, steps)
        caches = self.kv_needed or [self.kv_per_position * positions for positions in self.attended]
        return [weights + cache for cache in caches]

    def moved(self, experts: int | None = None, steps: int | None = None) -> list[int]:
        """Return the bytes that each step reads and writes, including padding, what is written and read back, and
        experts that nobody chose. `experts` is the number read in all steps together."""
        moved = self.positions_moved or [read + 1 for read in self.positions_read]
        weights = self.weights_with(experts, steps)
        caches = self.kv_moved or [self.kv_per_position * positions for positions in moved]
        return [weights + cache for cache in caches]

    def weights_with(self, experts: int | None, steps: int | None = None) -> int:
        """Return the bytes of weights per step, on average over all steps, given the number of experts in all steps
        together."""
        if experts is None:
            return self.weights
        return self.weights + round(
            self.expert_bytes * (experts / (steps or len(self.positions_read)) - self.experts_least)
        )
