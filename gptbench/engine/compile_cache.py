"""`gptbench cache`: what was compiled here in one file, for a later start or for another machine of the same kind.

The file is a zip of the folders in which TorchInductor and Triton keep what they compiled, and of the tiles that were
searched. torch's own `save_cache_artifacts` works only in the process that compiled, and leaves out the C++ libraries,
which are most of the time on a CPU. Two things are changed on the way: Triton's groups name their files by whole paths,
which are others elsewhere; and tiles bear the name of the GPU that they were searched on.

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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_type_hints

import torch

from gptbench import __version__
from gptbench.base.errors import UserError
from gptbench.base.inputs import open_regular
from gptbench.config import DeviceConfig
from gptbench.device import Device
from gptbench.engine import caches
from gptbench.private.torch import cache_folder, headers_folder
from gptbench.private.triton import cache_folder as triton_folder
from gptbench.private.triton import children_of, group_of, is_group

if TYPE_CHECKING:  # needs Triton, which is not everywhere
    from gptbench.engine.tiles import Tiles

FORMAT = 1
MANIFEST = "manifest.json"
MOST_MANIFEST = 2**20
"""Bytes of a manifest; it takes a few hundred."""
MAX_FILES = 50_000
"""Of a cache file: more than years of use leave."""
MAX_DIRECTORY_BYTES = 64 * 2**20
"""Of a zip's list of its files."""
MAX_JSON_BYTES = 2**20
"""Of a group of Triton's, which takes a few hundred, and of a file with tiles."""
MAX_RATIO = 200
"""Between the size of files and their compressed size; compiled code has 3 to 10."""
ZIP_END = b"PK\x05\x06"
END = struct.Struct("<10xHI")
"""Of the record with which a zip ends: how many files it lists, and in how many bytes."""
END_BYTES = 2**16 + 22
"""That record begins within so many from the end."""
MUST_FIT = ("torch", "triton", "python", "platform", "device")
"""What must be the same on both machines; else nothing of the file would be found, or it would not run."""
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
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
        folders: where compiled code and tiles lie, by the name that they have in a file.
        device: one of this machine, for all of its kind.
    """

    def __init__(self, outputs: Path) -> None:
        if (lacks := caches.lacking(caches.FOLDER, caches.inductor_folder)) is not None:
            raise UserError(f"gptbench cache needs {lacks}")
        device = Device(device_config(0))
        self.folders = {"inductor": cache_folder(), "headers": headers_folder()}
        self.device = device
        triton = kernels = None
        with contextlib.suppress(ImportError):  # not on every platform
            import triton as package

            from gptbench.engine.tiles import kernels_digest

            triton, kernels = package.__version__, kernels_digest()
            self.folders |= {"triton": triton_folder(), "tiles": outputs / "tiles"}
        name = device.name
        if device.is_cuda:
            name += ", compute capability {}.{}".format(*torch.cuda.get_device_capability(device.torch))
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
        """What was found for this kind of device."""
        from gptbench.engine.tiles import Tiles  # needs Triton

        return Tiles.of(self.folders["tiles"], self.device)


def device_config(index: int) -> DeviceConfig:
    """A GPU, or the CPU where there is none."""
    return DeviceConfig(_target_="gptbench.device.Device", name="auto", index=index)


def instruction_sets(info: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Of the first processor; none where the system does not tell."""
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, Arm
                return sorted(flag for flag in set(flags.split()) if flag.startswith(INSTRUCTION_SETS))
    return []


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
    members = list(to_save(place))
    cpp = any(is_library(name) for name, _ in members)
    if len(members) > MAX_FILES:
        raise UserError(
            f"{file}: the caches hold {len(members)} files, and at most {MAX_FILES} can be loaded: empty them"
        )
    if not members:
        looked = ", ".join(str(folder) for name, folder in place.folders.items() if name != "headers")
        raise UserError(f"nothing to save: nothing was compiled or tuned yet in {looked}")
    if cpp:
        members += [(f"headers/{path.name}", path) for path in precompiled_headers(place)]
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with zipfile.ZipFile(new, "x", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            # Groups come last, so that loading never leaves one whose files are not there yet.
            for name, path in sorted(members, key=lambda member: is_group(member[0])):
                with contextlib.suppress(FileNotFoundError):  # another process tidied up meanwhile
                    if not is_group(name):
                        archive.write(path, name)
                    elif (group := portable_group(path)) is not None:
                        archive.writestr(name, group)
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


def to_save(place: Place) -> Iterator[tuple[str, Path]]:
    """Name in the file, and path, of all that was compiled, and of this device's tiles."""
    apart = {folder.resolve() for folder in place.folders.values()}  # one folder may lie in another
    for name in ("inductor", "triton"):
        if (top := place.folders.get(name)) is None:
            continue
        for folder, inner, files in os.walk(top):
            inner[:] = (
                one
                for one in inner
                if one != "locks" and not one.startswith("tmp.") and Path(folder, one).resolve() not in apart
            )
            for path in (Path(folder, one) for one in files):
                if path.suffix not in (".lock", ".tmp") and path.is_file() and not path.is_symlink():
                    yield f"{name}/{path.relative_to(top).as_posix()}", path
    if "tiles" in place.folders:
        tiles = place.tiles()
        for path in (*tiles.files_of_single_cards(), tiles.path):
            if path.is_file():
                yield f"tiles/{path.name}", path


def precompiled_headers(place: Place) -> Iterator[Path]:
    """Of this torch. Even where all libraries are found, torch 2.13 compiles its header if it is not there, for 10 s,
    and it looks for it in one folder only, whose other headers belong to other installations."""
    for header in sorted(place.folders["headers"].glob("*.h")):
        made = [
            path for path in header.parent.glob(f"{header.name}.?ch") if mentions(path, place.manifest.torch_folder)
        ]
        yield from [header, *made] if made else []


def mentions(path: Path, folder: str) -> bool:
    """Whether a large binary file holds a path in the folder."""
    with (
        contextlib.suppress(OSError, ValueError),  # ValueError: the file is empty
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return re.search(rb"(?<![\w./-])" + re.escape(f"{folder}/".encode()), content) is not None
    return False


def is_library(name: str) -> bool:
    """Compiled from C++ for the CPU: Triton's own libraries run on every CPU of the architecture."""
    return name.startswith("inductor/") and not name.startswith("inductor/triton/") and name.endswith(".so")


def portable_group(path: Path) -> bytes | None:
    """A group of Triton's with the names of its files only; None where one of them is not beside it."""
    children = children_of(path.read_bytes())
    if children is None or not all((path.parent / name).is_file() for name in children.values()):
        return None
    return group_of(children)


def group_in(folder: Path, content: bytes) -> bytes | None:
    """The same group with its files in a folder."""
    if (children := children_of(content)) is None:
        return None
    return group_of(children, folder)


@dataclass
class Loaded:
    """What came of a cache file."""

    manifest: Manifest
    added: dict[str, int]
    """Files by what they are."""
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
            manifest = read_manifest(file, archive)
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
                return add(archive, members, manifest, place)
            except OSError as error:
                raise UserError(f"the caches cannot be written: {error}") from error
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{file}: expected what `gptbench cache save` writes, undamaged: {error}") from error


def open_few_files(file: Path) -> BinaryIO:
    """Opens what may be a zip. Raises UserError for one whose list of files alone would take minutes to read."""
    content = open_regular(file)
    size = content.seek(0, os.SEEK_END)
    content.seek(max(0, size - END_BYTES))
    end = content.read(END_BYTES)
    content.seek(0)
    record = end[end.rfind(ZIP_END) :][: END.size]
    if ZIP_END in end and len(record) == END.size:
        files, directory_bytes = END.unpack(record)
        if files > MAX_FILES or directory_bytes > MAX_DIRECTORY_BYTES:  # of more than 65,534, the number is elsewhere
            content.close()
            raise UserError(f"{file}: lists {files} files or more, and at most {MAX_FILES} are loaded")
    return content


def read_manifest(file: Path, archive: zipfile.ZipFile) -> Manifest:
    """Raises UserError if there is none of this format."""
    try:
        info = archive.getinfo(MANIFEST)
        told = json.loads(archive.read(info)) if info.file_size <= MOST_MANIFEST else None
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: expected what `gptbench cache save` writes: {error}") from error
    if isinstance(told, dict) and told.get("format") != FORMAT:
        raise UserError(f"{file}: format={told.get('format')}: expected {FORMAT}, as gptbench {__version__} reads")
    types = get_type_hints(Manifest)
    if (
        not isinstance(told, dict)
        or told.keys() != {field.name for field in fields(Manifest)}
        or not all(isinstance(value, types[name]) for name, value in told.items())
    ):
        raise UserError(f"{file}: its manifest is not one that `gptbench cache save` writes")
    return Manifest(**told)


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
    """All but the manifest. Raises UserError if one is not a plain file in one of the folders."""
    members = [member for member in archive.infolist() if member.filename != MANIFEST]
    for member in members:
        top, *parts = member.orig_filename.split("/")  # the other name ends at the first NUL
        kind = stat.S_IFMT(member.external_attr >> 16)
        if (
            top not in ("inductor", "headers", "triton", "tiles")
            or not parts
            or any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts)
            or Path("folder", *parts).parts != ("folder", *parts)  # a drive's letter goes elsewhere
            or kind not in (0, stat.S_IFREG)
        ):
            raise UserError(f"{file}: {member.orig_filename!r}: expected plain files in the caches' folders only")
        if member.file_size > MAX_JSON_BYTES and (is_group(member.filename) or top == "tiles"):
            raise UserError(
                f"{file}: {member.filename}: {member.file_size:,} bytes: expected {MAX_JSON_BYTES:,} at most"
            )
    expanded, packed = sum(one.file_size for one in members), sum(one.compress_size for one in members)
    if expanded > MAX_RATIO * packed + MAX_JSON_BYTES:
        raise UserError(f"{file}: {packed:,} bytes become {expanded:,}: expected {MAX_RATIO} times as many at most")
    if len({member.filename for member in members}) != len(members):
        raise UserError(f"{file}: holds two files of the same name")
    return members


def add(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], manifest: Manifest, place: Place) -> Loaded:
    """Writes what is not here yet."""
    loaded = Loaded(manifest, {}, 0, [])
    for name, target in targets(members, place):
        top = name.partition("/")[0]
        if target.exists():
            loaded.kept += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            if is_group(name):
                if (group := group_in(target.parent, archive.read(name))) is None:
                    continue
                new.write_bytes(group)
            else:
                with archive.open(name) as source, new.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        loaded.added[top] = loaded.added.get(top, 0) + 1
    add_tiles(archive, members, manifest, place, loaded)
    if manifest.cpp and manifest.torch_folder != place.manifest.torch_folder:
        told = f"torch lies in {place.manifest.torch_folder} here, and in {manifest.torch_folder} there"
        loaded.notes += [f"C++ will be compiled again: {told}"]
    if manifest.cpp and manifest.threads != place.manifest.threads:
        told = f"for {manifest.threads} threads by default, {place.manifest.threads} here"
        loaded.notes += [f"Graphs for the CPU are found with the same device.threads only: they were compiled {told}"]
    if manifest.kernels != place.manifest.kernels:
        told = f"{manifest.kernels} there, {place.manifest.kernels} here"
        loaded.notes += [f"Tiles, and kernels that have changed, are of no use: the kernels' state is {told}"]
    return loaded


def add_tiles(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], manifest: Manifest, place: Place, loaded: Loaded
) -> None:
    """Adds the file's tiles, for uses that have none here, to those of this kind of device. The kind's own go before
    those of single cards, the last of which goes first, as where they are read (`Tiles.read`).

    Raises:
        UserError: what should be tiles is none.
    """
    if manifest.kernels is None or manifest.kernels != place.manifest.kernels:
        return
    from gptbench.engine.tiles import MAX_BYTES, is_of_single_card, parsed

    last_first = sorted(members, key=lambda member: member.filename, reverse=True)
    for member in sorted(last_first, key=lambda member: is_of_single_card(member.filename)):
        if not member.filename.startswith("tiles/"):
            continue
        path = Path(str(archive.filename), member.filename)
        if member.file_size > MAX_BYTES:
            raise UserError(f"{path}: {member.file_size:,} bytes: expected tiles, of at most {MAX_BYTES:,}")
        if place.tiles().merge(path, parsed(path, archive.read(member))):
            loaded.added["tiles"] = loaded.added.get("tiles", 0) + 1
        else:
            loaded.kept += 1


def targets(members: list[zipfile.ZipInfo], place: Place) -> Iterator[tuple[str, Path]]:
    """Name in the file, and path on this machine, of all but tiles."""
    for member in sorted(members, key=lambda member: is_group(member.filename)):
        top, *parts = member.filename.split("/")
        if top != "tiles" and top in place.folders:
            yield member.filename, place.folders[top].joinpath(*parts)
