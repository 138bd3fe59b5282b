"""Rotary position embedding (RoPE) in the NeoX-style rotate-half layout that Hugging Face checkpoints use.

Su et al., "RoFormer", 2021, arXiv:2104.09864. Llama 3's scaling follows https://github.com/meta-llama/llama-models and
the Llama 3.1 model card: long wavelengths are stretched, short ones are kept, and those in between are interpolated.
"""

import math

import torch
from torch import Tensor, nn

from gptbench.architecture.spec import Rotary


def inverse_frequencies(rotary: Rotary) -> Tensor:
    """Return the angle in radians by which each of the K/2 pairs rotates per position: float64 [K/2]."""
    pairs = torch.arange(0, rotary.width, 2, dtype=torch.float64, device="cpu")
    frequency = rotary.base ** -(pairs / rotary.width)
    scaling = rotary.scaling
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    # 0 where the wavelength is stretched in full, 1 where it is kept.
    unscaled = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    unscaled = unscaled.clamp(0, 1)
    return frequency * (unscaled + (1 - unscaled) / scaling.factor)


class RotationTable(nn.Module):
    """Cosines and sines for positions 0 to length-1, each float32 [length, K]; the second half repeats the first."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: Rotary, length: int, device: torch.device | str) -> None:
        super().__init__()
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = torch.outer(positions, inverse_frequencies(rotary)).repeat(1, 2)
        self.register_buffer("cos", angle.cos().float().to(device), persistent=False)
        self.register_buffer("sin", angle.sin().float().to(device), persistent=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of positions [...], each float32 [..., K]."""
        return self.cos[positions], self.sin[positions]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, T, heads, K] by the angles of its positions, cos and sin [B, T, K]. Computed in float32."""
    half = x.shape[-1] // 2
    x32 = x.float()
    rotated_half = torch.cat((-x32[..., half:], x32[..., :half]), dim=-1)
    return (x32 * cos.unsqueeze(-2) + rotated_half * sin.unsqueeze(-2)).to(x.dtype)
