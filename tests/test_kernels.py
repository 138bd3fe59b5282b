"""Every kernel against its reference, and that against plain Python. Without a GPU, in Triton's interpreter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from gptbench.kernels.read_reduce import BLOCK, UNROLL, read_reduce, read_reduce_reference
from tests.pairwise import for_each

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILE = BLOCK * UNROLL
POISON = 0x5EADBEEF

READERS = {"kernel": read_reduce, "twin": read_reduce_reference}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def wrapping_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a sum to one int32 wrap around, as on a GPU: the interpreter adds up in int64 and refuses what is over."""
    original = interpreter.ReduceOps.to_tensor

    def to_tensor(self: interpreter.ReduceOps, total: Any, dtype: Any) -> Any:
        return original(self, np.asarray(total).astype(interpreter._get_np_dtype(dtype))[()], dtype)

    monkeypatch.setattr(interpreter.ReduceOps, "to_tensor", to_tensor)


def random_numbers(count: int, seed: int = 1) -> Tensor:
    """int32 of the whole range, so that sums wrap around."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator, dtype=torch.int64).to(torch.int32)


def wrapped(total: int) -> int:
    return (total + 2**31) % 2**32 - 2**31


def sums_by_hand(x: Tensor, programs: int) -> list[int]:
    """Tile i belongs to program i modulo their number."""
    tiles = [sum(x[start : start + TILE].tolist()) for start in range(0, len(x), TILE)]
    return [wrapped(sum(tiles[program::programs])) for program in range(programs)]


@for_each("programs", [1, 3, 7])
@for_each("count", [1, TILE - 1, TILE, TILE + 1, 3 * TILE, 7 * TILE, 21 * TILE, 100_003])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_read_reduce(read: Callable[[Tensor, Tensor], None], count: int, programs: int) -> None:
    numbers = random_numbers(count)
    expected = sums_by_hand(numbers, programs)
    # Numbers on both sides of x must not be read, and none on the sides of out be written.
    around = torch.cat((random_numbers(TILE, 2), numbers, random_numbers(TILE, 3))).to(DEVICE)
    before = around.clone()
    outs = torch.full((programs + 10,), POISON, dtype=torch.int32, device=DEVICE)
    read(around[TILE : TILE + count], outs[5 : 5 + programs])
    assert outs[5 : 5 + programs].tolist() == expected
    assert outs[:5].tolist() == outs[-5:].tolist() == [POISON] * 5
    assert torch.equal(around, before)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_programs_without_a_tile_write_zero(read: Callable[[Tensor, Tensor], None]) -> None:
    x = random_numbers(TILE + 5).to(DEVICE)
    out = torch.full((528,), POISON, dtype=torch.int32, device=DEVICE)
    read(x, out)
    assert out.tolist() == sums_by_hand(x.cpu(), 528)
    assert not out[2:].any()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_sums_wrap_around(read: Callable[[Tensor, Tensor], None]) -> None:
    x = torch.full((TILE + 1,), 2**31 - 1, dtype=torch.int32, device=DEVICE)
    out = torch.full((1,), POISON, dtype=torch.int32, device=DEVICE)
    read(x, out)
    assert out.tolist() == [wrapped((TILE + 1) * (2**31 - 1))]


@pytest.mark.gpu
def test_read_reduce_passes_two_to_the_31() -> None:
    """Offsets need 64 bits there. All zeros but around the limit, at the end and at the start."""
    count = 2**31 + TILE + 3
    if torch.cuda.mem_get_info()[0] < 4 * count + 2**28:
        pytest.skip("needs 8.9 GB of GPU memory")
    x = torch.zeros(count, dtype=torch.int32, device=DEVICE)
    marks = {0: 1, 2**31 - 1: 20, 2**31: 300, 2**31 + TILE: 4000, count - 1: 50_000}
    for index, value in marks.items():
        x[index] = value
    programs = 528
    out = torch.full((programs,), POISON, dtype=torch.int32, device=DEVICE)
    read_reduce(x, out)
    expected = [0] * programs
    for index, value in marks.items():
        expected[index // TILE % programs] += value
    assert out.tolist() == expected
