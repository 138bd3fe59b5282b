"""Router of a mixture of experts: which experts the tokens of a step go through, and with what weights.

The CTAs that write the residual stream have already multiplied their parts of it with the router's matrix
(`RouterPartials`, see `add_linear`). What is left is a reduction: a small kernel that fits beside others, waits, and
finishes quickly. With many experts, each CTA reduces some of them, and the last to finish does the top-k. The output is
laid out by expert, not by token, so that each chosen expert's weights are read once.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.norm import Norm, compute_rstd, load_sum_sq
from gptbench.kernels.op import Op, nbytes, type_name

EXPERTS_PER_PROGRAM = 8
PARTIALS_PER_WARP = 1024
"""Partial logits per warp: 32 for each thread."""


@dataclass(frozen=True)
class RouterPartials:
    """Partial router logits, left by the CTAs that write the residual stream."""

    weight: Tensor
    """Router weight [E, D], never quantised."""
    partial_logits: Tensor
    """Products of the router weight with parts of the residual stream times the norm's weight, before division by the
    RMS, float32 [B, P, E]."""


@dataclass(frozen=True)
class Routing:
    """Routing of a step of B tokens."""

    expert_ids: Tensor
    """Distinct experts chosen by at least one token, ascending, then -1, int32 [S] with S = min(B·A, E) slots."""
    expert_weights: Tensor
    """Weight of each slot's expert for each token, float32 [S, B]; 0 where a token did not choose it."""
    counter: Tensor
    """Counter of distinct experts chosen, int64 [1]; each launch adds to it. Layers may share one."""
    active: int
    """Experts per token, A."""

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
        """Fill every slot with an expert, of which every token takes a share."""
        self.expert_ids.copy_(torch.arange(len(self.expert_ids), device=self.expert_ids.device))
        self.expert_weights.uniform_(0.5 / len(self.expert_ids), 1.5 / len(self.expert_ids), generator=generator)


@dataclass(frozen=True)
class RouteScratch:
    """Scratch memory in which the CTAs of a launch exchange logits."""

    logits: Tensor
    """Router logits, float32 [B, E]."""
    finished: Tensor
    """Number of CTAs that have finished, int32 [1]; 0 between launches."""

    @classmethod
    def empty(cls, batch: int, experts: int, device: torch.device) -> "RouteScratch":
        return cls(
            logits=torch.empty(batch, experts, dtype=torch.float32, device=device),
            finished=torch.zeros(1, dtype=torch.int32, device=device),
        )


class RoutingBuffers(NamedTuple):
    """`Routing` as a kernel argument."""

    expert_ids: Any
    expert_weights: Any
    counter: Any


class RouteShape(NamedTuple):
    """Compile-time shape of the router."""

    E: int
    E_PADDED: int
    """E, rounded up to a power of two."""
    ACTIVE: int
    """Experts per token."""
    MAX_EXPERTS: int
    BATCH: int


@triton.jit
def route_kernel(
    router_partials,
    sum_sq_partials,
    eps,
    buffers,
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
    mask = (part < PARTS)[:, None] & (experts < E)[None, :]
    pdl_wait_and_trigger(PDL)
    sums_by_row = ()
    for b in tl.static_range(BATCH):
        partials_of_row = router_partials + (b * PARTS + part)[:, None] * E + experts[None, :]
        partial = tl.load(partials_of_row, mask=mask, other=0.0)
        rstd = tl.sum(compute_rstd(load_sum_sq(sum_sq_partials + b * PARTS, PARTS, PARTS_PADDED, 1, 1), eps, NORM.K), 0)
        sums_by_row = sums_by_row + (tl.sum(partial, 0) * rstd,)
    if PER_PROGRAM == CHOICE.E_PADDED:
        write_routing(sums_by_row, buffers, CHOICE)
    else:
        for b in tl.static_range(BATCH):
            tl.store(logits + b * E + experts, sums_by_row[b], mask=experts < E)
        tl.debug_barrier()
        if tl.atomic_add(finished, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            tl.store(finished, 0)
            all_experts = tl.arange(0, CHOICE.E_PADDED)
            all_logits = ()
            for b in tl.static_range(BATCH):
                row_logits = tl.load(
                    logits + b * E + all_experts, mask=all_experts < E, other=0.0, cache_modifier=".cg"
                )
                all_logits = all_logits + (row_logits,)
            write_routing(all_logits, buffers, CHOICE)


@triton.jit
def write_routing(logits, buffers, CHOICE: tl.constexpr):
    """Choose experts and write a `Routing`. `logits` is a tuple of [E_PADDED], one for each row of the batch."""
    E: tl.constexpr = CHOICE.E
    E_PADDED: tl.constexpr = CHOICE.E_PADDED
    ACTIVE: tl.constexpr = CHOICE.ACTIVE
    MAX_EXPERTS: tl.constexpr = CHOICE.MAX_EXPERTS
    BATCH: tl.constexpr = CHOICE.BATCH
    all_experts = tl.arange(0, E_PADDED)
    is_used = tl.zeros([E_PADDED], tl.int32)
    weights, nans_or_zeros = (), ()
    for b in tl.static_range(BATCH):
        weight, nan_or_zero = top_experts(logits[b], all_experts, E, ACTIVE)
        is_used = is_used | (weight > 0.0).to(tl.int32)
        weights = weights + (weight,)
        nans_or_zeros = nans_or_zeros + (nan_or_zero,)
    slot = tl.cumsum(is_used, 0) - 1
    slots = tl.arange(0, triton.next_power_of_2(MAX_EXPERTS))
    count = tl.sum(is_used, 0)
    tl.atomic_add(buffers.counter, count.to(tl.int64), sem="relaxed")
    tl.store(buffers.expert_ids + slots, -1, mask=(slots < MAX_EXPERTS) & (slots >= count))
    tl.store(buffers.expert_ids + slot, all_experts, mask=is_used > 0)
    for b in tl.static_range(BATCH):
        tl.store(buffers.expert_weights + slot * BATCH + b, weights[b] + nans_or_zeros[b], mask=is_used > 0)


@triton.jit
def top_experts(logits, all_experts, E: tl.constexpr, ACTIVE: tl.constexpr):
    """Return the weights of the ACTIVE largest logits, normalised to sum to one, and 0 for the others.

    Ties go to the lowest index. The second result, 0 or NaN, is to be added to the weights: it is NaN where any logit
    is, so that a NaN is not lost in the top-k.
    """
    nan_or_zero = tl.sum(logits * 0.0, 0)
    remaining = tl.where((logits == logits) & (all_experts < E), logits, float("-inf"))
    max_logit = tl.max(remaining, 0)
    weights = tl.zeros_like(remaining)
    for _ in tl.static_range(ACTIVE):
        top_logit = tl.max(remaining, 0)
        first_expert = tl.min(
            tl.where((remaining == top_logit) & (weights == 0.0) & (all_experts < E), all_experts, E), 0
        )
        is_chosen = all_experts == first_expert
        # Never 0, however far from the maximum: 0 means not chosen.
        weight = tl.where(top_logit == max_logit, 1.0, tl.exp(top_logit - max_logit))
        weights = tl.where(is_chosen, tl.maximum(weight, 1e-30), weights)
        remaining = tl.where(is_chosen, float("-inf"), remaining)
    return weights / tl.sum(weights, 0), nan_or_zero


@dataclass(frozen=True, eq=False)
class Route(Op):
    """Routes each token to the `active` experts of largest softmax probability, renormalised."""

    router_partials: RouterPartials
    """Partial logits, of as many parts of the residual stream as the norm has partial sums."""
    norm: Norm
    routing: Routing
    """Routing that is written. Weights of slots without an expert are left as they are; the counter is added to."""
    scratch: RouteScratch
    """Scratch memory, of no meaning between launches."""

    name = "route_kernel"

    def launch(self, pdl: bool = False) -> None:
        batch, parts, experts = self.router_partials.partial_logits.shape
        assert self.norm.sum_sq_partials.shape == (batch, parts)
        per_program = min(EXPERTS_PER_PROGRAM, triton.next_power_of_2(experts))
        padded, max_experts, norm = triton.next_power_of_2(experts), self.routing.expert_ids.numel(), self.norm.shape
        choice = RouteShape(
            E=experts, E_PADDED=padded, ACTIVE=self.routing.active, MAX_EXPERTS=max_experts, BATCH=batch
        )
        launch(
            route_kernel,
            (triton.cdiv(experts, per_program),),
            self.router_partials.partial_logits,
            self.norm.sum_sq_partials,
            self.norm.eps,
            RoutingBuffers(self.routing.expert_ids, self.routing.expert_weights, self.routing.counter),
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
        probabilities = (self.router_partials.partial_logits.sum(1) * self.norm.rstd()).softmax(-1)
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        weights, chosen = ordered[:, : self.routing.active], order[:, : self.routing.active]
        weights = weights / weights.sum(-1, keepdim=True)
        gates = torch.zeros_like(probabilities).scatter(-1, chosen, weights)  # [B, E]
        is_used = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0).amax(0) > 0
        expert_ids = self.routing.expert_ids
        experts = (~is_used).sort(stable=True).indices[: len(expert_ids)]  # chosen experts first, in order
        expert_ids.copy_(torch.where(is_used[experts], experts, -1))
        self.routing.expert_weights.copy_(torch.where(is_used[experts, None], gates.T[experts], 0.0))
        self.routing.counter.add_(is_used.sum())

    def reads(self) -> tuple[Any, ...]:
        return self.router_partials.partial_logits, self.norm, self.routing.counter, self.scratch.finished

    def writes(self) -> tuple[Any, ...]:
        return self.routing, self.scratch

    def results(self) -> tuple[Tensor, ...]:
        expert_ids, expert_weights = self.routing.expert_ids, self.routing.expert_weights
        return expert_ids, torch.where(expert_ids.unsqueeze(-1) >= 0, expert_weights, 0.0), self.routing.counter

    def other_bytes(self) -> int:
        return nbytes(self.router_partials.partial_logits, self.norm, self.routing)

    def shape(self) -> dict[str, int]:
        batch, _, experts = self.router_partials.partial_logits.shape
        return {"B": batch, "E": experts, "A": self.routing.active, "D": self.norm.width}

    def flops(self, positions: int) -> int:
        return self.router_partials.partial_logits.numel()

    @property
    def dtype(self) -> str:
        return type_name(self.router_partials.partial_logits.dtype)
