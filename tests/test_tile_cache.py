"""Tiles: built-in ones, candidates, and the file that keeps what was found for a device."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.errors import OutOfResources

from gptbench import kernels
from gptbench.base.errors import UserError
from gptbench.engine.tile_cache import BYTES_PER_WARP, TileCache, candidates, default_tile, fastest
from gptbench.kernels.activation import Activation
from gptbench.kernels.add_linear import AddLinear
from gptbench.kernels.linear import Linear
from gptbench.kernels.matrix import Encoding, Matrix
from gptbench.kernels.swiglu import SwiGLU
from gptbench.kernels.tile_config import TileConfig, TileKey
from gptbench.quant import Int8, Unquantised, WeightFormat

SHAPES = [(48, 48), (4096, 4096), (12288, 4096), (22016, 4096), (4096, 11008), (128256, 2048), (7, 16)]
QKV = TileKey("linear", 12288, 4096, Int8(), torch.bfloat16, batch=1)
W13 = TileKey("swiglu", 22016, 4096, Int8(), torch.bfloat16, batch=1, multiple=8)


def is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@pytest.mark.parametrize("weight_format", [Int8(), Unquantised()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles_can_be_launched(weight_format: WeightFormat, dtype: torch.dtype) -> None:
    kernels = [("linear", 0), ("swiglu", 0), ("add_linear", 0), ("add_linear", 2)]
    for (kernel, max_experts), multiple, (rows, columns) in itertools.product(kernels, [1, 2, 4, 8], SHAPES):
        check_tiles(TileKey(kernel, rows, columns, weight_format, dtype, 1, multiple, max_experts))


def check_tiles(tile_key: TileKey) -> None:
    tiles = list(candidates(tile_key))
    assert len(set(tiles)) == len(tiles) > (1 if tile_key.columns > 1000 else 0)
    assert tiles[0] == default_tile(tile_key)
    at_once = 8 * BYTES_PER_WARP // tile_key.format.bits(tile_key.dtype)
    for tile in tiles:
        assert all(map(is_power_of_two, (tile.rows, tile.block, tile.warps)))
        assert tile.rows % tile_key.multiple == 0
        assert 0 <= tile.preload <= -(-tile_key.columns // tile.block)
        # Every thread loads 16 bytes of a row, and no more of the row is loaded than there is, but for the last step.
        assert tile.warps * at_once <= tile.block
        assert tile.block < 2 * tile_key.columns or tile.block == at_once


def test_tile_key_of_a_weight() -> None:
    def weight(own: WeightFormat, *shape: int) -> Matrix:
        tensors = own.tensors(*shape[-2:], torch.bfloat16).values()
        stored = tuple(torch.empty(*shape[:-2], *own, dtype=dtype, device="meta") for own, dtype in tensors)
        return Matrix(own, stored, shape, torch.bfloat16)

    def written(encoding: Encoding) -> Activation:
        return Activation.empty(1, 11008, torch.bfloat16, torch.device("meta"), encoding)

    int8 = weight(Int8(), 8, 22016, 4096)
    tile_key = SwiGLU.tile_key_of(int8, 1, written(Encoding.int16))
    assert tile_key == W13
    assert tile_key.multiple == 8, "four numbers of a block at once, and two rows for each"
    assert SwiGLU.tile_key_of(int8, 1, written(Encoding.plain)).multiple == 2, "as who reads it wants it"
    mixture = SwiGLU.tile_key_of(int8, 1, written(Encoding.int16), max_experts=2)
    assert str(mixture) != str(tile_key), "tiles of one must not be taken for those of the other"
    assert (
        AddLinear.tile_key_of(weight(Unquantised(), 64, 64), 1, written(Encoding.plain)).multiple == AddLinear.MIN_ROWS
    )
    assert Linear.tile_key_of(weight(Unquantised(), 64, 64), 3).multiple == 1
    assert str(tile_key) == "swiglu 22016x4096 int8 batch 1"
    assert str(Linear.tile_key_of(weight(Unquantised(), 64, 48), 3)) == "linear 64x48 bfloat16 batch 3"


def test_stored_tiles_are_read_by_other_processes(tmp_path: Path) -> None:
    tiles, others = TileCache(tmp_path / "new", "h200"), TileCache(tmp_path / "new", "h200")
    assert tiles[QKV] == default_tile(QKV)
    found = TileConfig(rows=4, block=512, warps=1, preload=2)
    tiles.store(QKV, found)
    others.store(W13, TileConfig(8, 1024, 2, 1))
    assert tiles[QKV] == found
    again = TileCache(tmp_path / "new", "h200")
    assert again[QKV] == found, "another process must not have lost it"
    assert again[W13] == TileConfig(8, 1024, 2, 1)
    of_two = TileKey("linear", 12288, 4096, Int8(), torch.bfloat16, batch=2)
    assert again[of_two] == default_tile(of_two)
    assert TileCache(tmp_path / "new", "another")[QKV] != found


def test_tiles_of_single_cards_are_found(tmp_path: Path) -> None:
    """Files that are named after a card's UUID; the kind's own goes before them."""
    cards = [f"nvidia-h200-{digit * 8}-0000-1111-2222-333344445555" for digit in "12"]
    other = "nvidia-h200-nvl-33333333-0000-1111-2222-333344445555"
    for rows, card in zip((4, 8, 16), (*cards, other), strict=True):
        TileCache(tmp_path, card).store(QKV, TileConfig(rows, 512, 1, 0))
    TileCache(tmp_path, cards[0]).store(W13, TileConfig(16, 512, 1, 0))
    third = "nvidia-h200-99999999-0000-1111-2222-333344445555"
    tiles = TileCache(tmp_path, "nvidia-h200-sm90-132-processors", third)
    assert tiles.configs == {str(QKV): TileConfig(8, 512, 1, 0), str(W13): TileConfig(16, 512, 1, 0)}
    best = TileConfig(2, 512, 1, 0)
    tiles.store(QKV, best)
    again = TileCache(tmp_path, "nvidia-h200-sm90-132-processors", cards[1])
    assert again.configs == {str(QKV): best, str(W13): TileConfig(16, 512, 1, 0)}
    assert again.cards[str(QKV)] == third


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a": 1}',
        '{"a": {"rows": 4}}',
        json.dumps({"a": {"rows": 3, "block": 512, "warps": 1, "preload": 1}}),
        json.dumps({"a": {"rows": 4, "block": 512, "warps": 1.0, "preload": 1}}),
        json.dumps({"a": {"rows": 4, "block": 512, "warps": 1, "preload": -1}}),
        json.dumps({"a": {"rows": 4, "block": 2**20, "warps": 1, "preload": 1}}),
        json.dumps({"a": {"rows": 4, "block": 512, "warps": True, "preload": 1}}),
        json.dumps({"a": {"rows": 4, "block": 512, "warps": 1, "preload": 1, "card": 1}}),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_file_that_holds_no_tiles_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = TileCache(tmp_path, "h200").path
    path.write_text(text)
    with pytest.raises(UserError, match=r"h200-[0-9a-f]{8}\.json: expected tiles as engine\.autotune=true writes them"):
        TileCache(tmp_path, "h200")
    assert path.read_text() == text


def test_tiles_of_other_kernels_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of Triton, or another line in a kernel: the search was about something else."""
    found = TileConfig(rows=4, block=512, warps=1, preload=2)
    TileCache(tmp_path, "h200").store(QKV, found)
    monkeypatch.setattr(triton, "__version__", "0.0.1")
    other = TileCache(tmp_path, "h200")
    assert other[QKV] == default_tile(QKV) != found
    other.store(QKV, TileConfig(8, 512, 1, 1))
    monkeypatch.undo()
    assert TileCache(tmp_path, "h200")[QKV] == found
    changed = tmp_path / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, changed)
    monkeypatch.setattr(kernels, "__file__", str(changed / "__init__.py"))
    assert TileCache(tmp_path, "h200")[QKV] == found
    with (changed / "linear.py").open("a") as file:
        file.write("# another line")
    assert TileCache(tmp_path, "h200")[QKV] != found


def test_a_tile_that_does_not_suit_its_key_is_refused(tmp_path: Path) -> None:
    tiles = TileCache(tmp_path, "h200")
    tiles.store(W13, TileConfig(rows=4, block=512, warps=1, preload=1))
    with pytest.raises(UserError, match=r"swiglu 22016x4096 int8 batch 1: rows=4: expected a multiple of 8"):
        TileCache(tmp_path, "h200")[W13]


def test_a_larger_batch_gets_fewer_rows() -> None:
    rows = [
        default_tile(TileKey("add_linear", 4096, 11008, Int8(), torch.bfloat16, batch, 4)).rows
        for batch in (1, 2, 4, 8)
    ]
    assert rows == [8, 8, 8, 4]


@pytest.mark.gpu
def test_the_fastest_candidate_is_found() -> None:
    """A step that sleeps for all tiles but one. One does not fit."""
    tile_key = TileKey("linear", 4096, 4096, Int8(), torch.bfloat16, batch=1)
    tiles = list(candidates(tile_key))
    best = tiles[3]
    on = torch.device("cuda", 0)
    x = torch.zeros(1, device=on)

    compiled = []

    def compile_with(tile: TileConfig) -> None:
        compiled.append(tile)
        if tile == tiles[1]:
            raise OutOfResources(2**20, 2**16, "shared memory")

    def step_with(tile: TileConfig):
        def run() -> None:
            if tile == tiles[1]:
                raise OutOfResources(2**20, 2**16, "shared memory")
            x.add_(1) if tile == best else torch.cuda._sleep(100_000)

        return run

    assert fastest(tile_key, compile_with, step_with, on) == best
    assert sorted(compiled, key=str) == sorted(tiles, key=str)
    assert fastest(tile_key, compile_with, lambda _: partial(compile_with, tiles[1]), on) is None
