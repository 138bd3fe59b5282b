"""How the linear kernels are cut up: built-in tiles, and better ones, searched once for a kind of device and kept in a
file.

The built-in ones are what was fastest on Hopper GPUs (see docs/log).
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from filelock import FileLock
from triton import OutOfResources

from gptbench import kernels, quant
from gptbench.base.errors import UserError
from gptbench.base.inputs import read_bytes
from gptbench.base.outputs import write_json
from gptbench.device import Device
from gptbench.kernels.launch import compilers
from gptbench.kernels.tile_config import BYTES_PER_WARP, TileConfig, TileKey

REPEATS = 5
"""Timed replays of each candidate, of which the fastest counts."""
MAX_PRELOADED = 96
"""Registers of each thread for weights that are loaded before the program waits."""
MAX_ACCUMULATORS = 32
"""Rows of the tile times rows of the batch."""
EXPECTED = "expected tiles as engine.autotune=true writes them, or no file"
MAX_BYTES = 2**24
"""Of a file of tiles; a tile takes about 150."""
UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
"""How the name of a card ends, but not that of a kind."""


def default_tile(tile_key: TileKey) -> TileConfig:
    """The built-in one; of few rows where the batch has many, each of which takes registers for them."""
    warps, width, high, preload = tile_key.format.cut(tile_key)
    high = min(high, max(2, MAX_ACCUMULATORS // triton.next_power_of_2(tile_key.batch)))
    return fitted(
        TileConfig(max(high, tile_key.multiple), warps * width * warp_columns(tile_key), warps, preload), tile_key
    )


def warp_columns(tile_key: TileKey) -> int:
    """Columns that a warp loads at once."""
    return 8 * BYTES_PER_WARP // tile_key.format.bits(tile_key.dtype)


def fitted(tile: TileConfig, tile_key: TileKey) -> TileConfig:
    """The tile, no wider than the rows."""
    block, warps = tile.block, tile.warps
    while block // 2 >= tile_key.columns and block > warp_columns(tile_key):
        block //= 2
    while warps > 1 and warps * warp_columns(tile_key) > block:
        warps //= 2
    return TileConfig(tile.rows, block, warps, min(tile.preload, -(-tile_key.columns // block)))


def candidates(tile_key: TileKey) -> Iterator[TileConfig]:
    """Tiles worth trying, the built-in one first."""
    seen = {default_tile(tile_key)}
    yield from seen
    for rows in tile_key.format.tile_rows:
        for warps in (2, 4, 8):
            for width in (1, 2):
                block = warps * width * warp_columns(tile_key)
                steps = -(-tile_key.columns // block)
                for preload in sorted({1, 2, steps}):
                    tile = fitted(TileConfig(max(rows, tile_key.multiple), block, warps, preload), tile_key)
                    registers = tile.rows * 4 * width * tile.preload
                    if registers <= MAX_PRELOADED and tile not in seen:
                        seen.add(tile)
                        yield tile


class TileCache:
    """Tiles by use, of one kind of device and one state of the kernels.

    Args:
        folder: where the file is, or will be. Those of other kinds and other states stay as they are.
        kind: name of the kind, as in `gptbench.device.Device.kind`.
        card: name of the one device on which tiles are searched, as in `gptbench.device.Device.key`.

    Attributes:
        found: the tiles, by the text of their use.
        cards: the device on which each was searched, where that is known.

    Raises:
        UserError: the file cannot be read, or holds what is no tile.
    """

    def __init__(self, folder: Path, kind: str, card: str = "") -> None:
        self.path = folder / f"{kind}-{kernels_digest()}.json"
        self.card = card
        self.found: dict[str, TileConfig] = {}
        self.cards: dict[str, str] = {}
        self.read()

    @classmethod
    def of(cls, folder: Path, device: Device) -> "TileCache":
        """Those of a device's kind."""
        return cls(folder, device.kind, device.key)

    def read(self) -> None:
        """Takes over what the files hold."""
        for path in (*self.files_of_single_cards(), self.path):
            if path.exists():
                self.add(path, parsed(path, read_bytes(path, MAX_BYTES)))

    def files_of_single_cards(self) -> list[Path]:
        """Files of cards of this kind, each named after its card's UUID: what a kind's file has goes before them."""
        named = UUID.sub("", self.card)
        if named == self.card:
            return []
        digest = self.path.stem.rpartition("-")[2]
        files = sorted(self.path.parent.glob(f"{named}*-{digest}.json"))
        return [file for file in files if UUID.sub("", file.stem.removesuffix(f"-{digest}")) == named]

    def add(self, path: Path, kept: dict[str, dict[str, Any]]) -> None:
        """Takes over tiles as a file holds them. Raises UserError if one is none."""
        try:
            for tile_key, given in kept.items():
                card = given.get("card", "")
                tile = checked(TileConfig(**{name: value for name, value in given.items() if name != "card"}))
                if not isinstance(card, str):
                    raise ValueError(f"card={card!r} is no name")
                self.found[tile_key], self.cards[tile_key] = tile, card
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {EXPECTED}: {error}") from error

    def keep(self, tile_key: TileKey, tile: TileConfig) -> None:
        """Adds a tile to the file, beside what other processes have added meanwhile."""
        with self.locked():
            self.found[str(tile_key)], self.cards[str(tile_key)] = tile, self.card

    def merge(self, path: Path, content: bytes) -> int:
        """Adds tiles from elsewhere for uses that have none here; returns how many.

        Args:
            path: where they are from, for errors.
            content: a file of tiles.

        Raises:
            UserError: it is none.
        """
        kept = parsed(path, content)
        with self.locked():
            before = dict(self.found), dict(self.cards)
            self.add(path, kept)
            more = len(self.found) - len(before[0])
            self.found |= before[0]
            self.cards |= before[1]
        return more

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Reads the file anew, and writes it afterwards where something was added; no other process does meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self.read()
            before = dict(self.found)
            yield
            if self.found != before:
                write_json(self.path, self.as_json(), sort_keys=True)

    def as_json(self) -> dict[str, dict[str, Any]]:
        """As the file holds them."""
        return {
            tile_key: asdict(tile) | ({"card": card} if (card := self.cards[tile_key]) else {})
            for tile_key, tile in self.found.items()
        }

    def __getitem__(self, tile_key: TileKey) -> TileConfig:
        """What was found for a use, or else the built-in tile.

        Raises:
            UserError: the tile that the file has does not suit the use.
        """
        tile = self.found.get(str(tile_key)) or default_tile(tile_key)
        if tile.rows % tile_key.multiple:
            raise UserError(f"{self.path}: {tile_key}: rows={tile.rows}: expected a multiple of {tile_key.multiple}")
        return tile


def parsed(path: Path, content: bytes) -> dict[str, dict[str, Any]]:
    """A file's tiles, unchecked.

    Raises:
        UserError: it holds no JSON object.
    """
    try:
        kept = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {EXPECTED}: {error}") from error
    if not isinstance(kept, dict):
        raise UserError(f"{path}: {EXPECTED}: not a JSON object")
    return kept


def kernels_digest() -> str:
    """Tells one state of the kernels and of Triton from others, for which other tiles may be the best."""
    digest = hashlib.sha256(triton.__version__.encode())
    for package in (kernels, quant):  # a plugin's format has a digest of its own in its label
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def checked(tile: TileConfig) -> TileConfig:
    """The tile. Raises ValueError if no kernel could be cut up like that."""
    for name, most in (("rows", 128), ("block", 16384), ("warps", 16)):
        value = getattr(tile, name)
        if type(value) is not int or not 1 <= value <= most or value & (value - 1):
            raise ValueError(f"{name}={value!r} is no power of two up to {most}")
    if type(tile.preload) is not int or tile.preload < 0:
        raise ValueError(f"preload={tile.preload!r} is no number of steps")
    return tile


def fastest(
    tile_key: TileKey,
    compile_with: Callable[[TileConfig], None],
    step_with: Callable[[TileConfig], Callable[[], None]],
    device: torch.device,
) -> TileConfig | None:
    """Measures every candidate on a GPU; None if no step could be launched.

    Args:
        use: what the tile is for.
        compile_with: launches the kernels that have the tile, and no other ones: it is called in several threads, and
            Triton must not be asked for the same kernel by two of them.
        step_with: given a tile, what to time: kernels over so many weights that no cache holds them.
    """
    tiles = list(candidates(tile_key))
    with compilers(device) as threads:
        list(threads.map(lambda tile: fits(partial(compile_with, tile)), tiles))
    times: dict[TileConfig, float] = {}
    for tile in (*tiles, *reversed(tiles)):  # twice: the first to be timed was seen to be slower, whatever it was
        if fits(step := step_with(tile)):
            times[tile] = min(times.get(tile, math.inf), seconds(step))
    return min(times, key=lambda tile: times[tile]) if times else None


def fits(launch: Callable[[], None]) -> bool:
    """Whether kernels can be launched: not if one needs more registers or shared memory than there are."""
    try:
        launch()
    except OutOfResources:
        return False
    return True


def seconds(step: Callable[[], None]) -> float:
    """Of the fastest replay as a CUDA graph, once it was launched."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return min(replays(graph))


def replays(graph: torch.cuda.CUDAGraph) -> Iterator[float]:
    """Seconds of each replay, after one that is not timed."""
    graph.replay()
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        yield start.elapsed_time(end) / 1e3
