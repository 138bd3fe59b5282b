"""What layers a configuration stands for, that layers may differ, and what no layer may be yet."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pytest
import torch

from gptbench.architecture import ARCHITECTURES, Architecture
from gptbench.architecture.spec import (
    Activation,
    AttentionKind,
    DenseSpec,
    FeedForwardKind,
    LayerSpec,
    MixtureSpec,
    NormKind,
    NormPlaces,
    Rotary,
    RotaryKind,
    RouterKind,
)
from gptbench.base.errors import ConfigError
from gptbench.build import memory_need, on_meta
from gptbench.config import ModelConfig, validate_combination
from gptbench.engine.eager import Eager
from gptbench.engine.fused import Fused
from gptbench.engine.inductor import Inductor
from gptbench.measure.traffic import traffic
from gptbench.model import KeyValueCache, Memory
from gptbench.model.transformer import validate_layer
from tests.models import DENSE, MIXED, MOE, QWEN, WINDOW, make_model, quant_section, run_config
from tests.test_build import tensor_bytes
from tests.test_traffic import FakeEngine


def test_flat_fields_say_what_all_layers_are() -> None:
    for config in (DENSE, MOE, QWEN, WINDOW):
        specs = config.layer_specs
        assert len(specs) == config.n_layers
        (spec,) = set(specs)
        attention = spec.attention
        assert attention.rotary == Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        assert (attention.heads, attention.kv_heads) == (config.n_heads, config.n_kv_heads)
        assert (attention.qkv_bias, attention.qk_norm, attention.window) == (
            config.qkv_bias,
            config.qk_norm,
            config.sliding_window,
        )
        assert (spec.dim, spec.ffn.width, spec.norm_eps) == (config.dim, config.ffn_dim, config.norm_eps)
        chosen = (spec.mixture.experts, spec.mixture.active) if spec.mixture is not None else (0, 0)
        assert chosen == (config.n_experts, config.n_active_experts)


def test_patterns_are_repeated_over_the_layers() -> None:
    windows = [spec.attention.window for spec in replace(MIXED, n_layers=5).layer_specs]
    assert windows == [0, 3, 0, 3, 0]
    mixtures = [spec.mixture is not None for spec in replace(MIXED, n_layers=5).layer_specs]
    assert mixtures == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            DENSE,
            {"attention_pattern": []},
            r"model.attention_pattern=\[\]: expected null, or 1 to n_layers=3 of full",
        ),
        (
            DENSE,
            {"attention_pattern": [AttentionKind.full, AttentionKind.window]},
            "attention_pattern=\\[full, window\\]: expected a pattern that has window in it",
        ),
        (WINDOW, {"attention_pattern": [AttentionKind.full]}, "window in it exactly if sliding_window is over 0"),
        (DENSE, {"ffn_pattern": [FeedForwardKind.experts]}, "experts in it exactly if n_experts is over 0"),
        (MOE, {"ffn_pattern": [FeedForwardKind.experts] * 3}, "1 to n_layers=2 of dense, experts"),
    ],
)
def test_a_pattern_fits_the_model(config: ModelConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **changes)


def test_layers_that_differ_take_the_memory_that_was_foretold() -> None:
    need = memory_need(on_meta(MIXED, quant_section("none"), torch.float32), 3, prompt=5, length=17)
    assert (need.weights, need.kv_cache) == tensor_bytes(make_model(MIXED, batch=3, length=17))


def test_traffic_of_layers_that_differ() -> None:
    """Two layers attend to all positions, two to at most three; a layer keeps 2·2·16 numbers of 2 bytes a position."""
    row = 2 * 2 * 16 * 2
    for like, moved in (
        (Eager, [4 * (position + 2) for position in range(2, 7)]),
        (Inductor, [4 * 17] * 5),
        (Fused, [2 * (position + 1) + 2 * 3 for position in range(2, 7)]),
    ):
        model = on_meta(MIXED, quant_section("none"), torch.bfloat16)
        steps = traffic(cast(Any, FakeEngine(model, 2, 3, 16, like)), 6)
        weights = steps.weights
        needed = [2 * (position + 1) + 2 * 3 for position in range(2, 7)]
        assert steps.needed() == [weights + 3 * row * positions for positions in needed]
        assert steps.moved() == [weights + 3 * row * positions for positions in moved]
        assert steps.kv_per_position == 3 * 4 * row
        assert steps.positions_attended == [3, 4, 5, 6, 7]
        assert steps.experts_least == 2 * MIXED.n_active_experts


def test_a_cache_says_what_each_row_reads_and_writes() -> None:
    full, slides = (KeyValueCache(spec.attention, 2, 8, torch.bfloat16, "meta") for spec in MIXED.layer_specs[:2])
    row = 2 * 2 * 16 * 2
    assert full.row_bytes == slides.row_bytes == row
    assert full.nbytes == sum(tensor.nbytes for tensor in full.tensors) == 8 * full.position_bytes == 16 * row
    assert full.read_bytes(0, 6) == 6 * row
    assert slides.read_bytes(0, 6) == 2 * row
    assert full.written_bytes(0, 6) == slides.written_bytes(0, 6) == 2 * row
    held = Memory([spec.attention for spec in MIXED.layer_specs], 2, 8, torch.float32, "cpu")
    held.free()
    assert {tensor.device.type for tensor in held.tensors} == {"meta"}
    assert sum(cache.nbytes for cache in held.caches) == 4 * 2 * full.nbytes


def changed(spec: Any, path: str, value: Any) -> Any:
    """With another value of a field of a field."""
    name, _, inner = path.partition(".")
    return replace(spec, **{name: changed(getattr(spec, name), inner, value) if inner else value})


def test_what_the_model_does_not_compute_is_refused_by_name() -> None:
    (spec,) = set(MOE.layer_specs)
    assert isinstance(spec.ffn, MixtureSpec)
    validate_layer(spec)
    for path, value, message in (
        ("attention.sinks", True, "layer.attention.sinks=True: expected False: gptbench supports no other"),
        ("attention.output_bias", True, "layer.attention.output_bias=True"),
        ("attention.rotary.kind", RotaryKind.interleaved, "layer.attention.rotary.kind=interleaved: expected half"),
        ("attention.rotary.width", 8, "layer.attention.rotary.width=8: expected head_dim=16"),
        ("ffn.activation", Activation.gelu, "layer.ffn.activation=gelu: expected silu"),
        ("ffn.bias", True, "layer.ffn.bias=True"),
        ("ffn.router", RouterKind.sigmoid, "layer.ffn.router=sigmoid: expected renormalised"),
        ("ffn.router_bias", True, "layer.ffn.router_bias=True"),
        ("ffn.shared", 1, "layer.ffn.shared=1: expected 0"),
        ("norm", NormKind.layer, "layer.norm=layer: expected rms"),
        ("norms", NormPlaces.both, "layer.norms=both: expected before"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_layer(changed(spec, path, value))


def test_engines_refuse_layers_that_differ_where_they_cannot() -> None:
    from gptbench.engine import hf
    from tests.test_engines import FUSED

    validate_combination(replace(run_config(MIXED), engine=FUSED))
    assert hf.model_family(MIXED, 24) is None
    assert {"attention_pattern", "ffn_pattern"} <= hf.distinguishing_fields(MIXED, 24)


def test_another_kind_of_feed_forward_network_is_a_class_and_a_place_in_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a value that another kind does not compute, or of a spec of its own, in some of the layers."""
    from gptbench.engine import hf
    from gptbench.model import transformer
    from tests.test_engines import FUSED

    class Gelu(transformer.FeedForward):
        SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"activation": (Activation.gelu,), "bias": (False,)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, value = self.w13(x).chunk(2, dim=-1)
            return self.w2(torch.nn.functional.gelu(gate) * value)

    @dataclass(frozen=True)
    class WideSpec(DenseSpec):
        times: int = 2

    class Wide(transformer.FeedForward):
        SPEC = WideSpec

    gelu = replace(DENSE.layer_specs[0].ffn, activation=Activation.gelu)
    for kind, ffn, refused in (
        (Gelu, gelu, r"layer\.ffn\.activation=gelu: expected silu"),
        (Wide, WideSpec(DENSE.ffn_dim), "layer=WideSpec: expected DenseSpec or MixtureSpec"),
    ):

        def layers(model: ModelConfig, ffn: DenseSpec = ffn) -> tuple[LayerSpec, ...]:
            specs = replace(model, architecture=None).layer_specs
            return (replace(specs[0], ffn=ffn), *specs[1:])

        monkeypatch.setitem(ARCHITECTURES, "OtherForCausalLM", Architecture("OtherForCausalLM", "x", layers=layers))
        model = replace(MOE, architecture="OtherForCausalLM")
        with pytest.raises(ConfigError, match=refused):
            on_meta(model, quant_section("none"), torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(transformer, "FEED_FORWARDS", [*transformer.FEED_FORWARDS, kind])
            made = make_model(model, batch=2)
        rest = [transformer.MixtureOfExperts] * (MOE.n_layers - 1)
        assert [type(block.ffn) for block in made.layers] == [kind, *rest]
        tokens, positions = torch.ones(2, 3, dtype=torch.int64), torch.arange(3).expand(2, 3)
        assert torch.isfinite(made(tokens, positions, made.memory, 24)).all()
        with pytest.raises(ConfigError, match="the kernels have no feed-forward network of its kind"):
            validate_combination(replace(run_config(model), engine=FUSED))
        assert hf.model_family(model, 24) is None


def test_another_kind_of_attention_is_a_class_and_a_place_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own code runs it; engines that have an attention of their own refuse it by name."""
    from gptbench.engine import hf
    from gptbench.model import transformer
    from tests.test_engines import FUSED

    class Sinks(transformer.Attention):
        SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = transformer.Attention.SUPPORTED | {"sinks": (True,)}

    def layers(model: ModelConfig) -> tuple[LayerSpec, ...]:
        specs = replace(model, architecture=None).layer_specs
        return (changed(specs[0], "attention.sinks", True), *specs[1:])

    monkeypatch.setitem(ARCHITECTURES, "SinkForCausalLM", Architecture("SinkForCausalLM", "sink", layers=layers))
    model = replace(MOE, architecture="SinkForCausalLM")
    with pytest.raises(ConfigError, match=r"layer\.attention\.sinks=True: expected False"):
        on_meta(model, quant_section("none"), torch.float32)
    monkeypatch.setattr(transformer, "ATTENTIONS", [*transformer.ATTENTIONS, Sinks])
    made = on_meta(model, quant_section("none"), torch.float32)
    assert [type(block.attention) for block in made.layers] == [Sinks, *[transformer.Attention] * (MOE.n_layers - 1)]
    with pytest.raises(ConfigError, match="the kernels have no attention of its kind"):
        validate_combination(replace(run_config(model), engine=FUSED))
    assert hf.model_family(MOE, 24) is not None
    assert hf.model_family(model, 24) is None
