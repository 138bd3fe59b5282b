"""Tiles of the linear kernels: the built-in ones, and autotuned ones, kept in a file for each kind of device.

The built-in tiles were the fastest on Hopper GPUs (see docs/log).
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
"""Timed replays of each candidate; the fastest counts."""
MAX_PRELOADED = 96
"""Maximum registers per thread for weights that are prefetched before the PDL wait."""
MAX_ACCUMULATORS = 32
"""Maximum of rows of the tile times rows of the batch."""
EXPECTED = "expected tiles as engine.autotune=true writes them, or no file"
MAX_BYTES = 2**24
"""Maximum bytes of a tile file; a tile takes about 150."""
UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
"""Suffix of the name of a single GPU, which the name of a kind lacks."""


def default_tile(tile_key: TileKey) -> TileConfig:
    """Return the built-in tile of a key. Large batches get few rows, as each row of the batch takes registers for
    them."""
    warps, width, rows, preload = tile_key.format.tile_hint(tile_key)
    rows = min(rows, max(2, MAX_ACCUMULATORS // triton.next_power_of_2(tile_key.batch)))
    return shrink_to_fit(
        TileConfig(max(rows, tile_key.multiple), warps * width * warp_columns(tile_key), warps, preload), tile_key
    )


def warp_columns(tile_key: TileKey) -> int:
    """Return the columns that a warp loads at once."""
    return 8 * BYTES_PER_WARP // tile_key.format.bits(tile_key.dtype)


def shrink_to_fit(tile: TileConfig, tile_key: TileKey) -> TileConfig:
    """Return the tile, shrunk to be no wider than the rows."""
    block, warps = tile.block, tile.warps
    while block // 2 >= tile_key.columns and block > warp_columns(tile_key):
        block //= 2
    while warps > 1 and warps * warp_columns(tile_key) > block:
        warps //= 2
    return TileConfig(tile.rows, block, warps, min(tile.preload, -(-tile_key.columns // block)))


def candidates(tile_key: TileKey) -> Iterator[TileConfig]:
    """Yield the tiles to try, the built-in one first."""
    seen = {default_tile(tile_key)}
    yield from seen
    for rows in tile_key.format.tile_rows:
        for warps in (2, 4, 8):
            for width in (1, 2):
                block = warps * width * warp_columns(tile_key)
                steps = -(-tile_key.columns // block)
                for preload in sorted({1, 2, steps}):
                    tile = shrink_to_fit(TileConfig(max(rows, tile_key.multiple), block, warps, preload), tile_key)
                    registers = tile.rows * 4 * width * tile.preload
                    if registers <= MAX_PRELOADED and tile not in seen:
                        seen.add(tile)
                        yield tile


class TileCache:
    """Autotuned tiles by key, for one kind of device and one version of the kernels.

    Args:
        folder: folder of the tile file. Files of other kinds and versions are left alone.
        kind: name of the kind of device, as in `gptbench.device.Device.kind`.
        card: name of the individual device on which tiles are tuned, as in `gptbench.device.Device.key`.

    Attributes:
        configs: tiles, by the string of their key.
        cards: device on which each tile was tuned, if known.

    Raises:
        UserError: the file cannot be read, or does not hold tiles.
    """

    def __init__(self, folder: Path, kind: str, card: str = "") -> None:
        self.path = folder / f"{kind}-{kernels_digest()}.json"
        self.card = card
        self.configs: dict[str, TileConfig] = {}
        self.cards: dict[str, str] = {}
        self.read()

    @classmethod
    def of(cls, folder: Path, device: Device) -> "TileCache":
        """Return the tile cache of a device's kind."""
        return cls(folder, device.kind, device.key)

    def read(self) -> None:
        """Read the tiles of the files."""
        for path in (*self.files_of_single_cards(), self.path):
            if path.exists():
                self.add(path, parse(path, read_bytes(path, MAX_BYTES)))

    def files_of_single_cards(self) -> list[Path]:
        """Return the files of single GPUs of this kind, named after their UUIDs; tiles in the kind's file take
        precedence."""
        named = UUID.sub("", self.card)
        if named == self.card:
            return []
        digest = self.path.stem.rpartition("-")[2]
        files = sorted(self.path.parent.glob(f"{named}*-{digest}.json"))
        return [file for file in files if UUID.sub("", file.stem.removesuffix(f"-{digest}")) == named]

    def add(self, path: Path, entries: dict[str, dict[str, Any]]) -> None:
        """Add tiles as a file holds them. Raises UserError if one is invalid."""
        try:
            for tile_key, entry in entries.items():
                card = entry.get("card", "")
                tile = validated(TileConfig(**{name: value for name, value in entry.items() if name != "card"}))
                if not isinstance(card, str):
                    raise ValueError(f"card={card!r} is no name")
                self.configs[tile_key], self.cards[tile_key] = tile, card
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {EXPECTED}: {error}") from error

    def store(self, tile_key: TileKey, tile: TileConfig) -> None:
        """Add a tile to the file, and keep what other processes added meanwhile."""
        with self.locked():
            self.configs[str(tile_key)], self.cards[str(tile_key)] = tile, self.card

    def merge(self, path: Path, content: bytes) -> int:
        """Add tiles from elsewhere for keys that have none here; return how many were added.

        Args:
            path: source of the tiles, for errors.
            content: content of a tile file.

        Raises:
            UserError: the content is not a tile file.
        """
        entries = parse(path, content)
        with self.locked():
            before = dict(self.configs), dict(self.cards)
            self.add(path, entries)
            added = len(self.configs) - len(before[0])
            self.configs |= before[0]
            self.cards |= before[1]
        return added

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context, exclusive among processes, that reads the file and afterwards writes it if something was added."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self.read()
            before = dict(self.configs)
            yield
            if self.configs != before:
                write_json(self.path, self.as_json(), sort_keys=True)

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return the tiles as the file holds them."""
        return {
            tile_key: asdict(tile) | ({"card": card} if (card := self.cards[tile_key]) else {})
            for tile_key, tile in self.configs.items()
        }

    def __getitem__(self, tile_key: TileKey) -> TileConfig:
        """Return the autotuned tile of a key, or else the built-in one.

        Raises:
            UserError: the file's tile does not suit the key.
        """
        tile = self.configs.get(str(tile_key)) or default_tile(tile_key)
        if tile.rows % tile_key.multiple:
            raise UserError(f"{self.path}: {tile_key}: rows={tile.rows}: expected a multiple of {tile_key.multiple}")
        return tile


def parse(path: Path, content: bytes) -> dict[str, dict[str, Any]]:
    """Return a file's tiles, not validated.

    Raises:
        UserError: the content is not a JSON object.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {EXPECTED}: {error}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path}: {EXPECTED}: not a JSON object")
    return entries


def kernels_digest() -> str:
    """Return a digest of the kernels' source and Triton's version: another version may have other best tiles."""
    digest = hashlib.sha256(triton.__version__.encode())
    for package in (kernels, quant):  # a plugin's format has a digest in its label
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def validated(tile: TileConfig) -> TileConfig:
    """Return the tile. Raises ValueError if no kernel could be launched with it."""
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
    """Measure every candidate on a GPU and return the fastest; None if none could be launched.

    Args:
        tile_key: key of the tile.
        compile_with: launches only the kernels that have the tile. It is called in several threads, and two of them
            must not ask Triton for the same kernel.
        step_with: returns the function to time with a tile: kernels over so many weights that no cache holds them.
    """
    tiles = list(candidates(tile_key))
    with compilers(device) as threads:
        list(threads.map(lambda tile: can_launch(partial(compile_with, tile)), tiles))
    times: dict[TileConfig, float] = {}
    for tile in (*tiles, *reversed(tiles)):  # twice: the first one timed was seen to be slower, whichever it was
        if can_launch(step := step_with(tile)):
            times[tile] = min(times.get(tile, math.inf), fastest_replay(step))
    return min(times, key=lambda tile: times[tile]) if times else None


def can_launch(launch: Callable[[], None]) -> bool:
    """Return whether kernels can be launched, rather than need more registers or shared memory than the device has."""
    try:
        launch()
    except OutOfResources:
        return False
    return True


def fastest_replay(step: Callable[[], None]) -> float:
    """Return the seconds of the fastest replay of a step as a CUDA graph. The step must have been launched before."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return min(replay_times(graph))


def replay_times(graph: torch.cuda.CUDAGraph) -> Iterator[float]:
    """Yield the seconds of each replay, after one warm-up replay."""
    graph.replay()
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        yield start.elapsed_time(end) / 1e3
