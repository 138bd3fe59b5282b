"""Bytes per step, worked out by hand from the shapes of the models. Nothing here is allocated: all is on `meta`."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from gptbench.build import cache_bytes, nbytes, on_meta
from gptbench.config import DeviceConfig, DeviceKind, Dtype, EagerConfig, InductorConfig, ModelConfig, SamplingConfig
from gptbench.device import Device
from gptbench.engine import Eager, Engine, Inductor, Shape
from gptbench.engine.fused import Fused
from gptbench.measure.traffic import traffic, weight_bytes
from gptbench.model import KeyValueCache, Transformer
from gptbench.sampling import Sampler
from tests.models import (
    CONF,
    DENSE,
    GQA,
    MOE,
    WINDOW,
    make_model,
    model_config,
    model_name,
    quant_section,
)

OPEN = {"auto", "demo"}
"""Options whose shape is their checkpoint's."""
MODELS = sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - OPEN)

PUBLISHED = {
    # name: parameters, GB
    "codellama_34b": (33_743_970_304, 66.96),
    "codellama_7b_python": (6_738_415_616, 13.215),
    "llama2_13b": (13_015_864_320, 25.704),
    "llama2_70b": (68_976_648_192, 137.43),
    "llama2_7b": (6_738_415_616, 13.215),
    "llama3_1_405b": (405_853_388_800, 807.5),
    "llama3_1_70b": (70_553_706_496, 139.0),
    "llama3_1_8b": (8_030_261_248, 15.010),
    "llama3_2_1b": (1_235_814_400, 2.472),
    "llama3_2_3b": (3_212_749_824, 6.425),
    "llama3_70b": (70_553_706_496, 139.0),
    "llama3_8b": (8_030_261_248, 15.010),
    "mistral_7b": (7_241_732_096, 14.221),
    "mistral_7b_v0_2": (7_241_732_096, 14.221),
    "mixtral": (46_702_792_704, 25.50),
    "mixtral_16l": (23_482_470_400, 12.879),  # half of the layers
    "mixtral_tiny": (4_515_136, 4.3444e-3),  # of nobody: worked out by hand
    "qwen2_5_0_5b": (494_032_768, 0.988),
    "qwen2_5_7b": (7_615_616_512, 14.141),
    "qwen3_0_6b": (596_049_920, 1.192),
    "qwen3_30b_a3b": (30_532_122_624, 6.084),
    "qwen3_8b": (8_190_735_360, 15.137),
    "stories110m": (109_529_856, 0.21906),
    "stories15m": (15_191_712, 0.030383),
}
"""Parameters as published, with every expert, a tied embedding once; and the bfloat16 weights read for one token, with
the head, without an untied embedding."""

LLAMA_3 = {"rope_theta": 5e5, "context": 131072}
QWEN = {"rope_theta": 1e6, "norm_eps": 1e-6}
SETTINGS = {
    "codellama_34b": {"context": 16384, "rope_theta": 1e6},
    "codellama_7b_python": {"context": 16384, "rope_theta": 1e6},
    "llama2_13b": {"context": 4096},
    "llama2_70b": {"context": 4096},
    "llama2_7b": {"context": 4096},
    "llama3_1_405b": LLAMA_3 | {"factor": 8},
    "llama3_1_70b": LLAMA_3 | {"factor": 8},
    "llama3_1_8b": LLAMA_3 | {"factor": 8},
    "llama3_2_1b": LLAMA_3 | {"factor": 32},
    "llama3_2_3b": LLAMA_3 | {"factor": 32},
    "llama3_70b": LLAMA_3 | {"context": 8192},
    "llama3_8b": LLAMA_3 | {"context": 8192},
    "mistral_7b": {"context": 32768, "sliding_window": 4096},
    "mistral_7b_v0_2": {"context": 32768, "rope_theta": 1e6},
    "mixtral": {"context": 32768, "rope_theta": 1e6},
    "mixtral_16l": {"context": 32768, "rope_theta": 1e6},
    "mixtral_tiny": {"context": 512, "rope_theta": 1e6},
    "qwen2_5_0_5b": QWEN | {"context": 32768},
    "qwen2_5_7b": QWEN | {"context": 131072},
    "qwen3_0_6b": QWEN | {"context": 40960},
    "qwen3_30b_a3b": QWEN | {"context": 40960},
    "qwen3_8b": QWEN | {"context": 40960},
    "stories110m": {"context": 1024},
    "stories15m": {"context": 256},
}
"""What no weight's shape tells; else a base of 1e4, an epsilon of 1e-5, no stretching and no window."""


def meta(config: ModelConfig, quant: str = "none", dtype: torch.dtype = torch.bfloat16) -> Transformer:
    return on_meta(config, quant_section(quant), dtype)


def matrix(rows: int, columns: int, quant: str, itemsize: int) -> int:
    """Bytes of a matrix; int8 has one scale of the activations' type for each row."""
    return rows * columns + rows * itemsize if quant == "int8" else rows * columns * itemsize


def bytes_by_hand(config: ModelConfig, quant: str, itemsize: int, experts: int, embedding_rows: int) -> int:
    """Bytes of one layer's matrices and norms, of all layers, of head, last norm and embedding rows."""
    d, f, k = config.dim, config.ffn_dim, config.head_dim or config.dim // config.n_heads
    queries, keys = config.n_heads * k, config.n_kv_heads * k
    attention = sum(matrix(rows, d, quant, itemsize) for rows in (queries, keys, keys))
    attention += matrix(d, queries, quant, itemsize)  # output
    attention += (queries + 2 * keys) * itemsize if config.qkv_bias else 0
    attention += 2 * k * itemsize if config.qk_norm else 0
    ffn = 2 * matrix(f, d, quant, itemsize) + matrix(d, f, quant, itemsize)
    if config.n_experts:
        ffn = experts * ffn + config.n_experts * d * itemsize  # the router is not quantised
    layers = config.n_layers * (attention + ffn + 2 * d * itemsize)
    embedding = 0 if config.tied else embedding_rows * d * itemsize
    return layers + d * itemsize + matrix(config.vocab_size, d, quant, itemsize) + embedding


@pytest.mark.parametrize("name", MODELS)
def test_number_of_parameters(name: str) -> None:
    config = model_config(name)
    model = meta(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == bytes_by_hand(config, "none", 1, config.n_experts, config.vocab_size)
    assert count == PUBLISHED[name][0]
    assert nbytes(model) == 2 * count


def test_published_numbers_cover_every_model() -> None:
    """A name in the tables that is no file would never be compared, nor would a file that is in no table."""
    assert list(PUBLISHED) == list(SETTINGS) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_gigabytes_per_token(name: str) -> None:
    config = model_config(name)
    embedding_row = 0 if config.tied else 2 * config.dim
    read = weight_bytes(meta(config), 1) - embedding_row
    assert read / 1e9 == pytest.approx(PUBLISHED[name][1], rel=5e-4)


@pytest.mark.parametrize("name", MODELS)
def test_settings_that_no_weight_tells(name: str) -> None:
    config = model_config(name)
    expected = {"rope_theta": 1e4, "norm_eps": 1e-5, "factor": None, "sliding_window": 0} | SETTINGS[name]
    scaling = config.rope_scaling
    assert expected == {
        "context": config.context,
        "rope_theta": config.rope_theta,
        "norm_eps": config.norm_eps,
        "factor": scaling.factor if scaling else None,
        "sliding_window": config.sliding_window,
    }
    if scaling:  # the same in all of them
        assert (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context) == (1, 4, 8192)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_int8(name: str) -> None:
    config = model_config(name)
    assert quant_section("int8").unsupported_reason(config, Dtype.bfloat16) is None
    assert "float16" in (quant_section("int8").unsupported_reason(config, Dtype.float16) or "")
    model = meta(config, "int8")
    expected = bytes_by_hand(config, "int8", 2, config.n_active_experts, 1)
    assert weight_bytes(model, 1) == expected
    assert expected < 0.6 * weight_bytes(meta(config), 1)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_llama_2_7b_in_bfloat16() -> None:
    assert weight_bytes(meta(model_config("llama2_7b")), 1) == 13_214_687_232 + 8192


def test_llama_2_7b_in_int8() -> None:
    layer = (
        3 * (4096 * 4096 + 4096 * 2)  # q, k, v
        + (4096 * 4096 + 4096 * 2)  # output
        + 2 * (11008 * 4096 + 11008 * 2)  # gate and input
        + (4096 * 11008 + 4096 * 2)
        + 2 * 4096 * 2  # norms
    )
    head = 32000 * 4096 + 32000 * 2
    expected = 32 * layer + head + 4096 * 2 + 4096 * 2  # last norm, embedding row
    assert expected == 6_610_401_792
    assert weight_bytes(meta(model_config("llama2_7b"), "int8"), 1) == expected


@pytest.mark.parametrize(
    ("name", "layers", "gigabytes"),
    [("mixtral_16l", 16, 6.443), ("mixtral", 32, 12.755)],
    ids=["16-layers", "32-layers"],
)
def test_mixtral_in_int8(name: str, layers: int, gigabytes: float) -> None:
    layer = (
        (4096 * 4096 + 4096 * 2)  # q
        + 2 * (1024 * 4096 + 1024 * 2)  # k, v: 8 of 32 heads
        + (4096 * 4096 + 4096 * 2)  # output
        + 8 * 4096 * 2  # router, bfloat16
        + 2 * (2 * (14336 * 4096 + 14336 * 2) + (4096 * 14336 + 4096 * 2))  # 2 experts of 8
        + 2 * 4096 * 2  # norms
    )
    head = 32000 * 4096 + 32000 * 2
    expected = layers * layer + head + 4096 * 2 + 4096 * 2  # last norm, embedding row
    assert expected / 1e9 == pytest.approx(gigabytes, abs=5e-4)
    assert weight_bytes(meta(model_config(name), "int8"), 1) == expected


def test_a_tied_head_is_counted_once_and_in_full() -> None:
    model = meta(model_config("llama3_2_1b"))
    assert weight_bytes(model, 1) == weight_bytes(model, 100) == nbytes(model) == 2 * 1_235_814_400


def test_a_weight_that_two_modules_share_is_counted_once() -> None:
    model = meta(DENSE)
    separate = weight_bytes(model, 1)
    first, second = model.blocks[0].attention.wo, model.blocks[1].attention.wo
    second.weight = first.weight
    assert separate - weight_bytes(model, 1) == first.weight.nbytes == DENSE.dim**2 * 2


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 9], ids="B={}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("config", [DENSE, GQA, MOE], ids=model_name)
def test_weights_of_a_batch(config: ModelConfig, quant: str, dtype: torch.dtype, batch: int) -> None:
    """At least: of the experts those of one token, as all rows may choose the same; of the embedding one row each."""
    expected = bytes_by_hand(config, quant, dtype.itemsize, config.n_active_experts, batch)
    assert weight_bytes(meta(config, quant, dtype), batch) == expected
    assert weight_bytes(make_model(config, quant, dtype=dtype), batch) == expected  # with memory as without


def test_a_batch_reads_no_more_embedding_rows_than_there_are() -> None:
    model = meta(DENSE)
    assert weight_bytes(model, 10 * DENSE.vocab_size) == nbytes(model)


@pytest.mark.parametrize(
    ("name", "batch", "dtype", "expected"),
    [
        ("llama2_7b", 1, torch.bfloat16, 2 * 32 * 32 * 128 * 2),
        ("llama2_7b", 3, torch.bfloat16, 3 * 524_288),
        ("llama2_7b", 1, torch.float32, 2 * 524_288),
        ("llama3_1_8b", 1, torch.bfloat16, 2 * 32 * 8 * 128 * 2),
        ("mixtral_16l", 1, torch.bfloat16, 2 * 16 * 8 * 128 * 2),
        ("stories15m", 1, torch.float32, 2 * 6 * 6 * 48 * 4),
    ],
)
@pytest.mark.parametrize("quant", ["none", "int8"])
def test_kv_cache_of_one_position(name: str, batch: int, dtype: torch.dtype, expected: int, quant: str) -> None:
    """The cache is never quantised: its type is the activations'."""
    assert cache_bytes(meta(model_config(name), quant, dtype), batch, 1) == expected


def test_kv_cache_of_one_position_is_what_is_allocated() -> None:
    model = make_model(GQA, batch=3, length=17)
    tensors = [tensor for cache in model.memory.caches for tensor in cache.tensors]
    assert len(tensors) == 2 * GQA.n_layers
    assert sum(tensor.nbytes for tensor in tensors) == cache_bytes(model, 3, 17) == 17 * cache_bytes(model, 3, 1)


class FakeEngine:
    """What `traffic` looks at, without an engine's tensors."""

    def __init__(self, model: Transformer, prompt_length: int, batch: int, length: int, like: type[Engine]) -> None:
        self.model, self.prompt_length, self.batch, self.length = model, prompt_length, batch, length
        self.like = like
        self.memory = model.allocate(batch, length, "meta")

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return self.like.positions_read(cast(Engine, SimpleNamespace(length=self.length)), positions, cache)

    def positions_moved(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return self.like.positions_moved(cast(Engine, self), positions, cache)


def test_steps_of_the_seed_workload_on_llama_2_7b() -> None:
    """Prompt 6, 200 new tokens, 199 steps. Eager reads what is filled, Inductor all of the 208 positions; both write
    the token's own, and read it back. Fused does not, so it moves what is needed and nothing else."""
    model = meta(model_config("llama2_7b"))
    weights, kv = 13_214_687_232 + 8192, 524_288
    eager = traffic(cast(Engine, FakeEngine(model, 6, 1, 208, Eager)), 200)
    assert eager.weights == weights
    assert eager.kv_per_position == kv
    assert len(eager.needed()) == len(eager.moved()) == 199
    assert eager.positions_read == eager.kv_len == eager.positions_attended == list(range(7, 206))
    # The first step needs 6 positions and writes its own; the last one needs 204.
    assert eager.needed() == [weights + kv * (cached + 1) for cached in range(6, 205)]
    assert eager.moved() == [needed + kv for needed in eager.needed()]

    inductor = traffic(cast(Engine, FakeEngine(model, 6, 1, 208, Inductor)), 200)
    assert inductor.needed() == eager.needed()
    assert inductor.moved() == [weights + kv * (208 + 1)] * 199
    assert inductor.positions_read == [208] * 199
    assert inductor.kv_len == eager.kv_len

    fused = traffic(cast(Engine, FakeEngine(model, 6, 1, 208, Fused)), 200)
    assert fused.moved() == fused.needed() == eager.needed()


@pytest.mark.parametrize("like", [Eager, Inductor, Fused])
def test_what_no_token_attends_to_is_not_needed(like: type[Engine]) -> None:
    """A window of 4: whatever an engine reads, from the fourth token on a step needs four positions."""
    model, kv = meta(WINDOW), 3 * 3 * 16 * 2 * 2
    weights = weight_bytes(model, 1)
    moved = traffic(cast(Engine, FakeEngine(model, 2, 1, 16, like)), 6)
    assert moved.needed() == [weights + kv * positions for positions in (3, 4, 4, 4, 4)]
    read = {Eager: (4, 5, 6, 7, 8), Inductor: (17,) * 5, Fused: (3, 4, 4, 4, 4)}[like]
    assert moved.moved() == [weights + kv * positions for positions in read]


@pytest.mark.parametrize("batch", [1, 3], ids="B={}".format)
def test_steps_of_real_engines(batch: int) -> None:
    """The engines' own batch, length and prompt."""
    device = Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu))
    sampler = Sampler(SamplingConfig(_target_="gptbench.sampling.Sampler", name="test"), MOE.vocab_size, device.torch)
    eager_config = EagerConfig(_target_="gptbench.engine.Eager", name="eager")
    inductor_config = InductorConfig(_target_="gptbench.engine.Inductor", name="inductor")
    weights = bytes_by_hand(MOE, "int8", 4, 2, batch)
    kv = 2 * 2 * batch * 2 * 16 * 4  # keys and values, layers, rows, kv heads, head width, bytes

    def moved(engine: Engine) -> list[int]:
        of = traffic(engine, new_tokens=4)
        assert of.needed() == [weights + kv * filled for filled in (6, 7, 8)]
        return of.moved()

    def model() -> Transformer:
        return make_model(MOE, "int8", batch=batch, length=24)

    eager = Eager(eager_config, model(), sampler, device, Shape(batch, 5, 24))
    assert moved(eager) == [weights + kv * (read + 1) for read in (6, 7, 8)]
    inductor = Inductor(inductor_config, model(), sampler, device, Shape(batch, 5, 24))
    assert moved(inductor) == [weights + kv * 25] * 3
