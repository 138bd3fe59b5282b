"""Rotary embedding against complex rotation, and Llama 3's stretching against its formula."""

import cmath
import math

import pytest
import torch

from gptbench.architecture.spec import Rotary
from gptbench.config import ModelConfig, RopeScaling
from gptbench.model.rope import apply_rope, inverse_frequencies
from tests.models import CPU, frequency, model_config, model_name, rotation_table, tiny

LLAMA_3 = [model_config("llama3_1_8b"), model_config("llama3_2_1b")]


def rotary(config: ModelConfig) -> Rotary:
    return config.layer_specs[0].attention.rotary


def one_head(width: int, theta: float = 10000.0, scaling: RopeScaling | None = None) -> ModelConfig:
    return tiny(
        f"K={width}",
        vocab_size=11,
        dim=width,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        ffn_dim=16,
        context=64,
        rope_theta=theta,
        rope_scaling=scaling,
    )


@pytest.mark.parametrize("theta", [10000.0, 5e5, 17.5], ids="theta={:g}".format)
@pytest.mark.parametrize("width", [2, 6, 16, 128], ids="K={}".format)
def test_rotation_is_multiplication_by_a_complex_number(width: int, theta: float) -> None:
    """Component i and component i + K/2 are the real and the imaginary part."""
    config = one_head(width, theta)
    positions = torch.tensor([0, 1, 2, 7, 36])
    cos, sin = rotation_table(config, 37, CPU)
    x = torch.randn(2, 5, 3, width, generator=torch.Generator().manual_seed(1))
    y = apply_rope(x, cos[positions], sin[positions])
    for t, position in enumerate(positions.tolist()):
        for pair in range(width // 2):
            turn = cmath.exp(1j * position * theta ** (-2 * pair / width))
            z = torch.complex(x[:, t, :, pair].double(), x[:, t, :, pair + width // 2].double()) * turn
            torch.testing.assert_close(y[:, t, :, pair].double(), z.real, rtol=0, atol=2e-6)
            torch.testing.assert_close(y[:, t, :, pair + width // 2].double(), z.imag, rtol=0, atol=2e-6)


def test_rotation_is_half_against_half() -> None:
    """Not the interleaved pairs (0, 1), (2, 3), … of the original paper."""
    cos, sin = rotation_table(one_head(6), 2, CPU)
    unit = torch.zeros(1, 1, 1, 6)
    unit[..., 1] = 1
    turned = apply_rope(unit, cos[1:2], sin[1:2]).flatten()
    assert turned.nonzero().flatten().tolist() == [1, 4]
    assert turned[1] == pytest.approx(math.cos(10000 ** (-2 / 6)))
    assert turned[4] == pytest.approx(math.sin(10000 ** (-2 / 6)))


@pytest.mark.parametrize("config", [one_head(10), *LLAMA_3], ids=model_name)
def test_only_the_distance_matters(config: ModelConfig) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, 1, config.head_dim, generator=generator).double() for _ in range(2))
    cos, sin = rotation_table(config, 60, CPU)

    def score(query: int, key: int) -> float:
        here, there = slice(query, query + 1), slice(key, key + 1)
        return (apply_rope(q, cos[here], sin[here]) * apply_rope(k, cos[there], sin[there])).sum().item()

    assert score(9, 4) == pytest.approx(score(59, 54), abs=1e-4)
    assert abs(score(9, 4) - score(59, 4)) > 0.1
    torch.testing.assert_close(apply_rope(q, cos[:1], sin[:1]), q, rtol=0, atol=1e-6)


def test_sixteen_bit_activations_are_turned_in_float32() -> None:
    cos, sin = rotation_table(one_head(16), 9, CPU)
    x = torch.randn(2, 9, 3, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    y = apply_rope(x, cos, sin)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, apply_rope(x.float(), cos, sin).bfloat16())


@pytest.mark.parametrize("config", LLAMA_3, ids=model_name)
def test_table_is_exact_at_the_end_of_a_long_context(config: ModelConfig) -> None:
    """In float32, the angle of position 131071 would be off by up to 0.004."""
    cos, sin = rotation_table(config, config.context, CPU)
    half = config.head_dim // 2
    assert cos.shape == sin.shape == (131072, config.head_dim)
    assert torch.equal(cos[:, :half], cos[:, half:])
    assert torch.equal(sin[:, :half], sin[:, half:])
    for position in (0, 1, 8191, 131071):
        for pair in range(half):
            angle = position * frequency(config, pair)
            assert cos[position, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("name", ["llama2_7b", "mixtral", "mixtral_tiny", "stories15m"])
def test_frequencies_without_stretching(name: str) -> None:
    config = model_config(name)
    expected = torch.tensor([frequency(config, pair) for pair in range(config.head_dim // 2)], dtype=torch.float64)
    torch.testing.assert_close(inverse_frequencies(rotary(config)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        *LLAMA_3,
        one_head(64, 1234.5, RopeScaling(factor=3.5, low_freq_factor=2.0, high_freq_factor=5.0, original_context=1000)),
    ],
    ids=model_name,
)
def test_llama_3_stretches_long_wavelengths_only(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    assert scaling is not None
    stretched = inverse_frequencies(rotary(config))
    expected = torch.tensor([frequency(config, pair) for pair in range(config.head_dim // 2)], dtype=torch.float64)
    torch.testing.assert_close(stretched, expected, rtol=1e-12, atol=0)

    plain = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    wavelength, ratio = 2 * math.pi / plain, plain / stretched
    short = wavelength < scaling.original_context / scaling.high_freq_factor
    long = wavelength > scaling.original_context / scaling.low_freq_factor
    between = ~short & ~long
    assert short.any()
    assert long.any()
    assert between.any()
    torch.testing.assert_close(ratio[short], torch.ones_like(ratio[short]), rtol=1e-12, atol=0)
    torch.testing.assert_close(ratio[long], torch.full_like(ratio[long], scaling.factor), rtol=1e-12, atol=0)
    assert (ratio[between] > 1).all()
    assert (ratio[between] < scaling.factor).all()
    assert (ratio.diff() >= -1e-12).all()
    assert (ratio[between].diff() > 0).all()


def test_llama_3_boundaries() -> None:
    """Wavelengths under 2048 stay, over 8192 are divided by the factor."""
    for config, factor in zip(LLAMA_3, (8, 32), strict=True):
        scaling = config.rope_scaling
        assert scaling is not None
        assert scaling.factor == factor
        assert scaling.original_context / scaling.high_freq_factor == 2048
        assert scaling.original_context / scaling.low_freq_factor == 8192
