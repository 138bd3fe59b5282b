"""Every engine gives the reference's logits within a tolerance and, greedy, the reference's tokens."""

import gc
import json
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from gptbench.base.errors import ConfigError
from gptbench.build import cache_bytes
from gptbench.config import (
    AutoConfig,
    CudaGraph,
    DeviceConfig,
    DeviceKind,
    Dtype,
    EagerConfig,
    EngineConfig,
    FusedConfig,
    InductorConfig,
    ModelConfig,
    SamplingConfig,
    Scope,
    Tuning,
    validate_combination,
)
from gptbench.config.targets import instantiate, target
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Auto, Eager, Engine, Inductor, Shape
from gptbench.engine.tile_cache import TileCache
from gptbench.kernels.route import Routing
from gptbench.kernels.tile_config import TileConfig, TileKey
from gptbench.measure.traffic import expert_bytes, weight_bytes
from gptbench.model import Bias, RMSNorm
from gptbench.model.transformer import MixtureOfExperts
from gptbench.sampling import Sampler
from tests import evidence
from tests.evidence import kept_evidence
from tests.models import (
    CPU,
    DENSE,
    FAMILY,
    GQA,
    MIXED,
    MOE,
    QWEN,
    TINY,
    WINDOW,
    make_model,
    model_name,
    random_tokens,
    run_config,
)
from tests.pairwise import pairwise
from tests.test_kernel_interpreter import prepare_language_once

pytestmark = pytest.mark.usefixtures("nothing_compiled")

PROMPT, STEPS, LENGTH = 5, 12, 24
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest ‖logits - reference‖ / ‖reference‖ of a row. Compiled bfloat16 code rounds less often."""

GREEDY = SamplingConfig(_target_="gptbench.sampling.Sampler", name="greedy", temperature=0.0)
DRAWN = SamplingConfig(_target_="gptbench.sampling.Sampler", name="drawn", temperature=0.9, top_k=50, top_p=0.95)
FUSED = FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused")
EAGER = EagerConfig(_target_="gptbench.engine.Eager", name="eager")


def inductor(**options: Any) -> InductorConfig:
    options = {"scope": Scope.block, "tuning": Tuning.none} | options
    return InductorConfig(_target_="gptbench.engine.Inductor", name="inductor", **options)


def device(kind: str, threads: int = 1) -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name=kind, kind=DeviceKind(kind), threads=threads))


def make_engine(
    config: EngineConfig,
    model: ModelConfig,
    quant: str,
    batch: int,
    dtype: torch.dtype,
    on: Device,
    sampling: SamplingConfig = GREEDY,
) -> Engine:
    built, shape = make_model(model, quant, batch, LENGTH, dtype, device=on.torch), Shape(batch, PROMPT, LENGTH)
    engine: Engine = instantiate(config, built, Sampler(sampling, model.vocab_size, on.torch), on, shape)
    engine.prepare()
    return engine


def assert_agrees(engine: Engine, reference: Engine, dtype: torch.dtype, steps: int = STEPS) -> None:
    """Prefill and greedy steps over the reference's own tokens: logits close, tokens equal but for near ties.

    In bfloat16 a mixture's router may prefer another expert for rounding alone, which changes a row's logits as a
    whole: there, three of four rows must agree, and all in float32.
    """
    prompt = random_tokens(reference.model.config, reference.batch, PROMPT).to(reference.device.torch)
    for each in (engine, reference):
        each.prefill(prompt)
    agreeing = []
    for step in range(steps):
        if step:
            for each in (engine, reference):
                each.decode()
        expected, got = reference.state.logits, engine.state.logits
        assert torch.isfinite(got).all()
        errors = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
        agrees = errors < TOLERANCE[dtype]
        agreeing += agrees.tolist()
        chosen, preferred = engine.state.token, reference.state.token
        gap = (expected.gather(1, preferred) - expected.gather(1, chosen)).squeeze(1)
        limit = 0.0 if dtype is torch.float32 else 4 * TOLERANCE[dtype] * expected.std()
        assert (gap[agrees] <= limit).all(), f"step {step}: {chosen.tolist()}, not {preferred.tolist()}, gap {gap}"
        engine.state.token.copy_(preferred)
    routed = reference.model.config.n_experts > 0 and dtype is not torch.float32
    assert sum(agreeing) >= (0.75 if routed else 1) * len(agreeing), f"logits agree: {agreeing}"
    assert torch.equal(engine.state.position, reference.state.position)
    if not routed:
        assert engine.experts_chosen(steps - 1) == reference.experts_chosen(steps - 1)


FILLED = (2, 9, 17)
"""Cached positions of three rows."""


def assert_rows_agree_alone(engine: Engine, behind: float, steps: int = STEPS // 2) -> None:
    """Rows at positions of their own: each gives the logits and tokens, greedy, that it gives alone, by an engine that
    has the same weights.

    Args:
        engine: of as many rows as `FILLED`, in float32.
        behind: what each row's cache holds after its position.
    """
    config, on, alone = engine.model.config, engine.device, []
    for row, count in enumerate(FILLED):
        sampler = Sampler(GREEDY, config.vocab_size, on.torch)
        alone.append(Eager(EAGER, engine.model, sampler, on, Shape(1, count, LENGTH)))
        alone[row].prefill(random_tokens(config, 1, count, seed=row).to(on.torch))
        for cache, own in zip(engine.cached(), alone[row].cached(), strict=True):
            cache[row, :, :count], cache[row, :, count:] = own[0, :, :count], behind
        for name in ("token", "position", "stopped"):
            getattr(engine.state, name)[row] = getattr(alone[row].state, name)[0]
    engine.filled = max(FILLED)
    for step in range(steps):
        engine.decode()
        for row, own in enumerate(alone):
            own.decode()
            expected, got = own.state.logits[0], engine.state.logits[row]
            assert (got - expected).norm() / expected.norm() < TOLERANCE[torch.float32], (row, step)
            position = FILLED[row] + step + 1
            assert engine.state.position[row] == own.state.position[0] == position
            assert engine.state.tokens[row, position] == engine.state.token[row] == own.state.token[0]


@pytest.mark.parametrize("model", [*FAMILY, MIXED], ids=model_name)
def test_rows_at_positions_of_their_own_agree_with_each_alone(model: ModelConfig) -> None:
    engine = make_engine(EAGER, model, "none", len(FILLED), torch.float32, device("cpu"))
    assert_rows_agree_alone(engine, behind=1e6)


FEW = [(DENSE, "none", 1), (GQA, "int8", 3), (MOE, "int8", 1), (MOE, "none", 3), (QWEN, "int8", 1), (WINDOW, "none", 1)]
"""Each model, and each quantisation with each number of rows, where compiling or interpreting takes long."""


@pytest.mark.parametrize(("model", "quant", "batch"), FEW, ids=model_name)
def test_inductor_agrees_with_eager(model: ModelConfig, quant: str, batch: int) -> None:
    on, dtype = device("cpu"), torch.float32
    reference = make_engine(EAGER, model, quant, batch, dtype, on)
    engine = make_engine(inductor(), model, quant, batch, dtype, on)
    assert_agrees(engine, reference, dtype)
    if batch == len(FILLED):
        assert_rows_agree_alone(engine, behind=1e6)


@pytest.mark.parametrize(("model", "quant"), [(DENSE, "none"), (DENSE, "int8")], ids=model_name)
def test_inductor_agrees_with_eager_in_bfloat16(model: ModelConfig, quant: str) -> None:
    """On several threads, for which the compiler writes other code; elsewhere one is enough, and quicker."""
    on, dtype = device("cpu", threads=2), torch.bfloat16
    reference = make_engine(EAGER, model, quant, 1, dtype, on)
    assert_agrees(make_engine(inductor(), model, quant, 1, dtype, on), reference, dtype)


def test_whole_model_scope_agrees_with_eager() -> None:
    on, dtype = device("cpu"), torch.float32
    reference = make_engine(EAGER, GQA, "none", 1, dtype, on)
    assert_agrees(make_engine(inductor(scope=Scope.model), GQA, "none", 1, dtype, on), reference, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "quant", "batch", "dtype"),
    pairwise(FAMILY, ["none", "int8"], [1, 3], [torch.float32, torch.bfloat16]),
    ids=lambda value: model_name(value) or str(value),
)
def test_inductor_agrees_with_eager_on_gpu(model: ModelConfig, quant: str, batch: int, dtype: torch.dtype) -> None:
    on = device("cuda")
    reference = make_engine(EAGER, model, quant, batch, dtype, on)
    engine = make_engine(inductor(), model, quant, batch, dtype, on)
    assert_agrees(engine, reference, dtype)
    if batch == len(FILLED) and dtype is torch.float32:
        assert_rows_agree_alone(engine, behind=1e6)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The interpreter runs one program after the other: it is faster with larger ones."""
    prepare_language_once(monkeypatch)

    def tile(self: TileCache, tile_key: TileKey) -> TileConfig:
        return TileConfig(
            rows=64 if tile_key.rows % 128 else 128,
            block=triton.next_power_of_2(tile_key.columns) // 2,
            warps=4,
            preload=1,
        )

    monkeypatch.setattr(TileCache, "__getitem__", tile)


@pytest.mark.parametrize(("model", "quant", "batch"), FEW, ids=model_name)
def test_fused_agrees_with_eager(model: ModelConfig, quant: str, batch: int, few_programs: None) -> None:
    """In the fewest steps of which one reads what another has left in the cache and in the scratch memory."""
    on, dtype = device("cpu"), torch.float32
    small = replace(model, n_layers=2)
    reference = make_engine(EAGER, small, quant, batch, dtype, on)
    engine = make_engine(FUSED, small, quant, batch, dtype, on)
    assert_agrees(engine, reference, dtype, steps=3)
    if batch == len(FILLED):
        assert_rows_agree_alone(engine, behind=torch.nan, steps=2)


@pytest.mark.parametrize(("model", "quant"), [(DENSE, "none"), (GQA, "int8"), (MOE, "int8")], ids=model_name)
def test_fused_agrees_with_eager_in_bfloat16(model: ModelConfig, quant: str, few_programs: None) -> None:
    """The interpreter cuts numbers off where a GPU rounds them."""
    on, dtype, small = device("cpu"), torch.bfloat16, replace(model, n_layers=1)
    reference = make_engine(EAGER, small, quant, 1, dtype, on)
    assert_agrees(make_engine(FUSED, small, quant, 1, dtype, on), reference, dtype, steps=2)


def test_fused_agrees_with_eager_where_layers_differ(few_programs: None) -> None:
    """All four kinds: with and without a window, dense and with experts."""
    on, dtype = device("cpu"), torch.float32
    reference = make_engine(EAGER, MIXED, "none", 1, dtype, on)
    engine = make_engine(FUSED, MIXED, "none", 1, dtype, on)
    assert len({op.window for op in engine.ops if op.role == "attention"}) == 2
    assert_agrees(engine, reference, dtype, steps=2)


@pytest.mark.parametrize("config", [EAGER, FUSED], ids=["eager", "fused"])
def test_experts_are_counted_as_rows_choose_them(
    config: EngineConfig, few_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that several rows choose counts once in a layer and step; a prefill begins to count anew."""
    rows, layers, active, every, steps = 4, 1, MOE.n_active_experts, MOE.n_experts, 2
    engine = make_engine(config, replace(MOE, n_layers=layers), "none", rows, torch.float32, device("cpu"))
    chosen: list[int] = []
    decide = MixtureOfExperts.route

    def noted(self: MixtureOfExperts, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, experts = decide(self, x)
        chosen.append(len(experts.unique()))
        return weights, experts

    monkeypatch.setattr(MixtureOfExperts, "route", noted)
    routings = {id(own): own for step in getattr(engine, "ops", []) for own in step.operands()}.values()

    def count(prompt: torch.Tensor) -> int:
        engine.prefill(prompt)
        chosen.clear()
        for _ in range(steps):
            engine.decode()
            chosen.extend(int((own.expert_ids >= 0).sum()) for own in routings if isinstance(own, Routing))
        assert len(chosen) == layers * steps
        assert engine.experts_chosen(steps) == sum(chosen)
        read = min(every, rows * active)
        assert engine.experts_read(sum(chosen), steps) == (sum(chosen) if config is FUSED else read * layers * steps)
        return sum(chosen)

    prompt = random_tokens(MOE, rows, PROMPT)
    different = count(prompt)
    assert layers * steps * active < different < layers * steps * min(rows * active, every)
    assert count(prompt[:1].repeat(rows, 1)) == layers * steps * active, "equal rows choose the same"


def test_a_kernel_over_experts_reads_those_that_are_chosen() -> None:
    engine: Any = target(FUSED)(
        FUSED, make_model(MOE, "int8"), Sampler(GREEDY, MOE.vocab_size, CPU), device("cpu"), Shape(3, PROMPT, LENGTH)
    )
    most, fewer = engine.kernels([7] * 3), engine.kernels([7] * 3, experts=2.5)
    assert [kernel.name for kernel in most] == [op.name for op in engine.ops]
    of_experts = 0
    for op, all_slots, some in zip(engine.ops, most, fewer, strict=True):
        if op.role in ("w13", "w2"):
            assert op.tile_key.max_experts == 6
            assert some.bytes_read == 2.5 * op.bytes_read().expert == all_slots.bytes_read * 2.5 / 6
            of_experts += op.bytes_read().expert
        else:
            assert some == all_slots
    assert of_experts == engine.model.config.n_layers * expert_bytes(engine.model)


def test_layers_of_different_windows_read_different_numbers_of_positions() -> None:
    """Kernels of one name read different numbers of positions."""
    engine: Any = target(FUSED)(
        FUSED, make_model(WINDOW), Sampler(GREEDY, WINDOW.vocab_size, CPU), device("cpu"), Shape(1, PROMPT, LENGTH)
    )
    first, second, *_ = (op for op in engine.ops if op.role == "attention")
    engine.ops = [replace(first, window=4), replace(second, window=0)]
    row = first.bytes_read().position
    assert [kernel.bytes_read for kernel in engine.kernels([10])] == [4 * row, 11 * row]
    assert [kernel.bytes_read for kernel in engine.kernels([10, 0, 5])] == [(4 + 1 + 4) * row, (11 + 1 + 6) * row]
    assert {(kernel.name, kernel.part) for kernel in engine.kernels([10])} == {("attend_kernel", "attention")}


def test_experts_of_a_single_row_are_known_and_a_dense_model_has_none() -> None:
    engine = make_engine(EAGER, MOE, "none", 1, torch.float32, device("cpu"))
    assert engine.experts_chosen(5) == engine.experts_read(0, 5) == 5 * MOE.n_layers * MOE.n_active_experts
    assert make_engine(EAGER, DENSE, "none", 3, torch.float32, device("cpu")).experts_chosen(5) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("model", FAMILY, ids=model_name)
def test_fused_agrees_with_eager_on_gpu(model: ModelConfig, quant: str, batch: int, dtype: torch.dtype) -> None:
    on = device("cuda")
    reference = make_engine(EAGER, model, quant, batch, dtype, on)
    for pdl in (True, False):
        engine = make_engine(replace(FUSED, pdl=pdl), model, quant, batch, dtype, on)
        with kept_evidence(engine, reference):
            assert_agrees(engine, reference, dtype)
        if batch == len(FILLED) and dtype is torch.float32:
            assert_rows_agree_alone(engine, behind=torch.nan)


def test_a_disagreement_leaves_its_states_and_binaries(
    few_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(evidence.FOLDER, str(tmp_path / "new"))
    monkeypatch.setattr(evidence, "binaries", lambda: iter([("linear_1x1 abc", b"code")]))
    reference = make_engine(EAGER, DENSE, "none", 1, torch.float32, device("cpu"))
    engine = make_engine(EAGER, replace(DENSE, rope_theta=2.0), "none", 1, torch.float32, device("cpu"))
    with pytest.raises(AssertionError), evidence.kept_evidence(engine, reference):
        assert_agrees(engine, reference, torch.float32)
    (folder,) = (tmp_path / "new").iterdir()
    assert str(folder) in capsys.readouterr().out
    assert torch.equal(torch.load(folder / "states.pt")["engine"]["logits"], engine.state.logits)
    (code,) = json.loads((folder / "report.json").read_text())["cubins"].values()
    assert (folder / f"{code[:16]}.cubin").read_bytes() == b"code"


@pytest.mark.gpu
def test_binaries_of_our_kernels_are_found() -> None:
    make_engine(FUSED, DENSE, "none", 1, torch.bfloat16, device("cuda"))
    assert all(code[:4] == b"\x7fELF" for _, code in evidence.binaries())
    assert any("linear" in name for name, _ in evidence.binaries())


@pytest.mark.gpu
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("model", [DENSE, GQA, MOE], ids=model_name)
def test_fused_repeats_itself_bit_for_bit(model: ModelConfig, batch: int, quant: str) -> None:
    """A kernel that reads what another has not written yet would differ now and then."""
    engine = make_engine(FUSED, model, quant, batch, torch.bfloat16, device("cuda"), DRAWN)
    tokens, logits = drawn_tokens(engine, seed=5), engine.state.logits.clone()
    for _ in range(50):
        assert torch.equal(drawn_tokens(engine, seed=5), tokens)
        assert torch.equal(engine.state.logits, logits)


@pytest.mark.gpu
@pytest.mark.parametrize("model", TINY, ids=model_name)
def test_the_seeds_settings_agree_with_eager_on_gpu(model: ModelConfig) -> None:
    on, dtype = device("cuda"), torch.float32
    reference = make_engine(EAGER, model, "int8", 1, dtype, on)
    seeds = inductor(scope=Scope.model, cuda_graph=CudaGraph.trees, graph_prefill=False)
    assert_agrees(make_engine(seeds, model, "int8", 1, dtype, on), reference, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("model", TINY, ids=model_name)
def test_graph_replays_draw_the_references_tokens(model: ModelConfig) -> None:
    on = device("cuda")
    tokens = []
    for config in (EAGER, inductor(), FUSED):
        engine = make_engine(config, model, "none", 3, torch.float32, on, DRAWN)
        tokens.append(drawn_tokens(engine, seed=5))
        assert torch.equal(tokens[-1], drawn_tokens(engine, seed=5)), "the same seed draws the same tokens"
        assert not torch.equal(tokens[-1], drawn_tokens(engine, seed=6))
    assert all(torch.equal(tokens[0], other) for other in tokens[1:])


def drawn_tokens(engine: Engine, seed: int) -> torch.Tensor:
    prompt = random_tokens(engine.model.config, engine.batch, PROMPT).to(engine.device.torch)
    engine.seed(seed)
    engine.prefill(prompt)
    for _ in range(STEPS):
        engine.decode()
    assert torch.equal(engine.state.tokens[:, :PROMPT], prompt)
    return engine.state.tokens[:, PROMPT : PROMPT + STEPS + 1].clone()


def test_drawn_tokens_depend_on_the_seed_alone_and_are_the_references() -> None:
    on = device("cpu")
    tokens = []
    for config in (EAGER, inductor()):
        engine = make_engine(config, GQA, "none", 3, torch.float32, on, DRAWN)
        tokens.append(drawn_tokens(engine, seed=5))
        assert torch.equal(tokens[-1], drawn_tokens(engine, seed=5))
        assert not torch.equal(tokens[-1], drawn_tokens(engine, seed=6))
        rows = tokens[-1].tolist()
        assert rows[0] != rows[1], "each row draws for itself"
    assert torch.equal(*tokens)


def test_sampling_settings_change_without_compiling_again() -> None:
    from gptbench.measure.compilation import CompileWatch

    engine = make_engine(inductor(), DENSE, "none", 1, torch.float32, device("cpu"), DRAWN)
    drawn_tokens(engine, seed=1)
    with CompileWatch() as watch:
        greedy = []
        for temperature in (0.0, 0.5, 2.0):
            for top_k in (None, 1, 7):
                for top_p in (None, 0.5):
                    engine.sampler.set(
                        SamplingConfig(
                            _target_="gptbench.sampling.Sampler",
                            name="changed",
                            temperature=temperature,
                            top_k=top_k,
                            top_p=top_p,
                        )
                    )
                    drawn = drawn_tokens(engine, seed=1)
                    if temperature == 0 or top_k == 1:
                        greedy.append(drawn)
        assert all(torch.equal(greedy[0], other) for other in greedy[1:])
        assert watch.count == 0


def test_one_compiled_block_serves_all_layers() -> None:
    from gptbench.measure.compilation import CompileWatch

    with CompileWatch() as watch:
        make_engine(inductor(), DENSE, "none", 1, torch.float32, device("cpu"))
    assert watch.count == 3, "prefill's block, decode's block, and the end of both"


def test_full_cache_is_an_error() -> None:
    engine = make_engine(EAGER, DENSE, "none", 1, torch.float32, device("cpu"))
    engine.prefill(random_tokens(DENSE, 1, PROMPT))
    for _ in range(LENGTH - PROMPT):
        engine.decode()
    with pytest.raises(IndexError, match=f"holds {LENGTH} positions"):
        engine.decode()


def test_positions_read_and_moved() -> None:
    """By one row, and by three of which each is at a position of its own."""
    on, fused = device("cpu"), target(FUSED)
    for kind, section, model, read, moved in (
        (Eager, EAGER, DENSE, [2, 4, 21, 3 * 21], 3 * 21 + 3),
        (Inductor, inductor(), DENSE, [LENGTH, LENGTH, LENGTH, 3 * LENGTH], 3 * LENGTH + 3),
        (fused, FUSED, DENSE, [2, 4, 21, 2 + 4 + 21], 2 + 4 + 21),
        (fused, FUSED, WINDOW, [2, 4, 4, 2 + 4 + 4], 2 + 4 + 4),
    ):
        sampler = Sampler(GREEDY, model.vocab_size, on.torch)
        engine: Any = kind(section, make_model(model, length=LENGTH), sampler, on, Shape(1, PROMPT, LENGTH))
        cache = engine.memory.caches[0]
        assert [engine.positions_read(rows, cache) for rows in ([1], [3], [20], [1, 3, 20])] == read
        assert engine.positions_moved([1, 3, 20], cache) == moved


@pytest.mark.parametrize("model", FAMILY, ids=model_name)
@pytest.mark.parametrize("quant", ["none", "int8"])
def test_fused_kernels_read_every_weight_once(model: ModelConfig, quant: str) -> None:
    """What the kernels say that they read is what a step's traffic is made of: all but the norms and the scratch."""
    on = device("cpu")
    built = make_model(replace(model, n_layers=1), quant, length=LENGTH)
    engine: Any = target(FUSED)(FUSED, built, Sampler(GREEDY, model.vocab_size, on.torch), on, Shape(1, PROMPT, LENGTH))
    block = engine.model.layers[0]
    small = [p for m in block.modules() if isinstance(m, (RMSNorm, Bias)) for p in m.parameters()]
    small += engine.model.norm.parameters()
    table = sum(p.nbytes for p in engine.model.embedding.parameters())
    embedded_twice = table // model.vocab_size if model.tied else 0  # a row, and its scale
    told = sum(op.bytes_read().total() for op in engine.ops if op.role != "maxima")  # that one reads logits
    assert told == weight_bytes(engine.model, 1) - sum(p.nbytes for p in small) + embedded_twice
    per_position = sum(op.bytes_read().position for op in engine.ops)
    assert per_position == cache_bytes(engine.model, 1, 1)


class OnGPU:
    """Stands in for a device, as far as an engine asks before it is made."""

    is_cuda, is_amd = True, False
    key = kind = "gpu"

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype


@pytest.mark.parametrize(
    ("batch", "dtype", "takes", "reason"),
    [
        (8, torch.bfloat16, "fused", None),
        (1, torch.float32, "fused", None),
        (9, torch.bfloat16, "inductor", "fused needs workload.batch_size=8 at most (it is 9)"),
        (1, torch.float16, "inductor", "fused needs device.dtype=bfloat16 or float32"),
    ],
)
def test_auto_takes_fused_on_a_gpu_where_it_can(
    batch: int, dtype: torch.dtype, takes: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inductor, "unavailable_reason", classmethod(lambda cls, device: None))
    section = AutoConfig(_target_="gptbench.engine.Auto", name="auto", fresh_cache=True)
    config = run_config(DENSE, batch=batch)
    config = replace(
        config, device=replace(config.device, kind=DeviceKind.cuda, dtype=Dtype[str(dtype).removeprefix("torch.")])
    )
    device: Any = OnGPU(dtype)
    auto = Auto(section, config, DeviceGroup((device,)))
    assert auto.section.name == takes
    assert auto.section.fresh_cache
    assert [given.startswith(str(reason)) for given in auto.reasons] == [True] * (reason is not None)
    with nullcontext() if reason is None else pytest.raises(ConfigError, match="expected another engine, or "):
        validate_combination(replace(config, engine=FUSED))


@pytest.mark.gpu
@pytest.mark.parametrize("model", [DENSE, MOE], ids=model_name)
def test_tuned_tiles_are_kept_and_agree_with_eager(model: ModelConfig, tmp_path: Any) -> None:
    on, dtype = device("cuda"), torch.float32
    built = make_model(model, "int8", 1, LENGTH, dtype, device=on.torch)
    config = replace(FUSED, autotune=True, tile_cache=str(tmp_path))
    sampler = Sampler(GREEDY, model.vocab_size, on.torch)
    engine: Any = target(FUSED)(config, built, sampler, on, Shape(1, PROMPT, LENGTH))
    engine.tune()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(kept) == 1
    engine.prepare()
    assert_agrees(engine, make_engine(EAGER, model, "int8", 1, dtype, on), dtype)
    again: Any = target(FUSED)(config, built, sampler, on, Shape(1, PROMPT, LENGTH))
    again.tune()
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}, "nothing was searched again"
    assert engine.details()["tiles"] == again.details()["tiles"]


def test_released_fused_engine_holds_no_weights() -> None:
    on = device("cpu")
    built = make_model(MOE, "int8", length=LENGTH)
    engine: Any = target(FUSED)(FUSED, built, Sampler(GREEDY, MOE.vocab_size, on.torch), on, Shape(1, PROMPT, LENGTH))
    stopped_token = [weakref.ref(p) for p in built.parameters()] + [weakref.ref(cache) for cache in engine.cached()]
    engine.release()
    engine.release()
    built.to_empty(device="meta")
    gc.collect()
    assert not any(reference() is not None and reference().device.type == "cpu" for reference in stopped_token)
    with pytest.raises(RuntimeError, match="released"):
        engine.run_decode()


def test_rows_of_a_batch_take_experts_of_their_own_while_tiles_are_measured(few_programs: None) -> None:
    on = device("cpu")
    built = make_model(replace(MOE, n_layers=1), "none", 4, length=LENGTH)
    engine: Any = target(FUSED)(FUSED, built, Sampler(GREEDY, MOE.vocab_size, on.torch), on, Shape(4, PROMPT, LENGTH))
    engine.set_mid_generation_state()
    assert len(set(engine.state.token.flatten().tolist())) == 4
    (tile_key,) = {op.tile_key for op in engine.ops if op.role == "w2"}
    step = engine.ops_with(tile_key, engine.tile_cache[tile_key])
    engine.launch_all(step)
    (routing,) = {id(own): own for op in step for own in op.operands() if isinstance(own, Routing)}.values()
    assert (routing.expert_ids >= 0).sum() > MOE.n_active_experts


def test_tiles_are_measured_in_whole_steps() -> None:
    on = device("cpu")
    built = make_model(replace(MOE, n_layers=2), "none", 2, length=LENGTH)
    engine: Any = target(FUSED)(FUSED, built, Sampler(GREEDY, MOE.vocab_size, on.torch), on, Shape(2, PROMPT, LENGTH))
    for tile_key in dict.fromkeys(op.tile_key for op in engine.ops if op.tile_key is not None):
        own = TileConfig(rows=16, block=32, warps=1, preload=0)
        step = engine.ops_with(tile_key, own)
        assert [op.role for op in step] == [op.role for op in engine.ops if op.role != "sample"]
        for op in step:
            if op.tile_key is not None:
                assert [own for own in op.operands() if isinstance(own, TileConfig)] == [
                    own if op.tile_key == tile_key else engine.tile_cache[op.tile_key]
                ]
