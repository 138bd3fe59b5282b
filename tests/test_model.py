"""The model against a plain float64 one, prefill against decode, and what seeded weights do to the activations."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptbench.build import fill
from gptbench.config import ModelConfig
from gptbench.model import Transformer, Weight, transformer
from gptbench.model.transformer import MixtureOfExperts, RMSNorm
from tests import models
from tests.models import (
    CPU,
    DENSE,
    GQA,
    MIXED,
    MOE,
    QWEN,
    WINDOW,
    make_model,
    model_name,
    prefill,
    random_tokens,
    reference_logits,
    relative_error,
    step,
    tiny,
)
from tests.pairwise import for_each

FAMILY = [*models.FAMILY, MIXED]
WIDE = tiny("wide", vocab_size=4999, dim=512, n_layers=6, n_heads=8, n_kv_heads=4, ffn_dim=1408, context=256)
WIDE_TIED = dataclasses.replace(WIDE, name="wide-tied", tied=True)
DEEP = tiny("deep", vocab_size=499, dim=256, n_layers=32, n_heads=4, n_kv_heads=4, ffn_dim=688, context=256)

FLOAT32 = 1e-5
"""Relative to the largest logit; measured 7e-7."""
BFLOAT16 = 0.025
"""As above; measured 0.011 with six seeds (but where rounding makes a router take another expert: one seed of six)."""

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def expected_logits(model: Transformer, tokens: Tensor) -> Tensor:
    """The reference's logits after the last of tokens [B, T]: float64 [B, V]."""
    return torch.stack([reference_logits(model, row.tolist())[-1] for row in tokens])


@for_each("tokens", [1, 2, 11])
@for_each("batch", [1, 3])
@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_prefill_gives_the_logits_of_a_plain_model(config: ModelConfig, batch: int, tokens: int) -> None:
    model = make_model(config, batch=batch)
    prompt = random_tokens(config, batch, tokens)
    logits = prefill(model, prompt)
    assert logits.dtype == torch.float32
    assert relative_error(logits, expected_logits(model, prompt)) < FLOAT32


@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_bfloat16_stays_near_a_plain_model(config: ModelConfig) -> None:
    model = make_model(config, batch=3, dtype=torch.bfloat16)
    prompt = random_tokens(config, 3, 9)
    logits = prefill(model, prompt)
    assert logits.dtype == torch.float32
    assert relative_error(logits, expected_logits(model, prompt)) < BFLOAT16


@pytest.mark.parametrize("config", [DENSE, QWEN], ids=model_name)
def test_norm_weights_and_epsilon_count(config: ModelConfig) -> None:
    """Seeded norms are all ones, so they are given other values here, and the epsilon one that matters."""
    model = make_model(dataclasses.replace(config, norm_eps=0.3), batch=2)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.uniform_(0.5, 2, generator=generator)
    prompt = random_tokens(config, 2, 7)
    assert relative_error(prefill(model, prompt), expected_logits(model, prompt)) < FLOAT32


@for_each("first", [1, 5])
@for_each("batch", [1, 3, 4])
@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_decoding_equals_a_longer_prefill(config: ModelConfig, batch: int, first: int) -> None:
    """B=3 of the mixture reads one expert for each pair, B=4 each expert once."""
    tokens = random_tokens(config, batch, 12)
    model, other = make_model(config, batch=batch), make_model(config, batch=batch)
    prefill(model, tokens[:, :first])
    for position in range(first, 12):
        decoded = step(model, tokens[:, position : position + 1], position, read=position + 1)
        assert relative_error(decoded, prefill(other, tokens[:, : position + 1])) < FLOAT32, position


@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_a_prefill_starts_anew(config: ModelConfig) -> None:
    """What an earlier, longer sequence left in the cache changes nothing."""
    old, new = random_tokens(config, 2, 20, seed=1), random_tokens(config, 2, 6, seed=2)
    used, fresh = make_model(config, batch=2), make_model(config, batch=2)
    prefill(used, old)
    for read in (6, used.memory.caches[0].length):
        assert torch.equal(prefill(used, new[:, :5]), prefill(fresh, new[:, :5]))
        assert torch.equal(step(used, new[:, 5:], 5, read), step(fresh, new[:, 5:], 5, read))


@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_rows_of_a_batch_do_not_see_each_other(config: ModelConfig) -> None:
    tokens = random_tokens(config, 3, 7)
    changed = tokens.clone()
    changed[1] = random_tokens(config, 1, 7, seed=8)

    def run(rows: Tensor) -> Tensor:
        model = make_model(config, batch=len(rows))
        return torch.stack([prefill(model, rows[:, :6]), step(model, rows[:, 6:], 6, 7)])

    together, other = run(tokens), run(changed)
    assert torch.equal(together[:, [0, 2]], other[:, [0, 2]])
    assert relative_error(other[:, 1], together[:, 1]) > 0.1
    alone = torch.cat([run(row[None]) for row in tokens], dim=1)
    assert relative_error(together, alone) < FLOAT32


@for_each("batch", [1, 3])
@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_padding_of_the_cache_does_not_matter(config: ModelConfig, batch: int) -> None:
    """The whole cache gives what its filled part gives, whatever finite numbers lie behind."""
    tokens = random_tokens(config, batch, 10)
    length = 24

    def run(whole: bool, poison: bool) -> Tensor:
        model = make_model(config, batch=batch, length=length)
        if poison:
            generator = torch.Generator().manual_seed(5)
            for cache in model.memory.caches:
                for tensor in cache.tensors:
                    tensor.normal_(std=1e6, generator=generator)
        steps = [prefill(model, tokens[:, :4])]
        for position in range(4, 10):
            read = length if whole else position + 1
            steps.append(step(model, tokens[:, position : position + 1], position, read))
        return torch.stack(steps)

    filled, whole, poisoned = run(False, False), run(True, False), run(True, True)
    assert relative_error(whole, filled) < 1e-5
    assert torch.equal(poisoned, whole)
    assert torch.equal(run(False, True), filled)


@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_only_the_fed_positions_of_the_cache_change(config: ModelConfig) -> None:
    model = make_model(config, batch=2)
    tensors = model.memory.caches[-1].tensors
    for tensor in tensors:
        tensor.fill_(1e6)
    tokens = random_tokens(config, 2, 6)
    prefill(model, tokens[:, :5])
    before = [tensor.clone() for tensor in tensors]
    step(model, tokens[:, 5:], 5, 6)
    for cache, old in zip(tensors, before, strict=True):
        changed = (cache != old).any(-1).all(0).all(0)
        assert changed.nonzero().flatten().tolist() == [5]
        assert (old[:, :, :5] != 1e6).all()
        assert (cache[:, :, 6:] == 1e6).all()


@pytest.mark.parametrize(
    ("config", "batch"),
    [*((config, 1) for config in FAMILY), (DENSE, 3), (MOE, 3)],
    ids=lambda value: model_name(value),
)
def test_compiled_form_gives_the_same_logits(config: ModelConfig, batch: int) -> None:
    """Code under a compiler writes products as reductions; without a code generator this checks the form alone."""
    torch.compiler.reset()  # torch keeps at most 8 forms of the same code
    tokens = random_tokens(config, batch, 6)
    model = make_model(config, batch=batch)
    prefill(model, tokens[:, :5])
    expected = step(model, tokens[:, 5:], 5, 24)
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True, dynamic=False)
    assert relative_error(compiled(tokens[:, 5:], torch.full((batch, 1), 5), model.memory, 24), expected) < 1e-5


def mixture(quant: str = "none", dtype: torch.dtype = torch.float32) -> MixtureOfExperts:
    ffn = make_model(MOE, quant, dtype=dtype).blocks[1].ffn
    assert isinstance(ffn, MixtureOfExperts)
    return ffn


@for_each("tokens", [3, 4, 5, 12])
def test_a_token_attends_to_the_window_alone(tokens: int) -> None:
    """One layer, so that nothing reaches further: what is older than four positions does not matter, the rest does."""
    config = dataclasses.replace(WINDOW, n_layers=1)
    sequence = random_tokens(config, 1, tokens)
    model = make_model(config)
    prefill(model, sequence)
    decoded = make_model(config)
    prefill(decoded, sequence[:, :-1])
    logits = step(decoded, sequence[:, -1:], tokens - 1, read=24)
    for position in range(tokens):
        changed = sequence.clone()
        changed[0, position] = (changed[0, position] + 1) % config.vocab_size
        seen = position > tokens - 1 - config.sliding_window
        assert (relative_error(prefill(model, changed), logits) > 1e-3) == seen, position
        if position < tokens - 1:
            prefill(decoded, changed[:, :-1])
            assert (relative_error(step(decoded, sequence[:, -1:], tokens - 1, 24), logits) > 1e-3) == seen, position


@pytest.mark.parametrize("queries", [1, 3, 4, 7, 16])
def test_a_windowed_prefill_in_parts_is_the_same(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (WINDOW, dataclasses.replace(WINDOW, n_heads=6, n_kv_heads=2, head_dim=8)):
        tokens = random_tokens(config, 2, 16)
        monkeypatch.setattr(transformer, "WINDOW_QUERIES", 16)
        expected = prefill(make_model(config, batch=2), tokens)
        monkeypatch.setattr(transformer, "WINDOW_QUERIES", queries)
        assert relative_error(prefill(make_model(config, batch=2), tokens), expected) < 1e-5


def test_windowed_attention_is_an_operation_that_a_compiler_can_take() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, heads, 11, 8, generator=generator) for heads in (6, 2))
    torch.library.opcheck(transformer.attend_in_window, (q.transpose(1, 2).contiguous().transpose(1, 2), k, k, 4))


def test_a_window_longer_than_the_sequence_changes_nothing() -> None:
    tokens = random_tokens(WINDOW, 2, 9)
    models = [make_model(dataclasses.replace(WINDOW, sliding_window=window), batch=2) for window in (0, 24, 9)]
    logits = [prefill(model, tokens) for model in models]
    assert torch.equal(logits[0], logits[1])
    assert relative_error(logits[2], logits[0]) < FLOAT32


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (QWEN, {"qkv_bias": False}),
        (QWEN, {"qk_norm": False}),
        (WINDOW, {"sliding_window": 5}),
        (WINDOW, {"rope_scaling": None}),
        (WINDOW, {"rope_theta": 150.0}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.name,
)
def test_the_comparison_notices_what_is_left_out(config: ModelConfig, change: dict[str, Any]) -> None:
    model, prompt = make_model(config), random_tokens(config, 1, 9)
    logits = prefill(model, prompt)
    model.config = dataclasses.replace(config, **change)  # which the reference reads
    assert relative_error(logits, expected_logits(model, prompt)) > 100 * FLOAT32


def normal(*shape: int, seed: int = 11) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@for_each("quant", ["none", "int8"])
@for_each("tokens", [1, 2, 5, 33])
def test_each_pair_equals_each_expert(tokens: int, quant: str) -> None:
    ffn = mixture(quant)
    x = normal(tokens, MOE.dim)
    weights, chosen = ffn.route(x)
    assert relative_error(ffn.gather_experts(x, weights, chosen), ffn.all_experts(x, weights, chosen)) < 1e-5


@pytest.mark.parametrize("tokens", [1, 3, 4, 9], ids="N={}".format)
def test_a_mixture_reads_as_few_experts_as_it_says(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ffn, read = mixture(), []
    weight_class = type(ffn.w13)
    forward, dense = weight_class.forward, weight_class.dense

    def noted_forward(self: nn.Module, x: Tensor, expert: Tensor) -> Tensor:
        read.extend(expert.tolist())
        return forward(self, x, expert)

    def noted_dense(self: nn.Module, x: Tensor, expert: int) -> Tensor:
        read.append(expert)
        return dense(self, x, expert)

    monkeypatch.setattr(weight_class, "forward", noted_forward)
    monkeypatch.setattr(weight_class, "dense", noted_dense)
    ffn(normal(1, tokens, MOE.dim))
    assert len(read) == 2 * ffn.spec.max_distinct(tokens)  # w13 and w2
    assert ffn.spec.max_distinct(tokens) == {1: 2, 3: 6, 4: 8, 9: 8}[tokens]


@for_each("active", [1, 2, 3, 8])
def test_routing_takes_the_best_experts_and_renormalises(active: int) -> None:
    ffn = mixture()
    ffn.active = active
    x = normal(50, MOE.dim)
    weights, chosen = ffn.route(x)
    assert weights.shape == chosen.shape == (50, active)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))
    scores = x.double() @ ffn.router.weight.double().T
    for row, experts, row_scores in zip(weights, chosen.tolist(), scores, strict=True):
        best = row_scores.argsort(descending=True)[:active].tolist()
        assert experts == best
        # A softmax renormalised over some is the softmax over those.
        torch.testing.assert_close(row.double(), row_scores[best].softmax(-1), rtol=1e-5, atol=0)


@for_each("seed", [1, 2])
@pytest.mark.parametrize("config", [*FAMILY, WIDE, WIDE_TIED, DEEP], ids=model_name)
def test_seeded_weights_keep_activations_of_order_one(config: ModelConfig, seed: int) -> None:
    model = make_model(config, length=200, seed=seed)
    stream: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, _args, x: stream.append(x.square().mean().sqrt().item()))
    hidden = model.hidden(random_tokens(config, 1, 200), torch.arange(200).unsqueeze(0), model.memory, 200)
    logits = model.logits(hidden)[0]
    assert len(stream) == config.n_layers
    assert all(0.2 < rms < 5 for rms in stream), stream
    assert logits.std(dim=-1).min() > 1
    assert logits.std(dim=-1).max() < 4
    # Neither does one token take all, so that temperature, top_k and top_p matter.
    assert logits.softmax(-1).amax(-1).mean() < 0.5


@for_each("seed", [1, 2, 3])
def test_seeded_routers_use_all_experts(seed: int) -> None:
    model = make_model(MOE, length=200, seed=seed)
    chosen: list[Tensor] = []
    for block in model.blocks:
        block.ffn.register_forward_hook(lambda ffn, args, _y: chosen.append(ffn.route(args[0].flatten(0, 1))[1]))
    model.hidden(random_tokens(MOE, 1, 200), torch.arange(200).unsqueeze(0), model.memory, 200)
    for experts in chosen:
        counts = experts.flatten().bincount(minlength=MOE.n_experts)
        assert counts.sum() == 400
        assert counts.min() >= 5, counts  # of 50, were all equal


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@for_each("quant", ["none", "int8"])
@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_fill_writes_every_weight(config: ModelConfig, quant: str) -> None:
    model = make_model(config, quant)
    before = {name: weight.clone() for name, weight in parameters(model).items()}
    for parameter in model.parameters():
        parameter.fill_(float("nan") if parameter.is_floating_point() else -128)
    fill(model, 1234)
    for name, weight in parameters(model).items():
        assert torch.equal(weight, before[name]), name
        assert not weight.isnan().any(), name
        assert weight.is_floating_point() or weight.min() >= -127, name


@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_seeded_weights_have_the_stated_deviation_and_differ(config: ModelConfig) -> None:
    matrices: list[Tensor] = []
    for module in make_model(config).modules():
        if isinstance(module, Weight):
            for index in module.matrices():
                weight = module.weight[index]
                assert weight.std().item() == pytest.approx(module.std, rel=0.15)
                assert abs(weight.mean().item()) < 5 * module.std / weight.numel() ** 0.5
                matrices.append(weight.flatten()[:512] / module.std)
    of_layers = [4 if spec.mixture is None else 3 + 2 * spec.mixture.experts for spec in config.layer_specs]
    assert len(matrices) == sum(of_layers) + 2 - config.tied
    correlation = torch.corrcoef(torch.stack(matrices))
    assert (correlation - torch.eye(len(matrices))).abs().max() < 0.3


@for_each("quant", ["none", "int8"])
@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_the_seed_decides_the_weights(config: ModelConfig, quant: str) -> None:
    first = make_model(config, quant, seed=5)
    torch.manual_seed(0)  # the global generator has no say
    again, other = make_model(config, quant, seed=5), make_model(config, quant, seed=6)
    for name, weight in parameters(first).items():
        assert torch.equal(weight, parameters(again)[name]), name
        if weight.ndim > 1:
            assert (weight == parameters(other)[name]).float().mean() < 0.1, name


@for_each("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", FAMILY, ids=model_name)
def test_seeded_weights_do_not_depend_on_the_quantisation(config: ModelConfig, dtype: torch.dtype) -> None:
    plain, quantised = make_model(config, dtype=dtype), make_model(config, "int8", dtype=dtype)
    modules = dict(quantised.named_modules())
    compared = 0
    for name, module in plain.named_modules():
        if isinstance(module, Weight):
            other = modules[name]
            if hasattr(other, "scale"):
                scale = other.scale.float().unsqueeze(-1)
                error = (module.weight.float() - other.weight.float() * scale).abs()
                assert (error <= scale * 0.5001).all(), name
                compared += 1
            else:
                assert torch.equal(module.weight, other.weight), name
    assert compared == 4 * config.n_layers + 1


def test_a_matrix_does_not_depend_on_what_else_is_filled() -> None:
    shallow, deep = parameters(make_model(DENSE)), parameters(make_model(dataclasses.replace(DENSE, n_layers=5)))
    name = "blocks.1.attention.wqkv.weight"
    assert torch.equal(shallow[name], deep[name])


@for_each("count", [1, 3])
@pytest.mark.parametrize("config", [DENSE, GQA], ids=model_name)
def test_embedding_rows(config: ModelConfig, count: int) -> None:
    model = make_model(config)
    tokens = random_tokens(config, 2, count)
    assert torch.equal(model.embedding.rows(tokens), model.embedding.weight[tokens])
    assert (model.embedding is model.head) == config.tied


def test_allocate_gives_zeroed_caches() -> None:
    """Masked positions are multiplied by 0, and 0 times what memory held before may be NaN."""
    model = make_model(GQA, batch=3, length=17)
    for cache in model.memory.caches:
        for tensor in cache.tensors:
            assert tensor.shape == (3, GQA.n_kv_heads, 17, GQA.head_dim)
            assert tensor.device == CPU
            assert not tensor.any()
    (table,) = model.memory.rope_tables
    assert table.cos.shape == table.sin.shape == (17, GQA.head_dim)


@pytest.mark.parametrize("name", ["blocks.1.attention.wo", "blocks.0.ffn.w2", "blocks.2.ffn.w13"])
def test_the_comparison_notices_one_wrong_weight(name: str) -> None:
    """The tolerance is tight enough to fail: one weight in one matrix, off by its own deviation."""
    model = make_model(DENSE)
    prompt = random_tokens(DENSE, 1, 5)
    expected = expected_logits(model, prompt)
    module = model.get_submodule(name)
    module.weight[0, 0] += module.std
    assert relative_error(prefill(model, prompt), expected) > FLOAT32
