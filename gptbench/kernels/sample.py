"""End of a decode step: sample one token from each row of the logits, store it, and make it the next token to be fed.

There is no sort. Logits are divided into chunks of a few neighbouring ids, and each chunk's maximum serves as an index:
the k-th largest maximum is no larger than the k-th largest logit, so only chunks whose maximum reaches it (candidates)
are read again. Thresholds of top-k and top-p are found by bisection over the logits' bits, as integers that are ordered
as the floats are.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.maxima import Maxima, MaximaScratch
from gptbench.kernels.op import Op, type_name
from gptbench.kernels.sample_reference import sample_reference

BLOCK = 4096
WARPS = 16
LOGIT_STD = 2.0
"""Typical standard deviation of a model's logits."""

EMPTY = tl.constexpr(-(2**31))
"""Order key of masked-off logits, below those of all numbers and infinities."""
MAX_FLOAT = tl.constexpr(3.4028234e38)


class SamplingSettings(NamedTuple):
    """Sampling settings; see `SampleToken`."""

    temperature: Any
    top_k: Any
    top_p: Any
    stops: Any


class SamplingState(NamedTuple):
    """State that sampling reads and writes; see `SampleToken`."""

    uniform: Any
    stopped: Any
    token: Any
    tokens: Any
    position: Any
    length: Any
    """Row length S + 1 of `uniform` and `tokens`."""


class Candidates(NamedTuple):
    """Tokens of a row that top-k and top-p may keep: those of the candidate chunks, in order of their ids."""

    logits: Any
    """Logits of the row."""
    chunks: Any
    count: Any
    """Number of tokens in the chunks."""
    V: Any


class Softmax(NamedTuple):
    """Parameters of the softmax; weights are exp((x - top) · inverse)."""

    top: Any
    """Maximum logit."""
    inverse: Any
    """Reciprocal of the temperature."""


class KeptSet(NamedTuple):
    """Set of kept tokens: those above `threshold`, and of those equal to it the ids up to `last`."""

    threshold: Any
    last: Any


@triton.jit
def order_key(x):
    """Return int32 keys that are ordered as the float32 numbers x; equal numbers, also -0 and 0, have equal keys."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_order_key(key):
    """Return the float32 number of an order key: the inverse of `order_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def softmax_weight(key, softmax):
    """Return the softmax weight of an order key, float32; 0 where masked off."""
    return tl.where(key == EMPTY, 0.0, tl.exp((from_order_key(key) - softmax.top) * softmax.inverse))


@triton.jit
def midpoint(low, high):
    """Return the mean, rounded down, without overflow of the sum."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def is_kept(key, token, kept):
    return (key > kept.threshold) | ((key == kept.threshold) & (token <= kept.last))


@triton.jit
def load_block(candidates, start, C: tl.constexpr, BLOCK: tl.constexpr):
    """Load order keys and ids [BLOCK] of the candidates from `start` on."""
    lane = start + tl.arange(0, BLOCK)
    chunk = tl.load(candidates.chunks + lane // C, mask=lane < candidates.count, other=0)
    token = chunk * C + lane % C
    mask = (lane < candidates.count) & (token < candidates.V)
    x = tl.load(candidates.logits + token, mask=mask, other=0.0)
    return tl.where(mask, order_key(x), EMPTY), token


@triton.jit
def count_above(key, candidates, threshold, C: tl.constexpr, BLOCK: tl.constexpr):
    """Count the candidates above a threshold. `key` holds the keys of the first block."""
    count = (key > threshold).to(tl.int32)
    for start in range(BLOCK, candidates.count, BLOCK):
        keys, _ = load_block(candidates, start, C, BLOCK)
        count += (keys > threshold).to(tl.int32)
    return tl.sum(count)


@triton.jit
def count_equal(key, token, candidates, kept, C: tl.constexpr, BLOCK: tl.constexpr):
    """Count the candidates that equal the threshold and have ids up to `kept.last`. `key` and `token` are of the first
    block."""
    count = ((key == kept.threshold) & (token <= kept.last)).to(tl.int32)
    for start in range(BLOCK, candidates.count, BLOCK):
        keys, ids = load_block(candidates, start, C, BLOCK)
        count += ((keys == kept.threshold) & (ids <= kept.last)).to(tl.int32)
    return tl.sum(count)


@triton.jit
def last_equal(key, token, candidates, threshold, rank, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return the id of candidate number `rank`, counted from 1, among those that equal a threshold."""
    low = -1
    high = candidates.V - 1
    while low < high - 1:
        middle = midpoint(low, high)
        enough = count_equal(key, token, candidates, KeptSet(threshold, middle), C, BLOCK) >= rank
        low = tl.where(enough, low, middle)
        high = tl.where(enough, middle, high)
    return high


@triton.jit
def mass_above(key, weight, candidates, threshold, kept, softmax, C: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the weights of kept tokens above a threshold. `key` and `weight` are of the first block, `weight` 0 if not
    kept."""
    mass = tl.where(key > threshold, weight, 0.0)
    for start in range(BLOCK, candidates.count, BLOCK):
        keys, ids = load_block(candidates, start, C, BLOCK)
        is_counted = is_kept(keys, ids, kept) & (keys > threshold)
        mass += tl.where(is_counted, softmax_weight(keys, softmax), 0.0)
    return tl.sum(mass)


@triton.jit
def argmax(logits, chunk_maxima, top_key, index, n_chunks, V, C: tl.constexpr):
    """Return the lowest id of the largest logit: it is in the first of the chunks with the largest maximum."""
    chunk = tl.min(tl.where(chunk_maxima == top_key, index, n_chunks - 1), 0)
    ids = chunk * C + tl.arange(0, C)
    x = tl.load(logits + ids, mask=ids < V, other=0.0)
    return tl.min(tl.where((ids < V) & (order_key(x) == top_key), ids, V), 0)


@triton.jit
def top_k_chunk_bound(chunk_maxima, top_key, index, n_chunks, k, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return a bound that few chunks' maxima exceed, but at least k, so that at least k logits do."""
    bound = tl.min(tl.where(index < n_chunks, chunk_maxima, top_key), 0) - 1
    high = top_key
    n_above = n_chunks
    max_chunks = tl.maximum(k + k // 8, BLOCK // C)  # the first block costs the same, full or not
    rounds = 0
    while (rounds < 32) & (bound < high - 1) & (n_above > max_chunks):
        middle = midpoint(bound, high)
        count = tl.sum((chunk_maxima > middle).to(tl.int32))
        if count >= k:
            bound = middle
            n_above = count
        else:
            high = middle
        rounds += 1
    return bound


@triton.jit
def total_mass(logits, V, softmax, BLOCK: tl.constexpr):
    """Return the sum of the weights of a row."""
    partial_mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(logits + ids, mask=ids < V, other=0.0)
        partial_mass += tl.where(ids < V, tl.exp((x - softmax.top) * softmax.inverse), 0.0)
    return tl.sum(partial_mass)


@triton.jit
def top_p_chunk_bound(chunk_maxima, top_key, softmax, p, mass):
    """Return a bound such that the maxima above it alone exceed the target mass by more than rounding."""
    bound = EMPTY
    maxima_weight = softmax_weight(chunk_maxima, softmax)
    high = top_key
    for _ in range(20):
        if bound < high - 1:
            middle = midpoint(bound, high)
            if tl.sum(tl.where(chunk_maxima > middle, maxima_weight, 0.0)) >= 1.0001 * p * mass:
                bound = middle
            else:
                high = middle
    return bound


@triton.jit
def top_k_threshold(key, candidates, bound, top_key, k, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return the top-k threshold by bisection: the k largest logits and all that equal the last of them lie above
    it."""
    # Invariant: at least k tokens lie above `threshold`, at most k above `high`.
    threshold = bound
    high = top_key
    n_above = 0
    rounds = 0
    while (rounds < 32) & (threshold < high - 1) & (n_above != k):
        middle = midpoint(threshold, high)
        count = count_above(key, candidates, middle, C, BLOCK)
        if count > k:
            threshold = middle
        else:
            high = middle
            n_above = count
        rounds += 1
    # If no threshold has exactly k tokens above it, `high` is the k-th logit: all that equal it are kept.
    return tl.where(n_above == k, high, threshold)


@triton.jit
def top_p_threshold(
    key, token, weight, candidates, kept, softmax, top_key, target, C: tl.constexpr, BLOCK: tl.constexpr
):
    """Return threshold and last id of the smallest set of kept tokens that reaches the target mass."""
    # Invariant: tokens above `low` reach the target mass, those above `high` do not.
    low = kept.threshold
    high = top_key
    reached = 0.0
    rounds = 0
    while (rounds < 32) & (low < high - 1):
        middle = midpoint(low, high)
        mass = mass_above(key, weight, candidates, middle, kept, softmax, C, BLOCK)
        if mass >= target:
            low = middle
        else:
            high = middle
            reached = mass
        rounds += 1
    last = candidates.V - 1
    # Of the tokens that equal the threshold, keep as many as are needed, at least one.
    tie_weight = tl.exp((from_order_key(high) - softmax.top) * softmax.inverse)
    n_ties = count_equal(key, token, candidates, KeptSet(high, last), C, BLOCK)
    n_needed = tl.maximum(tl.ceil((target - reached) / tie_weight), 1.0)
    if n_needed < n_ties.to(tl.float32):
        last = last_equal(key, token, candidates, high, n_needed.to(tl.int32), C, BLOCK)
    return high, last


@triton.jit
def invert_cdf(key, token, weight, candidates, kept, softmax, u, C: tl.constexpr, BLOCK: tl.constexpr):
    """Sample by inverting the CDF: return the token where the running sum of weights, by id, passes `u` times the
    total."""
    mass = mass_above(key, weight, candidates, EMPTY, kept, softmax, C, BLOCK)
    sampled = candidates.V
    target = u * mass
    running = 0.0
    last_kept = 0  # the last token with a weight: fallback where rounding leaves the sum at the target
    start = 0
    while (start < candidates.count) & (sampled == candidates.V):
        if start > 0:
            key, token = load_block(candidates, start, C, BLOCK)
            weight = tl.where(is_kept(key, token, kept), softmax_weight(key, softmax), 0.0)
        is_reached = (weight > 0) & (running + tl.cumsum(weight, 0) > target)
        sampled = tl.min(tl.where(is_reached, token, candidates.V), 0)
        last_kept = tl.maximum(last_kept, tl.max(tl.where(weight > 0, token, 0), 0))
        running += tl.sum(weight)
        start += BLOCK
    if sampled == candidates.V:
        sampled = last_kept
    return sampled


@triton.jit
def store_token(state, sampled, stopped_token, stop, last_position, row, V):
    """Make a row's token the next to be fed, and advance its position."""
    # NaN logits may leave no token.
    token = tl.minimum(sampled, V - 1).to(tl.int64)
    token = tl.where(stopped_token >= 0, stopped_token, token)
    if tl.max((stop == token).to(tl.int32), 0) > 0:
        tl.store(state.stopped + row, token)
    tl.store(state.token + row, token)
    tl.store(state.tokens + row * state.length + last_position + 1, token)
    tl.debug_barrier()  # every thread has read the position before
    tl.store(state.position + row, last_position + 1)


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
    """Sample one token per row, one CTA each. CHUNKS is a power of two, at least the number of chunks."""
    pdl_wait_and_trigger(PDL)
    row = tl.program_id(0)
    n_chunks = tl.cdiv(V, C)
    logits += row * V
    chunks += row * n_chunks
    # Issued together, so that their latencies overlap.
    last_position = tl.load(state.position + row)
    temperature = tl.load(settings.temperature)
    k = tl.minimum(tl.load(settings.top_k), V).to(tl.int32)
    p = tl.load(settings.top_p)
    stopped_token = tl.load(state.stopped + row)
    stop = tl.load(settings.stops + tl.arange(0, STOPS))
    index = tl.arange(0, CHUNKS)
    chunk_maxima = tl.load(maxima + row * n_chunks + index, mask=index < n_chunks, other=0.0)
    u = tl.load(state.uniform + row * state.length + last_position + 1)
    chunk_maxima = tl.where(index < n_chunks, order_key(chunk_maxima), EMPTY)
    top_key = tl.max(chunk_maxima, 0)
    sampled = V
    if temperature == 0:
        sampled = argmax(logits, chunk_maxima, top_key, index, n_chunks, V, C)
    else:
        softmax = Softmax(from_order_key(top_key), tl.minimum(1.0 / temperature, MAX_FLOAT))
        mass = 0.0
        # Candidate chunks: those whose maximum lies above `bound`.
        bound = EMPTY
        if k < V:
            if k < n_chunks:
                bound = top_k_chunk_bound(chunk_maxima, top_key, index, n_chunks, k, C, BLOCK)
        elif p < 1:
            mass = total_mass(logits, V, softmax, BLOCK)
            bound = top_p_chunk_bound(chunk_maxima, top_key, softmax, p, mass)
        is_candidate = chunk_maxima > bound
        tl.store(chunks + tl.cumsum(is_candidate.to(tl.int32), 0) - 1, index, mask=is_candidate)
        candidates = Candidates(logits, chunks, tl.sum(is_candidate.to(tl.int32)) * C, V)
        tl.debug_barrier()
        key, token = load_block(candidates, 0, C, BLOCK)

        threshold = bound
        last = -1  # none of those that equal the threshold, until top-p decides
        if k < V:
            threshold = top_k_threshold(key, candidates, bound, top_key, k, C, BLOCK)
        weight = tl.where(is_kept(key, token, KeptSet(threshold, last)), softmax_weight(key, softmax), 0.0)
        if p < 1:
            if k < V:
                mass = mass_above(key, weight, candidates, threshold, KeptSet(threshold, last), softmax, C, BLOCK)
            threshold, last = top_p_threshold(
                key, token, weight, candidates, KeptSet(threshold, last), softmax, top_key, p * mass, C, BLOCK
            )
            weight = tl.where(is_kept(key, token, KeptSet(threshold, last)), weight, 0.0)
        sampled = invert_cdf(key, token, weight, candidates, KeptSet(threshold, last), softmax, u, C, BLOCK)
    store_token(state, sampled, stopped_token, stop, last_position, row, V)


@dataclass(frozen=True, eq=False)
class SampleToken(Op):
    """Samples a token for each row as `sample` does, stores it, and advances the row's position by one.

    A row that has sampled a stop token repeats it from then on. All tensors are contiguous.
    """

    logits: Tensor
    """Logits, float32 [B, V], fewer than 2^31 in all."""
    uniform: Tensor
    """Uniform random number from [0, 1) with which each position's token is sampled, float32 [B, S + 1]."""
    temperature: Tensor
    """Temperature, float32 []; see `sample`."""
    top_k: Tensor
    """Top-k, int64 []."""
    top_p: Tensor
    """Top-p, float32 []."""
    stops: Tensor
    """Ids of the stop tokens, padded with -1, int64 [N], N a power of two."""
    stopped: Tensor
    """Stop token that each row has sampled, or -1, int64 [B, 1]. Read and written."""
    token: Tensor
    """New tokens, int64 [B, 1]."""
    tokens: Tensor
    """All tokens, int64 [B, S + 1]; new ones are written at the new positions."""
    position: Tensor
    """Position of each row's last token, int64 [B, 1]. Read and written."""
    scratch: MaximaScratch
    """Scratch memory, which holds the chunks' maxima."""

    name = "sample_kernel"
    part = "sampling"

    def launch(self, pdl: bool = False) -> None:
        batch, vocab_size = self.logits.shape
        launch(
            sample_kernel,
            (batch,),
            self.logits,
            SamplingSettings(self.temperature, self.top_k, self.top_p, self.stops),
            SamplingState(self.uniform, self.stopped, self.token, self.tokens, self.position, self.tokens.shape[1]),
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

    def other_bytes(self) -> int:
        """Return the bytes of the chunks' maxima, and of as many chunks of logits as tokens are kept."""
        batch, vocab_size = self.logits.shape
        kept = 1 if self.temperature == 0 else int(self.top_k)
        n_candidates = min(kept, self.scratch.maxima.shape[1]) * self.scratch.chunk
        return self.scratch.maxima.nbytes + batch * min(n_candidates, vocab_size) * self.logits.itemsize

    def shape(self) -> dict[str, int]:
        return {"B": self.logits.shape[0], "V": self.logits.shape[1]}

    def flops(self, positions: int) -> int:
        return self.logits.numel()

    @property
    def dtype(self) -> str:
        return type_name(self.logits.dtype)

    def example(self, position: int, launches: int) -> "SampleToken":
        """Return an op with room for `launches` launches, each of which advances the position by one."""
        room = self.tokens.shape[0], position + launches + 2
        return replace(self, uniform=self.uniform.new_empty(room), tokens=self.tokens.new_zeros(room))

    def fill(self, generator: Generator, position: int) -> None:
        """Fill with random logits; the settings stay as they are."""
        self.logits.normal_(std=LOGIT_STD, generator=generator)
        Maxima(self.logits, self.scratch).reference()
        self.uniform.uniform_(generator=generator)
        self.stopped.fill_(-1)
        self.position.fill_(position)
