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
import mmap
import os
import platform
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from gptbench import __version__
from gptbench.base.errors import InputError, UserError
from gptbench.base.inputs import open_regular
from gptbench.config import DeviceConfig
from gptbench.device import Device
from gptbench.engine import caches
from gptbench.private.torch import cache_folder, headers_folder
from gptbench.private.triton import cache_folder as triton_folder
from gptbench.private.triton import children_of, group_of, is_group
from gptbench.schema.restore import restored

if TYPE_CHECKING:  # needs Triton, which is not everywhere
    from gptbench.engine.tiles import Tiles

FORMAT = 2
MANIFEST, TILES = "manifest.json", "tiles.json"
MAX_FILES = 50_000
"""Of a cache file: more than years of use leave."""
MAX_JSON_BYTES = 2**20
"""Of the manifest, of the tiles, and of a group of Triton's: each takes a few hundred, or thousand."""
MAX_RATIO = 200
"""Between the size of files and their compressed size; compiled code has 3 to 10."""
END = struct.Struct("<4s6xHI")
"""Of the record with which a zip ends: how many files it lists, and in how many bytes."""
END_BYTES = 2**16 + 22
"""That record begins within so many from the end."""
MUST_FIT = ("torch", "triton", "python", "platform", "device")
"""What must be the same on both machines; else nothing of the file would be found, or it would not run."""
DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""What reading a zip raises if it is none, or is damaged, encrypted, or compressed in another way."""
INSTRUCTION_SETS = ("sse", "ssse", "avx", "amx", "fma", "bmi", "f16c", "gfni", "asimd", "sve", "sme", "bf16", "i8mm")
"""How the kernel's names of those begin which a compiler uses for numbers."""


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
    instructions: str
    """Instruction sets of the CPU, as far as the system tells them; joined by spaces."""
    threads: int
    """CPU threads of one operation. C++ code is compiled for one number of them."""
    torch_folder: str
    """Where torch is installed. Part of the name of what was compiled from C++."""
    kernels: str | None
    """State of gptbench's kernels that the tiles belong to; None without Triton."""
    cpp: bool = False
    """Whether it holds libraries that were compiled from C++ for that CPU."""
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

            from gptbench.engine.tiles import kernels_digest

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
            instructions=" ".join(instruction_sets()),
            threads=torch.get_num_threads(),
            torch_folder=str(Path(torch.__file__).parent),
            kernels=kernels,
        )

    def tiles(self) -> "Tiles":
        """What was found for this kind of device; of a machine with Triton."""
        from gptbench.engine.tiles import Tiles

        return Tiles.of(self.folders["tiles"], self.device)


def instruction_sets(info: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Of the first processor; none where the system does not tell."""
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)  # x86, Arm
    return sorted(flag for flag in set(found[1].split()) if flag.startswith(INSTRUCTION_SETS)) if found else []


def save(file: Path, outputs: Path) -> Manifest:
    """Writes a cache file, all of it or none.

    Args:
        outputs: folder that holds `tiles`.

    Raises:
        UserError: the file is there already or cannot be written, or there is nothing to save.
    """
    if file.exists():
        raise UserError(f"{file}: is there already; remove it, or choose another name")
    place = Place(outputs)
    members = dict(compiled(place))
    tiles = place.tiles().as_json() if "tiles" in place.folders else {}
    if len(members) > MAX_FILES:
        raise UserError(
            f"{file}: the caches hold {len(members)} files, and at most {MAX_FILES} can be loaded: empty them"
        )
    if not members and not tiles:
        looked = ", ".join(str(folder) for name, folder in place.folders.items() if name != "headers")
        raise UserError(f"nothing to save: nothing was compiled or tuned yet in {looked}")
    if cpp := any(map(is_library, members)):
        members |= {f"headers/{path.name}": path for path in precompiled_headers(place)}
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with zipfile.ZipFile(new, "x", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            for name, path in members.items():
                with contextlib.suppress(FileNotFoundError):  # another process tidied up meanwhile
                    archive.write(path, name)
            if tiles:
                archive.writestr(TILES, json.dumps(tiles))
            held = archive.infolist()
            size = sum(member.file_size for member in held)
            told = asdict(place.manifest) | {"cpp": cpp, "files": len(held), "bytes": size}
            archive.writestr(MANIFEST, json.dumps(told, indent=1))
        new.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # as where its folder is none
            new.unlink(missing_ok=True)
    return Manifest(**told)


def compiled(place: Place) -> Iterator[tuple[str, Path]]:
    """Name in the file, and path, of all that was compiled."""
    apart = {folder.resolve() for folder in place.folders.values()}  # one folder may lie in another
    for name in ("inductor", "triton"):
        if (top := place.folders.get(name)) is None:
            continue
        for folder, inner, files in os.walk(top):
            inner[:] = (one for one in inner if one != "locks" and not one.startswith("tmp."))
            inner[:] = (one for one in inner if Path(folder, one).resolve() not in apart)
            for path in (Path(folder, one) for one in files):
                if path.suffix not in (".lock", ".tmp") and path.is_file() and not path.is_symlink():
                    yield f"{name}/{path.relative_to(top).as_posix()}", path


def precompiled_headers(place: Place) -> Iterator[Path]:
    """Of this torch. Even where all libraries are found, torch 2.13 compiles its header if it is not there, for 10 s,
    and it looks for it in one folder only, whose other headers belong to other installations."""
    ours = re.compile(rb"(?<![\w./-])" + re.escape(f"{place.manifest.torch_folder}/".encode()))
    for header in sorted(place.folders["headers"].glob("*.h")):
        for path in header.parent.glob(f"{header.name}.?ch"):
            with (
                contextlib.suppress(OSError, ValueError),  # ValueError: the file is empty
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                if ours.search(content):
                    yield from (header, path)


def is_library(name: str) -> bool:
    """Compiled from C++ for the CPU: Triton's own libraries run on every CPU of the architecture."""
    return name.startswith("inductor/") and not name.startswith("inductor/triton/") and name.endswith(".so")


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
        with open_few_files(file) as content, zipfile.ZipFile(content) as archive:
            manifest = read_manifest(file, small(file, archive, MANIFEST))
            require_fit(file, manifest, place.manifest)
            members = safe_members(file, archive)
            if len(members) != manifest.files:
                raise UserError(f"{file}: files={len(members)}: expected {manifest.files}, as its manifest says")
            free = shutil.disk_usage(place.folders["inductor"]).free
            if (size := sum(member.file_size for member in members)) > free:
                raise UserError(f"{file}: needs {size / 1e9:.1f} GB of disk: {free / 1e9:.1f} GB are free")
            if (bad := archive.testzip()) is not None:
                raise UserError(f"{file}: is damaged: {bad}")
            try:
                return add(file, archive, [member.filename for member in members], manifest, place)
            except OSError as error:
                raise UserError(f"the caches cannot be written: {error}") from error
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{file}: expected what `gptbench cache save` writes, undamaged: {error}") from error


def open_few_files(file: Path) -> BinaryIO:
    """Opens what may be a zip. Raises UserError for one whose list of files alone would take minutes to read."""
    content = open_regular(file)
    content.seek(max(0, content.seek(0, os.SEEK_END) - END_BYTES))
    end = content.read(END_BYTES)
    content.seek(0)
    record = end[end.rfind(b"PK\x05\x06") :][: END.size]
    if len(record) == END.size:
        _, files, listed = END.unpack(record)
        if files > MAX_FILES + 1 or listed > 2**10 * MAX_FILES:  # of more than 65,534, the number is elsewhere
            content.close()
            raise UserError(f"{file}: lists {files} files or more, and at most {MAX_FILES} are loaded")
    return content


def read_manifest(file: Path, content: bytes) -> Manifest:
    """Raises UserError if it is none of this format."""
    told = json.loads(content)
    if isinstance(told, dict) and told.get("format") != FORMAT:
        raise UserError(f"{file}: format={told.get('format')}: expected {FORMAT}, as gptbench {__version__} reads")
    try:
        return restored(Manifest, told)
    except InputError as error:
        raise UserError(f"{file}: {MANIFEST}: {error}") from error


def small(file: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """A file that takes little. Raises UserError if it is large, and what reading a zip raises."""
    if (size := archive.getinfo(name).file_size) > MAX_JSON_BYTES:
        raise UserError(f"{file}: {name}: {size:,} bytes: expected {MAX_JSON_BYTES:,} at most")
    return archive.read(name)


def require_fit(file: Path, manifest: Manifest, here: Manifest) -> None:
    """Raises UserError if compiled code from there would not be found here, or would not run."""
    wrong = [
        f"{name}={getattr(manifest, name)}: expected {getattr(here, name)}, as on this machine"
        for name in MUST_FIT
        if getattr(manifest, name) != getattr(here, name)
    ]
    lacking = sorted({*manifest.instructions.split()} - {*here.instructions.split()})
    if manifest.cpp and lacking:
        wrong += [f"instructions={' '.join(lacking)}: this CPU lacks them, and C++ was compiled for them"]
    if wrong:
        raise UserError("\n".join(f"{file}: {reason}" for reason in wrong))


def safe_members(file: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """All but the manifest. Raises UserError if one is not a plain file in one of the folders, or is too large."""
    members = [member for member in archive.infolist() if member.filename != MANIFEST]
    for member in members:
        top, *parts = member.orig_filename.split("/")  # the other name ends at the first NUL
        known = (top in ("inductor", "headers", "triton") and parts) or member.orig_filename == TILES
        if (
            not known
            or any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts)
            or Path("folder", *parts).parts != ("folder", *parts)  # a drive's letter goes elsewhere
            or stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
        ):
            raise UserError(f"{file}: {member.orig_filename!r}: expected plain files in the caches' folders only")
        if is_group(member.filename) or member.filename == TILES:
            small(file, archive, member.filename)
    expanded, packed = sum(one.file_size for one in members), sum(one.compress_size for one in members)
    if expanded > MAX_RATIO * packed + MAX_JSON_BYTES:
        raise UserError(f"{file}: {packed:,} bytes become {expanded:,}: expected {MAX_RATIO} times as many at most")
    if len({member.filename for member in members}) != len(members):
        raise UserError(f"{file}: holds two files of the same name")
    return members


def add(file: Path, archive: zipfile.ZipFile, names: list[str], manifest: Manifest, place: Place) -> Loaded:
    """Writes what is not here yet: groups last, so that none is ever there before its files."""
    loaded = Loaded(manifest, {}, 0, notes(manifest, place.manifest))
    if TILES in names and manifest.kernels == place.manifest.kernels and "tiles" in place.folders:
        from gptbench.engine.tiles import parsed  # needs Triton

        if added := place.tiles().merge(file / TILES, parsed(file / TILES, archive.read(TILES))):
            loaded.added["tiles"] = added
    for name in sorted(names, key=is_group):
        top, _, below = name.partition("/")
        if top not in place.folders or not below:
            continue
        target = place.folders[top] / below
        if target.exists():
            loaded.kept += 1
            continue
        group = None
        if is_group(name):
            children = children_of(archive.read(name))
            if children is None or not all((target.parent / child).is_file() for child in children.values()):
                continue  # Triton would look for what is not there
            group = group_of(children, target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with archive.open(name) as source, new.open("wb") as copy:
                copy.write(group) if group is not None else shutil.copyfileobj(source, copy)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        loaded.added[top] = loaded.added.get(top, 0) + 1
    return loaded


def notes(there: Manifest, here: Manifest) -> list[str]:
    """What will not be found, and why."""
    found = []
    if there.cpp and there.torch_folder != here.torch_folder:
        told = f"torch lies in {here.torch_folder} here, and in {there.torch_folder} there"
        found += [f"C++ will be compiled again: {told}"]
    if there.cpp and there.threads != here.threads:
        told = f"for {there.threads} threads by default, {here.threads} here"
        found += [f"Graphs for the CPU are found with the same device.threads only: they were compiled {told}"]
    if there.kernels != here.kernels:
        told = f"{there.kernels} there, {here.kernels} here"
        found += [f"Tiles, and kernels that have changed, are of no use: the kernels' state is {told}"]
    return found
