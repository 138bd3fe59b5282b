"""The end of a decode step: one token for each row of the logits, drawn, stored, and made the next to be fed.

Nothing is sorted. The logits lie in chunks of a few neighbouring ids, and the largest of each chunk serves as an index:
the k-th largest of these maxima is no larger than the k-th largest logit, so only chunks that reach it are looked at
again. Thresholds are found by bisection over the logits' bits, read as integers that are ordered as the numbers are.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.maxima import Maxima, Scratch
from gptbench.kernels.op import Op, type_name
from gptbench.kernels.sample_reference import sample_reference

BLOCK = 4096
WARPS = 16
SPREAD = 2.0
"""Standard deviation of a model's logits, roughly."""

EMPTY = tl.constexpr(-(2**31))
"""Key of no logit: under those of all numbers and infinities."""
MAX_FLOAT = tl.constexpr(3.4028234e38)


class Settings(NamedTuple):
    """Of the sampling: see `SampleToken`."""

    temperature: Any
    top_k: Any
    top_p: Any
    stops: Any


class State(NamedTuple):
    """What a token is drawn with, and where it goes: see `SampleToken`."""

    uniform: Any
    stopped: Any
    token: Any
    tokens: Any
    position: Any
    length: Any
    """S + 1."""


class Listed(NamedTuple):
    """The tokens of a row that may be kept: those of the chunks that are listed, in order of their ids."""

    logits: Any
    """Of the row."""
    chunks: Any
    count: Any
    """Tokens in them."""
    V: Any


class Softmax(NamedTuple):
    """Weights are exp((x - top) · inverse)."""

    top: Any
    """The largest logit."""
    inverse: Any
    """Of the temperature."""


class Kept(NamedTuple):
    """What lies over `floor`, and of what equals it ids up to `last`."""

    floor: Any
    last: Any


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
def weight_of(key, softmax):
    """float32; 0 of what is no logit."""
    return tl.where(key == EMPTY, 0.0, tl.exp((number_of(key) - softmax.top) * softmax.inverse))


@triton.jit
def between(low, high):
    """Their mean, rounded down; their sum may not fit."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def is_kept(key, token, kept):
    return (key > kept.floor) | ((key == kept.floor) & (token <= kept.last))


@triton.jit
def load_block(listed, start, C: tl.constexpr, BLOCK: tl.constexpr):
    """Keys and ids [BLOCK] of the listed tokens from `start` on."""
    lane = start + tl.arange(0, BLOCK)
    chunk = tl.load(listed.chunks + lane // C, mask=lane < listed.count, other=0)
    token = chunk * C + lane % C
    there = (lane < listed.count) & (token < listed.V)
    x = tl.load(listed.logits + token, mask=there, other=0.0)
    return tl.where(there, key_of(x), EMPTY), token


@triton.jit
def count_over(key, listed, threshold, C: tl.constexpr, BLOCK: tl.constexpr):
    """How many listed tokens lie over a threshold. `key`: of the first block."""
    found = (key > threshold).to(tl.int32)
    for start in range(BLOCK, listed.count, BLOCK):
        more, _ = load_block(listed, start, C, BLOCK)
        found += (more > threshold).to(tl.int32)
    return tl.sum(found)


@triton.jit
def count_equal(key, token, listed, kept, C: tl.constexpr, BLOCK: tl.constexpr):
    """How many listed tokens with ids up to `kept.last` equal its floor. `key` and `token`: of the first block."""
    found = ((key == kept.floor) & (token <= kept.last)).to(tl.int32)
    for start in range(BLOCK, listed.count, BLOCK):
        more, ids = load_block(listed, start, C, BLOCK)
        found += ((more == kept.floor) & (ids <= kept.last)).to(tl.int32)
    return tl.sum(found)


@triton.jit
def last_equal(key, token, listed, threshold, wanted, C: tl.constexpr, BLOCK: tl.constexpr):
    """Id of the token number `wanted`, counted from 1, of those listed that equal a threshold."""
    low = -1
    high = listed.V - 1
    while low < high - 1:
        middle = between(low, high)
        enough = count_equal(key, token, listed, Kept(threshold, middle), C, BLOCK) >= wanted
        low = tl.where(enough, low, middle)
        high = tl.where(enough, middle, high)
    return high


@triton.jit
def mass_over(key, weight, listed, threshold, kept, softmax, C: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the weights of kept tokens over a threshold. `key` and `weight`: of the first block, 0 if not kept."""
    mass = tl.where(key > threshold, weight, 0.0)
    for start in range(BLOCK, listed.count, BLOCK):
        more, ids = load_block(listed, start, C, BLOCK)
        counts = is_kept(more, ids, kept) & (more > threshold)
        mass += tl.where(counts, weight_of(more, softmax), 0.0)
    return tl.sum(mass)


@triton.jit
def argmax(logits, chunk_maxima, top_key, index, number, V, C: tl.constexpr):
    """The first of the largest logits: the first of the chunks with the largest maximum holds it."""
    chunk = tl.min(tl.where(chunk_maxima == top_key, index, number - 1), 0)
    ids = chunk * C + tl.arange(0, C)
    x = tl.load(logits + ids, mask=ids < V, other=0.0)
    return tl.min(tl.where((ids < V) & (key_of(x) == top_key), ids, V), 0)


@triton.jit
def bound_for_top_k(chunk_maxima, top_key, index, number, k, C: tl.constexpr, BLOCK: tl.constexpr):
    """A bound that few chunks' maxima lie over, but at least k, so that at least k logits do."""
    bound = tl.min(tl.where(index < number, chunk_maxima, top_key), 0) - 1
    high = top_key
    over = number
    enough = tl.maximum(k + k // 8, BLOCK // C)  # the first block costs the same, full or not
    rounds = 0
    while (rounds < 32) & (bound < high - 1) & (over > enough):
        middle = between(bound, high)
        found = tl.sum((chunk_maxima > middle).to(tl.int32))
        if found >= k:
            bound = middle
            over = found
        else:
            high = middle
        rounds += 1
    return bound


@triton.jit
def mass_of_all(logits, V, softmax, BLOCK: tl.constexpr):
    """Sum of the weights of a row."""
    masses = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        every = start + tl.arange(0, BLOCK)
        x = tl.load(logits + every, mask=every < V, other=0.0)
        masses += tl.where(every < V, tl.exp((x - softmax.top) * softmax.inverse), 0.0)
    return tl.sum(masses)


@triton.jit
def bound_for_top_p(chunk_maxima, top_key, softmax, p, mass):
    """A bound such that the maxima over it alone have more than the mass asked for, by more than rounding."""
    bound = EMPTY
    maxima_weight = weight_of(chunk_maxima, softmax)
    high = top_key
    for _ in range(20):
        if bound < high - 1:
            middle = between(bound, high)
            if tl.sum(tl.where(chunk_maxima > middle, maxima_weight, 0.0)) >= 1.0001 * p * mass:
                bound = middle
            else:
                high = middle
    return bound


@triton.jit
def floor_of_top_k(key, listed, bound, top_key, k, C: tl.constexpr, BLOCK: tl.constexpr):
    """What the k largest lie over, and all that equal the last of them."""
    # Invariant: at least k tokens lie over `floor`, at most k over `high`.
    floor = bound
    high = top_key
    over = 0
    rounds = 0
    while (rounds < 32) & (floor < high - 1) & (over != k):
        middle = between(floor, high)
        found = count_over(key, listed, middle, C, BLOCK)
        if found > k:
            floor = middle
        else:
            high = middle
            over = found
        rounds += 1
    # Where no number of those over a threshold is k, `high` is the k-th logit: all that equal it are kept.
    return tl.where(over == k, high, floor)


@triton.jit
def keep_top_p(key, token, weight, listed, kept, softmax, top_key, goal, C: tl.constexpr, BLOCK: tl.constexpr):
    """Of what is kept, the smallest set that reaches the mass asked for: its floor and its last id."""
    # Invariant: what lies over `low` reaches the goal, what lies over `high` does not.
    low = kept.floor
    high = top_key
    reached = 0.0
    rounds = 0
    while (rounds < 32) & (low < high - 1):
        middle = between(low, high)
        found = mass_over(key, weight, listed, middle, kept, softmax, C, BLOCK)
        if found >= goal:
            low = middle
        else:
            high = middle
            reached = found
        rounds += 1
    last = listed.V - 1
    # Of those that equal the threshold, as many as it takes, and at least one.
    each = tl.exp((number_of(high) - softmax.top) * softmax.inverse)
    equal = count_equal(key, token, listed, Kept(high, last), C, BLOCK)
    needed = tl.maximum(tl.ceil((goal - reached) / each), 1.0)
    if needed < equal.to(tl.float32):
        last = last_equal(key, token, listed, high, needed.to(tl.int32), C, BLOCK)
    return high, last


@triton.jit
def pick(key, token, weight, listed, kept, softmax, u, C: tl.constexpr, BLOCK: tl.constexpr):
    """The token where the running sum of the weights passes `u` of them all. They are in order of their ids."""
    mass = mass_over(key, weight, listed, EMPTY, kept, softmax, C, BLOCK)
    sampled = listed.V
    goal = u * mass
    running = 0.0
    latest = 0  # of all with a weight, for where rounding leaves the sum at the goal
    start = 0
    while (start < listed.count) & (sampled == listed.V):
        if start > 0:
            key, token = load_block(listed, start, C, BLOCK)
            weight = tl.where(is_kept(key, token, kept), weight_of(key, softmax), 0.0)
        reaches = (weight > 0) & (running + tl.cumsum(weight, 0) > goal)
        sampled = tl.min(tl.where(reaches, token, listed.V), 0)
        latest = tl.maximum(latest, tl.max(tl.where(weight > 0, token, 0), 0))
        running += tl.sum(weight)
        start += BLOCK
    if sampled == listed.V:
        sampled = latest
    return sampled


@triton.jit
def store_token(state, sampled, stopped_token, stop, before, row, V):
    """Makes a row's token the next to be fed, and moves its position on."""
    # Logits that are no numbers may leave none.
    token = tl.minimum(sampled, V - 1).to(tl.int64)
    token = tl.where(stopped_token >= 0, stopped_token, token)
    if tl.max((stop == token).to(tl.int32), 0) > 0:
        tl.store(state.stopped + row, token)
    tl.store(state.token + row, token)
    tl.store(state.tokens + row * state.length + before + 1, token)
    tl.debug_barrier()  # every thread has read the position
    tl.store(state.position + row, before + 1)


@triton.jit
def sample_kernel(
    logits,
    settings,
    state,
    maxima,
    chunks,
    V,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a row. CHUNKS: a power of two, and at least the number of chunks."""
    pdl_wait_and_trigger(PDL)
    row = tl.program_id(0)
    number = tl.cdiv(V, C)
    logits += row * V
    chunks += row * number
    # All at once, as each has to be waited for.
    before = tl.load(state.position + row)
    temperature = tl.load(settings.temperature)
    k = tl.minimum(tl.load(settings.top_k), V).to(tl.int32)
    p = tl.load(settings.top_p)
    stopped_token = tl.load(state.stopped + row)
    stop = tl.load(settings.stops + tl.arange(0, STOPS))
    index = tl.arange(0, CHUNKS)
    chunk_maxima = tl.load(maxima + row * number + index, mask=index < number, other=0.0)
    u = tl.load(state.uniform + row * state.length + before + 1)
    chunk_maxima = tl.where(index < number, key_of(chunk_maxima), EMPTY)
    top_key = tl.max(chunk_maxima, 0)
    sampled = V
    if temperature == 0:
        sampled = argmax(logits, chunk_maxima, top_key, index, number, V, C)
    else:
        softmax = Softmax(number_of(top_key), tl.minimum(1.0 / temperature, MAX_FLOAT))
        mass = 0.0
        # Chunks that may hold a kept token: those whose maximum lies over `bound`.
        bound = EMPTY
        if k < V:
            if k < number:
                bound = bound_for_top_k(chunk_maxima, top_key, index, number, k, C, BLOCK)
        elif p < 1:
            mass = mass_of_all(logits, V, softmax, BLOCK)
            bound = bound_for_top_p(chunk_maxima, top_key, softmax, p, mass)
        is_listed = chunk_maxima > bound
        tl.store(chunks + tl.cumsum(is_listed.to(tl.int32), 0) - 1, index, mask=is_listed)
        listed = Listed(logits, chunks, tl.sum(is_listed.to(tl.int32)) * C, V)
        tl.debug_barrier()
        key, token = load_block(listed, 0, C, BLOCK)

        floor = bound
        last = -1  # of what equals the floor, none before top_p decides
        if k < V:
            floor = floor_of_top_k(key, listed, bound, top_key, k, C, BLOCK)
        weight = tl.where(is_kept(key, token, Kept(floor, last)), weight_of(key, softmax), 0.0)
        if p < 1:
            if k < V:
                mass = mass_over(key, weight, listed, floor, Kept(floor, last), softmax, C, BLOCK)
            floor, last = keep_top_p(
                key, token, weight, listed, Kept(floor, last), softmax, top_key, p * mass, C, BLOCK
            )
            weight = tl.where(is_kept(key, token, Kept(floor, last)), weight, 0.0)
        sampled = pick(key, token, weight, listed, Kept(floor, last), softmax, u, C, BLOCK)
    store_token(state, sampled, stopped_token, stop, before, row, V)


@dataclass(frozen=True, eq=False)
class SampleToken(Op):
    """Draws a token for each row as `sample` does, stores it, and moves the row's position on by one.

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
    """int64 [B, S + 1]: the new ones are written at the new positions."""
    position: Tensor
    """int64 [B, 1]: of each row's last token. Read and written."""
    scratch: Scratch
    """With the chunks' maxima in it."""

    name = "sample_kernel"
    part = "sampling"

    def launch(self, pdl: bool = False) -> None:
        batch, vocab_size = self.logits.shape
        launch(
            sample_kernel,
            (batch,),
            self.logits,
            Settings(self.temperature, self.top_k, self.top_p, self.stops),
            State(self.uniform, self.stopped, self.token, self.tokens, self.position, self.tokens.shape[1]),
            self.scratch.maxima,
            self.scratch.chunks,
            vocab_size,
            C=self.scratch.chunk,
            CHUNKS=triton.next_power_of_2(self.scratch.maxima.shape[1]),
            STOPS=self.stops.numel(),
            BLOCK=BLOCK,
            PDL=pdl,
            num_warps=WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        settings = self.temperature, self.top_k, self.top_p, self.stops
        state = self.stopped, self.token, self.tokens, self.position
        sample_reference(self.logits, self.uniform, *settings, *state)

    def reads(self) -> tuple[Any, ...]:
        settings = self.temperature, self.top_k, self.top_p, self.stops
        state = self.uniform, self.stopped, self.tokens, self.position
        return self.logits, *settings, *state, self.scratch.maxima

    def writes(self) -> tuple[Any, ...]:
        return self.stopped, self.token, self.tokens, self.position, self.scratch.chunks

    def results(self) -> tuple[Tensor, ...]:
        return self.stopped, self.token, self.tokens, self.position

    def bytes_beside(self) -> int:
        """The chunks' maxima, and of the logits as many chunks as tokens are kept."""
        batch, vocab_size = self.logits.shape
        kept = 1 if self.temperature == 0 else int(self.top_k)
        is_listed = min(kept, self.scratch.maxima.shape[1]) * self.scratch.chunk
        return self.scratch.maxima.nbytes + batch * min(is_listed, vocab_size) * self.logits.itemsize

    def shape(self) -> dict[str, int]:
        return {"B": self.logits.shape[0], "V": self.logits.shape[1]}

    def flops(self, positions: int) -> int:
        return self.logits.numel()

    @property
    def dtype(self) -> str:
        return type_name(self.logits.dtype)

    def example(self, position: int, launches: int) -> "SampleToken":
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
