"""The router of a mixture: which experts the tokens of a step go through, and with what weights.

Its weight is small; each program works out the logits of some experts, and the last to finish chooses. What it writes
is laid out by expert and not by token: so that each expert that anybody chose is read once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.activation import Activation
from gptbench.kernels.launch import follow
from gptbench.kernels.linear import Norm, norm_factor, norm_parts

EXPERTS_PER_PROGRAM = 8
WARPS = 16


@dataclass(frozen=True)
class Routing:
    """What the router decides for a step of B tokens."""

    slots: Tensor
    """int32 [S]: experts that some token goes through, in ascending order, then -1. S = min(B·A, E)."""
    gates: Tensor
    """float32 [S, B]: how much of that expert each token takes; 0 if it did not choose it."""

    @classmethod
    def empty(cls, batch: int, experts: int, active: int, device: torch.device) -> "Routing":
        count = min(batch * active, experts)
        return cls(
            slots=torch.full((count,), -1, dtype=torch.int32, device=device),
            gates=torch.zeros(count, batch, dtype=torch.float32, device=device),
        )


@dataclass(frozen=True)
class Scratch:
    """What the programs of a launch tell each other."""

    logits: Tensor
    """float32 [B, E]."""
    finished: Tensor
    """int32 [1]: programs that are done; 0 between launches."""

    @classmethod
    def empty(cls, batch: int, experts: int, device: torch.device) -> "Scratch":
        return cls(
            logits=torch.empty(batch, experts, dtype=torch.float32, device=device),
            finished=torch.zeros(1, dtype=torch.int32, device=device),
        )


@triton.jit
def route_kernel(
    weight,
    low,
    high,
    scale,
    squares,
    eps,
    slots,
    gates,
    logits,
    finished,
    E: tl.constexpr,
    E_PADDED: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    ACTIVE: tl.constexpr,
    SLOTS: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    BATCH: tl.constexpr,
    SUMS: tl.constexpr,
    SUMS_PADDED: tl.constexpr,
    FIXED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    experts = tl.program_id(0) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    everyone = tl.arange(0, E_PADDED)
    # Along k, a word of four neighbours after the other, as fixed point has them.
    word = tl.arange(0, K_PADDED // 4)
    place = tl.arange(0, 4)
    k = word[:, None] * 4 + place[None, :]
    columns = tl.reshape(k, [K_PADDED])
    there = (experts < E)[:, None] & (columns < K)[None, :]
    w = tl.load(weight + experts[:, None] * K + columns[None, :], mask=there, other=0.0).to(tl.float32)
    follow(OVERLAP)
    for b in tl.static_range(BATCH):
        if FIXED:
            at = b * (K // 4) + word
            low_word = tl.load(low + at, mask=word < K // 4, other=0)
            high_word = tl.load(high + at, mask=word < K // 4, other=0)
            units = tl.load(scale + at, mask=word < K // 4, other=0.0)
            first = tl.join((low_word << 16) >> 16, low_word >> 16)
            second = tl.join((high_word << 16) >> 16, high_word >> 16)
            numbers = tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), [K_PADDED // 4, 4])
            x = tl.reshape(numbers.to(tl.float32) * units[:, None], [K_PADDED])
        else:
            x = tl.load(low + b * K + columns, mask=columns < K, other=0.0).to(tl.float32)
        factor = tl.sum(norm_factor(norm_parts(squares + b * SUMS, SUMS, SUMS_PADDED, 1, 1), eps, K), 0)
        tl.store(logits + b * E + experts, tl.sum(w * x[None, :], 1) * factor, mask=experts < E)
    tl.debug_barrier()
    if tl.num_programs(0) > 1:
        last = tl.atomic_add(finished, 1, sem="acq_rel") == tl.num_programs(0) - 1
    else:
        last = True
    if last:
        tl.store(finished, 0)
        used = tl.zeros([E_PADDED], tl.int32)
        for b in tl.static_range(BATCH):
            wanted, _ = choose(logits + b * E, everyone, E, ACTIVE)
            used = used | (wanted > 0.0).to(tl.int32)
        slot = tl.cumsum(used, 0) - 1
        every_slot = tl.arange(0, triton.next_power_of_2(SLOTS))
        tl.store(slots + every_slot, -1, mask=(every_slot < SLOTS) & (every_slot >= tl.sum(used, 0)))
        tl.store(slots + slot, everyone, mask=used > 0)
        for b in tl.static_range(BATCH):
            wanted, poison = choose(logits + b * E, everyone, E, ACTIVE)
            tl.store(gates + slot * BATCH + b, wanted + poison, mask=used > 0)


@triton.jit
def choose(logits, everyone, E: tl.constexpr, ACTIVE: tl.constexpr):
    """Weights of the ACTIVE largest logits, which add up to one; 0 for the others. Of equals the first is chosen. And a
    number to add to the weights: 0, or NaN where a logit is none, which must not get lost."""
    read = tl.load(logits + everyone, mask=everyone < E, other=0.0, cache_modifier=".cg")
    poison = tl.sum(read * 0.0, 0)
    left = tl.where((read == read) & (everyone < E), read, float("-inf"))
    largest = tl.max(left, 0)
    weights = tl.zeros_like(left)
    for _ in tl.static_range(ACTIVE):
        top = tl.max(left, 0)
        first = tl.min(tl.where((left == top) & (weights == 0.0) & (everyone < E), everyone, E), 0)
        chosen = everyone == first
        # Never 0, however far it is from the largest: 0 means not chosen.
        weight = tl.where(top > float("-inf"), tl.exp(top - largest), 0.0)
        weights = tl.where(chosen, tl.maximum(weight, 1e-30), weights)
        left = tl.where(chosen, float("-inf"), left)
    return weights / tl.sum(weights, 0), poison


def route(
    x: Activation,
    norm: Norm,
    weight: Tensor,
    active: int,
    routing: Routing,
    scratch: Scratch,
    overlap: bool = False,
) -> None:
    """Softmax over all experts, the `active` largest for each token, renormalised.

    Args:
        x: [B, K], the norm's gain already in it.
        norm: its divisor.
        weight: [E, K], never quantised.
        active: A, experts for each token.
        routing: all of it is written, but for the gates of slots without an expert.
        scratch: of no meaning between launches.
        overlap: launched while the kernel before it still runs (see `launch`).
    """
    experts, width = weight.shape
    sums = norm.squares.shape[1]
    per_program = min(EXPERTS_PER_PROGRAM, triton.next_power_of_2(experts))
    route_kernel[(triton.cdiv(experts, per_program),)](
        weight,
        *x.tensors,
        norm.squares,
        norm.eps,
        routing.slots,
        routing.gates,
        scratch.logits,
        scratch.finished,
        E=experts,
        E_PADDED=triton.next_power_of_2(experts),
        PER_PROGRAM=per_program,
        ACTIVE=active,
        SLOTS=routing.slots.numel(),
        K=width,
        K_PADDED=max(4, triton.next_power_of_2(width)),
        BATCH=x.batch,
        SUMS=sums,
        SUMS_PADDED=triton.next_power_of_2(sums),
        FIXED=x.fixed,
        OVERLAP=overlap,
        num_warps=WARPS,
        launch_pdl=overlap,
    )


def route_reference(
    x: Activation,
    norm: Norm,
    weight: Tensor,
    active: int,
    routing: Routing,
    scratch: Scratch,
    overlap: bool = False,
) -> None:
    """The twin of `route`."""
    probabilities = (x.read() * norm.factor() @ weight.float().T).softmax(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    weights, chosen = ordered[:, :active], order[:, :active]
    weights = weights / weights.sum(-1, keepdim=True)
    experts = chosen.unique().tolist()
    routing.slots.fill_(-1)
    routing.gates.zero_()
    for slot, expert in enumerate(experts):
        routing.slots[slot] = expert
        routing.gates[slot] = torch.where(chosen == expert, weights, 0.0).sum(-1)
