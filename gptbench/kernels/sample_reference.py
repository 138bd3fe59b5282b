"""Reference of `gptbench.kernels.sample`, with which the engines of torch operations sample. A separate file, as it
does not need Triton."""

import torch
from torch import Tensor


@torch.library.custom_op("gptbench::cumsum_rows", mutates_args=())
def cumsum_rows(x: Tensor) -> Tensor:
    """Return ``x.cumsum(-1)`` as an opaque operation that TorchInductor calls instead of generating code for it."""
    return x.cumsum(-1)


@cumsum_rows.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def running_sum(x: Tensor) -> Tensor:
    """Return ``x.cumsum(-1)`` of x [B, V], float32.

    Over a vocabulary of real width TorchInductor splits a scan among several CTAs of a GPU; torch 2.11's has no code
    for a split scan over more than one row ("list indices must be integers or slices, not NoneType").
    """
    return cumsum_rows(x) if torch.compiler.is_compiling() and x.is_cuda and x.shape[0] > 1 else x.cumsum(-1)


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Sample one token for each row by inverting the cumulative distribution of the kept tokens, in order of their ids.

    Args:
        logits: float32 [B, V].
        uniform: one random number from [0, 1) for each row, float32 [B, 1].
        temperature: float32 []; 0 takes the argmax, the lowest id among ties.
        top_k: int64 []; the k most likely tokens are kept, and all that tie with the last of them, as the gpt_fast
            benchmark and transformers do.
        top_p: float32 []; of what top_k left, the smallest set of most likely tokens whose probability reaches p, lower
            ids first among ties, and at least one (1 keeps all). Holtzman et al., 2019, arXiv:1904.09751.

    Returns:
        Tokens, int64 [B].
    """
    greedy = temperature == 0
    sorted_logits, order = logits.sort(dim=-1, descending=True, stable=True)
    # The maximum becomes 0: however low the temperature, nothing overflows except to -inf.
    scaled = (sorted_logits - sorted_logits[:, :1]) / torch.where(greedy, 1.0, temperature)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kth = sorted_logits.gather(-1, (top_k.clamp(max=logits.shape[-1]) - 1).expand(len(logits), 1))
    probability = scaled.masked_fill(sorted_logits < kth, -torch.inf).softmax(-1)
    mass_before = running_sum(probability) - probability
    probability = torch.where((mass_before < top_p) | (top_p >= 1), probability, 0.0)
    probability = torch.zeros_like(probability).scatter(-1, order, probability)  # from here on ordered by id
    cumulative = running_sum(probability)
    # Never a token that is not kept, however the sums are rounded; if rounding leaves none, the last kept one.
    is_kept = probability > 0
    is_reached = is_kept & (cumulative > uniform * cumulative[:, -1:])
    last = torch.where(is_kept, rank, 0).amax(-1)
    sampled = torch.where(is_reached, rank, logits.shape[-1]).amin(-1).minimum(last)
    return torch.where(greedy, order[:, 0], sampled)


def sample_reference(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    stops: Tensor,
    stopped: Tensor,
    token: Tensor,
    tokens: Tensor,
    position: Tensor,
) -> None:
    """Do what `gptbench.kernels.sample.SampleToken` does, with torch operations."""
    u = uniform.gather(1, position + 1)
    sampled = sample(logits, u, temperature, top_k, top_p).unsqueeze(-1)
    sampled = torch.where(stopped >= 0, stopped, sampled)
    stopped.copy_(torch.where((sampled == stops).any(-1, keepdim=True), sampled, stopped))
    position.add_(1)
    tokens[torch.arange(len(tokens), device=tokens.device).unsqueeze(1), position] = sampled
    token.copy_(sampled)
