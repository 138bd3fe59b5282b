"""The end of a decode step: one token for each row of the logits, drawn, stored, and made the next to be fed.

Nothing is sorted. The logits lie in chunks of a few neighbouring ids, and the largest of each chunk serves as an index:
the k-th largest of these maxima is no larger than the k-th largest logit, so only chunks that reach it are looked at
again. Thresholds are found by bisection over the logits' bits, read as integers that are ordered as the numbers are.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.launch import follow, launch
from gptbench.kernels.op import Bytes, Op
from gptbench.kernels.sample import draw_reference

CHUNK = 16
BLOCK = 4096
WARPS = 16
MAXIMA_BLOCK = 256
MAXIMA_WARPS = 4
SPREAD = 2.0
"""Standard deviation of a model's logits, roughly."""

EMPTY = tl.constexpr(-(2**31))
"""Key of no logit: under those of all numbers and infinities."""
LARGEST = tl.constexpr(3.4028234e38)


@dataclass(frozen=True)
class Scratch:
    """What `Draw` needs beside its arguments."""

    maxima: Tensor
    """float32 [B, ceil(V / C)]: the largest of logits i · C to (i + 1) · C - 1, of those that there are. To be written
    before each `Draw`, by `Maxima` or by whoever makes the logits."""
    chunks: Tensor
    """int32, of the same shape: chunks that are looked at again, in order."""
    arrived: Tensor
    """int32 [1]: rows that are done; 0 before and after `Draw`."""
    chunk: int
    """C, logits in a chunk: a power of two."""

    @classmethod
    def empty(cls, batch: int, vocab_size: int, device: torch.device, chunk: int = CHUNK) -> "Scratch":
        shape = batch, -(-vocab_size // chunk)
        return cls(
            maxima=torch.empty(shape, dtype=torch.float32, device=device),
            chunks=torch.empty(shape, dtype=torch.int32, device=device),
            arrived=torch.zeros(1, dtype=torch.int32, device=device),
            chunk=chunk,
        )


@triton.jit
def key_of(x):
    """int32, ordered as the float32 numbers x are; equal ones, -0 and 0 too, have equal keys."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def number_of(key):
    """float32: the reverse of `key_of`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(key, top, inverse):
    """exp((x - top) / temperature), float32; 0 of what is no logit."""
    return tl.where(key == EMPTY, 0.0, tl.exp((number_of(key) - top) * inverse))


@triton.jit
def between(low, high):
    """Their mean, rounded down; their sum may not fit."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def is_kept(key, token, threshold, last):
    """What lies over the threshold, and of what equals it ids up to `last`."""
    return (key > threshold) | ((key == threshold) & (token <= last))


@triton.jit
def load_block(logits, chunks, start, count, V, C: tl.constexpr, BLOCK: tl.constexpr):
    """Keys and ids [BLOCK] of the candidates from `start` on; `count` is how many there are in the listed chunks."""
    lane = start + tl.arange(0, BLOCK)
    chunk = tl.load(chunks + lane // C, mask=lane < count, other=0)
    token = chunk * C + lane % C
    there = (lane < count) & (token < V)
    x = tl.load(logits + token, mask=there, other=0.0)
    return tl.where(there, key_of(x), EMPTY), token


@triton.jit
def count_over(key, logits, chunks, count, V, threshold, C: tl.constexpr, BLOCK: tl.constexpr):
    """How many candidates lie over a threshold. `key`: of the first block."""
    found = (key > threshold).to(tl.int32)
    for start in range(BLOCK, count, BLOCK):
        more, _ = load_block(logits, chunks, start, count, V, C, BLOCK)
        found += (more > threshold).to(tl.int32)
    return tl.sum(found)


@triton.jit
def count_equal(key, token, logits, chunks, count, V, threshold, last, C: tl.constexpr, BLOCK: tl.constexpr):
    """How many candidates with ids up to `last` equal a threshold. `key` and `token`: of the first block."""
    found = ((key == threshold) & (token <= last)).to(tl.int32)
    for start in range(BLOCK, count, BLOCK):
        more, ids = load_block(logits, chunks, start, count, V, C, BLOCK)
        found += ((more == threshold) & (ids <= last)).to(tl.int32)
    return tl.sum(found)


@triton.jit
def last_equal(key, token, logits, chunks, count, V, threshold, wanted, C: tl.constexpr, BLOCK: tl.constexpr):
    """Id of the candidate number `wanted`, counted from 1, of those that equal a threshold."""
    low = -1
    high = V - 1
    while low < high - 1:
        middle = between(low, high)
        enough = count_equal(key, token, logits, chunks, count, V, threshold, middle, C, BLOCK) >= wanted
        low = tl.where(enough, low, middle)
        high = tl.where(enough, middle, high)
    return high


@triton.jit
def mass_over(
    key, weight, logits, chunks, count, V, threshold, floor, last, top, inverse, C: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum of the weights of kept candidates over a threshold. `key` and `weight`: of the first block, 0 if not kept;
    `floor` and `last`: what is kept, see `is_kept`."""
    mass = tl.where(key > threshold, weight, 0.0)
    for start in range(BLOCK, count, BLOCK):
        more, ids = load_block(logits, chunks, start, count, V, C, BLOCK)
        counts = is_kept(more, ids, floor, last) & (more > threshold)
        mass += tl.where(counts, weight_of(more, top, inverse), 0.0)
    return tl.sum(mass)


@triton.jit
def draw_kernel(
    logits,
    uniform,
    temperature,
    top_k,
    top_p,
    stops,
    stopped,
    token_out,
    tokens,
    position,
    maxima,
    chunks,
    arrived,
    V,
    length,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a row. CHUNKS: a power of two, and at least the number of chunks."""
    follow(OVERLAP)
    row = tl.program_id(0)
    number = tl.cdiv(V, C)
    logits += row * V
    chunks += row * number
    # All at once, as each has to be waited for.
    before = tl.load(position)
    heat = tl.load(temperature)
    k = tl.minimum(tl.load(top_k), V).to(tl.int32)
    p = tl.load(top_p)
    held = tl.load(stopped + row)
    stop = tl.load(stops + tl.arange(0, STOPS))
    index = tl.arange(0, CHUNKS)
    peaks = tl.load(maxima + row * number + index, mask=index < number, other=0.0)
    chance = tl.load(uniform + row * length + before + 1)
    peaks = tl.where(index < number, key_of(peaks), EMPTY)
    top_key = tl.max(peaks, 0)
    drawn = V
    if heat == 0:
        # The first of the chunks with the largest maximum holds the first of the largest logits.
        chunk = tl.min(tl.where(peaks == top_key, index, number - 1), 0)
        ids = chunk * C + tl.arange(0, C)
        x = tl.load(logits + ids, mask=ids < V, other=0.0)
        drawn = tl.min(tl.where((ids < V) & (key_of(x) == top_key), ids, V), 0)
    else:
        top = number_of(top_key)
        inverse = tl.minimum(1.0 / heat, LARGEST)
        mass = 0.0

        # Chunks that may hold a kept token: those whose maximum lies over `bound`.
        bound = EMPTY
        if k < V:
            if k < number:
                # Invariant: at least k maxima lie over `bound`, so at least k logits do.
                bound = tl.min(tl.where(index < number, peaks, top_key), 0) - 1
                high = top_key
                over = number
                enough = tl.maximum(k + k // 8, BLOCK // C)  # the first block costs the same, full or not
                rounds = 0
                while (rounds < 32) & (bound < high - 1) & (over > enough):
                    middle = between(bound, high)
                    found = tl.sum((peaks > middle).to(tl.int32))
                    if found >= k:
                        bound = middle
                        over = found
                    else:
                        high = middle
                    rounds += 1
        elif p < 1:
            masses = tl.zeros([BLOCK], tl.float32)
            for start in range(0, V, BLOCK):
                every = start + tl.arange(0, BLOCK)
                x = tl.load(logits + every, mask=every < V, other=0.0)
                masses += tl.where(every < V, tl.exp((x - top) * inverse), 0.0)
            mass = tl.sum(masses)
            # Invariant: the maxima over `bound` alone have more than the mass asked for, by more than rounding.
            peak_weight = weight_of(peaks, top, inverse)
            high = top_key
            for _ in range(20):
                if bound < high - 1:
                    middle = between(bound, high)
                    if tl.sum(tl.where(peaks > middle, peak_weight, 0.0)) >= 1.0001 * p * mass:
                        bound = middle
                    else:
                        high = middle
        listed = peaks > bound
        tl.store(chunks + tl.cumsum(listed.to(tl.int32), 0) - 1, index, mask=listed)
        count = tl.sum(listed.to(tl.int32)) * C
        tl.debug_barrier()
        key, token = load_block(logits, chunks, 0, count, V, C, BLOCK)

        # Kept is what lies over `floor`, and of what equals it ids up to `last`: none before top_p decides.
        floor = bound
        last = -1
        if k < V:
            # Invariant: at least k candidates lie over `floor`, at most k over `high`.
            high = top_key
            over = 0
            rounds = 0
            while (rounds < 32) & (floor < high - 1) & (over != k):
                middle = between(floor, high)
                found = count_over(key, logits, chunks, count, V, middle, C, BLOCK)
                if found > k:
                    floor = middle
                else:
                    high = middle
                    over = found
                rounds += 1
            # Where no number of those over a threshold is k, `high` is the k-th logit: all that equal it are kept.
            floor = tl.where(over == k, high, floor)
        weight = tl.where(is_kept(key, token, floor, last), weight_of(key, top, inverse), 0.0)
        if p < 1:
            low = floor
            if k < V:
                mass = mass_over(key, weight, logits, chunks, count, V, low, floor, last, top, inverse, C, BLOCK)
            # Invariant: what lies over `low` reaches the mass asked for, what lies over `high` does not.
            goal = p * mass
            high = top_key
            reached = 0.0
            rounds = 0
            while (rounds < 32) & (low < high - 1):
                middle = between(low, high)
                found_mass = mass_over(
                    key, weight, logits, chunks, count, V, middle, floor, last, top, inverse, C, BLOCK
                )
                if found_mass >= goal:
                    low = middle
                else:
                    high = middle
                    reached = found_mass
                rounds += 1
            last = V - 1
            floor = high
            # Of those that equal the threshold, as many as it takes, and at least one.
            each = tl.exp((number_of(high) - top) * inverse)
            equal = count_equal(key, token, logits, chunks, count, V, floor, last, C, BLOCK)
            needed = tl.maximum(tl.ceil((goal - reached) / each), 1.0)
            if needed < equal.to(tl.float32):
                last = last_equal(key, token, logits, chunks, count, V, floor, needed.to(tl.int32), C, BLOCK)
            weight = tl.where(is_kept(key, token, floor, last), weight, 0.0)

        # The candidates are listed in order of their ids.
        mass = mass_over(key, weight, logits, chunks, count, V, EMPTY, floor, last, top, inverse, C, BLOCK)
        goal = chance * mass
        running = 0.0
        latest = 0  # of all with a weight, for where rounding leaves the sum at the goal
        start = 0
        while (start < count) & (drawn == V):
            if start > 0:
                key, token = load_block(logits, chunks, start, count, V, C, BLOCK)
                weight = tl.where(is_kept(key, token, floor, last), weight_of(key, top, inverse), 0.0)
            reaches = (weight > 0) & (running + tl.cumsum(weight, 0) > goal)
            drawn = tl.min(tl.where(reaches, token, V), 0)
            latest = tl.maximum(latest, tl.max(tl.where(weight > 0, token, 0), 0))
            running += tl.sum(weight)
            start += BLOCK
        if drawn == V:
            drawn = latest
    # Logits that are no numbers may leave none.
    token64 = tl.minimum(drawn, V - 1).to(tl.int64)
    token64 = tl.where(held >= 0, held, token64)
    if tl.max((stop == token64).to(tl.int32), 0) > 0:
        tl.store(stopped + row, token64)
    tl.store(token_out + row, token64)
    tl.store(tokens + row * length + before + 1, token64)
    # The position is moved on when every thread of every row has read it.
    tl.debug_barrier()
    done = 0
    if tl.num_programs(0) > 1:
        done = tl.atomic_add(arrived, 1)
    if done == tl.num_programs(0) - 1:
        tl.store(position, before + 1)
        tl.store(arrived, 0)


@triton.jit
def maxima_kernel(logits, maxima, V, C: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """One program for each BLOCK chunks of a row."""
    follow(OVERLAP)
    row = tl.program_id(1)
    number = tl.cdiv(V, C)
    chunk = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = chunk[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(logits + row * V + token, mask=token < V, other=-float("inf"))
    tl.store(maxima + row * number + chunk, tl.max(x, 1), mask=chunk < number)


@dataclass(frozen=True, eq=False)
class Maxima(Op):
    """Writes the largest logit of each chunk to the scratch memory of `Draw`."""

    logits: Tensor
    """float32 [B, V], contiguous."""
    scratch: Scratch

    name = "maxima_kernel"
    part = "sampling"

    def launch(self, pdl: bool = False) -> None:
        batch, vocab_size = self.logits.shape
        launch(
            maxima_kernel,
            (triton.cdiv(self.scratch.maxima.shape[1], MAXIMA_BLOCK), batch),
            self.logits,
            self.scratch.maxima,
            vocab_size,
            C=self.scratch.chunk,
            BLOCK=MAXIMA_BLOCK,
            OVERLAP=pdl,
            num_warps=MAXIMA_WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        missing = self.scratch.maxima.shape[1] * self.scratch.chunk - self.logits.shape[1]
        padded = torch.nn.functional.pad(self.logits, (0, missing), value=-torch.inf)
        self.scratch.maxima.copy_(padded.unflatten(-1, (-1, self.scratch.chunk)).amax(-1))

    def reads(self) -> tuple[Any, ...]:
        return (self.logits,)

    def writes(self) -> tuple[Any, ...]:
        return (self.scratch.maxima,)

    def bytes_read(self) -> Bytes:
        return Bytes(weights=self.logits.nbytes)

    def bytes_beside(self) -> int:
        return self.scratch.maxima.nbytes

    def shape(self) -> dict[str, int]:
        return {"B": self.logits.shape[0], "V": self.logits.shape[1]}

    def flops(self, positions: int) -> int:
        return self.logits.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype


@dataclass(frozen=True, eq=False)
class Draw(Op):
    """Draws a token for each row as `sample` does, stores it, and moves the position on by one.

    A row that has drawn a stop token draws nothing but that from then on. All tensors are contiguous.
    """

    logits: Tensor
    """float32 [B, V], fewer than 2^31 in all."""
    uniform: Tensor
    """float32 [B, S + 1], from [0, 1): the number that each position's token is drawn with."""
    temperature: Tensor
    """float32 []; see `sample`."""
    top_k: Tensor
    """int64 []."""
    top_p: Tensor
    """float32 []."""
    stops: Tensor
    """int64 [N], N a power of two: ids of the stop tokens, and -1 where there is none."""
    stopped: Tensor
    """int64 [B, 1]: the stop token that each row has drawn, or -1. Read and written."""
    token: Tensor
    """int64 [B, 1]: the new tokens."""
    tokens: Tensor
    """int64 [B, S + 1]: the new ones are written at the new position."""
    position: Tensor
    """int64 [1]: of the last token. Read and written."""
    scratch: Scratch
    """With the chunks' maxima in it."""

    name = "draw_kernel"
    part = "sampling"

    def launch(self, pdl: bool = False) -> None:
        batch, vocab_size = self.logits.shape
        launch(
            draw_kernel,
            (batch,),
            self.logits,
            self.uniform,
            self.temperature,
            self.top_k,
            self.top_p,
            self.stops,
            self.stopped,
            self.token,
            self.tokens,
            self.position,
            self.scratch.maxima,
            self.scratch.chunks,
            self.scratch.arrived,
            vocab_size,
            self.tokens.shape[1],
            C=self.scratch.chunk,
            CHUNKS=triton.next_power_of_2(self.scratch.maxima.shape[1]),
            STOPS=self.stops.numel(),
            BLOCK=BLOCK,
            OVERLAP=pdl,
            num_warps=WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        settings = self.temperature, self.top_k, self.top_p, self.stops
        state = self.stopped, self.token, self.tokens, self.position
        draw_reference(self.logits, self.uniform, *settings, *state)

    def reads(self) -> tuple[Any, ...]:
        settings = self.temperature, self.top_k, self.top_p, self.stops
        state = self.uniform, self.stopped, self.tokens, self.position
        return self.logits, *settings, *state, self.scratch.maxima, self.scratch.arrived

    def writes(self) -> tuple[Any, ...]:
        return self.stopped, self.token, self.tokens, self.position, self.scratch.chunks, self.scratch.arrived

    def results(self) -> tuple[Tensor, ...]:
        return self.stopped, self.token, self.tokens, self.position

    def bytes_beside(self) -> int:
        """The chunks' maxima, and of the logits as many chunks as tokens are kept."""
        batch, vocab_size = self.logits.shape
        kept = 1 if self.temperature == 0 else int(self.top_k)
        looked_at = min(kept, self.scratch.maxima.shape[1]) * self.scratch.chunk
        return self.scratch.maxima.nbytes + batch * min(looked_at, vocab_size) * self.logits.itemsize

    def shape(self) -> dict[str, int]:
        return {"B": self.logits.shape[0], "V": self.logits.shape[1]}

    def flops(self, positions: int) -> int:
        return self.logits.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    def example(self, position: int, launches: int) -> "Draw":
        """Every launch moves on by one position."""
        room = self.tokens.shape[0], position + launches + 2
        return replace(self, uniform=self.uniform.new_empty(room), tokens=self.tokens.new_zeros(room))

    def fill(self, generator: Generator, position: int) -> None:
        """The settings stay as they are."""
        self.logits.normal_(std=SPREAD, generator=generator)
        Maxima(self.logits, self.scratch).reference()
        self.uniform.uniform_(generator=generator)
        self.stopped.fill_(-1)
        self.position.fill_(position)
