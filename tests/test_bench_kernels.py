"""`task=kernels`: its cases are right, wrong implementations are caught, and everything is recorded."""

import csv
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mlflow import MlflowClient
from torch import Tensor

from gptbench.base.errors import BadResultError, ConfigError, UserError
from gptbench.build import cache_length
from gptbench.commands.sync import log_command
from gptbench.config import (
    BaselineConfig,
    Config,
    DeviceConfig,
    DeviceKind,
    FusedConfig,
    KernelsConfig,
    MLflowConfig,
    ModelConfig,
    Tuning,
)
from gptbench.config.targets import target
from gptbench.device import Device
from gptbench.engine import Shape
from gptbench.engine.inductor import compile_options
from gptbench.execute import attempt
from gptbench.execute.reuse import Session
from gptbench.present.terminal import Terminal
from gptbench.sampling import Sampler
from gptbench.schema import KernelResult
from gptbench.schema.files import load_record
from gptbench.schema.kernels import KernelTimes, Timing, gptfast_targets, kernel_metrics, means
from gptbench.task import kernel_cases, kernels
from gptbench.task.kernel_cases import (
    Call,
    Case,
    gather_gemv_case,
    gemv_case,
    gemv_kernel,
    layer_norm_case,
    mlp_case,
)
from gptbench.task.kernels import Kernels, measure_case, peak_flops
from tests.jobs import job_of, run_job
from tests.models import DENSE, GQA, MOE, QWEN, WINDOW, make_model, model_name, run_config
from tests.pairwise import pairwise
from tests.results import made_result

TARGETS = {"gemv/int8": {"gb_per_s": 870.0}, "mlp_layer_norm_gelu/bfloat16": {"gptfast_flops_utilisation": 0.8}}


@pytest.fixture(autouse=True)
def quick(one_thread: None, small_roof: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "ROUND_BYTES", 2**14)
    monkeypatch.setattr(kernel_cases, "INNER", 48)
    monkeypatch.setattr(kernel_cases, "ROWS", 7)
    if importlib.util.find_spec("triton") is not None:
        from tests.test_kernel_interpreter import prepare_language_once

        prepare_language_once(monkeypatch)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def device(kind: str = "cpu") -> Device:
    return Device(device_config(kind))


def task(**values: Any) -> KernelsConfig:
    values = {"sizes": [32], "replays": 3} | values
    return KernelsConfig(_target_="gptbench.task.Kernels", name="kernels", **values)


def config(folder: Path, batch: int = 1, **values: Any) -> Config:
    return replace(
        run_config(DENSE, batch=batch),
        task=task(**values),
        device=device_config("cpu"),
        outputs=str(folder / "outputs"),
        tracking=MLflowConfig(_target_="gptbench.record.MLflowTracker", name="mlflow"),
        baseline=BaselineConfig(_target_="gptbench.compare.Baseline", name="a100", device="A100", targets=TARGETS),
    )


def device_config(kind: str) -> DeviceConfig:
    return DeviceConfig(_target_="gptbench.device.Device", name=kind, kind=DeviceKind(kind), threads=1)


def plain_gemv(weight: Tensor, x: Tensor, _: Tensor) -> Tensor:
    return weight.double() @ x.double()


def plain_gather(weight: Tensor, expert: Tensor, x: Tensor, _: Tensor) -> Tensor:
    return torch.stack([weight[index].double() @ x.double() for index in expert.tolist()])


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, _: Tensor) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double())


def plain_mlp(*tensors: Tensor) -> Tensor:
    x, w1, b1, norm1, shift1, w2, b2, norm2, shift2, _ = (tensor.double() for tensor in tensors)
    hidden = F.layer_norm(x @ w1.T + b1, norm1.shape, norm1, shift1)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return F.layer_norm(hidden @ w2.T + b2, norm2.shape, norm2, shift2)


CASES: dict[str, tuple[Callable[[], Case], Callable[..., Tensor]]] = {
    "gemv int8": (lambda: gemv_case(40, torch.int8), plain_gemv),
    "gemv bfloat16": (lambda: gemv_case(40, torch.bfloat16), plain_gemv),
    "gather_gemv int8": (lambda: gather_gemv_case(40, torch.int8), plain_gather),
    "gather_gemv bfloat16": (lambda: gather_gemv_case(40, torch.bfloat16), plain_gather),
    "layer_norm": (lambda: layer_norm_case(40), plain_norm),
    "mlp_layer_norm_gelu": (lambda: mlp_case(40, 1), plain_mlp),
    "mlp_layer_norm_gelu of three": (lambda: mlp_case(40, 3), plain_mlp),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_what_its_name_says(name: str) -> None:
    case, plain = CASES[name][0](), CASES[name][1]
    call = case.call(torch.Generator().manual_seed(1))
    (out,) = call.outputs
    assert any(argument is out for argument in call.arguments)
    case.reference(*call.arguments)
    assert kernels.relative_error(out, plain(*call.arguments)) < case.tolerance


def test_bytes_and_operations_are_those_of_the_tensors() -> None:
    """Every tensor is read or written once, but for the experts that are not chosen."""
    for make, _ in CASES.values():
        case = make()
        call = case.call(torch.Generator().manual_seed(1))
        indices = sum(argument.nbytes for argument in call.arguments if argument.dtype == torch.int64)
        assert sum(argument.nbytes for argument in call.arguments) - indices == case.set_bytes
    assert gather_gemv_case(64, torch.int8).moved_bytes == 2 * 64 * 64 + 3 * 64 * 2
    assert gemv_case(64, torch.bfloat16).flops == 2 * 64 * 64
    assert mlp_case(64, 3).flops == 2 * 2 * 3 * 64 * 48


@pytest.mark.parametrize("name", CASES)
def test_every_implementation_agrees_and_is_timed(name: str) -> None:
    case = CASES[name][0]()
    times = measure_case(case, device(), seed=1, replays=3)
    assert times.note is None
    assert set(times.timings) == {"inductor"} | ({"library"} if case.library else set())
    for timing in times.timings.values():
        assert timing.failed is None
        assert timing.error is not None and timing.error <= case.tolerance
        assert len(timing.seconds) == 3 and min(timing.seconds) > 0
    assert 1 < times.sets <= kernels.MAX_SETS
    assert times.sets >= kernels.ROUND_BYTES // case.moved_bytes or times.sets == kernels.MAX_SETS


def gemv_by(kernel: Callable[[Tensor, Tensor, Tensor], None]) -> Case:
    return replace(gemv_case(40, torch.bfloat16), kernel=lambda *call: lambda: kernel(*call))


def writes_half(weight: Tensor, x: Tensor, out: Tensor) -> None:
    out[:20].copy_(weight[:20] @ x)


def is_a_little_off(weight: Tensor, x: Tensor, out: Tensor) -> None:
    out.copy_(weight @ x * 1.05)


def fails(*_: Tensor) -> None:
    raise RuntimeError("out of something\nand more")


@pytest.mark.parametrize(
    ("kernel", "told"),
    [(writes_half, "wrong: relative error nan"), (is_a_little_off, "wrong: relative error 0.0"), (fails, None)],
)
def test_what_is_wrong_or_fails_is_told_and_not_timed_and_the_rest_goes_on(
    kernel: Callable[..., None], told: str | None
) -> None:
    times = measure_case(gemv_by(kernel), device(), seed=1, replays=2)
    failed = times.timings["kernel"]
    assert failed.seconds == []
    assert failed.failed is not None and failed.failed.startswith(told or "RuntimeError: out of something")
    assert "\n" not in failed.failed
    assert times.failed
    assert len(times.timings["inductor"].seconds) == len(times.timings["library"].seconds) == 2


def test_a_reference_that_fails_is_a_failure() -> None:
    times = measure_case(replace(gemv_case(40, torch.int8), reference=fails), device(), seed=1, replays=1)
    assert {name: timing.failed for name, timing in times.timings.items()} == {
        "reference": "RuntimeError: out of something"
    }
    assert times.failed


def test_what_is_updated_in_place_is_compared_from_the_same_beginning() -> None:
    def add(x: Tensor, total: Tensor) -> None:
        total.add_(x)

    def call(generator: torch.Generator) -> Call:
        x, total = (torch.randn(50, generator=generator) for _ in range(2))
        return Call((x, total), (), updated=(total,))

    right = Case("add", {"n": 50}, "float32", 600, 50, call, add, kernel=lambda *args: lambda: add(*args), tolerance=0)
    times = measure_case(right, device(), seed=1, replays=1)
    assert [timing.error for timing in times.timings.values()] == [0.0, 0.0]


def test_results_may_lie_elsewhere_than_in_tensors_that_can_be_compared() -> None:
    def twice(x: Tensor, packed: Tensor) -> None:
        packed.copy_((x * 2 * 256).round().to(torch.int32))

    def call(generator: torch.Generator) -> Call:
        x, packed = torch.randn(50, generator=generator), torch.zeros(50, dtype=torch.int32)
        return Call((x, packed), (packed,), read=lambda: (packed.float() / 256,))

    def next_integer(x: Tensor, packed: Tensor) -> None:
        twice(x, packed)
        packed.add_(1)

    case = Case("twice", {"n": 50}, "float32", 400, 50, call, twice, lambda *args: lambda: next_integer(*args))
    error = measure_case(case, device(), seed=1, replays=1).timings["kernel"].error
    assert error is not None and 0 < error < 0.01


def test_what_does_not_fit_is_told_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "free_memory", lambda _: 1000)
    times = measure_case(gemv_case(64, torch.int8), device(), seed=1, replays=1)
    assert times.note is not None and re.match(r"needs 0\.00 GB, but only", times.note)
    assert (times.timings, times.failed) == ({}, False)


def test_arguments_take_what_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    case = gemv_case(40, torch.int8)
    free = int((case.workspace_bytes + 3 * case.set_bytes) / kernels.SHARE_OF_FREE) + 10
    monkeypatch.setattr(Device, "free_memory", lambda _: free)
    assert measure_case(case, device(), seed=1, replays=1).sets == 3


def test_cases_can_be_chosen(tmp_path: Path) -> None:
    def labels(**values: Any) -> list[str]:
        of = config(tmp_path, batch=2, **values)
        assert isinstance(of.task, KernelsConfig)
        return [case.label for case in Kernels(of.task, of, device()).cases]

    assert labels(only="gemv/D32/int8") == ["gemv/D32/int8"]
    assert labels(only="D32/int8") == ["gemv/D32/int8", "gather_gemv/D32/int8"]
    assert labels(only="mlp", sizes=[16, 32]) == [
        "mlp_layer_norm_gelu/B2/D16/F48/bfloat16",
        "mlp_layer_norm_gelu/B2/D32/F48/bfloat16",
    ]
    micro = [case.label for case in kernel_cases.micro_cases([32], batch=2)]
    assert len(micro) == 6
    assert labels()[-6:] == micro
    with pytest.raises(ConfigError, match=r"task\.only=gemm: expected the beginning of one of .*gemv, gather_gemv"):
        labels(only="gemm")


def test_the_read_roofs_kernel_is_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    case = kernel_cases.read_reduce_case(device(), rounds=1)
    monkeypatch.setattr(kernels, "ROUND_BYTES", 1)
    times = measure_case(case, device(), seed=1, replays=1)
    assert [timing.failed for timing in times.timings.values()] == [None, None]
    assert {name: timing.error for name, timing in times.timings.items()} == {"kernel": 0.0, "inductor": 0.0}


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other: it is faster with larger ones."""
    triton = pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey

    def tile(self: TileCache, tile_key: TileKey) -> TileConfig:
        half = [triton.next_power_of_2(size) // 2 for size in (tile_key.rows, tile_key.columns)]
        return TileConfig(rows=half[0], block=half[1], warps=4, preload=1)

    monkeypatch.setattr(TileCache, "__getitem__", tile)


def model_cases(model: ModelConfig, quant: str, batch: int) -> list[Case]:
    of = replace(run_config(model, quant, batch=batch), task=task())
    return list(kernel_cases.model_cases(of, device()))


EVERY_MODEL = pytest.mark.parametrize(
    ("model", "quant", "batch"), pairwise([DENSE, GQA, MOE, QWEN], ["none", "int8"], [1, 3]), ids=model_name
)


@EVERY_MODEL
def test_a_models_kernels_agree_with_their_references(
    model: ModelConfig, quant: str, batch: int, few_programs: None
) -> None:
    """And so do these, called once more; what writes nothing does not."""
    for case in model_cases(model, quant, batch):
        with torch.no_grad():
            call = case.call(torch.Generator().manual_seed(1))
            check = kernels.Check(case, call)
            assert case.kernel is not None
            launches = {
                "kernel": case.kernel(*call.arguments),
                "reference": partial(case.reference, *call.arguments),
            }
            for name, launch in launches.items():
                error = check.error(launch)
                assert error <= min(case.tolerance, 5e-5), f"{case.label} {name}: {error}"
            assert not check.error(lambda: None) <= case.tolerance, case.label


@EVERY_MODEL
def test_every_launch_of_the_engine_is_a_case(model: ModelConfig, quant: str, batch: int) -> None:
    """Of the same kernel, with arguments of the same shapes, the same tile, and as many bytes of weights read."""
    pytest.importorskip("triton")
    of = run_config(model, quant, batch=batch)
    built = make_model(model, quant, batch, cache_length(of))
    sampler = Sampler(of.sampling, model.vocab_size, device().torch)
    section = FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused", tile_cache="")
    engine: Any = target(section)(section, built, sampler, device(), Shape.of(of))
    launches = {op.role: op for op in engine.ops}
    _, *cases = model_cases(model, quant, batch)
    assert len({case.label for case in cases}) == len(cases)
    assert [case.name.partition("/")[0] for case in cases] == list(launches)
    for case, op in zip(cases, launches.values(), strict=True):
        (own,) = case.call(torch.Generator().manual_seed(1)).arguments
        assert type(own) is type(op)
        assert own.name == op.name
        if op.role not in ("embed", "sample"):  # there the table has fewer rows, or there is room for more tokens
            assert all(map(same_shape, own.operands(), op.operands())), case.label
        assert own.bytes_read() == op.bytes_read()
        assert case.moved_bytes >= op.bytes_read().total([6] * batch)


def same_shape(one: Any, other: Any) -> bool:
    """Of arguments: tensors alike, in dataclasses too, and all else the same."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype
    if isinstance(one, tuple):
        return all(map(same_shape, one, other))
    if is_dataclass(one):
        return all(same_shape(getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(one))
    return bool(one == other)


def test_bytes_of_a_models_kernels_worked_out_by_hand() -> None:
    """DENSE in int8 and float32: D 48, three heads of 16, F 112, V 211; position 6."""
    pytest.importorskip("triton")
    found = {case.name: case.moved_bytes for case in model_cases(DENSE, "int8", 1)}
    x, sum_sq_partials = (
        48 // 4 * 3 * 4,
        4 * 48 // 8,
    )  # 4 numbers in 3 words of fixed point; a sum for each tile of 8 rows
    scale, norm_weight, row = 4, 4 * 48, 4 * 48
    assert found["embed"] == 8 + row + norm_weight + row + x + 4
    assert found["qkv/linear"] == 144 * (48 + scale) + x + sum_sq_partials + 4 * 144
    assert found["attention/attend"] == 2 * 7 * row + 4 * 144 + 2 * 4 * 16 + x
    assert found["wo/add_linear"] == 48 * (48 + scale) + x + 2 * row + norm_weight + x + sum_sq_partials
    assert found["w13/swiglu"] == 224 * (48 + scale) + x + sum_sq_partials + 112 // 4 * 3 * 4
    assert found["w2/add_linear"] == 48 * (112 + scale) + 112 // 4 * 3 * 4 + 2 * row + norm_weight + x + sum_sq_partials
    assert found["head/linear"] == 211 * (48 + scale) + x + sum_sq_partials + 4 * 211
    assert found["maxima/chunk_maxima"] == 4 * 211 + 4 * 14
    assert found["sample"] == 4 * 14 + 4 * 211


@pytest.mark.parametrize(("model", "quant", "batch"), [(MOE, "int8", 1), (QWEN, "none", 3)], ids=model_name)
def test_a_models_kernels_are_measured(
    model: ModelConfig, quant: str, batch: int, few_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Inductor gets is one graph. (It is compiled below, and on a GPU.)"""
    monkeypatch.setattr(
        kernels,
        "compile_graph",
        lambda code, _: torch.compile(code, backend="eager", fullgraph=True, dynamic=False),
    )
    monkeypatch.setattr(kernels, "MAX_SETS", 2)
    for case in model_cases(model, quant, batch)[1:]:
        times = measure_case(case, device(), seed=1, replays=1)
        assert times.note is None
        assert {name: timing.failed for name, timing in times.timings.items()} == dict.fromkeys(["kernel", "inductor"])


@pytest.mark.parametrize("name", ["swiglu", "attend"])
def test_inductor_compiles_what_it_gets_of_a_models_kernels(
    name: str, few_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MAX_SETS", 2)
    (case,) = [case for case in model_cases(MOE, "int8", 1) if case.name.endswith(name)]
    times = measure_case(case, device(), seed=1, replays=1)
    assert [timing.failed for timing in times.timings.values()] == [None] * len(times.timings)


def test_tiles_that_were_found_are_used(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey
    from gptbench.quant import Unquantised

    of, tile = config(tmp_path), TileConfig(rows=4, block=64, warps=1, preload=0)
    tile_key = TileKey("linear", 144, 48, Unquantised(), torch.float32, 1, 1)
    TileCache(tmp_path / "outputs" / "tiles", device().kind).store(tile_key, tile)
    (case,) = [case for case in kernel_cases.model_cases(of, device()) if case.name == "qkv/linear"]
    assert case.call(torch.Generator()).arguments[0].tile == tile


def test_what_the_engine_refuses_has_no_cases_of_its_kernels() -> None:
    pytest.importorskip("triton")
    assert [case.name for case in model_cases(DENSE, "none", 9)] == ["read_reduce"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_our_kernel_is_one_of_gemvs(dtype: torch.dtype, tmp_path: Path, few_programs: None) -> None:
    case = gemv_case(64, dtype, gemv_kernel(config(tmp_path), device()))
    call = case.call(torch.Generator().manual_seed(1))
    assert case.kernel is not None
    check = kernels.Check(case, call)
    assert check.error(case.kernel(*call.arguments)) <= case.tolerance
    assert gemv_case(40, torch.int8, case.kernel).kernel is None, "rows that 16 bytes do not divide"


def made(sizes: tuple[int, ...] = (1024, 4096, 8192, 16384)) -> KernelResult:
    """gemv at each size, by Inductor and by a library that fails at the first; and one mlp."""
    base = made_result()
    entries = []
    for number, size in enumerate(sizes):
        moved, flops = size * size, 2 * size * size
        timings = {
            "inductor": Timing([3e-6, 1e-6, 2e-6], 0.001),
            "library": Timing([1e-6]) if number else Timing(failed="OutOfMemoryError: no"),
        }
        entries.append(KernelTimes("gemv", {"D": size}, "int8", f"gemv/D{size}/int8", moved, flops, 4, timings))
    label = "mlp_layer_norm_gelu/B1/D1024/F14336/bfloat16"
    shape = {"B": 1, "D": 1024, "F": 14336}
    timings = {"kernel": Timing([10e-6]), "inductor": Timing([20e-6])}
    entries.append(KernelTimes("mlp_layer_norm_gelu", shape, "bfloat16", label, 4 * 10**7, 4 * 10**7, 4, timings))
    of = base.config | {"task": {"name": "kernels"}}
    of["baseline"] = of["baseline"] | {"targets": TARGETS}
    return KernelResult(
        started=base.started,
        command=base.command,
        sweep=None,
        config=of,
        environment=base.environment,
        dtype=base.dtype,
        roof=base.roof,
        wall_s=12.0,
        peak_flops=1e15,
        kernels=entries,
    )


def test_metrics_are_worked_out_from_raw_times() -> None:
    result = made()
    row = kernel_metrics(result, result.kernels[1])["inductor"]
    assert row.seconds == 2e-6
    assert row.gb_per_s == pytest.approx(4096**2 / 2e-6 / 1e9)
    assert row.share_of_roof == pytest.approx(row.gb_per_s / 4000)
    assert row.flops_utilisation is None, "the peak is bfloat16's"
    mlp = kernel_metrics(result, result.kernels[-1])
    assert mlp["kernel"].flops_utilisation == pytest.approx(4e7 / 10e-6 / 1e15)
    assert mlp["inductor"].flops_utilisation == pytest.approx(4e7 / 20e-6 / 1e15), "half as fast, half the utilisation"
    assert mlp["inductor"].gptfast_flops_utilisation == pytest.approx(20 * 4e7 / 1e9 / 312)
    assert kernel_metrics(replace(result, peak_flops=None), result.kernels[-1])["kernel"].flops_utilisation is None


def test_targets_are_of_means_over_the_seeds_sizes() -> None:
    rates = [size**2 / 2e-6 / 1e9 for size in (1024, 4096, 8192, 16384)]
    found = means(made())
    assert found["gemv/int8/inductor/gb_per_s"] == pytest.approx(sum(rates) / 4)
    assert not [name for name in found if name.startswith("gemv/int8/library")], "not timed at every size"
    assert gptfast_targets(made()) == {"gemv/int8": {"gb_per_s": 870.0}}
    assert gptfast_targets(made((1024, 4096))) == {}


def test_names_are_such_as_mlflow_takes() -> None:
    for name in made().summary:
        assert re.fullmatch(r"[\w.\-/ :]+", name), name


def test_peaks_by_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("AMD EPYC") is None


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    path = made().save(tmp_path)
    assert path.name == "kernels.json"
    assert KernelResult.load(path) == load_record(path) == made()
    other = made_result()
    assert load_record(other.save(tmp_path)) == other
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="not a result of gptbench"):
        load_record(tmp_path / "list.json")


def test_a_run_writes_shows_and_logs_it(empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")
    of = config(tmp_path, only="gemv/D32/bfloat16")
    attempt.alone(job_of(of, tmp_path), Session(), Terminal(quiet=False))
    result = KernelResult.load(tmp_path / "kernels.json")
    assert [kernel.label for kernel in result.kernels] == ["gemv/D32/bfloat16"]
    assert [probe.when for probe in result.probes] == ["before", "after"]
    shown = capsys.readouterr()
    assert "gemv" in shown.err and "D=32" in shown.err and "library" in shown.err
    line = json.loads(shown.out.splitlines()[-1])
    assert line["task"] == "kernels"
    assert line["gemv/D32/bfloat16/library/gb_per_s"] > 0
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("gptbench").experiment_id])  # type: ignore[union-attr]
    assert run.info.run_name == "kernels-dense-float32"
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(result.summary)
    assert run.data.tags["task"] == "kernels"
    assert run.data.params["task.sizes"] == "[32]"
    folder = Path(run.info.artifact_uri)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "figures/kernels.png", "kernels.csv", "kernels.json"}
    with (folder / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    own = [("gemv/D32/bfloat16", "kernel")] if kernel_cases.kernels_run(device()) else []
    assert [(row["label"], row["implementation"]) for row in rows] == [
        *own,
        ("gemv/D32/bfloat16", "inductor"),
        ("gemv/D32/bfloat16", "library"),
    ]
    assert [int(row["moved_bytes"]) for row in rows] == [result.kernels[0].moved_bytes] * len(rows)
    assert log_command([str(tmp_path / "kernels.json")]) == 0
    assert "already logged" in capsys.readouterr().out


def test_a_wrong_kernel_is_recorded_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "model_cases", lambda *_: iter([gemv_by(is_a_little_off)]))
    of = config(tmp_path, only="gemv/D40")
    with pytest.raises(BadResultError, match="gemv/D40/bfloat16"):
        run_job(of, tmp_path)
    assert KernelResult.load(tmp_path / "kernels.json").kernels[0].failed
    assert "gemv/D40/bfloat16 kernel not measured: wrong" in capsys.readouterr().err


def test_what_was_measured_before_ctrl_c_is_recorded(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")
    measured = []

    def interrupted(case: Case, *args: Any) -> KernelTimes:
        if measured:
            raise KeyboardInterrupt
        measured.append(case.label)
        return measure_case(case, *args)

    monkeypatch.setattr(kernels, "measure_case", interrupted)
    of = config(tmp_path, only="gemv/D32")
    with pytest.raises(KeyboardInterrupt):
        run_job(of, tmp_path)
    assert [kernel.label for kernel in KernelResult.load(tmp_path / "kernels.json").kernels] == measured


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "quant", "batch"),
    [(DENSE, "none", 1), (GQA, "int8", 2), (MOE, "int8", 1), (MOE, "none", 3), (QWEN, "int8", 8), (WINDOW, "none", 1)],
    ids=model_name,
)
def test_a_models_kernels_on_a_gpu(model: ModelConfig, quant: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROUND_BYTES", 2**20)
    monkeypatch.setattr(kernels, "micro_cases", lambda *_: iter(()))
    of = replace(run_config(model, quant, batch=batch), task=task())
    assert isinstance(of.task, KernelsConfig)
    # Tuning takes most of the time, and is tested in `test_on_a_gpu`.
    untuned = partial(compile_options, tuning=Tuning.none)
    monkeypatch.setattr(kernels, "compile_options", lambda cudagraphs, tuning: untuned(cudagraphs))
    measured = list(Kernels(of.task, of, device("cuda")).measure(nullcontext))
    assert len(measured) == (11 if model.n_experts else 10)
    for kernel in measured:
        assert kernel.note is None
        assert {"kernel", "inductor"} <= kernel.timings.keys()
        for name, timing in kernel.timings.items():
            assert timing.failed is None, f"{kernel.label} {name}: {timing.failed}"
            assert min(timing.seconds) > 0


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All implementations agree, and graphs of them take time."""
    monkeypatch.setattr(kernels, "ROUND_BYTES", 2**22)
    monkeypatch.setattr(kernel_cases, "INNER", 512)
    monkeypatch.setattr(kernel_cases, "ROWS", 64)
    on = device("cuda")
    of = replace(run_config(DENSE), task=task(sizes=[256, 384]))
    assert isinstance(of.task, KernelsConfig)
    measured = list(Kernels(of.task, of, on).measure(nullcontext))
    assert {kernel.name for kernel in measured} >= {"read_reduce", "gemv", "gather_gemv", "layer_norm"}
    for kernel in measured:
        assert kernel.note is None
        for name, timing in kernel.timings.items():
            assert timing.failed is None, f"{kernel.label} {name}: {timing.failed}"
            assert min(timing.seconds) > 0
