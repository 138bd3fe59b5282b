"""The tiles that were found for a device: searched once, kept in a file, used from then on."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from triton.runtime.errors import TritonError

from gptbench.errors import UserError
from gptbench.kernels.linear import Tile
from gptbench.kernels.tiles import candidates, default_tile

REPEATS = 5
"""Timed replays of each candidate, of which the fastest counts."""
COMPILERS = 16
"""Candidates that are compiled at the same time."""


@dataclass(frozen=True)
class Use:
    """What a tile is for. Its text is the key in the file."""

    kernel: str
    rows: int
    columns: int
    dtype: torch.dtype
    batch: int
    written: int
    """Rows of the weight that become one number of an `Activation`, or 1."""

    @classmethod
    def of(cls, kernel: Callable[..., None], weight: Tensor, batch: int, written: int = 1) -> "Use":
        rows, columns = weight.shape[-2:]
        return cls(kernel.__name__, rows, columns, weight.dtype, batch, written)

    @property
    def multiple(self) -> int:
        """What the tile's rows must be a multiple of: in fixed point, four numbers are written at once."""
        return self.written * 4 if self.dtype == torch.int8 else self.written

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kernel} {self.rows}x{self.columns} {dtype} batch {self.batch}"


class Tiles:
    """Tiles by use, of one device.

    Args:
        folder: where the file is, or will be.
        device: its name, as in `gptbench.device.Device.key`.

    Raises:
        UserError: the file cannot be read, or holds what is no tile.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.path = folder / f"{device}.json"
        self.found = self.read()

    def read(self) -> dict[str, Tile]:
        """What is kept."""
        if not self.path.exists():
            return {}
        try:
            return {use: checked(Tile(**tile)) for use, tile in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path}: expected tiles as engine.tune=true writes them, or no file: {error}"
            ) from error

    def keep(self, use: Use, tile: Tile) -> None:
        """Adds a tile to the file, beside what other processes have added meanwhile."""
        self.found[str(use)] = tile
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            kept = {name: asdict(one) for name, one in (self.read() | {str(use): tile}).items()}
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(kept, indent=1, sort_keys=True))
            new.replace(self.path)

    def __getitem__(self, use: Use) -> Tile:
        """What was found for a use, or else the built-in tile."""
        return self.found.get(str(use)) or default_tile(use.rows, use.columns, use.dtype, use.multiple)


def checked(tile: Tile) -> Tile:
    """The tile. Raises ValueError if no kernel could be cut up like that."""
    for name in ("rows", "block", "warps"):
        value = getattr(tile, name)
        if not isinstance(value, int) or value < 1 or value & (value - 1):
            raise ValueError(f"{name}={value!r} is no power of two")
    if not isinstance(tile.preload, int) or tile.preload < 0:
        raise ValueError(f"preload={tile.preload!r} is no number of steps")
    return tile


def fastest(use: Use, launch_with: Callable[[Tile], Callable[[], None]]) -> Tile:
    """Measures every candidate on a GPU.

    Args:
        use: what the tile is for.
        launch_with: given a tile, what to time: launches over so many weights that no cache holds them.
    """
    tiles = [default_tile(use.rows, use.columns, use.dtype, use.multiple)]
    tiles += candidates(use.columns, use.dtype, use.multiple)
    with ThreadPoolExecutor(COMPILERS) as threads:
        launches = list(threads.map(lambda tile: compiled(launch_with(tile)), tiles))
    torch.cuda.synchronize()
    times = {tile: seconds(launch) for tile, launch in zip(tiles, launches, strict=True) if launch is not None}
    return min(times, key=lambda tile: times[tile])


def compiled(launch: Callable[[], None]) -> Callable[[], None] | None:
    """The launch, run once; None if it needs more registers or shared memory than there are."""
    try:
        launch()
    except TritonError:
        return None
    return launch


def seconds(launch: Callable[[], None]) -> float:
    """Of the fastest replay as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
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
