"""`gptbench cache`: what was compiled here, in one file, for a later start or for another machine of the same kind.

The file is a zip of the folders in which TorchInductor and Triton keep compiled code, and of the autotuned tiles.
torch's `save_cache_artifacts` works only in the process that compiled, and leaves out the C++ libraries, which take
most of the time on a CPU. One thing changes on loading: Triton's groups name their files by absolute paths, which
differ elsewhere.

A cache file is code: torch and Triton unpickle and run what is in their caches. Loading runs nothing of it, but the
next compilation does.
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
"""Maximum number of files in a cache file: more than years of use leave."""
MAX_BYTES = 2**33
"""Maximum bytes of a cache file, packed and unpacked."""
MAX_JSON_BYTES = 2**20
"""Maximum bytes of the manifest, of the tiles, and of a Triton group: each takes a few hundred or thousand."""
COMPILED = re.compile(r"(inductor|headers|triton)(/(?!\.\.?(/|$))[\w.+-]+)+", re.ASCII)
"""Names of compiled files in a cache file. None leads out of its folder, on any system."""
UNFINISHED = re.compile(r"/(locks|tmp\.[^/]*)/|\.(lock|tmp)$")
"""Matches names of files that a process uses only while it compiles."""
LIBRARY = re.compile(r"inductor/(?!triton/).*\.so")
"""Names of libraries compiled from C++ for the CPU. Triton's libraries run on every CPU of the architecture."""
MUST_MATCH = ("format", "torch", "triton", "python", "platform", "device")
"""Fields of the manifest that must match this machine; otherwise nothing of the file would be found, or run."""
MAY_DIFFER = {
    "cpu": "C++ is compiled again",
    "torch_folder": "C++ is compiled again",
    "threads": "compiled C++ is found only with that number of device.threads",
    "kernels": "tiles, and kernels that have changed, are not used",
}
"""Consequences if other fields differ; all but the last matter only if C++ was compiled."""
DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""Errors that reading a zip raises if the file is no zip, or is damaged, encrypted, or compressed in another way."""


@dataclass(frozen=True)
class Manifest:
    """Origin and content of a cache file."""

    format: int
    saved: str
    """Time of saving, in UTC."""
    gptbench: str
    torch: str
    triton: str | None
    python: str
    platform: str
    """Operating system and architecture."""
    device: str
    """GPU and its compute capability, or CPU."""
    cpu: str
    """CPU, and the instruction set that torch uses on it."""
    threads: int
    """CPU threads per operation. C++ code is compiled for one number of them."""
    torch_folder: str
    """Folder of torch, which is part of the key of what is compiled from C++."""
    kernels: str | None
    """Digest of gptbench's kernels, to which the tiles belong; None without Triton."""
    files: int = 0
    bytes: int = 0
    """Bytes before compression."""


class LocalCaches:
    """The caches of this machine, and what its compiled code depends on.

    Args:
        outputs: folder that holds `tiles`.

    Raises:
        UserError: the folder of TorchInductor's cache cannot be used.

    Attributes:
        folders: folders of compiled code and tiles, by their names in a cache file.
        device: a device of this machine, which stands for all of its kind.
        manifest: manifest of a file that is saved here.
    """

    def __init__(self, outputs: Path) -> None:
        if (requirement := caches.missing_folder(caches.INDUCTOR_VARIABLE, caches.inductor_folder)) is not None:
            raise UserError(f"gptbench cache needs {requirement}")
        self.device = Device(DeviceConfig(_target_="gptbench.device.Device", name="auto"))
        self.folders = {"inductor": cache_folder(), "headers": headers_folder()}
        triton = kernels = None
        with contextlib.suppress(ImportError):  # not available on every platform
            import triton as triton_package

            from gptbench.engine.tile_cache import kernels_digest

            triton, kernels = triton_package.__version__, kernels_digest()
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
        """Return the tile cache of this kind of device. Requires Triton."""
        from gptbench.engine.tile_cache import TileCache

        return TileCache.of(self.folders["tiles"], self.device)


def save(file: Path, outputs: Path) -> Manifest:
    """Write a cache file, all or nothing.

    Args:
        file: path of the cache file.
        outputs: folder that holds `tiles`.

    Raises:
        UserError: the file exists already or cannot be written, or there is nothing to save, or too much.
    """
    if file.exists():
        raise UserError(f"{file} exists already: remove it, or choose another name")
    local = LocalCaches(outputs)
    members = compiled_files(local)
    tiles = local.tiles().as_json() if "tiles" in local.folders else {}
    if not members and not tiles:
        folders = ", ".join(str(folder) for name, folder in local.folders.items() if name != "headers")
        raise UserError(f"nothing to save: nothing was compiled or tuned yet in {folders}")
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with zipfile.ZipFile(new, "x", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            for name, path in members.items():
                with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                    archive.write(path, name)
            if tiles:
                archive.writestr(TILES, json.dumps(tiles))
            entries = archive.infolist()
            manifest = replace(local.manifest, files=len(entries), bytes=sum(entry.file_size for entry in entries))
            archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=1))
            check_bounds(file, archive)
        new.replace(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # for example if its folder does not exist
            new.unlink(missing_ok=True)
    return manifest


def compiled_files(local: LocalCaches) -> dict[str, Path]:
    """Return the path of each compiled file, by its name in the cache file.

    Even where all libraries are found, torch 2.13 compiles its C++ header, for 10 s, if that is missing. It looks for
    it in one folder only, whose other headers belong to other installations.
    """
    names_by_path: dict[Path, str] = {}
    # One folder may be inside another: files in both belong to the inner one, whose path has more parts.
    for top, folder in sorted(local.folders.items(), key=lambda item: len(item[1].resolve().parts)):
        for path in (Path(inner, name) for inner, _, names in os.walk(folder) for name in names):
            if path.is_file() and not path.is_symlink():
                names_by_path[path.resolve()] = f"{top}/{path.relative_to(folder).as_posix()}"
    members = {
        name: path for path, name in names_by_path.items() if COMPILED.fullmatch(name) and not UNFINISHED.search(name)
    }
    torch_prefix = f"{local.manifest.torch_folder}/".encode() if any(map(LIBRARY.fullmatch, members)) else None
    for name, path in list(members.items()):
        if name.startswith("headers/") and (
            torch_prefix is None or (path.suffix != ".h" and torch_prefix not in path.read_bytes())
        ):
            del members[name]
    return members


def check_bounds(file: Path, archive: zipfile.ZipFile) -> None:
    """Raise UserError if a cache file, or a part of it that is parsed, exceeds its limits."""
    sizes = [(member.filename, member.file_size) for member in archive.infolist()]
    size = sum(size for _, size in sizes)
    limits = [("", len(sizes), MAX_FILES, "files"), ("", size, MAX_BYTES, "bytes unpacked")]
    parsed = [(name, size) for name, size in sizes if name in (MANIFEST, TILES) or is_group(name)]
    limits += [(f"{name}: ", size, MAX_JSON_BYTES, "bytes") for name, size in parsed]
    for name, number, maximum, unit in limits:
        if number > maximum:
            raise UserError(f"{file}: {name}{number:,} {unit}: expected {maximum:,} at most")


@dataclass
class LoadResult:
    """Result of loading a cache file."""

    manifest: Manifest
    added: dict[str, int]
    """Number of added files by folder; for `tiles`, number of added tiles."""
    kept: int
    """Number of files that existed here already, and were left alone."""
    skipped: int
    """Number of files that were not written because they are of no use here: libraries for another CPU, tiles for other
    kernels, incomplete groups of Triton, and everything of Triton where it is not installed."""
    notes: list[str]
    """What will not be used although it was loaded, and why."""


def load(file: Path, local: LocalCaches) -> LoadResult:
    """Add the content of a cache file to this machine's caches.

    Raises:
        UserError: the file is no cache file, is damaged, was made for another machine or by other versions, or would
            write outside the caches; then nothing is written. Or the caches cannot be written.
    """
    try:
        with open_regular(file, MAX_BYTES) as content, zipfile.ZipFile(content) as archive:
            check_bounds(file, archive)
            manifest = read_manifest(file, archive.read(MANIFEST), local.manifest)
            for name in archive.namelist():
                if not COMPILED.fullmatch(name) and name not in (MANIFEST, TILES):
                    raise UserError(f"{file}: {name!r}: expected files in the caches' folders only")
                if UNFINISHED.search(name):
                    raise UserError(f"{file}: {name!r}: expected finished files, and no locks or temporary ones")
            if (bad := archive.testzip()) is not None:
                raise UserError(f"{file} is damaged: {bad}")
            try:
                return add(file, archive, manifest, local)
            except OSError as error:
                raise UserError(f"the caches cannot be written: {error}") from error
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{file}: expected what `gptbench cache save` writes, undamaged: {error}") from error


def read_manifest(file: Path, content: bytes, here: Manifest) -> Manifest:
    """Return a file's manifest. Raises UserError if it is invalid, or if its compiled code would not be found or run
    here."""
    manifest_json = json.loads(content)
    there = manifest_json if isinstance(manifest_json, dict) else {}
    wrong = [
        f"{file}: {name}={there.get(name)}: expected {getattr(here, name)}, as on this machine"
        for name in MUST_MATCH
        if there.get(name) != getattr(here, name)
    ]
    if wrong:
        raise UserError("\n".join(wrong))
    return restored(Manifest, manifest_json, f"{file}: {MANIFEST}")


def add(file: Path, archive: zipfile.ZipFile, manifest: Manifest, local: LocalCaches) -> LoadResult:
    """Write what is not here yet. Groups come last, so that none exists before its files."""
    names = [name for name in archive.namelist() if name not in (MANIFEST, TILES)]
    here, loaded, cpp = local.manifest, LoadResult(manifest, {}, 0, 0, []), any(map(LIBRARY.fullmatch, names))
    for name, effect in MAY_DIFFER.items():
        if (then := getattr(manifest, name)) != (now := getattr(here, name)) and (cpp or name == "kernels"):
            loaded.notes.append(f"{name}={then} there, {now} here: {effect}")
    if TILES in archive.namelist():
        if "tiles" in local.folders and manifest.kernels == here.kernels:
            added = local.tiles().merge(file / TILES, archive.read(TILES))
            loaded.added |= {"tiles": added} if added else {}
        else:
            loaded.skipped += 1
    for name in sorted(names, key=is_group):
        top, _, below = name.partition("/")
        if top not in local.folders or (LIBRARY.fullmatch(name) and manifest.cpu != here.cpu):
            loaded.skipped += 1  # it may use instructions that this CPU lacks
            continue
        target = local.folders[top] / below
        if target.exists():
            loaded.kept += 1
            continue
        content = group_in(target.parent, archive.read(name)) if is_group(name) else archive.read(name)
        if content is None:
            loaded.skipped += 1  # Triton would look for files that do not exist
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            new.write_bytes(content)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        loaded.added[top] = loaded.added.get(top, 0) + 1
    return loaded
