"""The reference of `gptbench.kernels.sample`; engines of torch operations draw with it. Alone, as it needs no
Triton."""

import torch
from torch import Tensor


@torch.library.custom_op("gptbench::cumsum_rows", mutates_args=())
def cumsum_rows(x: Tensor) -> Tensor:
    """``x.cumsum(-1)`` as one operation that TorchInductor calls and does not write itself."""
    return x.cumsum(-1)


@cumsum_rows.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def running_sum(x: Tensor) -> Tensor:
    """``x.cumsum(-1)`` of x [B, V], float32.

    Over a vocabulary of real width, TorchInductor splits a scan among several programs of a GPU; that of torch 2.11
    has no code for a split scan over more than one row ("list indices must be integers or slices, not NoneType").
    """
    return cumsum_rows(x) if torch.compiler.is_compiling() and x.is_cuda and x.shape[0] > 1 else x.cumsum(-1)


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draws one token for each row by inverting the cumulative distribution of the kept tokens, in order of their ids.

    Args:
        logits: float32 [B, V].
        uniform: one number from [0, 1) for each row, float32 [B, 1].
        temperature: float32 []; 0 takes the argmax, of equal ones the lowest id.
        top_k: int64 []; the k most likely tokens are kept, and all whose logit equals the last one's, as the gpt_fast
            benchmark and the transformers library keep them.
        top_p: float32 []; of what top_k left, the smallest set of most likely tokens whose probability reaches p, of
            equal ones those with the lower ids, and at least one (1 keeps all).

    Returns:
        Tokens, int64 [B]. Holtzman et al., 2019, arXiv:1904.09751, for top_p.
    """
    greedy = temperature == 0
    ordered, token = logits.sort(dim=-1, descending=True, stable=True)
    # The largest becomes 0: however low the temperature, nothing overflows but to -inf.
    scaled = (ordered - ordered[:, :1]) / torch.where(greedy, 1.0, temperature)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    least = ordered.gather(-1, (top_k.clamp(max=logits.shape[-1]) - 1).expand(len(logits), 1))
    probability = scaled.masked_fill(ordered < least, -torch.inf).softmax(-1)
    before = running_sum(probability) - probability
    probability = torch.where((before < top_p) | (top_p >= 1), probability, 0.0)
    probability = torch.zeros_like(probability).scatter(-1, token, probability)  # from here on by id
    cumulative = running_sum(probability)
    # Never a token that is not kept, however the sums are rounded; where they leave none, the last one that is.
    possible = probability > 0
    reached = possible & (cumulative > uniform * cumulative[:, -1:])
    last = torch.where(possible, rank, 0).amax(-1)
    sampled = torch.where(reached, rank, logits.shape[-1]).amin(-1).minimum(last)
    return torch.where(greedy, token[:, 0], sampled)


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
    """What `gptbench.kernels.sample.SampleToken` does: of the engines that are made of torch's operations, too."""
    number = uniform.gather(1, position + 1)
    sampled = sample(logits, number, temperature, top_k, top_p).unsqueeze(-1)
    sampled = torch.where(stopped >= 0, stopped, sampled)
    stopped.copy_(torch.where((sampled == stops).any(-1, keepdim=True), sampled, stopped))
    position.add_(1)
    tokens[torch.arange(len(tokens), device=tokens.device).unsqueeze(1), position] = sampled
    token.copy_(sampled)
