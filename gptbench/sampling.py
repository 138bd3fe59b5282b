"""Sampling settings as tensors on the device, so that changing them neither recompiles nor synchronises."""

import torch
from torch import Tensor

from gptbench.config import MAX_STOP_TOKENS, SamplingConfig


class Sampler:
    """The settings of `gptbench.kernels.sample_reference.sample`, and the stop tokens, as tensors on the device.

    Args:
        config: sampling section of the configuration.
        vocab_size: V, which top_k=null stands for.
        device: where the tensors live.

    Attributes:
        temperature: float32 [].
        top_k: int64 [].
        top_p: float32 [].
        stops: int64 [16], ids of the stop tokens, padded with -1.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int, device: torch.device) -> None:
        self.temperature = torch.empty((), dtype=torch.float32, device=device)
        self.top_k = torch.empty((), dtype=torch.int64, device=device)
        self.top_p = torch.empty((), dtype=torch.float32, device=device)
        self.stops = torch.empty(MAX_STOP_TOKENS, dtype=torch.int64, device=device)
        self.vocab_size = vocab_size
        self.set(config)

    def set(self, config: SamplingConfig) -> None:
        """Change the settings in place, so that compiled code and captured graphs use them."""
        self.temperature.fill_(config.temperature)
        self.top_k.fill_(self.vocab_size if config.top_k is None else config.top_k)
        self.top_p.fill_(1.0 if config.top_p is None else config.top_p)
        self.stops.fill_(-1)
        for index, token in enumerate(config.stop_tokens):
            self.stops[index].fill_(token)

    @property
    def settings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Temperature, top_k and top_p, in the order that `sample` takes them."""
        return self.temperature, self.top_k, self.top_p
