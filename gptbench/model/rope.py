"""Rotary position embedding, half against half, as Hugging Face checkpoints have it.

Su et al., "RoFormer", 2021, arXiv:2104.09864. Llama 3's stretching: https://github.com/meta-llama/llama-models, as
described in the Llama 3.1 model card: long wavelengths are stretched, short ones are kept, those between are blended.
"""

import math

import torch
from torch import Tensor, nn

from gptbench.architecture.spec import Rotary


def inverse_frequencies(rotary: Rotary) -> Tensor:
    """Radians that each of the K/2 pairs turns from one position to the next: float64 [K/2]."""
    pairs = torch.arange(0, rotary.width, 2, dtype=torch.float64, device="cpu")
    frequency = rotary.base ** -(pairs / rotary.width)
    scaling = rotary.scaling
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    # 0 where the wavelength is stretched in full, 1 where it is kept.
    kept = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    kept = kept.clamp(0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


class RotationTable(nn.Module):
    """Cosine and sine for positions 0 to length-1: two float32 [length, K]; the second half repeats the first."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: Rotary, length: int, device: torch.device | str) -> None:
        super().__init__()
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = torch.outer(positions, inverse_frequencies(rotary)).repeat(1, 2)
        self.register_buffer("cos", angle.cos().float().to(device), persistent=False)
        self.register_buffer("sin", angle.sin().float().to(device), persistent=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions [...]: two float32 [..., K]."""
        return self.cos[positions], self.sin[positions]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, heads, K] turned by the angles of its positions: cos, sin [B, T, K]. Computed in float32."""
    half = x.shape[-1] // 2
    x32 = x.float()
    turned = torch.cat((-x32[..., half:], x32[..., :half]), dim=-1)
    return (x32 * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)
