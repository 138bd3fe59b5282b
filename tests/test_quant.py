"""Every quantisation: what it replaces, how far it may be off, what it refuses. Then int8's own bounds."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptbench.base.errors import ConfigError
from gptbench.build import nbytes, on_meta
from gptbench.config import Dtype, ModelConfig, validate_combination
from gptbench.model import Embedding, Weight
from gptbench.model.linear import Router
from gptbench.model.transformer import MixtureOfExperts, RMSNorm
from gptbench.quant import Int8, Unquantised
from gptbench.quant.int8 import quantise_rows
from tests.models import (
    CONF,
    DENSE,
    GQA,
    MOE,
    QUANTISATIONS,
    TINY,
    dequantised,
    make_model,
    model_config,
    model_name,
    prefill,
    quant_section,
    random_tokens,
    reference_logits,
    relative_error,
    run_config,
    step,
)
from tests.pairwise import for_each

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

LOGIT_ERROR = {"none": 0.0, "int8": 0.06}
"""For each  how far logits may be from those of the unquantised model, relative to the largest. int8:
measured 0.027 in float32 and 0.038 in bfloat16, with six seeds."""


def test_every_quantisation_has_its_row_here() -> None:
    shipped = {path.stem for path in (CONF / "quant").glob("*.yaml")}
    assert shipped == set(LOGIT_ERROR) == set(QUANTISATIONS)


@for_each("dtype", [torch.float32, torch.bfloat16])
@for_each("quant", QUANTISATIONS)
@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_logits_stay_near_the_unquantised_model(config: ModelConfig, quant: str, dtype: torch.dtype) -> None:
    tokens = random_tokens(config, 3, 9)
    plain, quantised = make_model(config, batch=3, dtype=dtype), make_model(config, quant, batch=3, dtype=dtype)
    error = relative_error(prefill(quantised, tokens), prefill(plain, tokens))
    assert error <= LOGIT_ERROR[quant]
    assert (error > 0) == (quant != "none")


@for_each("batch", [1, 3, 4])
@for_each("quant", QUANTISATIONS)
@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_logits_are_those_of_the_dequantised_weights(config: ModelConfig, quant: str, batch: int) -> None:
    """Tight, because a plain model with the same dequantised weights has the same error; prefill and one step."""
    tokens = random_tokens(config, batch, 6)
    model = make_model(config, quant, batch=batch)
    expected = torch.stack([reference_logits(model, row.tolist())[-2:] for row in tokens])
    assert relative_error(prefill(model, tokens[:, :5]), expected[:, 0]) < 1e-5
    assert relative_error(step(model, tokens[:, 5:], 5, 24), expected[:, 1]) < 1e-5


@pytest.mark.parametrize("batch", [1, 3], ids="B={}".format)
@pytest.mark.parametrize("config", [GQA, MOE], ids=model_name)
def test_compiled_form_of_int8_gives_the_same_logits(config: ModelConfig, batch: int) -> None:
    torch.compiler.reset()  # torch keeps at most 8 forms of the same code
    tokens = random_tokens(config, batch, 6)
    model = make_model(config, "int8", batch=batch)
    prefill(model, tokens[:, :5])
    expected = step(model, tokens[:, 5:], 5, 24)
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True, dynamic=False)
    assert relative_error(compiled(tokens[:, 5:], torch.full((batch, 1), 5), model.memory, 24), expected) < 1e-5


@for_each("quant", QUANTISATIONS)
@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_what_is_shared_stays_shared(config: ModelConfig, quant: str) -> None:
    for model in (on_meta(config, quant_section(quant), torch.bfloat16), make_model(config, quant)):
        assert (model.embedding is model.head) == config.tied
        names = [name for name, _ in model.named_parameters()]
        assert any(name.startswith("embedding.") for name in names) == (not config.tied)


@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_int8_stores_every_matrix_but_the_routers_and_an_untied_embedding(config: ModelConfig) -> None:
    model = make_model(config, "int8", dtype=torch.bfloat16)
    for module in model.modules():
        if isinstance(module, Weight):
            assert module.format == (Unquantised() if isinstance(module, (Router, Embedding)) else Int8())
        if isinstance(module, (RMSNorm, Router, Embedding)):
            assert module.weight.dtype == torch.bfloat16
            assert not hasattr(module, "scale")
        elif isinstance(module, Weight):
            assert module.weight.dtype == torch.int8
            assert module.weight.shape == module.float_shape
            assert module.scale.dtype == torch.bfloat16
            assert module.scale.shape == module.float_shape[:-1]


@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_int8_leaves_router_norms_and_untied_embedding_as_they_are(config: ModelConfig) -> None:
    plain, quantised = make_model(config), make_model(config, "int8")
    others = dict(quantised.named_modules())
    untouched = [
        name
        for name, module in plain.named_modules()
        if isinstance(module, (RMSNorm, Router, Embedding)) and torch.equal(module.weight, others[name].weight)
    ]
    layer = ["attention_norm", "ffn_norm"] + (["ffn.router"] if config.n_experts else [])
    expected = {f"blocks.{i}.{name}" for i in range(config.n_layers) for name in layer} | {"norm"}
    assert set(untouched) == expected | (set() if config.tied else {"embedding"})


def test_a_tied_embedding_is_quantised_once_and_looked_up_dequantised() -> None:
    model = make_model(GQA, "int8", dtype=torch.bfloat16)
    tokens = random_tokens(GQA, 2, 5)
    rows = model.embedding.rows(tokens)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, dequantised(model.head)[tokens].bfloat16())
    # Integers and scales of one table, not of two.
    tables = [p for p in model.parameters() if p.shape[0] == GQA.vocab_size]
    assert sum(p.nbytes for p in tables) == GQA.vocab_size * (GQA.dim + 2)
    assert nbytes(model) < nbytes(make_model(dataclasses.replace(GQA, tied=False), "int8", dtype=torch.bfloat16))


def random_rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of very different size, with one outlier each."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(shape, generator=generator) * 10 ** torch.empty(*shape[:-1], 1).uniform_(
        -4, 4, generator=generator
    )
    weight[..., 0] *= 7
    return weight.to(dtype)


@for_each("scale_dtype", [torch.float32, torch.bfloat16])
@for_each("dtype", [torch.float32, torch.bfloat16])
@for_each("shape", [(1, 1), (7, 33), (301, 17), (16, 4096)])
def test_int8_error_is_at_most_half_a_scale(
    shape: tuple[int, int], dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    weight = random_rows(*shape, dtype=dtype)
    integers, scale = quantise_rows(weight, scale_dtype)
    assert integers.dtype == torch.int8
    assert integers.shape == weight.shape
    assert scale.dtype == scale_dtype
    assert scale.shape == weight.shape[:-1]
    assert (scale > 0).all()
    assert integers.min() >= -127
    step_size = scale.double().unsqueeze(-1)
    error = (weight.double() - integers.double() * step_size).abs()
    # The quotient is rounded to float32 before it is rounded to an integer: 127 * 2^-24.
    assert (error <= step_size * (0.5 + 1e-5)).all()
    # The whole range is used: the scale is as small as it can be, but for its own rounding.
    largest = integers.abs().amax(-1)
    assert (largest >= (127 if scale_dtype == torch.float32 else 126)).all()


def test_int8_is_symmetric() -> None:
    weight = random_rows(9, 65)
    integers, scale = quantise_rows(weight, torch.float32)
    mirrored, same_scale = quantise_rows(-weight, torch.float32)
    assert torch.equal(mirrored, -integers)
    assert torch.equal(same_scale, scale)


def test_int8_rows_of_zeros_stay_zero() -> None:
    weight = random_rows(5, 33)
    weight[[1, 4]] = 0
    integers, scale = quantise_rows(weight, torch.bfloat16)
    assert not integers[[1, 4]].any()
    assert scale[[1, 4]].tolist() == [1, 1]
    assert integers[[0, 2, 3]].any(-1).all()


def test_int8_scales_are_each_experts_own() -> None:
    """Experts of very different size, assigned one by one in any order, into poisoned memory."""
    ffn = make_model(MOE, "int8").blocks[0].ffn
    assert isinstance(ffn, MixtureOfExperts)
    for module in (ffn.w13, ffn.w2):
        module.weight.fill_(-128)
        module.scale.fill_(float("nan"))
        weight = random_rows(*module.float_shape)
        weight *= 10.0 ** torch.arange(-4, 4).view(-1, 1, 1)
        for expert in (3, 7, 0, 1, 6, 2, 5, 4):
            module.assign(weight[expert], expert)
        for expert in range(MOE.n_experts):
            integers, scale = quantise_rows(weight[expert], torch.float32)
            assert torch.equal(module.weight[expert], integers)
            assert torch.equal(module.scale[expert], scale)
        error = (weight.double() - dequantised(module)).abs()
        assert (error <= module.scale.double().unsqueeze(-1) * (0.5 + 1e-5)).all()


@for_each("quant", QUANTISATIONS)
def test_given_weights_are_assigned(quant: str) -> None:
    """As from a bfloat16 checkpoint."""
    model = make_model(DENSE, quant, dtype=torch.bfloat16)
    module = model.blocks[0].attention.wqkv
    weight = random_rows(*module.float_shape, dtype=torch.bfloat16)
    module.assign(weight)
    bound = module.scale.double().unsqueeze(-1) * (0.5 + 1e-5) if hasattr(module, "scale") else 0.0
    assert ((dequantised(module) - weight.double()).abs() <= bound).all()


@for_each("rows", [1, 2, 5])
@for_each("quant", QUANTISATIONS)
def test_linear_is_a_product_with_the_dequantised_weight(quant: str, rows: int) -> None:
    module = make_model(DENSE, quant).blocks[0].ffn.w2
    x = torch.randn(rows, DENSE.ffn_dim, generator=torch.Generator().manual_seed(6))
    assert relative_error(module(x), x.double() @ dequantised(module).T) < 1e-5


@pytest.mark.parametrize("field", ["dim", "ffn_dim"])
def test_int8_refuses_rows_that_wide_loads_do_not_divide(field: str) -> None:
    odd = dataclasses.replace(DENSE, **{field: 120})  # a multiple of 8 and of 6, as heads of even width need, not of 16
    config = run_config(odd, quant="int8")
    with pytest.raises(ConfigError) as raised:
        validate_combination(config)
    assert raised.value.field == "quant"
    assert str(raised.value).startswith("quant=int8 (model=dense): expected ")
    assert f"{field} is a multiple of 16 (it is 120)" in str(raised.value)
    validate_combination(run_config(odd))


def test_int8_refuses_float16() -> None:
    config = run_config(DENSE, quant="int8")
    half = dataclasses.replace(config.device, dtype=Dtype.float16)
    with pytest.raises(ConfigError) as raised:
        validate_combination(dataclasses.replace(config, device=half))
    assert raised.value.field == "quant"
    assert str(raised.value).startswith("quant=int8 (model=dense): expected device.dtype=bfloat16 or float32")
    assert "float16" in str(raised.value)
    validate_combination(dataclasses.replace(run_config(DENSE), device=half))


@for_each("dtype", [Dtype.auto, Dtype.float32, Dtype.bfloat16])
@pytest.mark.parametrize(
    "path", sorted(set((CONF / "model").glob("*.yaml")) - {CONF / "model" / "auto.yaml"}), ids=lambda path: path.stem
)
def test_int8_takes_every_model_that_is_shipped(path: Path, dtype: Dtype) -> None:
    assert quant_section("int8").unsupported_reason(model_config(path.stem), dtype) is None
