"""Tiny models that many tests share, and functions that make them with weights and a KV cache."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from gptbench.architecture.spec import AttentionKind, FeedForwardKind
from gptbench.build import fill, on_meta
from gptbench.config import (
    BaselineConfig,
    Config,
    DeviceConfig,
    EagerConfig,
    ModelConfig,
    QuantConfig,
    RopeScaling,
    SamplingConfig,
    SweepConfig,
    TaskConfig,
    TrackingConfig,
    WorkloadConfig,
)
from gptbench.model import Transformer, Weight
from gptbench.model.rope import RotationTable
from gptbench.model.transformer import MixtureOfExperts, RMSNorm

CPU = torch.device("cpu")
CONF = Path(__file__).resolve().parent.parent / "conf"
"""Folder of the configuration that gptbench ships."""


def model_config(name: str) -> ModelConfig:
    """Return ``conf/model/NAME.yaml``, typed and checked as in a run."""
    typed = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    config = OmegaConf.to_object(typed)
    assert isinstance(config, ModelConfig)
    return config


def tiny(name: str, **shape: Any) -> ModelConfig:
    """Return a configuration of a model. Widths are multiples of 16, as int8 requires; vocabularies are primes."""
    return ModelConfig(_target_="gptbench.model.Transformer", name=name, **shape)


DENSE = tiny("dense", vocab_size=211, dim=48, n_layers=3, n_heads=3, n_kv_heads=3, ffn_dim=112, context=64)
"""Model with multi-head attention, untied."""

GQA = tiny("gqa", vocab_size=331, dim=96, n_layers=2, n_heads=6, n_kv_heads=2, ffn_dim=176, context=64, tied=True)
"""Model with six heads over two key-value heads, tied."""

MOE = replace(model_config("mixtral_tiny"), vocab_size=512)
"""Mixture of eight experts, two of them active, with four heads over two key-value heads."""

QWEN = tiny(
    "qwen",
    vocab_size=211,
    dim=48,
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=112,
    context=64,
    qkv_bias=True,
    qk_norm=True,
)
"""Model with heads that together are wider than the model, a bias, and normalised queries and keys: Qwen 2 and 3 in
one."""

WINDOW = replace(
    DENSE,
    name="window",
    sliding_window=4,
    rope_theta=100.0,
    rope_scaling=RopeScaling(factor=3.0, low_freq_factor=1.0, high_freq_factor=3.0, original_context=48),
)
"""Model with a window shorter than most sequences, and with wavelengths that are stretched, kept, and in between."""

MIXED = replace(
    MOE,
    name="mixed",
    n_layers=4,
    sliding_window=3,
    attention_pattern=[AttentionKind.full, AttentionKind.window],
    ffn_pattern=[FeedForwardKind.dense, FeedForwardKind.dense, FeedForwardKind.experts, FeedForwardKind.experts],
)
"""Model with layers of four kinds: full or windowed attention, with one feed-forward network or experts."""

TINY = [DENSE, GQA, MOE]
FAMILY = [*TINY, QWEN, WINDOW]
"""All models; tests that compile each one use `TINY`, as that takes long."""

QUANTISATIONS = {"none": "gptbench.quant.Unquantised", "int8": "gptbench.quant.Int8"}


def model_name(value: Any) -> str | None:
    """Return a test id of a parameter, for ``parametrize(..., ids=model_name)``."""
    return value.name if isinstance(value, ModelConfig) else None


def quant_section(name: str) -> QuantConfig:
    """Return the section of ``conf/quant/NAME.yaml``."""
    return QuantConfig(_target_=QUANTISATIONS[name], name=name)


def make_model(
    config: ModelConfig,
    quant: str = "none",
    batch: int = 1,
    length: int = 24,
    dtype: torch.dtype = torch.float32,
    seed: int = 1234,
    device: torch.device = CPU,
) -> Transformer:
    """Return a model with seeded weights, as `gptbench.build.build` makes it. For tests that call it without an engine,
    `model.memory` is a KV cache for sequences of `length` positions."""
    model = on_meta(config, quant_section(quant), dtype)
    model.to_empty(device=device)
    fill(model, seed)
    model.memory = model.allocate(batch, length, device)
    return model


def run_config(
    model: ModelConfig,
    quant: str = "none",
    prompt: Sequence[int] = (1, 2, 3),
    new_tokens: int = 6,
    batch: int = 1,
) -> Config:
    """Return the configuration of a run of a model with the eager engine and without tracking."""
    workload = WorkloadConfig(
        _target_="gptbench.generate.Workload",
        name="test",
        prompt=list(prompt),
        new_tokens=new_tokens,
        samples=1,
        batch_size=batch,
    )
    return Config(
        model=model,
        quant=QuantConfig(_target_=QUANTISATIONS[quant], name=quant),
        sampling=SamplingConfig(_target_="gptbench.sampling.Sampler", name="default"),
        device=DeviceConfig(_target_="gptbench.device.Device", name="auto"),
        engine=EagerConfig(_target_="gptbench.engine.Eager", name="eager"),
        workload=workload,
        task=TaskConfig(_target_="gptbench.task.Speed", name="speed"),
        tracking=TrackingConfig(_target_="gptbench.record.NoTracker", name="none"),
        baseline=BaselineConfig(_target_="gptbench.compare.Baseline", name="none", device="none"),
        sweep=SweepConfig(_target_="gptbench.sweep.Product", name="product"),
    )


def rotation_table(config: ModelConfig, length: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of a model whose layers are all the same, float32 [length, K] each."""
    table = RotationTable(config.layer_specs[0].attention.rotary, length, device)
    return table.cos, table.sin


def random_tokens(config: ModelConfig, batch: int, tokens: int, seed: int = 7) -> Tensor:
    """Return random tokens, int64 [batch, tokens]."""
    return torch.randint(config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def prefill(model: Transformer, tokens: Tensor) -> Tensor:
    """Return the logits after the last of tokens [B, T], which start at position 0 of the cache."""
    count = tokens.shape[1]
    return model(tokens, torch.arange(count).expand(len(tokens), -1), model.memory, count)


def step(model: Transformer, tokens: Tensor, position: int, read: int) -> Tensor:
    """Return the logits after one more token [B, 1] at `position`, attending to the first `read` cached positions."""
    return model(tokens, torch.full((len(tokens), 1), position), model.memory, read)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude; NaN if anything is NaN."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def dequantised(module: Weight) -> Tensor:
    """Return a module's dequantised weight, float64."""
    matrix, scale = module.format.factors(*module.stored)
    return matrix.double() if scale is None else matrix.double() * scale.double().unsqueeze(-1)


def frequency(config: ModelConfig, pair: int) -> float:
    """Return RoPE's radians per position, written as in the paper, and Llama 3's scaling branched as in Meta's code."""
    plain = 1 / config.rope_theta ** (2 * pair / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    wavelength = 2 * math.pi / plain
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return plain
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return plain / scaling.factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def reference_logits(model: Transformer, tokens: Sequence[int]) -> Tensor:
    """Return the logits after every one of `tokens`, float64 [T, V], with the weights of `model` but none of its code.

    Deliberately plain: one sequence, no cache, complex rotations, a loop over heads, positions and experts.
    """
    config, patterns = model.config, (model.config.attention_pattern, model.config.ffn_pattern)
    heads, kv_heads, width = config.n_heads, config.n_kv_heads, config.head_dim
    named = ("window", "experts")
    frequencies = [frequency(config, pair) for pair in range(width // 2)]

    def norm(x: Tensor, module: RMSNorm) -> Tensor:
        return torch.stack([row / math.sqrt(row.square().mean().item() + config.norm_eps) for row in x]) * (
            module.weight.double()
        )

    def apply_rope(x: Tensor) -> Tensor:
        """Rotate x [T, K]: components i and i + K/2 form a complex number, rotated by its frequency times t."""
        pairs = torch.complex(x[:, : width // 2], x[:, width // 2 :])
        for t in range(len(x)):
            for i in range(width // 2):
                angle = t * frequencies[i]
                pairs[t, i] *= complex(math.cos(angle), math.sin(angle))
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    def swiglu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        w1, w3 = w13[: config.ffn_dim], w13[config.ffn_dim :]
        gate = x @ w1.T
        return (gate / (1 + torch.exp(-gate)) * (x @ w3.T)) @ w2.T

    def mixture(x: Tensor, ffn: MixtureOfExperts) -> Tensor:
        w13, w2 = dequantised(ffn.w13), dequantised(ffn.w2)
        rows = []
        for row, scores in zip(x, x @ ffn.router.weight.double().T, strict=True):
            best = sorted(range(config.n_experts), key=lambda e: -scores[e])[: config.n_active_experts]
            odds = [math.exp(scores[e]) for e in best]
            rows.append(sum(o / sum(odds) * swiglu(row, w13[e], w2[e]) for o, e in zip(odds, best, strict=True)))
        return torch.stack(rows)

    x = dequantised(model.embedding)[list(tokens)]
    for number, block in enumerate(model.blocks):
        slides, chooses = (not pattern or pattern[number % len(pattern)].name in named for pattern in patterns)
        window, experts = config.sliding_window * slides, config.n_experts * chooses
        h = norm(x, block.attention_norm)
        attention = block.attention
        wqkv = dequantised(attention.wqkv).split(width)  # H queries, G keys, G values, each [K, D]
        bias = attention.qkv_bias.weight.double().split(width) if config.qkv_bias else [0.0] * len(wqkv)
        attended = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            q, k, v = (h @ wqkv[n].T + bias[n] for n in (head, heads + shared, heads + kv_heads + shared))
            if config.qk_norm:
                q, k = norm(q, attention.q_norm), norm(k, attention.k_norm)
            q, k = apply_rope(q), apply_rope(k)
            rows = []
            for t in range(len(tokens)):
                first = max(0, t + 1 - window) if window else 0
                odds = torch.exp(k[first : t + 1] @ q[t] / math.sqrt(width))
                rows.append(odds / odds.sum() @ v[first : t + 1])
            attended.append(torch.stack(rows))
        x = x + torch.cat(attended, dim=-1) @ dequantised(attention.wo).T
        h = norm(x, block.ffn_norm)
        if experts:
            x = x + mixture(h, block.ffn)
        else:
            x = x + swiglu(h, dequantised(block.ffn.w13), dequantised(block.ffn.w2))
    return norm(x, model.norm) @ dequantised(model.head).T
