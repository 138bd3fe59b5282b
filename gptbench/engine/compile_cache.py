"""`gptbench cache`: what was compiled here in one file, for a later start or for another machine of the same kind.

The file is a zip of the folders in which TorchInductor and Triton keep what they compiled, and of the tiles that were
searched. torch's own `save_cache_artifacts` works only in the process that compiled, and leaves out the C++ libraries,
which are most of the time on a CPU. One thing is changed when it is loaded: Triton's groups name their files by whole
paths, which are others elsewhere.

A cache file is code: torch and Triton unpickle and run what lies in their caches. Loading runs nothing of it, the next
compilation does.
"""

import contextlib
import datetime
import json
import os
import platform
import re
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gptbench import __version__
from gptbench.base.errors import UserError
from gptbench.base.inputs import open_regular
from gptbench.config import DeviceConfig
from gptbench.device import Device, cpu_name
from gptbench.engine import caches
from gptbench.private.torch import cache_folder, headers_folder
from gptbench.private.triton import cache_folder as triton_folder
from gptbench.private.triton import group_in, is_group
from gptbench.schema.restore import restored

if TYPE_CHECKING:  # needs Triton, which is not everywhere
    from gptbench.engine.tile_cache import TileCache

FORMAT = 3
MANIFEST, TILES = "manifest.json", "tiles.json"
MAX_FILES = 50_000
"""In a cache file: more than years of use leave."""
MAX_BYTES = 2**33
"""Of a cache file, and of what it holds before compression."""
MAX_JSON_BYTES = 2**20
"""Of the manifest, of the tiles, and of a group of Triton's: each takes a few hundred, or thousand."""
COMPILED = re.compile(r"(inductor|headers|triton)(/(?!\.\.?(/|$))[\w.+-]+)+", re.ASCII)
"""Names in a cache file of what was compiled. None leads out of its folder, on any system."""
UNFINISHED = re.compile(r"/(locks|tmp\.[^/]*)/|\.(lock|tmp)$")
"""Found in names of what a process uses while it compiles."""
LIBRARY = re.compile(r"inductor/(?!triton/).*\.so")
"""Names of what was compiled from C++ for the CPU. Triton's own libraries run on every CPU of the architecture."""
MUST_FIT = ("format", "torch", "triton", "python", "platform", "device")
"""Fields of the manifest that must be the same here; else nothing of the file would be found, or it would not run."""
MAY_DIFFER = {
    "cpu": "C++ is compiled again",
    "torch_folder": "C++ is compiled again",
    "threads": "C++ is found with that number of device.threads only",
    "kernels": "tiles, and kernels that have changed, are of no use",
}
"""What comes of it where others differ; all but the last only if C++ was compiled."""
DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""What reading a zip raises if it is none, or is damaged, encrypted, or compressed in another way."""


@dataclass(frozen=True)
class Manifest:
    """Where a file comes from, and what it holds."""

    format: int
    saved: str
    """When, in UTC."""
    gptbench: str
    torch: str
    triton: str | None
    python: str
    platform: str
    """Operating system and architecture."""
    device: str
    """The GPU and its compute capability, or the CPU."""
    cpu: str
    """The CPU, and the instruction set that torch uses on it."""
    threads: int
    """CPU threads of one operation. C++ code is compiled for one number of them."""
    torch_folder: str
    """Where torch is installed. Part of the name of what was compiled from C++."""
    kernels: str | None
    """State of gptbench's kernels that the tiles belong to; None without Triton."""
    files: int = 0
    bytes: int = 0
    """Before compression."""


class Place:
    """This machine, as far as compiled code depends on it.

    Args:
        outputs: folder that holds `tiles`.

    Raises:
        UserError: the folder of TorchInductor's cache cannot be used.

    Attributes:
        folders: where compiled code lies, by the name that it has in a file, and tiles.
        device: one of this machine, for all of its kind.
    """

    def __init__(self, outputs: Path) -> None:
        if (lacks := caches.lacking(caches.FOLDER, caches.inductor_folder)) is not None:
            raise UserError(f"gptbench cache needs {lacks}")
        self.device = Device(DeviceConfig(_target_="gptbench.device.Device", name="auto"))
        self.folders = {"inductor": cache_folder(), "headers": headers_folder()}
        triton = kernels = None
        with contextlib.suppress(ImportError):  # not on every platform
            import triton as package

            from gptbench.engine.tile_cache import kernels_digest

            triton, kernels = package.__version__, kernels_digest()
            self.folders |= {"triton": triton_folder(), "tiles": outputs / "tiles"}
        name = self.device.name
        if self.device.is_cuda:
            name += ", compute capability {}.{}".format(*torch.cuda.get_device_capability(self.device.torch))
        self.manifest = Manifest(
            format=FORMAT,
            saved=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            gptbench=__version__,
            torch=torch.__version__,
            triton=triton,
            python=".".join(platform.python_version_tuple()[:2]),
            platform=f"{platform.system()} {platform.machine()}",
            device=name,
            cpu=f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
            threads=torch.get_num_threads(),
            torch_folder=str(Path(torch.__file__).parent),
            kernels=kernels,
        )

    def tiles(self) -> "TileCache":
        """What was found for this kind of device; of a machine with Triton."""
        from gptbench.engine.tile_cache import TileCache

        return TileCache.of(self.folders["tiles"], self.device)


def save(file: Path, outputs: Path) -> Manifest:
    """Writes a cache file, all of it or none.

    Args:
        outputs: folder that holds `tiles`.

    Raises:
        UserError: the file is there already or cannot be written, or there is nothing to save, or too much.
    """
    if file.exists():
        raise UserError(f"{file}: is there already; remove it, or choose another name")
    place = Place(outputs)
    members = compiled(place)
    tiles = place.tiles().as_json() if "tiles" in place.folders else {}
    if not members and not tiles:
        looked = ", ".join(str(folder) for name, folder in place.folders.items() if name != "headers")
        raise UserError(f"nothing to save: nothing was compiled or tuned yet in {looked}")
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with zipfile.ZipFile(new, "x", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            for name, path in members.items():
                with contextlib.suppress(FileNotFoundError):  # another process tidied up meanwhile
                    archive.write(path, name)
            if tiles:
                archive.writestr(TILES, json.dumps(tiles))
            held = archive.infolist()
            manifest = replace(place.manifest, files=len(held), bytes=sum(member.file_size for member in held))
            archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=1))
            require_bounded(file, archive)
        new.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # as where its folder is none
            new.unlink(missing_ok=True)
    return manifest


def compiled(place: Place) -> dict[str, Path]:
    """Path, by name in the file, of all that was compiled.

    Even where all libraries are found, torch 2.13 compiles its header for C++ if it is not there, for 10 s. It looks
    for it in one folder only, whose other headers belong to other installations.
    """
    found: dict[Path, str] = {}
    # One folder may lie in another: what lies in both is of the inner one, which has more parts.
    for top, folder in sorted(place.folders.items(), key=lambda item: len(item[1].resolve().parts)):
        for path in (Path(inner, name) for inner, _, names in os.walk(folder) for name in names):
            if path.is_file() and not path.is_symlink():
                found[path.resolve()] = f"{top}/{path.relative_to(folder).as_posix()}"
    members = {name: path for path, name in found.items() if COMPILED.fullmatch(name) and not UNFINISHED.search(name)}
    ours = f"{place.manifest.torch_folder}/".encode() if any(map(LIBRARY.fullmatch, members)) else None
    for name, path in list(members.items()):
        if name.startswith("headers/") and (ours is None or (path.suffix != ".h" and ours not in path.read_bytes())):
            del members[name]
    return members


def require_bounded(file: Path, archive: zipfile.ZipFile) -> None:
    """Raises UserError where a cache file, or a part of it that is parsed, holds more than is loaded."""
    sizes = [(member.filename, member.file_size) for member in archive.infolist()]
    size = sum(size for _, size in sizes)
    limits = [("", len(sizes), MAX_FILES, "files"), ("", size, MAX_BYTES, "bytes unpacked")]
    parsed = [(name, size) for name, size in sizes if name in (MANIFEST, TILES) or is_group(name)]
    limits += [(f"{name}: ", size, MAX_JSON_BYTES, "bytes") for name, size in parsed]
    for name, number, most, of in limits:
        if number > most:
            raise UserError(f"{file}: {name}{number:,} {of}: expected {most:,} at most")


@dataclass
class Loaded:
    """What came of a cache file."""

    manifest: Manifest
    added: dict[str, int]
    """Files by what they are; of tiles, how many of them."""
    kept: int
    """Files that were here already, and stay as they are."""
    notes: list[str]
    """What will not be found although it was loaded, and why."""


def load(file: Path, place: Place) -> Loaded:
    """Adds to this machine's caches what a cache file holds.

    Raises:
        UserError: it is no cache file, is damaged, was made for another machine or by other versions, or wants to
            write where it must not; then nothing is written. Or the caches cannot be written.
    """
    try:
        with open_regular(file, MAX_BYTES) as content, zipfile.ZipFile(content) as archive:
            require_bounded(file, archive)
            manifest = read_manifest(file, archive.read(MANIFEST), place.manifest)
            for name in archive.namelist():
                if not COMPILED.fullmatch(name) and name not in (MANIFEST, TILES):
                    raise UserError(f"{file}: {name!r}: expected files in the caches' folders only")
            if (bad := archive.testzip()) is not None:
                raise UserError(f"{file}: is damaged: {bad}")
            try:
                return add(file, archive, manifest, place)
            except OSError as error:
                raise UserError(f"the caches cannot be written: {error}") from error
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{file}: expected what `gptbench cache save` writes, undamaged: {error}") from error


def read_manifest(file: Path, content: bytes, here: Manifest) -> Manifest:
    """Raises UserError if it is none, or if compiled code from there would not be found here, or would not run."""
    told = json.loads(content)
    there = told if isinstance(told, dict) else {}
    wrong = [
        f"{file}: {name}={there.get(name)}: expected {getattr(here, name)}, as on this machine"
        for name in MUST_FIT
        if there.get(name) != getattr(here, name)
    ]
    if wrong:
        raise UserError("\n".join(wrong))
    return restored(Manifest, told, f"{file}: {MANIFEST}")


def add(file: Path, archive: zipfile.ZipFile, manifest: Manifest, place: Place) -> Loaded:
    """Writes what is not here yet: groups last, so that none is ever there before its files."""
    names = [name for name in archive.namelist() if name not in (MANIFEST, TILES)]
    here, loaded, cpp = place.manifest, Loaded(manifest, {}, 0, []), any(map(LIBRARY.fullmatch, names))
    for name, effect in MAY_DIFFER.items():
        if (then := getattr(manifest, name)) != (now := getattr(here, name)) and (cpp or name == "kernels"):
            loaded.notes.append(f"{name}={then} there, {now} here: {effect}")
    if TILES in archive.namelist() and "tiles" in place.folders and manifest.kernels == here.kernels:
        added = place.tiles().merge(file / TILES, archive.read(TILES))
        loaded.added |= {"tiles": added} if added else {}
    for name in sorted(names, key=is_group):
        top, _, below = name.partition("/")
        if top not in place.folders or (LIBRARY.fullmatch(name) and manifest.cpu != here.cpu):
            continue  # it may use instructions that are not here
        target = place.folders[top] / below
        if target.exists():
            loaded.kept += 1
            continue
        content = group_in(target.parent, archive.read(name)) if is_group(name) else archive.read(name)
        if content is None:
            continue  # Triton would look for what is not there
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            new.write_bytes(content)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        loaded.added[top] = loaded.added.get(top, 0) + 1
    return loaded
