"""Programmatic dependent launch: a kernel may start, and read, while the one before it still writes.

Every kernel waits before it lets the next one start, and writes only then. So when a kernel runs, all but the one just
before it are done, and only what it reads before it waits can be read too soon: none of that may be written by the
kernel just before. What kernels say about this (`Op.reads_early`, `reads`, `writes`) is held against the addresses that
they load and store in Triton's interpreter, and against what their references need.
"""

import itertools
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime import interpreter

from gptbench.config import FusedConfig, ModelConfig, SamplingConfig
from gptbench.engine import Shape
from gptbench.engine.fused import Fused
from gptbench.engine.tile_cache import TileCache
from gptbench.kernels import add_linear, attention, embed, linear, maxima, route, sample, swiglu
from gptbench.kernels.launch import INTERPRETED
from gptbench.kernels.op import Op, tensors
from gptbench.kernels.tile_config import TileConfig
from gptbench.sampling import Sampler
from tests.models import CPU, DENSE, GQA, MIXED, MOE, QWEN, WINDOW, make_model, model_name, tiny
from tests.test_engines import device
from tests.test_kernel_interpreter import prepare_language_once

MODULES = (embed, linear, attention, add_linear, route, swiglu, maxima, sample)
EXPERTS = replace(
    tiny("experts", vocab_size=61, dim=32, n_layers=2, n_heads=2, n_kv_heads=2, ffn_dim=16, context=64),
    n_experts=20,
    n_active_experts=3,
)
"""So many that several programs decide among them."""
MODELS = [DENSE, GQA, MOE, QWEN, WINDOW, EXPERTS, MIXED]
"""Multi-head, grouped and tied, two mixtures, biases and normalised heads, a window, layers that differ."""
LENGTH = 24
READ_EARLY = ("embed", "qkv", "attention", "wo", "w2", "head")
"""Roles of kernels that read something before they wait."""

pytestmark = pytest.mark.usefixtures("one_thread", "no_grad")


def engine_of(model: ModelConfig, quant: str, batch: int, layers: int, temperature: float = 1.0) -> Fused:
    shape = model if model is MIXED else replace(model, n_layers=layers)
    built = make_model(shape, quant, batch, LENGTH)
    drawn = SamplingConfig(_target_="gptbench.sampling.Sampler", name="x", temperature=temperature)
    section = FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused", tile_cache="")
    return Fused(section, built, Sampler(drawn, model.vocab_size, CPU), device("cpu"), Shape(batch, 5, LENGTH))


@dataclass(frozen=True)
class Range:
    """Bytes of memory, from `start` to before `end`."""

    start: int
    end: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Range":
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize)

    def overlaps(self, other: "Range") -> bool:
        return self.start < other.end and other.start < self.end


def ranges(*operands: Any) -> list[Range]:
    return [Range.of(tensor) for tensor in tensors(*operands) if tensor.numel()]


def violations(ops: list[Op]) -> list[tuple[str, str]]:
    """Roles of each kernel that reads early what the one before it writes, and of that one. The first follows the last:
    steps follow one another."""
    return [
        (before.role, op.role)
        for before, op in zip([ops[-1], *ops[:-1]], ops, strict=True)
        if any(early.overlaps(written) for early in ranges(op.reads_early()) for written in ranges(before.writes()))
    ]


def test_nothing_that_a_kernel_reads_early_is_written_by_the_one_before_it() -> None:
    for model, quant, batch, layers in itertools.product(MODELS, ("none", "int8"), (1, 3, 8), (1, 2, 3)):
        ops = engine_of(model, quant, batch, layers).ops
        assert len(ops) >= 8
        assert violations(ops) == [], (model.name, quant, batch, layers)
        assert all(
            ranges(op.reads_early()) for op in ops if op.role in ("embed", "qkv", "attention", "wo", "w2", "head")
        )


@dataclass(frozen=True, eq=False)
class Copy(Op):
    """One that reads as early as can be."""

    source: Tensor
    to: Tensor

    name = "copy"

    def launch(self, pdl: bool = False) -> None:
        self.reference()

    def reference(self) -> None:
        self.to.copy_(self.source)

    def reads_early(self) -> tuple[Any, ...]:
        return (self.source,)

    def reads(self) -> tuple[Any, ...]:
        return (self.source,)

    def writes(self) -> tuple[Any, ...]:
        return (self.to,)

    def other_bytes(self) -> int:
        return 0

    def shape(self) -> dict[str, int]:
        return {}

    def flops(self, positions: int) -> int:
        return 0

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype


def test_a_list_in_which_one_does_is_found() -> None:
    memory, apart = torch.zeros(20), torch.zeros(5)
    first, second = Copy(apart, memory[3:8], role="first"), Copy(memory[7:12], apart, role="second")
    assert violations([first, second]) == [("second", "first"), ("first", "second")]
    assert violations([first, Copy(memory[8:13], torch.zeros(5), role="beside")]) == []
    assert violations([first, Copy(memory.view(4, 5)[1:3, 2:].t(), torch.zeros(3, 2), role="in rows")]) == [
        ("first", "in rows")
    ]
    between = Copy(torch.zeros(1), torch.zeros(1), role="between")
    assert violations([first, between, Copy(memory, torch.zeros(20), role="later")]) == []


def test_a_kernel_less_between_two_that_need_it_is_found() -> None:
    """The router's choice is read early by the down projection, the position by the attention."""
    ops = engine_of(MOE, "int8", 3, 1).ops
    assert violations([op for op in ops if op.role != "w13"]) == [("route", "w2")]
    assert violations([op for op in ops if op.role not in ("embed", "qkv")]) == [("sample", "attention")]


class Trace:
    """What the programs of a launch load and store: addresses, before and after they wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.early: list[np.ndarray[Any, Any]] = []
        self.loaded: list[np.ndarray[Any, Any]] = []
        self.stored: list[np.ndarray[Any, Any]] = []
        self.stored_early = False
        self.waited: list[int] = []
        """Of each program: how often."""
        real = interpreter._interpreter
        trace = self

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def load(self, ptrs: Any, mask: Any, *rest: Any) -> Any:
                trace.note(trace.loaded if trace.waited[-1] else trace.early, ptrs, mask)
                return real.load(ptrs, mask, *rest)

            def store(self, ptrs: Any, value: Any, mask: Any) -> Any:
                trace.note_store(ptrs, mask)
                return real.store(ptrs, value, mask)

            def atomic_rmw(self, kind: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
                trace.note_store(ptrs, mask)
                return real.atomic_rmw(kind, ptrs, value, mask, *rest)

        begin = interpreter.InterpreterBuilder.set_grid_idx

        def begin_program(self: Any, *place: int) -> None:
            trace.waited.append(0)
            begin(self, *place)

        def pdl_wait_and_trigger(pdl: bool) -> None:
            trace.waited[-1] += 1

        monkeypatch.setattr(interpreter, "_interpreter", Watched())
        monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", begin_program)
        for module in MODULES:
            monkeypatch.setattr(module, "pdl_wait_and_trigger", pdl_wait_and_trigger)

    @staticmethod
    def note(where: list[np.ndarray[Any, Any]], ptrs: Any, mask: Any) -> None:
        where.append(np.asarray(ptrs)[np.broadcast_to(np.asarray(mask).astype(bool), np.shape(ptrs))].ravel())

    def note_store(self, ptrs: Any, mask: Any) -> None:
        self.note(self.stored, ptrs, mask)
        self.stored_early |= not self.waited[-1]

    def clear(self) -> None:
        for addresses in (self.early, self.loaded, self.stored, self.waited):
            addresses.clear()
        self.stored_early = False


def outside(addresses: list[np.ndarray[Any, Any]], *operands: Any) -> int:
    """How many of the addresses lie in none of the operands."""
    every = np.unique(np.concatenate([*addresses, np.empty(0, np.uint64)])).astype(np.uint64)
    inside = np.zeros(len(every), bool)
    for place in ranges(*operands):
        inside |= (every >= place.start) & (every < place.end)
    return int((~inside).sum())


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other: it is faster with larger ones."""
    prepare_language_once(monkeypatch)
    monkeypatch.setattr(
        TileCache, "__getitem__", lambda self, tile_key: TileConfig(rows=32, block=32, warps=4, preload=1)
    )


TRACED = [
    (DENSE, "none", 1),
    (GQA, "int8", 3),
    (MOE, "int8", 1),
    (QWEN, "none", 3),
    (WINDOW, "int8", 1),
    (EXPERTS, "none", 3),
]


@pytest.mark.skipif(not INTERPRETED, reason="about Triton's interpreter, and there is a GPU")
@pytest.mark.parametrize(("model", "quant", "batch"), TRACED, ids=model_name)
def test_kernels_load_and_store_what_they_say(
    model: ModelConfig, quant: str, batch: int, few_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(model, quant, batch, layers=1)
    engine.state.position.fill_(17)
    trace = Trace(monkeypatch)
    for op in engine.ops:
        trace.clear()
        op.launch()
        case = (model.name, op.role)
        assert outside(trace.early, op.reads_early()) == 0, case
        assert outside(trace.loaded, op.reads(), op.writes()) == 0, case
        assert outside(trace.stored, op.writes()) == 0, case
        assert trace.stored and not trace.stored_early, case
        assert set(trace.waited) <= {0, 1} and 1 in trace.waited, case
        early = ranges(op.reads_early())
        assert not early or trace.early, f"{case} reads nothing early"


def poison(tensor: Tensor) -> None:
    tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max - 4)


def bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


@pytest.mark.parametrize(("model", "quant", "batch"), TRACED, ids=model_name)
def test_references_need_and_write_what_kernels_say(model: ModelConfig, quant: str, batch: int) -> None:
    """With NaN, or large integers, in everything else they give the same; and they leave everything else alone."""
    engine = engine_of(model, quant, batch, layers=1)
    engine.state.position.fill_(17)
    engine.state.uniform.uniform_()
    for cache in engine.memory.caches:
        cache.keys.normal_()
        cache.values.normal_()
    for op in engine.ops:
        every = {tensor.data_ptr(): tensor for tensor in tensors(*op.operands()) if tensor.numel()}
        kept = {tensor.data_ptr() for tensor in tensors(*op.reads())}
        written = {tensor.data_ptr() for tensor in tensors(*op.writes())}
        before = {place: tensor.clone() for place, tensor in every.items()}
        op.reference()
        expected = {place: every[place].clone() for place in written & set(every)}
        results = [result.clone() for result in op.results()]
        for place, tensor in every.items():
            tensor.copy_(before[place])
            if place not in kept:
                poison(tensor)
                before[place] = tensor.clone()
        op.reference()
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(op.results(), results, strict=True)), op.role
        for place in set(every) - written:
            assert torch.equal(bits(every[place]), bits(before[place])), op.role
        for place, tensor in expected.items():
            every[place].copy_(tensor)


@pytest.mark.gpu
def test_nothing_is_read_too_soon_where_kernels_are_slow_to_write() -> None:
    """At the widths of real models, with programs that sleep between letting the next kernel start and writing."""
    command = [sys.executable, "-m", "tests.slow_producers"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("as without delays") == 12
