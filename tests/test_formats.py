"""A format of weights from a file outside gptbench, and formats that differ within a model: what torch computes with
them, and what the fused engine's kernels do in Triton's interpreter, is what the unpacked weights give."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptbench.base.errors import ConfigError
from gptbench.build import fill, on_meta
from gptbench.config import Dtype, ModelConfig, QuantConfig, registration
from gptbench.config.targets import instantiate
from gptbench.model import Transformer
from gptbench.model.linear import store_as
from gptbench.quant import Int8, Unquantised, WeightFormat
from gptbench.sampling import Sampler
from tests.models import CPU, MOE, prefill, random_tokens, reference_logits, relative_error, step, tiny
from tests.test_engines import EAGER, FUSED, GREEDY, LENGTH, PROMPT, assert_agrees, device, few_programs  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

WIDE = tiny("wide", vocab_size=131, dim=128, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=256, context=64)
TIED = replace(WIDE, name="tied", tied=True)
MIXTURE = replace(MOE, name="mixture", dim=128, ffn_dim=128, n_heads=4, n_kv_heads=2, head_dim=32, n_layers=1)


@pytest.fixture(scope="module")
def int4() -> Iterator[WeightFormat]:
    """The plugin's; what it registers is forgotten afterwards."""
    targets, limits, added = QuantConfig.TARGETS, dict(QuantConfig.LIMITS), set(registration.ADDED)
    from tests.plugins.int4 import Int4

    QuantConfig.add("tests.plugins.int4.Int4", QuantConfig.LIMITS["tests.plugins.int4.Int4"])
    yield Int4()
    QuantConfig.TARGETS = targets
    QuantConfig.LIMITS.clear()
    QuantConfig.LIMITS.update(limits)
    registration.ADDED.clear()
    registration.ADDED.update(added)


def made(
    config: ModelConfig, own: WeightFormat, by_name: dict[str, WeightFormat] | None = None, batch: int = 2
) -> Transformer:
    model = on_meta(config, own, torch.float32)
    with torch.device("meta"):
        store_as(model, own, by_name)
    model.to_empty(device=CPU)
    fill(model, 1234)
    model.allocate(batch, LENGTH, CPU)
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
    model, tokens = made(config, int4), random_tokens(config, 2, 6)
    expected = torch.stack([reference_logits(model, row.tolist())[-2:] for row in tokens])
    assert relative_error(prefill(model, tokens[:, :5]), expected[:, 0]) < 1e-5
    assert relative_error(step(model, tokens[:, 5:], 5, LENGTH), expected[:, 1]) < 1e-5
    one = made(config, int4, batch=1)
    prefill(one, tokens[:1, :5])
    torch.compiler.reset()
    compiled = torch.compile(one.forward, backend="eager", fullgraph=True, dynamic=False)
    assert relative_error(compiled(tokens[:1, 5:], torch.tensor([5]), LENGTH), expected[:1, 1]) < 1e-5


@pytest.mark.parametrize(
    ("config", "default", "others", "batch"),
    [
        (WIDE, "int4", {"head": "none", "w2": "int8", "wqkv": "none"}, 1),
        (TIED, "int4", {"w13": "none"}, 2),
        (MIXTURE, "none", {"w13": "int4", "w2": "int8"}, 2),
    ],
    ids=["head-w2-wqkv", "tied", "experts"],
)
def test_formats_mix_in_a_model(
    int4: WeightFormat,
    config: ModelConfig,
    default: str,
    others: dict[str, str],
    batch: int,
    few_programs: None,  # noqa: F811
) -> None:
    """The fused engine's kernels: each reader gets what it wants of what the kernel before it writes."""
    pytest.importorskip("triton")
    formats = {"none": Unquantised(), "int8": Int8(), "int4": int4}
    by_name = {name: formats[own] for name, own in others.items()}
    on = device("cpu")

    def engine(section: Any) -> Any:
        model = made(config, formats[default], by_name, batch)
        sampler = Sampler(GREEDY, config.vocab_size, on.torch)
        prepared = instantiate(section, model, sampler, on, PROMPT)
        prepared.prepare()
        return prepared

    fused = engine(FUSED)
    stored = {op.role: op.weight.format for op in fused.ops if hasattr(op, "tile")}
    assert stored == {role: by_name.get(role.replace("qkv", "wqkv"), formats[default]) for role in stored}
    assert all(op.x.encoding is op.weight.format.encoding for op in fused.ops if hasattr(op, "tile"))
    assert_agrees(fused, engine(EAGER), torch.float32, steps=2)


def test_a_plugins_format_is_configured_and_has_tiles_of_its_own(int4: WeightFormat) -> None:
    from gptbench.engine.tiles import default_tile
    from gptbench.kernels.linear import Linear

    section = QuantConfig(_target_="tests.plugins.int4.Int4", name="int4")
    assert instantiate(section) == int4 != Int8()
    assert section.refuse(WIDE, Dtype.bfloat16) is None
    assert section.refuse(replace(WIDE, ffn_dim=192), Dtype.bfloat16) == (
        "a model whose ffn_dim is a multiple of 128 (it is 192)"
    )
    use = Linear.use_of(made(WIDE, int4).head.matrix, 1)
    assert re.fullmatch(r"linear 131x128 int4-[0-9a-f]{8} batch 1", str(use)), "which change with its source"
    assert default_tile(use).block == 1024, "what a warp loads at once"
    with pytest.raises(ConfigError, match=r"quant\._target_=os\.system: expected .*Int4"):
        QuantConfig(_target_="os.system", name="int4")
