"""Large products get the same few block sizes, in this process and in a compile worker; all else is left alone."""

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import async_compile
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties, HeuristicType, ReductionHint
from torch._inductor.runtime.triton_heuristics import unique_configs

from gptbench.base.errors import ConfigError
from gptbench.block_sizes import CANDIDATES, candidates, from_candidates, load, reads_matrix
from gptbench.config import AutoConfig, DeviceConfig, DeviceKind, InductorConfig, Tuning
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Auto, Inductor
from tests.models import DENSE, run_config
from tests.test_engines import make_engine

compiler: Any = async_compile
heuristics: Any = triton_heuristics

SOURCE = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties, ReductionHint

@triton_heuristics.{heuristic}(
    size_hints={sizes},
    {hint}
    filename=__file__,
    triton_meta={{"signature": {{"xnumel": "i32", "r0_numel": "i32"}}, "device": {device}, "constants": {{}}}},
    inductor_meta={{"kernel_name": "kernel", "coordinate_descent_tuning": {tuned}, "autotune_local_cache": False}},
)
@triton.jit
def kernel(xnumel, r0_numel, XBLOCK: tl.constexpr, R0_BLOCK: tl.constexpr):
    pass
"""
DEVICE = DeviceProperties(
    type="cuda", index=0, multi_processor_count=132, cc=90, major=9,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32,
)  # fmt: skip


def source(x: int, r: int, hint: str = "INNER", tuned: bool = True, heuristic: str = "reduction") -> str:
    """A kernel's source, as Inductor writes it for a GPU."""
    sizes = {"x": x, "r0_": r} if heuristic == "reduction" else {"x": x}
    hint = f"reduction_hint=ReductionHint.{hint}," if heuristic == "reduction" else ""
    return SOURCE.format(heuristic=heuristic, sizes=sizes, hint=hint, tuned=tuned, device=DEVICE)


def sizes(kernel: Any) -> set[tuple[int, int, int]]:
    return {(c.kwargs["XBLOCK"], c.kwargs.get("R0_BLOCK", 0), c.num_warps) for c in kernel.configs}


@pytest.fixture
def compiled() -> Any:
    """What Inductor gives where it is not asked for candidates."""
    return lambda text: compiler._load_triton_kernel_from_source("kernel", text)


@pytest.mark.parametrize(("x", "r", "hint"), [(32768, 4096, "INNER"), (4096, 16384, "INNER"), (65536, 4096, "DEFAULT")])
def test_a_large_product_has_the_candidates(compiled: Any, x: int, r: int, hint: str) -> None:
    text = source(x, r, hint)
    guesses = compiled(text)
    with from_candidates():
        kernel = compiled(text)
    assert {(1, *sizes) for sizes in CANDIDATES} <= sizes(kernel)
    assert len(sizes(kernel)) <= len(CANDIDATES) + 1
    assert sizes(guesses) & sizes(kernel), "Inductor's own guess is among them"
    assert guesses.inductor_meta["coordinate_descent_tuning"]
    assert not kernel.inductor_meta["coordinate_descent_tuning"]
    assert not kernel.inductor_meta["dynamic_scale_rblock"]
    assert sizes(compiled(text)) == sizes(guesses), "as before"
    assert kernel.filename != guesses.filename, "what is found for one is not taken for the other"


@pytest.mark.parametrize(
    ("x", "r", "hint", "heuristic"),
    [(8, 4096, "INNER", "reduction"), (4096, 128, "INNER", "reduction"), (65536, 64, "DEFAULT", "reduction"),
     (8192, 4096, "OUTER", "reduction"), (2**24, 1, "", "pointwise")],
    ids=["norm", "attention", "no rows", "columns", "pointwise"],
)  # fmt: skip
def test_what_reads_no_large_matrix_keeps_its_guesses(compiled: Any, x: int, r: int, hint: str, heuristic: str) -> None:
    text = source(x, r, hint, heuristic=heuristic)
    before = compiled(text)
    with from_candidates():
        kernel = compiled(text)
    assert sizes(kernel) == sizes(before)
    assert not kernel.inductor_meta["coordinate_descent_tuning"], "and is not searched for"


def test_what_was_not_to_be_tuned_is_not(compiled: Any) -> None:
    text = source(32768, 4096, tuned=False)
    before = compiled(text)
    with from_candidates():
        assert sizes(compiled(text)) == sizes(before)


class Pool:
    """In the place of Inductor's compile workers: takes what it is given, and does nothing."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def submit(self, *work: Any) -> Future[Any]:
        self.given.append(work)
        return Future()


def test_inductor_hands_its_workers_what_is_put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, text = Pool(), source(32768, 4096)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(async_compile.AsyncCompile, "use_process_pool", lambda *_: True)
    monkeypatch.setattr(async_compile.AsyncCompile, "process_pool", lambda *_: pool)
    async_compile.AsyncCompile().triton("kernel", text)
    with from_candidates():  # what was left unfinished is not taken over
        async_compile.AsyncCompile().triton("kernel", text)
    async_compile.AsyncCompile().triton("kernel", text)
    async_compile.CompiledTritonKernels.cache_clear()
    kernels = [pickle.loads(pickle.dumps(load_kernel))() for _, load_kernel, *_ in pool.given]
    assert [len(sizes(kernel)) >= len(CANDIDATES) for kernel in kernels] == [False, True, False]


def test_a_failure_leaves_inductor_as_it_was() -> None:
    before = compiler._load_triton_kernel_from_source, heuristics.cached_autotune
    with pytest.raises(RuntimeError, match="SyntaxError"), from_candidates():
        compiler._load_triton_kernel_from_source("kernel", "no Python")
    assert before == (compiler._load_triton_kernel_from_source, heuristics.cached_autotune)


def test_a_worker_finds_the_same(compiled: Any, tmp_path: Path) -> None:
    """Workers unpickle the function by its name; what they import for it should not take long."""
    text = source(32768, 4096)
    with from_candidates():
        here = compiled(text)
    (tmp_path / "load").write_bytes(pickle.dumps((load, text)))
    code = """
import json, pickle, sys
load, text = pickle.load(open(sys.argv[1], "rb"))
kernel = load("kernel", text)
print(json.dumps([[[c.kwargs["XBLOCK"], c.kwargs["R0_BLOCK"], c.num_warps] for c in kernel.configs],
    kernel.filename, [name for name in ("gptbench.engine", "gptbench.config", "omegaconf") if name in sys.modules]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "load")],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    there, filename, imported = json.loads(done.stdout)
    assert sorted(map(tuple, there)) == sorted(sizes(here))
    assert filename == here.filename
    assert imported == []


def test_candidates_fit_the_matrix() -> None:
    for columns in (2**10, 2**11, 2**12, 2**20):
        of = candidates(columns)
        assert len(of) == len(unique_configs(of)) >= 1
        assert all(c.kwargs["R0_BLOCK"] <= columns for c in of)


def test_kernels_without_sizes_are_no_matrices() -> None:
    assert not reads_matrix(HeuristicType.REDUCTION, ReductionHint.INNER, None)
    assert not reads_matrix(HeuristicType.REDUCTION, ReductionHint.INNER, {"x": 2**12, "r0_": 2**6, "r1_": 2**6})
    assert not reads_matrix(None, None, {"x": 2**12, "r0_": 2**12})


def test_torch_without_what_is_replaced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    base = run_config(DENSE)
    config = replace(base, engine=InductorConfig(_target_="gptbench.engine.Inductor", name="inductor"))
    gpu: Any = SimpleNamespace(is_cuda=True)
    no_gpu: Any = SimpleNamespace(is_cuda=False)
    Inductor.check(config, gpu)
    monkeypatch.delattr(async_compile, "_load_triton_kernel_from_source")
    Inductor.check(config, no_gpu)
    Inductor.check(replace(config, engine=replace(config.engine, tuning=Tuning.descent)), gpu)
    with pytest.raises(ConfigError, match=r"engine\.tuning=candidates: .*descent or none"):
        Inductor.check(config, gpu)
    cpu = Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu))
    section = Auto(AutoConfig(_target_="gptbench.engine.Auto", name="auto"), config, DeviceGroup((cpu,))).section
    assert isinstance(section, InductorConfig)
    assert section.tuning is Tuning.descent
    make_engine(section, DENSE, "none", 1, torch.float32, cpu)


def test_workers_start_early_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(async_compile, "maybe_warm_pool", lambda: started.append("workers"))
    monkeypatch.setattr("gptbench.engine.inductor.import_compiler", lambda: started.append("import"))
    monkeypatch.setattr("threading.Thread.start", threading.Thread.run)
    section = InductorConfig(_target_="gptbench.engine.Inductor", name="inductor")
    no_gpu: Any = SimpleNamespace(is_cuda=False)
    gpu: Any = SimpleNamespace(is_cuda=True)
    Inductor.warm_up_compiler(section, no_gpu)
    assert started == []
    Inductor.warm_up_compiler(section, gpu)
    assert started == ["workers", "import"]
    monkeypatch.delattr(async_compile, "maybe_warm_pool")
    Inductor.warm_up_compiler(section, gpu)
    assert started == ["workers", "import", "import"]


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_what_was_timed_once_is_not_timed_again_in_another_folder(tmp_path: Path) -> None:
    def gptbench(*arguments: str, folder: str) -> None:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / folder)}
        environment.pop("TRITON_CACHE_DIR", None)
        command = [sys.executable, "-m", "gptbench", *arguments]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

    def prepared(folder: str) -> dict[str, Any]:
        gptbench(
            "model=llama3_2_1b", "model.n_layers=2", "quant=int8", "engine=inductor", "device=cuda", "tracking=none",
            "workload=gpt_fast", "workload.samples=1", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/{folder}-run",
            folder=folder,
        )  # fmt: skip
        first: dict[str, Any] = json.loads((tmp_path / f"{folder}-run/result.json").read_text())["compilations"][0]
        return first

    timing = "CachingAutotuner.benchmark_all_configs"
    here = prepared("here")
    assert here["cache"] == "cold"
    assert here["torch_stage_s"][timing] > 0
    gptbench("cache", "save", str(tmp_path / "cache.zip"), folder="here")
    (tmp_path / "here").rename(tmp_path / "gone")
    (tmp_path / "here").touch()  # nothing can be read or written where it was
    gptbench("cache", "load", str(tmp_path / "cache.zip"), folder="there")
    there = prepared("there")
    assert there["cache"] == "warm"
    assert there["torch_stage_s"].get(timing, 0.0) == 0.0
