"""Large products get the same few block sizes, in this process and in a compile worker; all else is left alone."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch._inductor import async_compile
from torch._inductor.runtime.hints import DeviceProperties, HeuristicType, ReductionHint
from torch._inductor.runtime.triton_heuristics import unique_configs

from gptbench import block_sizes
from gptbench.block_sizes import CANDIDATES, candidates, from_candidates, load, reads_matrix
from gptbench.config import InductorConfig, Tuning
from gptbench.engine import Inductor
from gptbench.errors import ConfigError
from tests.models import DENSE, run_config

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
    return lambda text: async_compile._load_triton_kernel_from_source("kernel", text)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("x", "r", "hint"), [(32768, 4096, "INNER"), (4096, 16384, "INNER"), (65536, 4096, "DEFAULT")])
def test_a_large_product_has_the_candidates(compiled: Any, x: int, r: int, hint: str) -> None:
    text = source(x, r, hint)
    guesses = compiled(text)
    with from_candidates():
        kernel = compiled(text)
    assert set(CANDIDATES) <= sizes(kernel)
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


def test_a_failure_leaves_inductor_as_it_was() -> None:
    before = async_compile._load_triton_kernel_from_source, block_sizes.heuristics.cached_autotune  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="SyntaxError"), from_candidates():
        async_compile._load_triton_kernel_from_source("kernel", "no Python")  # type: ignore[attr-defined]
    assert before == (async_compile._load_triton_kernel_from_source, block_sizes.heuristics.cached_autotune)  # type: ignore[attr-defined]


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
    for x, r in ((1, 2**20), (2**10, 2**10), (2**16, 2**12)):
        of = candidates({"x": x, "r0_": r})
        assert len(of) == len(unique_configs(of)) >= 1
        assert all(c.kwargs["XBLOCK"] <= x and c.kwargs["R0_BLOCK"] <= r for c in of)


def test_kernels_without_sizes_are_no_matrices() -> None:
    assert not reads_matrix(HeuristicType.REDUCTION, ReductionHint.INNER, None)  # type: ignore[arg-type]
    assert not reads_matrix(HeuristicType.REDUCTION, ReductionHint.INNER, {"x": 2**12, "r0_": 2**6, "r1_": 2**6})
    assert not reads_matrix(None, None, {"x": 2**12, "r0_": 2**12})


def test_torch_without_what_is_replaced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    base = run_config(DENSE)
    config = replace(base, engine=InductorConfig(_target_="gptbench.engine.Inductor", name="inductor"))
    gpu = SimpleNamespace(is_cuda=True)
    Inductor.check(config, gpu)  # type: ignore[arg-type]
    monkeypatch.delattr(async_compile, "_load_triton_kernel_from_source")
    Inductor.check(config, SimpleNamespace(is_cuda=False))  # type: ignore[arg-type]
    Inductor.check(replace(config, engine=replace(config.engine, tuning=Tuning.descent)), gpu)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"engine\.tuning=candidates: .*descent or none"):
        Inductor.check(config, gpu)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_a_warm_start_times_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "gptbench", "model=llama3_2_1b", "model.n_layers=2", "quant=int8", "engine=inductor",
        "engine.fresh_cache=true", "engine.measure_warm_start=true", "device=cuda", "tracking=none", "workload=seed",
        "workload.samples=1", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "run/result.json").read_text())
    cold, warm = result["compilations"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    assert cold["costs_s"]["tuning"] > 0.1
    assert warm["costs_s"]["tuning"] < 0.05
