"""The router of a mixture: which experts the tokens of a step go through, and with what weights.

The programs that write the residual stream have multiplied their parts of it with the router's matrix
(`RouterPartials`, see `add_linear`). So what is left is to add up: a small program, which finds room beside others,
waits, and is done soon. Where there are many experts, each program adds up for some of them, and the last to finish
chooses. What it writes is laid out by expert and not by token: so that each expert that anybody chose is read once.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.norm import Norm, norm_factor, norm_parts
from gptbench.kernels.op import Op, nbytes, type_name

EXPERTS_PER_PROGRAM = 8
PARTIALS_PER_WARP = 1024
"""32 for each thread."""


@dataclass(frozen=True)
class RouterPartials:
    """What the programs that write the residual stream tell the router."""

    weight: Tensor
    """[E, D], of the router, never quantised."""
    partial_logits: Tensor
    """float32 [B, P, E]: products of the weight with parts of the residual stream times the norm's gain, the norm's
    divisor left out."""


@dataclass(frozen=True)
class Routing:
    """What the router decides for a step of B tokens."""

    expert_ids: Tensor
    """int32 [S]: experts that some token goes through, in ascending order, then -1. S = min(B·A, E)."""
    expert_weights: Tensor
    """float32 [S, B]: how much of that expert each token takes; 0 if it did not choose it."""
    counter: Tensor
    """int64 [1]: each launch adds the number of experts that some token goes through. Layers may share one."""
    active: int
    """A, experts for each token."""

    @classmethod
    def empty(
        cls, batch: int, experts: int, active: int, device: torch.device, counter: Tensor | None = None
    ) -> "Routing":
        count = min(batch * active, experts)
        return cls(
            expert_ids=torch.full((count,), -1, dtype=torch.int32, device=device),
            expert_weights=torch.zeros(count, batch, dtype=torch.float32, device=device),
            counter=torch.zeros(1, dtype=torch.int64, device=device) if counter is None else counter,
            active=active,
        )

    def fill(self, generator: Generator) -> None:
        """Every slot gets an expert, and every token takes something of each."""
        self.expert_ids.copy_(torch.arange(len(self.expert_ids), device=self.expert_ids.device))
        self.expert_weights.uniform_(0.5 / len(self.expert_ids), 1.5 / len(self.expert_ids), generator=generator)


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


class Decided(NamedTuple):
    """`Routing`, as the kernel takes it."""

    expert_ids: Any
    expert_weights: Any
    counter: Any


class Choice(NamedTuple):
    """Known when the kernel is compiled."""

    E: int
    E_PADDED: int
    """E, padded to a power of two."""
    ACTIVE: int
    """Experts for each token."""
    MAX_EXPERTS: int
    BATCH: int


@triton.jit
def route_kernel(
    router_partials,
    sum_sq_partials,
    eps,
    decided,
    logits,
    finished,
    CHOICE: tl.constexpr,
    NORM: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    PDL: tl.constexpr,
):
    E: tl.constexpr = CHOICE.E
    BATCH: tl.constexpr = CHOICE.BATCH
    PARTS: tl.constexpr = NORM.SUMS
    PARTS_PADDED: tl.constexpr = NORM.SUMS_PADDED
    experts = tl.program_id(0) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    part = tl.arange(0, PARTS_PADDED)
    there = (part < PARTS)[:, None] & (experts < E)[None, :]
    pdl_wait_and_trigger(PDL)
    sums = ()
    for b in tl.static_range(BATCH):
        partials_of_row = router_partials + (b * PARTS + part)[:, None] * E + experts[None, :]
        partial = tl.load(partials_of_row, mask=there, other=0.0)
        factor = tl.sum(norm_factor(norm_parts(sum_sq_partials + b * PARTS, PARTS, PARTS_PADDED, 1, 1), eps, NORM.K), 0)
        sums = sums + (tl.sum(partial, 0) * factor,)
    if PER_PROGRAM == CHOICE.E_PADDED:
        decide(sums, decided, CHOICE)
    else:
        for b in tl.static_range(BATCH):
            tl.store(logits + b * E + experts, sums[b], mask=experts < E)
        tl.debug_barrier()
        if tl.atomic_add(finished, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            tl.store(finished, 0)
            everyone = tl.arange(0, CHOICE.E_PADDED)
            all_sums = ()
            for b in tl.static_range(BATCH):
                of_row = tl.load(logits + b * E + everyone, mask=everyone < E, other=0.0, cache_modifier=".cg")
                all_sums = all_sums + (of_row,)
            decide(all_sums, decided, CHOICE)


@triton.jit
def decide(logits, decided, CHOICE: tl.constexpr):
    """Writes a `Routing` for logits, a tuple of [E_PADDED] for each row of the batch."""
    E: tl.constexpr = CHOICE.E
    E_PADDED: tl.constexpr = CHOICE.E_PADDED
    ACTIVE: tl.constexpr = CHOICE.ACTIVE
    MAX_EXPERTS: tl.constexpr = CHOICE.MAX_EXPERTS
    BATCH: tl.constexpr = CHOICE.BATCH
    everyone = tl.arange(0, E_PADDED)
    used = tl.zeros([E_PADDED], tl.int32)
    weights, poisons = (), ()
    for b in tl.static_range(BATCH):
        weight, poison = choose(logits[b], everyone, E, ACTIVE)
        used = used | (weight > 0.0).to(tl.int32)
        weights = weights + (weight,)
        poisons = poisons + (poison,)
    slot = tl.cumsum(used, 0) - 1
    every_slot = tl.arange(0, triton.next_power_of_2(MAX_EXPERTS))
    count = tl.sum(used, 0)
    tl.atomic_add(decided.counter, count.to(tl.int64), sem="relaxed")
    tl.store(decided.expert_ids + every_slot, -1, mask=(every_slot < MAX_EXPERTS) & (every_slot >= count))
    tl.store(decided.expert_ids + slot, everyone, mask=used > 0)
    for b in tl.static_range(BATCH):
        tl.store(decided.expert_weights + slot * BATCH + b, weights[b] + poisons[b], mask=used > 0)


@triton.jit
def choose(logits, everyone, E: tl.constexpr, ACTIVE: tl.constexpr):
    """Weights of the ACTIVE largest logits, which add up to one; 0 for the others. Of equals the first is chosen. And a
    number to add to the weights: 0, or NaN where a logit is none, which must not get lost."""
    poison = tl.sum(logits * 0.0, 0)
    left = tl.where((logits == logits) & (everyone < E), logits, float("-inf"))
    largest = tl.max(left, 0)
    weights = tl.zeros_like(left)
    for _ in tl.static_range(ACTIVE):
        top = tl.max(left, 0)
        first = tl.min(tl.where((left == top) & (weights == 0.0) & (everyone < E), everyone, E), 0)
        chosen = everyone == first
        # Never 0, however far it is from the largest: 0 means not chosen.
        weight = tl.where(top == largest, 1.0, tl.exp(top - largest))
        weights = tl.where(chosen, tl.maximum(weight, 1e-30), weights)
        left = tl.where(chosen, float("-inf"), left)
    return weights / tl.sum(weights, 0), poison


@dataclass(frozen=True, eq=False)
class Route(Op):
    """Softmax over all experts, the `active` largest for each token, renormalised."""

    router_partials: RouterPartials
    """Of as many parts of the residual stream as the norm has squares of."""
    norm: Norm
    routing: Routing
    """What is decided. The gates of slots without an expert are left as they are; the counter is added to."""
    scratch: Scratch
    """Of no meaning between launches."""

    name = "route_kernel"

    def launch(self, pdl: bool = False) -> None:
        batch, parts, experts = self.router_partials.partial_logits.shape
        assert self.norm.sum_sq_partials.shape == (batch, parts)
        per_program = min(EXPERTS_PER_PROGRAM, triton.next_power_of_2(experts))
        padded, max_experts, norm = triton.next_power_of_2(experts), self.routing.expert_ids.numel(), self.norm.shape
        choice = Choice(E=experts, E_PADDED=padded, ACTIVE=self.routing.active, MAX_EXPERTS=max_experts, BATCH=batch)
        launch(
            route_kernel,
            (triton.cdiv(experts, per_program),),
            self.router_partials.partial_logits,
            self.norm.sum_sq_partials,
            self.norm.eps,
            Decided(self.routing.expert_ids, self.routing.expert_weights, self.routing.counter),
            self.scratch.logits,
            self.scratch.finished,
            CHOICE=choice,
            NORM=norm,
            PER_PROGRAM=per_program,
            PDL=pdl,
            num_warps=min(max(norm.SUMS_PADDED * per_program // PARTIALS_PER_WARP, 1), 16),
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        probabilities = (self.router_partials.partial_logits.sum(1) * self.norm.factor()).softmax(-1)
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        weights, chosen = ordered[:, : self.routing.active], order[:, : self.routing.active]
        weights = weights / weights.sum(-1, keepdim=True)
        gates = torch.zeros_like(probabilities).scatter(-1, chosen, weights)  # [B, E]
        used = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0).amax(0) > 0
        expert_ids = self.routing.expert_ids
        experts = (~used).sort(stable=True).indices[: len(expert_ids)]  # those that are used first, in order
        expert_ids.copy_(torch.where(used[experts], experts, -1))
        self.routing.expert_weights.copy_(torch.where(used[experts, None], gates.T[experts], 0.0))
        self.routing.counter.add_(used.sum())

    def reads(self) -> tuple[Any, ...]:
        return self.router_partials.partial_logits, self.norm, self.routing.counter, self.scratch.finished

    def writes(self) -> tuple[Any, ...]:
        return self.routing, self.scratch

    def results(self) -> tuple[Tensor, ...]:
        expert_ids, expert_weights = self.routing.expert_ids, self.routing.expert_weights
        return expert_ids, torch.where(expert_ids.unsqueeze(-1) >= 0, expert_weights, 0.0), self.routing.counter

    def bytes_beside(self) -> int:
        return nbytes(self.router_partials.partial_logits, self.norm, self.routing)

    def shape(self) -> dict[str, int]:
        batch, _, experts = self.router_partials.partial_logits.shape
        return {"B": batch, "E": experts, "A": self.routing.active, "D": self.norm.width}

    def flops(self, positions: int) -> int:
        return self.router_partials.partial_logits.numel()

    @property
    def dtype(self) -> str:
        return type_name(self.router_partials.partial_logits.dtype)
