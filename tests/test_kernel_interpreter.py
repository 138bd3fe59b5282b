"""Triton's interpreter, in which the kernels are tested where there is no GPU: how it is made faster, and that what it
gives stays the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from gptbench.kernels.launch import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="about Triton's interpreter, and there is a GPU")


def prepare_language_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the interpreter's operations in the place of Triton's once for each launch.

    A launch does so before its first program, and then once more for each call of one function by another, which finds
    them there: this takes a third of the time of a test.
    """
    prepare = interpreter._patch_lang
    launch: Any = None
    prepared: set[int] = set()

    def prepare_once(function: Callable[..., Any]) -> Any:
        nonlocal launch, prepared
        modules = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if launch is None or not launch._changes:  # those before are over: they have put Triton's own back
            launch, prepared = prepare(function), modules
            return launch
        if modules <= prepared:
            return interpreter._LangPatchScope()
        prepared |= modules
        return prepare(function)

    monkeypatch.setattr(interpreter, "_patch_lang", prepare_once)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def twice(x, scale):
    return (x + x).to(tl.float32) * scale


@triton.jit
def kernel(x, scale, out, N: tl.constexpr):
    """Calls functions of ours, and of Triton's own, which in turn call others and take one as an argument."""
    numbers = twice(tl.load(x + tl.program_id(0) * N + tl.arange(0, N)), scale)
    highest = tl.reduce(numbers, 0, larger)
    for _ in tl.static_range(2):
        numbers = tl.where(numbers < highest, tl.cumsum(numbers, 0), highest)
    tl.store(out + tl.program_id(0) * 2, tl.sum(numbers, 0) / tl.cdiv(N, 3))
    tl.store(out + tl.program_id(0) * 2 + 1, tl.max(tl.sigmoid(numbers), 0))


def launched() -> Tensor:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    out = torch.full((3, 2), torch.nan)
    kernel[(3,)](x, 0.1, out, 16)
    return out


def language() -> list[object]:
    """Some of what the interpreter replaces."""
    return [tl.load, tl.where, tl.range, tl.static_range, tl.reduce, tl.math.exp2, tl.dtype.to_ir, tl.tensor.__add__]


@interpreted
def test_prepared_once_it_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before, expected = language(), launched()
    assert expected.isfinite().all()
    calls = []
    prepare = interpreter._patch_lang
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: (calls.append(function), prepare(function))[1])
    launched()
    often = len(calls)
    prepare_language_once(monkeypatch)
    for launches in (1, 2):
        calls.clear()
        assert torch.equal(launched(), expected), launches
        assert len(calls) == 2 < often, "for the kernel, and for what is written in another module of Triton's"
        assert language() == before, "put back"


@interpreted
def test_a_launch_that_fails_puts_the_language_back(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_language_once(monkeypatch)
    before, expected = language(), launched()
    with pytest.raises(interpreter.InterpreterError):
        kernel[(3,)](torch.zeros(3, 16), 0.1, None, 16)
    assert language() == before
    assert torch.equal(launched(), expected)
