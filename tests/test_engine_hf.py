"""The transformers library over our weights gives the reference's logits and tokens, and holds nothing twice."""

import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gptbench.engine.hf as hf
from gptbench.base.errors import ConfigError
from gptbench.config import Cache, Config, HuggingFaceConfig, ModelConfig, RopeScaling, validate_combination
from gptbench.device.group import DeviceGroup
from gptbench.engine import Engine, HuggingFace, Inductor, Shape
from gptbench.execute.reuse import release
from gptbench.measure.compilation import CompileWatch
from gptbench.sampling import Sampler
from tests.models import CPU, DENSE, GQA, MOE, make_model, model_name, random_tokens, run_config
from tests.pairwise import pairwise
from tests.test_engines import (
    DRAWN,
    EAGER,
    GREEDY,
    LENGTH,
    PROMPT,
    STEPS,
    assert_agrees,
    device,
    drawn_tokens,
    make_engine,
)

pytestmark = pytest.mark.usefixtures("nothing_compiled")
installed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")

BIASED = replace(GQA, name="qkv_bias", qkv_bias=True, head_dim=32)
NORMED = replace(GQA, name="qk_norm", qk_norm=True, head_dim=32)
WINDOW = replace(DENSE, name="window", sliding_window=8)
"""The window is full in the midst of the decode steps."""
NARROW = replace(GQA, name="narrow", sliding_window=PROMPT - 1)
"""It is full before the prefill ends."""
WIDE = replace(DENSE, name="wide", sliding_window=LENGTH)
"""It hides nothing."""
UNEVEN = replace(DENSE, name="uneven", n_heads=5, n_kv_heads=5, head_dim=16)
SCALED = replace(GQA, name="llama3", rope_scaling=RopeScaling(factor=8.0, original_context=32))
LINEAR = replace(GQA, name="linear", rope_scaling=RopeScaling(factor=4.0, original_context=1), norm_eps=1e-3)
NORMED_MOE = replace(MOE, name="qk_norm_moe", qk_norm=True, head_dim=48, n_experts=6, n_active_experts=3)
WINDOW_MOE = replace(MOE, name="window_moe", n_experts=5, sliding_window=7, rope_theta=5e4)

FAMILY = {
    "Llama": [DENSE, GQA, WIDE, SCALED, LINEAR],
    "Mistral": [WINDOW, NARROW, UNEVEN],
    "Mixtral": [MOE, WINDOW_MOE],
    "Qwen2": [BIASED],
    "Qwen3": [NORMED],
    "Qwen3Moe": [NORMED_MOE],
}
ALL = [model for models in FAMILY.values() for model in models]
"""Every way in which the library's models differ. 331 and 211 tokens, 8 experts: not the library's defaults."""


class Asks(TorchDispatchMode):
    """Notes every question for a tensor's value; on a GPU, the answer would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def config(cache: str) -> HuggingFaceConfig:
    return HuggingFaceConfig(_target_="gptbench.engine.HuggingFace", name="hf", cache=Cache(cache))


def run_of(model: ModelConfig, quant: str = "none", cache: str = "dynamic") -> Config:
    return replace(run_config(model, quant), engine=config(cache))


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """What would be compiled runs as it is: quick, and the same arithmetic."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make_hf(
    model: ModelConfig, cache: str, batch: int = 1, on: str = "cpu", dtype: torch.dtype = torch.float32
) -> HuggingFace:
    """Prepared."""
    engine = make_engine(config(cache), model, "none", batch, dtype, device(on))
    assert isinstance(engine, HuggingFace)
    return engine


def generation(engine: Engine) -> list[list[int]]:
    """Tokens drawn with one seed."""
    engine.sampler.set(DRAWN)
    return drawn_tokens(engine, seed=5).tolist()


def assert_generations_agree(engine: Engine, reference: Engine) -> None:
    """Drawn ones, then greedy ones, which meet what the first ones left."""
    for _ in range(2 if engine.device.is_cuda else 1):
        assert generation(engine) == generation(reference)
        for each in (engine, reference):
            each.sampler.set(GREEDY)
        assert_agrees(engine, reference, torch.float32)


@installed
@pytest.mark.parametrize(
    ("model", "cache", "batch"),
    pairwise(ALL, ["static", "dynamic"], [1, 3]),
    ids=lambda value: model_name(value) or str(value),
)
def test_agrees_with_eager(model: ModelConfig, cache: str, batch: int, uncompiled: None) -> None:
    reference = make_engine(EAGER, model, "none", batch, torch.float32, device("cpu"))
    engine = make_hf(model, cache, batch)
    assert_generations_agree(engine, reference)
    assert engine.finite()


@installed
def test_agrees_with_eager_where_it_is_least_likely(uncompiled: None) -> None:
    """A window that hides all but the token itself; the narrowest experts that the library's product takes."""
    for model, cache in ((replace(GQA, sliding_window=1), "static"), (replace(MOE, ffn_dim=20), "dynamic")):
        reference = make_engine(EAGER, model, "none", 1, torch.float32, device("cpu"))
        assert_generations_agree(make_hf(model, cache), reference)


@installed
def test_agrees_with_eager_in_bfloat16(uncompiled: None) -> None:
    on, dtype = device("cpu"), torch.bfloat16
    reference = make_engine(EAGER, DENSE, "none", 1, dtype, on)
    for cache in ("static", "dynamic"):
        assert_agrees(make_hf(DENSE, cache, dtype=dtype), reference, dtype)


@installed
@pytest.mark.parametrize(("model", "graphs"), [(GQA, 2), (WINDOW, 4)], ids=["plain", "window"])
def test_compiled_agrees_and_compiles_once(model: ModelConfig, graphs: int) -> None:
    """One graph for the decode step and one for the drawing. With a window, three for the step: the library counts on
    the host, and the compiler makes a graph for the first number, for all others, and for a full window."""
    on = device("cpu")
    reference = make_engine(EAGER, model, "none", 3, torch.float32, on)
    with CompileWatch() as watch:
        engine = make_hf(model, "static", batch=3)
        assert watch.count == graphs
        addresses = [tensor.data_ptr() for tensor in engine.cached()]
        assert_generations_agree(engine, reference)
        while engine.filled < LENGTH:
            engine.decode()
        assert watch.count == graphs
    assert [tensor.data_ptr() for tensor in engine.cached()] == addresses
    peer = weakref.ref(engine.hf)
    for _ in range(2):  # the second one finds nothing, and does no harm
        engine.release()
        release(engine.model, on)
    assert peer() is None, "the weights can be given back while there is an engine"


@installed
@pytest.mark.parametrize("model", ALL, ids=model_name)
def test_holds_nothing_twice(model: ModelConfig, uncompiled: None) -> None:
    for cache in ("static", "dynamic"):
        engine = make_hf(model, cache)
        ours = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in engine.model.parameters()}
        theirs = {p.untyped_storage().data_ptr() for p in engine.hf.parameters()}
        assert theirs == set(ours), "each of our tensors is a parameter there, and there is no other"
        assert not any(tensor.is_meta for tensor in (*engine.hf.parameters(), *engine.hf.buffers()))
        assert sum(buffer.nbytes for buffer in engine.hf.buffers()) <= 2 * 4 * model.head_dim // 2
        assert not [*engine.model.buffers()] and all(tensor.is_meta for tensor in engine.memory.tensors)


@installed
def test_takes_next_to_no_memory() -> None:
    on, wide = device("cpu"), replace(MOE, name="wide", dim=256, ffn_dim=512)
    built = make_model(wide, length=LENGTH)
    weights = sum(parameter.nbytes for parameter in built.parameters())
    sampler = Sampler(GREEDY, wide.vocab_size, CPU)
    for cache in ("dynamic", "static"):
        with torch.profiler.profile(profile_memory=True) as profile:
            engine = HuggingFace(config(cache), built, sampler, on, Shape(1, PROMPT, LENGTH))
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
        assert allocated < weights / 20
        assert sum(tensor.nbytes for tensor in engine.hf.parameters()) == weights


@installed
@pytest.mark.parametrize("name", FAMILY)
def test_takes_the_family_that_fits(name: str) -> None:
    for model in FAMILY[name]:
        assert hf.model_family(model, LENGTH) == name
        peer = hf.build_hf_model(make_model(model, length=LENGTH), LENGTH, CPU)
        assert type(peer).__name__ == f"{name}ForCausalLM"
        assert peer.config._attn_implementation == "sdpa"


@installed
def test_reads_and_caches(uncompiled: None) -> None:
    read = {
        (name, cache): [made.positions_read(rows, made.memory.caches[0]) for rows in ([5], [6], [20], [5, 6, 20])]
        for name, model in (("all", DENSE), ("window", WINDOW))
        for cache in ("static", "dynamic")
        for made in [make_hf(model, cache)]
    }
    assert read == {
        ("all", "static"): [LENGTH, LENGTH, LENGTH, 3 * LENGTH],
        ("all", "dynamic"): [6, 7, 21, 3 * 21],
        ("window", "static"): [8, 8, 8, 3 * 8],
        ("window", "dynamic"): [6, 7, 8, 3 * 8],
    }
    shape = (3, DENSE.n_kv_heads, LENGTH, DENSE.head_dim)
    static, dynamic = make_hf(DENSE, "static", batch=3), make_hf(DENSE, "dynamic", batch=3)
    for each in (static, dynamic):
        assert each.finite()
        each.prefill(random_tokens(DENSE, 3, PROMPT))
        each.decode()
        assert len(each.cached()) == 2 * DENSE.n_layers
    assert all(tensor.shape == shape for tensor in static.cached())
    for mine, other in zip(static.cached(), dynamic.cached(), strict=True):
        torch.testing.assert_close(mine[:, :, : PROMPT + 1], other)
        assert not mine[:, :, PROMPT + 1 :].any()
    static.cached()[-1][0, 0, 0] = torch.nan
    assert not static.finite()


@installed
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_full_cache_is_an_error(cache: str, uncompiled: None) -> None:
    engine = make_hf(DENSE, cache)
    engine.prefill(random_tokens(DENSE, 1, PROMPT))
    for _ in range(LENGTH - PROMPT):
        engine.decode()
    with pytest.raises(IndexError, match=f"holds {LENGTH} positions"):
        engine.decode()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_of(DENSE, "int8"), "engine=hf: expected another engine, or quant=none"),
        (
            run_of(replace(GQA, qkv_bias=True, qk_norm=True)),
            "engine=hf: .* no model with model.qk_norm=True and model.qkv_bias=True",
        ),
        (run_of(replace(MOE, qkv_bias=True)), "engine=hf: .* model.n_experts=8 and model.qkv_bias=True"),
        (run_of(replace(NORMED, sliding_window=4)), "engine=hf: .* model.qk_norm=True and model.sliding_window=4"),
        (run_of(replace(MOE, ffn_dim=77)), r"engine=hf: .* model.ffn_dim to be a multiple of 4 .*\(it is 77\)"),
        (run_of(replace(MOE, dim=50, head_dim=16)), r"engine=hf: .* model.dim to be a multiple of 4 .*\(it is 50\)"),
        (run_of(replace(GQA, sliding_window=1)), "engine.cache=dynamic: expected static: .* model.sliding_window=1"),
    ],
    ids=["quantised", "bias and norm", "bias and experts", "norm and window", "odd experts", "odd", "window of 1"],
)
def test_what_the_library_cannot_do_is_refused(run: Config, message: str) -> None:
    def require() -> None:
        validate_combination(run)
        HuggingFace.require(run, DeviceGroup((device("cpu"),)))

    with pytest.raises(ConfigError, match=message):
        require()


def test_what_it_can_do_is_not_refused() -> None:
    for model in ALL:
        HuggingFace.require(run_of(model), DeviceGroup((device("cpu"),)))
    hidden = run_of(replace(NORMED, sliding_window=64))  # which hides nothing of the cache
    HuggingFace.require(hidden, DeviceGroup((device("cpu"),)))
    HuggingFace.require(run_of(replace(GQA, ffn_dim=77)), DeviceGroup((device("cpu"),)))


def test_a_missing_compiler_leaves_the_dynamic_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inductor, "unavailable_reason", lambda _: "a C++ compiler")
    HuggingFace.require(run_of(DENSE, cache="dynamic"), DeviceGroup((device("cpu"),)))
    with pytest.raises(ConfigError, match=r"engine\.cache=static: expected dynamic, or .* a C\+\+ compiler"):
        HuggingFace.require(run_of(DENSE, cache="static"), DeviceGroup((device("cpu"),)))


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for found, enough in (
        ("5.17.0", True),
        ("5.18.0.dev0", True),
        ("6.0.1", True),
        ("5.2.0", False),
        ("4.57.1", False),
    ):
        monkeypatch.setattr(hf, "version", lambda name, found=found: found)
        assert (HuggingFace.unavailable_reason(device("cpu")) is None) == enough, found
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'gptbench[hf]'" in str(HuggingFace.unavailable_reason(device("cpu")))


def test_the_library_is_imported_only_when_it_is_used() -> None:
    code = "import sys, gptbench.engine; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@installed
@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("model", [GQA, NARROW, WINDOW], ids=model_name)
def test_asks_for_no_tensors_value(model: ModelConfig, cache: str, uncompiled: None) -> None:
    engine = make_hf(model, cache)
    prompt = random_tokens(model, 1, PROMPT)
    with Asks() as asks:
        for _ in range(2):
            engine.prefill(prompt)
            for _ in range(STEPS):
                engine.decode()
    assert not asks.found


@installed
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "cache", "batch"),
    pairwise(ALL, ["static", "dynamic"], [1, 3]),
    ids=lambda value: model_name(value) or str(value),
)
def test_agrees_with_eager_on_gpu(model: ModelConfig, cache: str, batch: int) -> None:
    reference = make_engine(EAGER, model, "none", batch, torch.float32, device("cuda"))
    with CompileWatch() as watch:
        engine = make_hf(model, cache, batch, "cuda")
        compiled = watch.count
        assert bool(compiled) == (cache == "static")
        assert_generations_agree(engine, reference)
        assert watch.count == compiled, "nothing is compiled or recorded after preparing"


@installed
@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("model", [GQA, MOE, NARROW, WINDOW], ids=model_name)
def test_never_waits_for_the_gpu(model: ModelConfig, cache: str) -> None:
    engine = make_hf(model, cache, 3, "cuda", torch.bfloat16)
    prompt = random_tokens(model, 3, PROMPT).to(engine.device.torch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            engine.prefill(prompt)
            for _ in range(STEPS):
                engine.decode()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@installed
@pytest.mark.gpu
def test_the_decode_step_is_a_graph_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's trees took the step, with the cache that it changes."""
    engine = make_hf(GQA, "static", 1, "cuda", torch.bfloat16)
    engine.prefill(random_tokens(GQA, 1, PROMPT).to(engine.device.torch))
    replay, replays = torch.cuda.CUDAGraph.replay, []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph))[1])
    for _ in range(STEPS):
        engine.decode()
    assert len(replays) == STEPS
    assert len(set(map(id, replays))) == 1


@installed
@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_weights_are_on_the_gpu_once(cache: str) -> None:
    on = device("cuda")
    wide = replace(MOE, dim=1024, ffn_dim=2048, n_heads=8, head_dim=128)
    built = make_model(wide, length=LENGTH, dtype=torch.bfloat16, device=on.torch)
    before = torch.cuda.memory_allocated()
    weights = sum(parameter.nbytes for parameter in built.parameters())
    sampler = make_engine(EAGER, GQA, "none", 1, torch.float32, on).sampler
    engine = HuggingFace(config(cache), built, sampler, on, Shape(1, PROMPT, LENGTH))
    assert torch.cuda.memory_allocated() - before < weights / 20
    engine.release()
    release(built, on)
    assert torch.cuda.memory_allocated() < before - 0.95 * weights
