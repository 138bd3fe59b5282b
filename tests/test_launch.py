"""Kernels are compiled side by side, without a launch; what it leaves behind when one of them fails."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton

from gptbench.config import ModelConfig
from gptbench.config.targets import instantiate
from gptbench.engine import Shape
from gptbench.engine.fused import Fused
from gptbench.kernels.launch import CompileExecutor, compile_only, launch
from gptbench.measure.compilation import CompileWatch
from gptbench.sampling import Sampler
from tests.models import DENSE, MOE, make_model
from tests.test_engines import FUSED, GREEDY, LENGTH, PROMPT, device


class Kernel:
    """Stand-in for a kernel of Triton that is launched or compiled."""

    def __init__(self) -> None:
        self.launched: list[Any] = []
        self.compiled: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launched.append((grid, arguments, options))

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        self.compiled.append((grid, arguments, options))


def test_a_kernel_is_launched_or_compiled() -> None:
    kernel, call = Kernel(), ((3, 2), (1, "x"), {"num_warps": 4})
    launch(kernel, (3, 2), 1, "x", num_warps=4)
    assert (kernel.launched, kernel.compiled) == ([call], [])
    compile_only(lambda: launch(kernel, (3, 2), 1, "x", num_warps=4), torch.device("cpu"))
    assert (kernel.launched, kernel.compiled) == ([call], [call])


def test_a_failure_leaves_nothing_switched() -> None:
    def fail() -> None:
        raise ValueError("too large")

    for _ in range(2):  # Triton refuses to compile asynchronously within the same
        with pytest.raises(ValueError, match="too large"):
            compile_only(fail, torch.device("cpu"))
    launch(kernel := Kernel(), (1,))
    assert len(kernel.launched) == 1


class Compiled:
    """Stand-in for a compiled kernel of Triton, whose launcher is built on first use."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.built = fails, False

    @property
    def run(self) -> Any:
        if self.fails:
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        self.built = True
        return print


def test_what_launches_a_kernel_is_built_with_it() -> None:
    finished: list[Compiled] = []
    with ThreadPoolExecutor(2) as threads:
        with triton.AsyncCompileMode(CompileExecutor(threads)) as mode:
            for number in range(6):  # three kernels, asked for twice
                mode.submit(number % 3, lambda: Compiled(fails=False), finished.append)
        assert len(finished) == 3
        assert all(kernel.built for kernel in finished)
        future = CompileExecutor(threads).submit(lambda: Compiled(fails=True))
        with pytest.raises(triton.runtime.errors.OutOfResources, match="300000"):
            future.result()


@pytest.mark.parametrize(
    ("quant", "batch", "called"),
    [("none", 6, []), ("int8", 6, ["hidden", "logits"]), ("int8", 13, ["logits"])],  # of 65 tokens a library has most
)
def test_a_prompts_kernels_are_launched_where_they_are_ours(
    quant: str, batch: int, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = device("cpu")
    built = make_model(DENSE, quant, batch, LENGTH, torch.float32, device=on.torch)
    sampler, shape = Sampler(GREEDY, DENSE.vocab_size, on.torch), Shape(batch, PROMPT, LENGTH)
    engine: Fused = instantiate(FUSED, built, sampler, on, shape)
    launched: list[Any] = []
    monkeypatch.setattr(engine, "launch_all", launched.extend)
    calls: list[str] = []
    for name in ("hidden", "logits"):
        own = getattr(engine.model, name)
        monkeypatch.setattr(engine.model, name, lambda *of, name=name, own=own: (calls.append(name), own(*of))[1])
    with torch.no_grad():
        engine.launch_each_kernel()
    assert launched == engine.ops
    assert calls == called


@pytest.mark.gpu
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "mixture"])
def test_nothing_is_left_to_compile(model: ModelConfig, quant: str) -> None:
    on, batch = device("cuda"), 6  # of which no other test has kernels
    built = make_model(model, quant, batch, LENGTH, torch.bfloat16, device=on.torch)
    sampler, shape = Sampler(GREEDY, model.vocab_size, on.torch), Shape(batch, PROMPT, LENGTH)
    engine: Fused = instantiate(FUSED, built, sampler, on, shape)
    with CompileWatch() as watch, torch.no_grad():
        compile_only(engine.launch_each_kernel, on.torch)
        compiled = watch.count
        assert compiled >= 9
        assert (engine.state.position == 0).all(), "nothing was launched"
        engine.prefill_step()
        engine.decode_step()
        assert (engine.state.position == PROMPT + 1).all()
    assert watch.count == compiled
