"""A run from end to end, inside this process: what it lets go, and what it keeps when something fails."""

import gc
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gptbench.base.errors import BadResultError, ConfigError, DoesNotFitError, UserError
from gptbench.commands.ab import composed
from gptbench.config import (
    AutoConfig,
    Config,
    DeviceConfig,
    DeviceKind,
    Dtype,
    InductorConfig,
    Isolation,
    QualityConfig,
    load,
)
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Auto, Eager, Engine, Inductor
from gptbench.execute import attempt, measurement, preparation
from gptbench.execute import run as run_module
from gptbench.execute.job import Attempt
from gptbench.execute.reuse import Session
from gptbench.model import Transformer
from gptbench.present.terminal import Terminal
from gptbench.schema import Result
from gptbench.schema.files import load_record
from gptbench.schema.outcome import Outcome
from gptbench.task import Quality
from tests.deaths import is_killed, raises
from tests.jobs import job_of, run_job
from tests.models import DENSE, MOE, run_config
from tests.results import made_result

pytestmark = pytest.mark.usefixtures("small_roof")


def config(folder: Path) -> Config:
    cpu = DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu)
    return replace(run_config(DENSE), outputs=str(folder / "outputs"), device=cpu)


def run(of: Config, folder: Path) -> Result:
    record = run_job(of, folder).record
    assert isinstance(record, Result) and record == Result.load(folder / "result.json")
    return record


def test_nothing_of_a_job_is_left_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[Transformer]] = []
    plan = run_module.plan

    def watched_plan(of: Config, devices: DeviceGroup, kept: int) -> Transformer:
        gc.collect()
        assert [model for model in models if model() is not None] == [], "the model of the job before is still there"
        models.append(weakref.ref(model := plan(of, devices, kept)))
        return model

    monkeypatch.setattr(run_module, "plan", watched_plan)
    results = [run(config(tmp_path), tmp_path / str(number)) for number in range(2)]
    assert len(models) == 2
    for result in results:
        assert [probe.when for probe in result.probes] == ["before", "after"]
        loads = [result.compilations[0].load, *(sample.load for sample in result.samples)]
        assert all(load is not None and load.seconds > 0 for load in loads)


@pytest.mark.parametrize("same", [False, True], ids=["a prompt each", "one prompt"])
def test_a_batch_of_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str], same: bool) -> None:
    """The limit is of the fewest experts, which no sample goes below; each row has its own prompt, and is recorded."""
    rows = [[1, 2, 3], [300, 4, 7], [9, 8, 511], [77, 5, 5]]
    of = replace(config(tmp_path), model=replace(MOE, name="mixture"))
    work = replace(of.workload, batch_size=4, prompt=[1, 2, 3], prompts=[] if same else rows)
    of = replace(of, workload=work, sampling=replace(of.sampling, temperature=0.0))
    result = run(of, tmp_path)
    said = capsys.readouterr().err
    steps, (sample,) = work.new_tokens - 1, result.samples
    least = steps * MOE.n_layers * MOE.n_active_experts
    assert result.prompts == of.workload.prompts
    assert sample.experts_chosen is not None and sample.experts_read == steps * MOE.n_layers * MOE.n_experts
    assert sample.experts_chosen == least if same else sample.experts_chosen > least
    assert f"batch 4 with {'one prompt for all rows' if same else 'a prompt for each row'}" in said
    assert "GB, where all rows choose the same experts, to " in said
    fewest = sum(result.traffic.needed()) / steps
    (gb_per_s, limit), *_ = re.findall(r"read roof of (\S+) GB/s the former .*: at most (\S+) tokens/s", said)
    assert float(limit) == pytest.approx(4 * float(gb_per_s) * 1e9 / fewest, rel=1e-3)
    assert sum(result.traffic.needed(sample.experts_chosen)) >= sum(result.traffic.needed(least)) == fewest * steps


def test_a_job_that_fails_lets_its_memory_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra keeps the exception, and with it every frame and what it refers to."""
    models: list[Transformer] = []
    build = preparation.build

    def failing_build(*arguments: Any) -> None:
        build(*arguments)
        models.append(arguments[1])
        raise RuntimeError("out of something")

    monkeypatch.setattr(preparation, "build", failing_build)
    with pytest.raises(RuntimeError, match="out of something"):
        run(config(tmp_path), tmp_path)
    (model,) = models
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_so_does_one_whose_engine_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Engine] = []

    def failing_prepare(engine: Engine, *_: Any, **__: Any) -> None:
        engines.append(engine)
        assert {tensor.device.type for tensor in engine.memory.tensors} == {"cpu"}
        raise RuntimeError("out of something")

    monkeypatch.setattr(measurement, "prepare", failing_prepare)
    with pytest.raises(RuntimeError, match="out of something"):
        run(config(tmp_path), tmp_path)
    (engine,) = engines
    for tensors in (engine.memory.tensors, [*engine.model.parameters()]):
        assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("death", ["raises", "is killed"])
def test_a_second_process_that_dies_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], death: str
) -> None:
    monkeypatch.setattr(measurement, "prepare_alone", raises if death == "raises" else is_killed)
    of = config(tmp_path)
    of.engine.measure_warm_start = True
    result = run(of, tmp_path)
    assert len(result.samples) == 1
    assert [compilation.process for compilation in result.compilations][1:] == []
    assert "Could not measure the warm start" in capsys.readouterr().err
    cause = "ValueError: no memory left" if death == "raises" else "BrokenProcessPool"
    assert cause in result.failures["warm start"]


def test_numbers_that_mean_nothing_are_recorded_and_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = preparation.build

    def broken_build(*arguments: Any) -> None:
        build(*arguments)
        arguments[1].norm.weight.fill_(float("nan"))

    monkeypatch.setattr(preparation, "build", broken_build)
    with pytest.raises(BadResultError, match="not finite"):
        run(config(tmp_path), tmp_path)
    assert not Result.load(tmp_path / "result.json").samples[0].finite


@pytest.mark.parametrize("fails", ["the reference", "the engine", "nothing"])
def test_samples_are_kept_when_quality_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    build = preparation.build

    def build_once(*arguments: Any) -> None:
        build(*arguments)
        if fails == "the reference" and arguments[0].device.dtype is Dtype.bfloat16:
            raise RuntimeError("out of something")

    def broken(*_: object) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(preparation, "build", build_once)
    if fails == "the engine":
        monkeypatch.setattr(Quality, "predict", broken)
    task = QualityConfig(_target_="gptbench.task.Quality", name="quality", tokens=6)
    of = replace(config(tmp_path), task=task)
    if fails == "nothing":
        assert len(run(of, tmp_path).quality.kl) == 6  # type: ignore[union-attr]
        return
    with pytest.raises(BadResultError, match="quality was not measured"):
        run(of, tmp_path)
    result = Result.load(tmp_path / "result.json")
    assert len(result.samples) == 1
    assert result.quality is None


def test_a_reference_that_does_not_fit_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "free_memory", lambda self: 10**9 if self.dtype != torch.bfloat16 else 10)
    task = QualityConfig(_target_="gptbench.task.Quality", name="quality", tokens=6)
    with pytest.raises(DoesNotFitError, match=r"task\.reference=false leaves it out"):
        run(replace(config(tmp_path), task=task), tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_what_is_recorded_is_what_was_composed(tmp_path: Path) -> None:
    """But for the width of heads, which may be left open: an earlier record gets it when it is read."""
    overrides = ["model=demo", "quant=int8", "sampling=greedy"]
    found = composed(overrides, None)
    recorded = load(found, overrides).as_dict()
    before: Any = OmegaConf.to_container(found, resolve=True, enum_to_str=True)
    assert before["model"]["head_dim"] == 0
    assert recorded == before | {"model": before["model"] | {"head_dim": 32}}
    path = replace(made_result(), config=before).save(tmp_path)
    assert Result.load(path).config == recorded


AUTO = AutoConfig(_target_="gptbench.engine.Auto", name="auto", fresh_cache=True)


def test_auto_takes_inductor_and_records_it(tmp_path: Path) -> None:
    asked, told = replace(config(tmp_path), engine=AUTO), []
    of, reasons = preparation.with_engine(asked, DeviceGroup.of(asked.device), told.append)
    recorded = preparation.as_recorded(asked, of)
    assert told == [f"engine=auto takes inductor; {reasons[0]}"]
    assert of.engine._target_ == recorded["engine"]["_target_"] == "gptbench.engine.Inductor"
    assert of.engine.fresh_cache
    assert reasons == ["fused needs device.kind=cuda: its kernels need a GPU"]
    assert recorded["engine"]["fresh_cache"]
    assert recorded["engine"]["scope"] == "block"


def test_without_a_compiler_auto_takes_eager_and_inductor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(config(tmp_path).device)
    assert Inductor.unavailable_reason(device) is None
    monkeypatch.setattr(Inductor, "unavailable_reason", classmethod(lambda cls, device: "a C++ compiler (Debian: g++)"))
    auto = Auto(AUTO, config(tmp_path), DeviceGroup((device,)))
    assert auto.section._target_ == "gptbench.engine.Eager"
    assert auto.reasons == [
        "fused needs device.kind=cuda: its kernels need a GPU",
        "inductor needs a C++ compiler (Debian: g++)",
    ]
    assert Eager.unavailable_reason(device) is None
    chosen = replace(config(tmp_path), engine=InductorConfig(_target_="gptbench.engine.Inductor", name="inductor"))
    with pytest.raises(ConfigError, match="engine=inductor: expected eager or auto: this one needs a C"):
        preparation.plan(chosen, DeviceGroup((device,)))


@pytest.mark.gpu
@pytest.mark.parametrize("isolation", [Isolation.none, Isolation.process])
def test_a_job_that_runs_out_of_gpu_memory_is_told_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: Isolation
) -> None:
    of = run_config(DENSE)
    of = replace(of, outputs=str(tmp_path / "outputs"), isolation=isolation)
    wide = replace(DENSE, dim=2**15, n_heads=256, n_kv_heads=256, head_dim=128, ffn_dim=2**16, n_layers=40)
    much = replace(of, model=wide)  # 2 TB

    def outcome(of: Config, name: str) -> Outcome:
        tried, observer = Attempt(job_of(of, tmp_path / name, tmp_path)), Terminal(quiet=False)
        if isolation is Isolation.none:
            return attempt.attempted(tried, Session(), observer)
        return attempt.isolated(tried, observer)

    if isolation is Isolation.none:
        monkeypatch.setattr(preparation, "check_memory", lambda *_: None)  # an estimate may be wrong
    failed = outcome(much, "much")
    assert (failed.status, failed.cause) == (
        "failed",
        "out of memory" if isolation is Isolation.none else "refused",
    ), failed.reason
    assert outcome(of, "little").status == "recorded"


def test_what_is_raised_for_memory_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {
        torch.OutOfMemoryError("CUDA out of memory"): "out of memory",
        MemoryError(): "out of memory",
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ): "out of memory",
        RuntimeError("something else"): "raised",
        BadResultError("numbers that mean nothing"): "bad result",
        UserError("a mistake"): "refused",
    }
    of = config(tmp_path)
    for number, (error, cause) in enumerate(errors.items()):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(attempt, "run", fail)
        job = job_of(of, tmp_path / str(number), tmp_path)
        outcome = attempt.attempted(Attempt(job), Session(), Terminal(quiet=False))
        assert outcome.cause == cause
        assert load_record(Path(outcome.record or "")).cause == cause  # type: ignore[attr-defined]
