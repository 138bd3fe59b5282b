"""A sweep compiles once: what a job leaves for the next one, when, and that it changes no result."""

import gc
import itertools
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gptbench.base.errors import BadResultError, DoesNotFitError
from gptbench.build import on_meta
from gptbench.config import (
    Config,
    DeviceConfig,
    DeviceKind,
    Dtype,
    EngineConfig,
    InductorConfig,
    KernelsConfig,
    ModelConfig,
    QualityConfig,
    SamplingConfig,
    Scope,
    Tuning,
)
from gptbench.config.targets import instantiate
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Engine
from gptbench.engine.eager import Eager
from gptbench.execute import measurement, preparation, reuse
from gptbench.execute import run as run_module
from gptbench.generate import Workload, generate
from gptbench.measure.compilation import CompileWatch
from gptbench.model import Memory, Transformer
from gptbench.private.torch import CACHE_COUNTERS
from gptbench.schema import Result
from gptbench.schema.sample import Sample
from gptbench.schema.summary import part_metrics
from tests.jobs import run_job
from tests.models import DENSE, GQA, MOE, WINDOW, random_tokens, run_config
from tests.results import made_result
from tests.test_engines import FUSED
from tests.test_run import config

INDUCTOR = InductorConfig(_target_="gptbench.engine.Inductor", name="inductor")
COMBINATIONS = list(itertools.product((0.0, 0.5, 1.0, 2.0), (None, 1, 20), (None, 0.7)))
"""temperature, top_k, top_p; the first is greedy."""
LENGTHS = [(5, 6), (9, 4), (5, 30), (2, 3), (1, 9), (1, 40), (20, 25)]
"""Prompt, new tokens."""


@pytest.fixture(autouse=True)
def nothing_kept(one_thread: None, small_roof: None) -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def sampling(temperature: float, top_k: int | None, top_p: float | None) -> SamplingConfig:
    values: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return SamplingConfig(_target_="gptbench.sampling.Sampler", name="swept", **values)


def answers(of: Config, over: Transformer | None) -> tuple[list[int], Transformer]:
    """What a job of a sweep generates over the model that the one before has left, and what it leaves."""
    device: Device = instantiate(of.device)
    if over is None:
        over = on_meta(of.model, of.quant, device.dtype)
        engine, _ = preparation.make_engine(of, DeviceGroup((device,)), over)
    else:
        engine = preparation.engine_over(of, DeviceGroup((device,)), over)
    engine.prepare()
    engine.seed(7)
    generate(engine, Workload(of.workload, device))
    first = len(of.workload.prompt)
    tokens: list[int] = engine.state.tokens[0, first : first + of.workload.new_tokens].tolist()
    engine.release()
    return tokens, over


def graphs_compiled() -> int:
    """By torch in this process, or found in its cache."""
    return sum(counters["inductor"][name] for name in CACHE_COUNTERS)


def sweep(
    model: ModelConfig, quant: str, engine: EngineConfig, kind: str, combinations: Sequence[Any] = COMBINATIONS
) -> list[int]:
    """24 ways of drawing, and prompts and answers of several lengths; each draws what the eager reference draws.

    Returns what was compiled or captured for each: first for the drawings, then for the lengths.
    """
    jobs = [(drawing, LENGTHS[0]) for drawing in combinations] + [(COMBINATIONS[5], lengths) for lengths in LENGTHS[1:]]
    assert len(COMBINATIONS) == 24
    base = run_config(model, quant)
    section = DeviceConfig(_target_="gptbench.device.Device", name=kind, kind=DeviceKind(kind), dtype=Dtype.float32)
    built = reference = None
    counts = []
    with CompileWatch() as watch:
        for number, (drawing, (prompt, new_tokens)) in enumerate(jobs):
            tokens = random_tokens(model, 1, prompt, seed=number)[0].tolist()
            workload = replace(base.workload, prompt=tokens, new_tokens=new_tokens)
            of = replace(base, workload=workload, sampling=sampling(*drawing), device=section)
            expected, reference = answers(of, reference)
            before = watch.count
            found, built = answers(replace(of, engine=engine), built)
            counts.append(watch.count - before)
            assert found == expected, (drawing, prompt, new_tokens)
    return counts


MODELS = [
    (GQA, "none", 3),  # block for prefill, block for decode, end of both
    (MOE, "int8", 4),  # a prompt of few tokens reads one expert for each, a longer one each expert once
    (WINDOW, "none", 4),  # a prompt longer than the window needs a mask
]


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("model", "quant", "graphs"), MODELS, ids=["dense", "mixture", "window"])
def test_one_decode_graph_and_few_for_prefill_serve_a_sweep(
    model: ModelConfig, quant: str, graphs: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptbench.model.transformer.WINDOW_QUERIES", 2)  # prompts take one part of it, or several
    before = graphs_compiled()
    # What draws is the same code over each model.
    drawings = COMBINATIONS if model is GQA or kind == "cuda" else COMBINATIONS[::5]
    counts = sweep(model, quant, replace(INDUCTOR, tuning=Tuning.none), kind, drawings)
    assert graphs_compiled() - before == graphs
    assert counts[1 : len(drawings)] == [0] * (len(drawings) - 1)
    assert sum(map(bool, counts)) == 1 + graphs - 3, "nothing but the first job, and the first other prefill"


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "quant"), [case[:2] for case in MODELS], ids=["dense", "mixture", "window"])
def test_another_drawing_compiles_no_kernel_of_the_fused_engine(model: ModelConfig, quant: str) -> None:
    counts = sweep(model, quant, FUSED, "cuda")
    assert counts[0] > 0
    assert counts[1 : len(COMBINATIONS)] == [0] * 23


@pytest.fixture
def session() -> reuse.Session:
    return reuse.Session()


def run(of: Config, folder: Path, session: reuse.Session, sweep: bool = True) -> Result:
    run_job(of, folder, folder.parent if sweep else None, session)
    return Result.load(folder / "result.json")


def changed(of: Config, prompt: list[int], new_tokens: int, temperature: float) -> Config:
    workload = replace(of.workload, prompt=prompt, new_tokens=new_tokens)
    return replace(of, workload=workload, sampling=replace(of.sampling, temperature=temperature))


def test_a_later_job_takes_over_and_says_so(tmp_path: Path, session: reuse.Session) -> None:
    of = replace(config(tmp_path), engine=INDUCTOR)
    other = changed(of, [4, 5, 6, 7], 20, 0.7)
    first, second = run(of, tmp_path / "0", session), run(other, tmp_path / "1", session)
    assert first.reused is None
    assert second.reused == first.started
    (own,) = second.compilations
    assert (own.compiles, own.cache, own.process) == (0, "none", "later")
    assert second.shared_compile_s == first.compilations[0].total_s and first.shared_compile_s is None
    assert second.load_s == first.load_s
    assert part_metrics(second, "compilations") == {}, "none of it is its own"
    alone = run(other, tmp_path / "alone", session, sweep=False)
    assert alone.reused is not None, "it was there"
    assert session.kept is None, "and is not left by what is not a sweep"
    alone = run(other, tmp_path / "alone again", session, sweep=False)
    assert alone.reused is None
    assert [sample.tokens for sample in alone.samples] == [sample.tokens for sample in second.samples]


def test_what_a_job_compiles_beyond_is_in_what_later_ones_take_over(tmp_path: Path, session: reuse.Session) -> None:
    """A prompt of one token needs no graph for prefill; the next one does, and the third is as dear as both."""
    of = replace(config(tmp_path), engine=INDUCTOR)
    one, five, seven = (
        run(changed(of, list(range(1, 1 + count)), 4, 1.0), tmp_path / str(count), session) for count in (1, 5, 7)
    )
    first, more = one.compilations[0], five.compilations[0]
    assert (first.compiles, more.compiles, seven.compilations[0].compiles) == (2, 1, 0)
    assert more.cache == "mixed", "one graph is not what a cold start is"
    assert five.shared_compile_s == first.total_s
    assert seven.shared_compile_s == pytest.approx(first.total_s + more.total_s)


def test_records_of_a_version_that_listed_what_was_shared(tmp_path: Path) -> None:
    made = made_result()
    raw = json.loads(made.save(tmp_path).read_text())
    first, second = raw["compilations"]
    raw["compilations"] = [second | {"shared": False}, first | {"shared": True, "later_s": 0.5}]
    (tmp_path / "old.json").write_text(json.dumps(raw))
    old = Result.load(tmp_path / "old.json")
    assert old.compilations == [made.compilations[1]]
    assert old.shared_compile_s == first["prepare_s"] + 0.5


@pytest.mark.parametrize(("engine", "fails"), [("eager", True), ("inductor", False)])
def test_no_cache_outlives_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, fails: bool, session: reuse.Session
) -> None:
    """Not even where Hydra keeps the exception, and with it every frame."""
    caches: list[weakref.ref[torch.Tensor]] = []
    take_samples = measurement.take_samples

    def watched(used: Engine, *rest: Any) -> list[Sample]:
        caches.extend(map(weakref.ref, used.cached()))
        if fails:
            raise RuntimeError("no more of it")
        return take_samples(used, *rest)

    monkeypatch.setattr(measurement, "take_samples", watched)
    of = config(tmp_path)
    of = replace(of, engine=INDUCTOR) if engine == "inductor" else of
    held = None
    try:
        run(of, tmp_path / "0", session)
    except RuntimeError as error:
        held = error
    gc.collect()
    assert (held is not None) == fails
    assert caches and [cache for cache in caches if cache() is not None] == []
    assert (session.kept is None) == fails


def test_the_reference_finds_the_engines_memory_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    caches: list[weakref.ref[torch.Tensor]] = []
    engine_over = preparation.engine_over

    def watched(*arguments: Any) -> Engine:
        gc.collect()
        assert [cache for cache in caches if cache() is not None] == []
        caches.extend(map(weakref.ref, (made := engine_over(*arguments)).cached()))
        return made

    monkeypatch.setattr(preparation, "engine_over", watched)
    task = QualityConfig(_target_="gptbench.task.Quality", name="quality", tokens=8)
    of = replace(config(tmp_path), task=task, engine=INDUCTOR)
    result = run(of, tmp_path / "0", session)
    assert result.quality is not None and result.quality.kl
    assert len(caches) == 2 * 2 * of.model.n_layers


def test_single_kernels_are_measured_without_a_model_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    of = config(tmp_path)
    run(of, tmp_path / "0", session)
    assert session.kept is not None

    def seen(*_: Any) -> None:
        assert session.kept is None

    monkeypatch.setattr(run_module, "run_standalone", seen)
    task = KernelsConfig(_target_="gptbench.task.Kernels", name="kernels")
    run_job(replace(of, task=task), tmp_path / "1", tmp_path, session)


def test_a_graph_of_the_whole_model_has_fixed_sizes() -> None:
    """As the gpt_fast benchmark compiles it: its figures are of such graphs."""
    of = run_config(DENSE)
    device: Device = instantiate(of.device)
    marked = {}
    for scope in Scope:
        engine, _ = preparation.make_engine(
            replace(of, engine=replace(INDUCTOR, scope=scope)),
            DeviceGroup((device,)),
            on_meta(DENSE, of.quant, device.dtype),
        )
        tensors = [*engine.cached(), engine.state.tokens, engine.state.uniform]
        marked[scope] = [hasattr(tensor, "_dynamo_weak_dynamic_indices") for tensor in tensors]
    assert not any(marked[Scope.model])
    assert all(marked[Scope.block])


def with_other_weights(of: Config) -> Config:
    return replace(of, workload=replace(of.workload, seed=of.workload.seed + 1))


DIFFERENT = {
    "model": lambda of: replace(of, model=GQA),
    "quant": lambda of: replace(of, quant=run_config(DENSE, "int8").quant),
    "type": lambda of: replace(of, device=replace(of.device, dtype="bfloat16")),
    "threads": lambda of: replace(of, device=replace(of.device, threads=1)),
    "batch": lambda of: replace(of, workload=replace(of.workload, batch_size=2)),
    "seed of the weights": with_other_weights,
    "engine": lambda of: replace(of, engine=INDUCTOR),
    "fresh cache": lambda of: replace(of, engine=replace(of.engine, fresh_cache=True)),
}


def test_a_job_that_differs_otherwise_makes_its_own(tmp_path: Path, session: reuse.Session) -> None:
    of = config(tmp_path)
    run(of, tmp_path / "0", session)
    assert (kept := session.kept) is not None
    for what, change in DIFFERENT.items():
        other = change(of)
        assert not (reuse.may_store(other) and kept.serves(other)), what
    assert session.acquire(with_other_weights(of), kept.device) is None
    assert session.kept is None
    assert {parameter.device.type for parameter in kept.model.parameters()} == {"meta"}, "given back"


def test_a_sweep_of_another_model_in_between(tmp_path: Path, session: reuse.Session) -> None:
    of = config(tmp_path)
    jobs = [of, changed(of, [3], 9, 0.0), replace(of, model=MOE), of]
    results = [run(job, tmp_path / str(number), session) for number, job in enumerate(jobs)]
    assert [result.reused for result in results] == [None, results[0].started, None, None]
    assert [result.shared_compile_s for result in results] == [None, 0.0, None, None], "eager compiles nothing"
    assert results[3].samples[0].tokens == results[0].samples[0].tokens


def test_a_job_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    of = config(tmp_path)
    run(of, tmp_path / "0", session)
    assert session.kept is not None
    model = session.kept.model

    def fails(*_: Any) -> None:
        raise RuntimeError("no more of it")

    monkeypatch.setattr(measurement, "take_samples", fails)
    with pytest.raises(RuntimeError, match="no more of it"):
        run(of, tmp_path / "1", session)
    assert session.kept is None
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_what_a_failed_job_holds_is_given_back_before_the_next_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    held: list[weakref.ref[Engine]] = []

    def fails(engine: Engine, *_: Any) -> None:
        engine.itself = engine  # type: ignore[attr-defined]
        held.append(weakref.ref(engine))
        raise RuntimeError("no more of it")

    def checks(*_: Any) -> None:
        assert held[0]() is None
        raise DoesNotFitError("planned")

    monkeypatch.setattr(measurement, "take_samples", fails)
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="no more of it"):
            run(config(tmp_path), tmp_path / "0", session)
        monkeypatch.setattr(run_module, "plan", checks)
        with pytest.raises(DoesNotFitError, match="planned"):
            run(config(tmp_path), tmp_path / "1", session)
    finally:
        gc.enable()


def test_an_engine_that_cannot_be_made_gives_its_cache_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Memory] = []
    allocate = Transformer.allocate

    def noted(*arguments: Any) -> Memory:
        made.append(allocate(*arguments))
        return made[-1]

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Transformer, "allocate", noted)
    monkeypatch.setattr(Transformer, "count_experts", fails)
    of = config(tmp_path)
    devices = DeviceGroup.of(of.device)
    with pytest.raises(torch.OutOfMemoryError):
        preparation.make_engine(of, devices, preparation.plan(of, devices))
    assert {tensor.device.type for tensor in made[0].tensors} == {"meta"}


@pytest.mark.parametrize("part", ["prefill", "preparation", "sample"])
def test_after_a_job_that_fails_half_way_the_next_one_has_untouched_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session, part: str
) -> None:
    """The step has been done when it fails, and the weights are written over."""
    of = config(tmp_path)
    step = "prefill" if part == "prefill" else "decode"
    done, do, fatal = itertools.count(1), getattr(Eager, step), 0

    def fails(engine: Engine, *arguments: Any) -> None:
        nonlocal last
        do(engine, *arguments)
        last = next(done)
        if last == fatal:
            for weight in engine.model.parameters():
                weight.fill_(1)
            raise RuntimeError("no more of it")

    last = 0
    monkeypatch.setattr(Eager, step, fails)
    first = run(of, tmp_path / "0", session)
    assert session.kept is not None
    before = {name: weight.clone() for name, weight in session.kept.model.state_dict().items()}
    fatal = 2 * last - 1 if part == "sample" else last + 1
    with pytest.raises(RuntimeError, match="no more of it"):
        run(of, tmp_path / "1", session)
    second = run(of, tmp_path / "2", session)
    assert [sample.tokens for sample in second.samples] == [sample.tokens for sample in first.samples]
    assert session.kept is not None
    after = session.kept.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_job_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    of = config(tmp_path)
    run(of, tmp_path / "0", session)
    assert session.kept is not None
    held = session.kept.nbytes
    assert held > 0
    monkeypatch.setattr("gptbench.device.Device.free_memory", lambda self: -held)
    with pytest.raises(DoesNotFitError):
        run(of, tmp_path / "1", session)
    assert session.kept is None


def test_what_is_kept_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session) -> None:
    of = config(tmp_path)
    need = run(of, tmp_path / "0", session).memory_need_bytes
    assert session.kept is not None
    left = sum(need.values()) - session.kept.nbytes
    monkeypatch.setattr("gptbench.device.Device.free_memory", lambda self: left)
    assert run(of, tmp_path / "1", session).reused is not None


def test_quality_with_a_reference_takes_but_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    of = config(tmp_path)
    released: list[Engine] = []
    release = Engine.release

    def noted(engine: Engine) -> None:
        released.append(engine)
        release(engine)

    monkeypatch.setattr(Engine, "release", noted)
    first = run(of, tmp_path / "0", session)
    released.clear()
    task = QualityConfig(_target_="gptbench.task.Quality", name="quality", tokens=8)
    result = run(replace(of, task=task), tmp_path / "1", session)
    assert result.reused == first.started
    assert result.quality is not None and result.quality.kl
    assert session.kept is None
    assert len(set(map(id, released))) == 2, "the reference, too"


def test_a_bad_result_is_recorded_and_the_next_job_is_none_the_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: reuse.Session
) -> None:
    """Values that are not finite stay in no cache: each job has one of its own."""
    of = config(tmp_path)
    good = run(of, tmp_path / "0", session)
    assert session.kept is not None
    gain = session.kept.model.norm.weight
    gain.fill_(torch.nan)
    with pytest.raises(BadResultError, match="not finite"):
        run(of, tmp_path / "1", session)
    gain.fill_(1.0)
    assert run(of, tmp_path / "2", session).samples[0].tokens == good.samples[0].tokens
