"""Drawing the next token. Every setting is a tensor on the device: a change compiles nothing and waits for nothing."""

import torch
from torch import Tensor

from gptbench.config import SamplingConfig


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draws one token for each row by inverting the cumulative distribution.

    Args:
        logits: float32 [B, V].
        uniform: one number from [0, 1) for each row, float32 [B, 1].
        temperature: float32 []; 0 takes the argmax.
        top_k: int64 []; exactly the k most likely tokens are kept, equal ones in the order of a stable sort.
        top_p: float32 []; of what top_k left, the smallest set whose probability reaches p (1 keeps all).

    Returns:
        Tokens, int64 [B]. Holtzman et al., 2019, arXiv:1904.09751, for top_p.
    """
    greedy = temperature == 0
    ordered, token = logits.sort(dim=-1, descending=True, stable=True)
    # The largest becomes 0: however low the temperature, nothing overflows but to -inf.
    scaled = (ordered - ordered[:, :1]) / torch.where(greedy, 1.0, temperature)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    probability = scaled.masked_fill(rank >= top_k, -torch.inf).softmax(-1)
    reached = probability.cumsum(-1)
    kept = torch.where((reached - probability < top_p) | (top_p >= 1), probability, 0.0)
    cumulative = kept.cumsum(-1)
    # The last rank with any probability: rounding may leave uniform * total at the total itself.
    last = (kept > 0).sum(-1, keepdim=True) - 1
    drawn = (cumulative <= uniform * cumulative[:, -1:]).sum(-1, keepdim=True).minimum(last).clamp(min=0)
    return torch.where(greedy, token[:, 0], token.gather(-1, drawn).squeeze(-1))


class Sampler:
    """The settings of `sample` as tensors on the device.

    Args:
        config: what to set.
        vocab_size: V; what top_k=null stands for.
        device: where the tensors live.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int, device: torch.device) -> None:
        self.temperature = torch.empty((), dtype=torch.float32, device=device)
        self.top_k = torch.empty((), dtype=torch.int64, device=device)
        self.top_p = torch.empty((), dtype=torch.float32, device=device)
        self.vocab_size = vocab_size
        self.set(config)

    def set(self, config: SamplingConfig) -> None:
        """Changes the settings in place, so that compiled code and captured graphs take them up."""
        self.temperature.fill_(config.temperature)
        self.top_k.fill_(self.vocab_size if config.top_k is None else config.top_k)
        self.top_p.fill_(1.0 if config.top_p is None else config.top_p)

    @property
    def settings(self) -> tuple[Tensor, Tensor, Tensor]:
        """temperature, top_k, top_p, as `sample` takes them."""
        return self.temperature, self.top_k, self.top_p
