"""Drawing the next token. Every setting is a tensor on the device: a change compiles nothing and waits for nothing."""

import torch
from torch import Tensor

from gptbench.config import MAX_STOP_TOKENS, SamplingConfig


class Sampler:
    """The settings of `gptbench.kernels.sample_reference.sample`, and the stop tokens, as tensors on the device.

    Args:
        config: what to set.
        vocab_size: V; what top_k=null stands for.
        device: where the tensors live.

    Attributes:
        stops: int64 [16]: ids of the stop tokens, and -1 in the places that are left.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int, device: torch.device) -> None:
        self.temperature = torch.empty((), dtype=torch.float32, device=device)
        self.top_k = torch.empty((), dtype=torch.int64, device=device)
        self.top_p = torch.empty((), dtype=torch.float32, device=device)
        self.stops = torch.empty(MAX_STOP_TOKENS, dtype=torch.int64, device=device)
        self.vocab_size = vocab_size
        self.set(config)

    def set(self, config: SamplingConfig) -> None:
        """Changes the settings in place, so that compiled code and captured graphs take them up."""
        self.temperature.fill_(config.temperature)
        self.top_k.fill_(self.vocab_size if config.top_k is None else config.top_k)
        self.top_p.fill_(1.0 if config.top_p is None else config.top_p)
        self.stops.fill_(-1)
        for place, token in enumerate(config.stop_tokens):
            self.stops[place].fill_(token)

    @property
    def settings(self) -> tuple[Tensor, Tensor, Tensor]:
        """temperature, top_k, top_p, as `sample` takes them."""
        return self.temperature, self.top_k, self.top_p
