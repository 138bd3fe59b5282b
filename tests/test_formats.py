"""A format of weights from a file outside gptbench, and formats that differ within a model: what torch computes with
them, and what the fused engine's kernels do in Triton's interpreter, is what the unpacked weights give."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gptbench.base.errors import ConfigError
from gptbench.build import fill, memory_need_of, nbytes, on_meta
from gptbench.config import FORMATS, Dtype, FormatLimits, HuggingFaceConfig, ModelConfig, QuantConfig, registration
from gptbench.config.refusal import read_section
from gptbench.config.targets import instantiate
from gptbench.engine import Shape
from gptbench.measure.traffic import expert_bytes
from gptbench.model import Embedding, Transformer, Weight
from gptbench.model.linear import Router, weights_by_name
from gptbench.quant import Int8, Unquantised, WeightFormat, register_format
from gptbench.sampling import Sampler
from gptbench.schema.identity import digest, fields_of
from tests.models import CPU, MOE, prefill, random_tokens, reference_logits, relative_error, run_config, step, tiny
from tests.test_engines import EAGER, FUSED, GREEDY, LENGTH, PROMPT, assert_agrees, device, few_programs  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

WIDE = tiny("wide", vocab_size=131, dim=128, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=256, context=64)
TIED = replace(WIDE, name="tied", tied=True)
MIXTURE = replace(MOE, name="mixture", dim=128, ffn_dim=128, n_heads=4, n_kv_heads=2, head_dim=32, n_layers=1)


@dataclass(kw_only=True)
class RoundedConfig(QuantConfig):
    """Settings of a format."""

    steps: int = 4
    """Numbers between 0 and 1 that a weight may have."""


@pytest.fixture(scope="module")
def int4() -> Iterator[WeightFormat]:
    """The plugin's, and beside it one with a setting; what they register is forgotten afterwards."""
    targets, known = QuantConfig.TARGETS, (QuantConfig.LIMITS, FORMATS, registration.ADDED)
    before: list[Any] = [each.copy() for each in known]
    from tests.plugins.int4 import Int4

    @register_format(FormatLimits(), "rounded", RoundedConfig)
    class Rounded(Unquantised):
        def pack(self, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return ((weight * self.settings["steps"]).round().to(dtype) / self.settings["steps"],)

    yield Int4()
    QuantConfig.TARGETS = targets
    for each, contents in zip(known, before, strict=True):
        each.clear()
        each.update(contents)


def section(name: str, weights: dict[str, Any] | None = None) -> QuantConfig:
    return replace(FORMATS[name], weights=weights or {})


def made(config: ModelConfig, quant: QuantConfig, batch: int = 2) -> Transformer:
    return filled(on_meta(config, quant, torch.float32), batch)


def filled(model: Transformer, batch: int = 2) -> Transformer:
    model.to_empty(device=CPU)
    fill(model, 1234)
    model.memory = model.allocate(batch, LENGTH, CPU)  # as `make_model` gives it
    return model


def test_int4_is_packed_and_unpacked(int4: WeightFormat) -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, 6).unsqueeze(-1)
    weight[3] = 0
    words, scale = int4.pack(weight, torch.float32)
    unpacked = int4.unpack(words, scale)
    assert ((unpacked - weight).abs() <= scale.repeat_interleave(128, -1) * 0.5001).all()
    assert torch.equal(int4.unpack(*int4.pack(unpacked, torch.float32)), unpacked), "what it can hold is held"
    assert torch.equal(int4.rows(torch.tensor([5, 0]), torch.float32, words, scale), unpacked[[5, 0]])
    assert words.nbytes + scale.nbytes == 6 * (256 // 2 + 2 * 4)


@pytest.mark.parametrize("config", [TIED, MIXTURE], ids=lambda config: config.name)
def test_torch_computes_with_what_int4_means(int4: WeightFormat, config: ModelConfig) -> None:
    """Eager code, prefill and step; and the form that is compiled, with one row."""
    model, tokens = made(config, section("int4")), random_tokens(config, 2, 6)
    expected = torch.stack([reference_logits(model, row.tolist())[-2:] for row in tokens])
    assert relative_error(prefill(model, tokens[:, :5]), expected[:, 0]) < 1e-5
    assert relative_error(step(model, tokens[:, 5:], 5, LENGTH), expected[:, 1]) < 1e-5
    one = made(config, section("int4"), batch=1)
    prefill(one, tokens[:1, :5])
    torch.compiler.reset()
    compiled = torch.compile(one.forward, backend="eager", fullgraph=True, dynamic=False)
    assert relative_error(compiled(tokens[:1, 5:], torch.tensor([[5]]), one.memory, LENGTH), expected[:1, 1]) < 1e-5


MIXES = {
    "head-w2-wqkv": (WIDE, "int4", {"lm_head": "none", "*.w2": "int8", "layers.*.attention.wqkv": "none"}, 1),
    "tied": (TIED, "int4", {"*.w13": "none"}, 2),
    "experts": (MIXTURE, "none", {"layers.*.feed_forward.*": "int8", "layers.0.feed_forward.w13": "int4"}, 2),
    "layers": (replace(WIDE, n_layers=2), "int8", {"layers.1.*": "none", "embedding": {"name": "int4"}}, 2),
}
"""A model, its format, those of patterns, and the size of a batch."""


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_formats_mix_in_a_model(int4: WeightFormat, mix: Any, few_programs: None) -> None:  # noqa: F811
    """What is configured is what is put together by hand, in the last of the patterns that match; with it the fused
    engine's kernels give what eager code does: each reader gets what it wants of what the kernel before it writes."""
    pytest.importorskip("triton")
    config, default, patterns, batch = mix
    formats = {"none": Unquantised(), "int8": Int8(), "int4": int4}
    on = device("cpu")

    def engine(engine_section: Any, model: Transformer) -> Any:
        sampler = Sampler(GREEDY, config.vocab_size, on.torch)
        prepared = instantiate(engine_section, model, sampler, on, Shape(batch, PROMPT, LENGTH))
        prepared.prepare()
        return prepared

    by_hand = on_meta(config, section("none"), torch.float32)
    with torch.device("meta"):
        for name, module in by_hand.named_modules():
            if isinstance(module, Weight) and not isinstance(module, Router):
                own = None if isinstance(module, Embedding) else default
                called = name.replace("blocks", "layers").replace("ffn", "feed_forward").replace("head", "lm_head")
                for pattern, given in patterns.items():
                    if re.fullmatch(pattern.replace(".", r"\.").replace("*", ".*"), called):
                        own = given["name"] if isinstance(given, dict) else given
                module.store_as(formats[own or "none"])
    model, by_hand = made(config, section(default, patterns), batch), filled(by_hand, batch)
    expected = dict(by_hand.named_parameters())
    assert {name: value.dtype for name, value in model.named_parameters()} == {n: v.dtype for n, v in expected.items()}
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())
    eager, fused = engine(EAGER, by_hand), engine(FUSED, model)
    assert len({op.weight.format for op in fused.ops if hasattr(op, "tile")}) > 1
    assert all(op.x.encoding is op.weight.format.encoding for op in fused.ops if hasattr(op, "tile"))
    assert_agrees(fused, eager, torch.float32, steps=2)


def test_a_run_of_several_formats_is_planned(int4: WeightFormat) -> None:
    """Bytes of weights and of a step, by hand; what an engine says of it; that another order is another measurement."""
    config, batch = replace(MIXTURE, n_layers=2), 2
    whole, mix = ({}, {"layers.0.*": "int8", "layers.1.feed_forward.w2": "int4", "lm_head": "int8"})
    of = replace(run_config(config, batch=batch), quant=section("none", mix))
    plain, model = (on_meta(config, section("none", weights), torch.float32) for weights in (whole, mix))
    saved = 0
    for name, weight in weights_by_name(plain).items():
        *experts, rows, columns = weight.float_shape
        count = math.prod(experts) * rows
        if name.startswith("layers.0.") or name == "lm_head":
            saved += count * (3 * columns - 4)
        elif name == "layers.1.feed_forward.w2":
            saved += count * (4 * columns - columns // 2 - 4 * (columns // 128))
    assert memory_need_of(of, model).weights == nbytes(plain) - saved
    first, second = (
        sum(p.nbytes for name in ("w13", "w2") for p in getattr(block.ffn, name).parameters()) for block in model.layers
    )
    assert expert_bytes(model) == (first + second) // (2 * config.n_experts)
    assert HuggingFaceConfig.named("hf").unsupported_reason(of) is not None
    assert FUSED.unsupported_by_kernels(of) is None
    assert section("none", {"lm_head": "rounded"}).unsupported_reason(config, Dtype.float16) is None
    assert "float16's 65504" in str(of.quant.unsupported_reason(config, Dtype.float16))
    ordered = [fields_of({"quant": {"weights": dict(pairs)}}) for pairs in (mix.items(), reversed(mix.items()))]
    assert digest(ordered[0]) != digest(ordered[1])
    assert fields_of({"quant": {"weights": {}}}) == fields_of({"quant": {}}), "as in older records"


def test_formats_have_settings(int4: WeightFormat) -> None:
    quant = section("none", {"lm_head": {"name": "rounded", "steps": 2}, "embedding": "rounded"})
    model = made(WIDE, quant)
    assert (model.head.weight * 2 % 1 == 0).all()
    assert (model.embedding.weight * 4 % 1 == 0).all() and not (model.embedding.weight * 2 % 1 == 0).all()
    assert model.head.format != model.embedding.format
    assert WeightFormat.label(model.head.format, torch.float32).endswith(" steps=2"), "its tiles are its own"
    recorded = json.loads(json.dumps(asdict(quant)))
    again = read_section(OmegaConf.create(recorded), QuantConfig)
    assert again == quant and list(again.weights) == list(quant.weights), "what is recorded selects the same"
    assert quant.full_name == "none (lm_head=rounded steps=2, embedding=rounded)"


def test_what_is_wrong_with_a_pattern_names_field_value_and_choices(int4: WeightFormat) -> None:
    names = (
        "layers.*.attention.wqkv, layers.*.attention.wo, layers.*.feed_forward.w13, layers.*.feed_forward.w2, lm_head"
    )
    for config, weights, message in [
        (WIDE, {"lm_haed": "none"}, f"quant.weights.lm_haed=none: expected a pattern that matches one of {names}, emb"),
        (TIED, {"embedding": "none"}, f"quant.weights.embedding=none: expected a pattern that matches one of {names}"),
        (MIXTURE, {"*.router": "int8"}, "quant.weights.*.router=int8: expected a pattern that matches one of"),
        (replace(WIDE, ffn_dim=192), {"*.w2": "int4"}, "a model whose layers.0.feed_forward.w2 is a multiple of 128"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            on_meta(config, section("int8", weights), torch.float32)
    for given, message in [
        ({"a": "int3"}, "quant.weights.a=int3: expected one of none, int8, int4"),
        ({"a": {"steps": 1}}, "expected one of none, int8, int4"),
        ({"a": None}, "expected one of none, int8, int4"),
        ({"a": {"name": "rounded", "step": 1}}, "quant.weights.a.step=1: expected a setting of rounded"),
        ({"a": {"name": "rounded", "steps": "x"}}, "Value 'x' of type 'str' could not be converted to Integer"),
        ("a", "quant.weights=a: expected patterns and formats"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            section("none", given)  # type: ignore[arg-type]
    on_meta(replace(WIDE, ffn_dim=192), section("int4", {"*.w2": "none"}), torch.float32)  # what fits is asked of each


def test_a_plugins_format_is_configured_and_has_tiles_of_its_own(int4: WeightFormat) -> None:
    from gptbench.engine.tile_cache import default_tile
    from gptbench.kernels.linear import Linear

    assert instantiate(section("int4")) == int4 != Int8()
    assert section("int4").unsupported_reason(WIDE, Dtype.bfloat16) is None
    assert section("int4").unsupported_reason(replace(WIDE, ffn_dim=192), Dtype.bfloat16) == (
        "a model whose ffn_dim is a multiple of 128 (it is 192)"
    )
    tile_key = Linear.tile_key_of(made(WIDE, section("int4")).head.matrix, 1)
    assert re.fullmatch(r"linear 131x128 int4-[0-9a-f]{8} batch 1", str(tile_key)), "which change with its source"
    assert default_tile(tile_key).block == 1024, "what a warp loads at once"
    with pytest.raises(ConfigError, match=r"quant\._target_=os\.system: expected .*Int4"):
        QuantConfig(_target_="os.system", name="int4")
