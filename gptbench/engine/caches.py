"""Folders in which compilers leave what they made: whether they can be used, and what lies in them cut off.

TorchInductor hands paths to the C++ compiler as words of one line, so that a space in one is an error of the compiler;
and it, like Triton, loads libraries from where it has put them, which a folder mounted noexec does not allow. A library
that was cut off, as by a full disk or a crash, ends the process that loads it with SIGBUS.
"""

import contextlib
import getpass
import mmap
import os
import re
import shlex
import struct
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from gptbench.base.errors import ConfigError, UserError
from gptbench.config import EngineConfig
from gptbench.private import torch as torch_parts
from gptbench.private.triton import cache_folder as triton_folder
from gptbench.private.triton import groups_in

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""Variable that names TorchInductor's folder."""
WRITING_S = 60.0
"""For which a library that is not whole may still be in the making by another process."""


def import_compiler() -> None:
    """Imports what of torch's compiler measuring needs under any engine. While it is imported it makes TorchInductor's
    folder; where that cannot be, it gets another one meanwhile, and `lacking` tells of the one that was named."""
    named = os.environ.get(FOLDER)
    try:
        (default_inductor_folder() if named is None else Path(named)).mkdir(parents=True, exist_ok=True)
    except KeyError:  # the user has no name, and torch finds another
        return
    except OSError:
        with tempfile.TemporaryDirectory() as meanwhile:
            os.environ[FOLDER] = meanwhile
            try:
                torch_parts.import_compiler()
            except ImportError:  # `part` says what of it is not there
                pass
            finally:
                del os.environ[FOLDER]
                if named is not None:
                    os.environ[FOLDER] = named


def default_inductor_folder() -> Path:
    """Where TorchInductor's cache is if no variable names it, as torch has it; importing it would make the folder."""
    return Path(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser()))


def inductor_folder() -> Path:
    """Of TorchInductor's cache. Raises OSError where it cannot be made, and UserError where torch cannot be asked."""
    import_compiler()
    return torch_parts.cache_folder()


def lacking_for_cpp() -> str | None:
    """What TorchInductor lacks to compile C++, or None if nothing."""
    for folder in (Path(torch.__file__).parent, Path(sysconfig.get_path("include"))):
        if not is_word(folder):
            return f"torch and Python in folders without spaces and the like (not {str(folder)!r})"
    if not is_word(temporary := Path(tempfile.gettempdir())):
        return f"a folder without spaces and the like in TMPDIR (not {str(temporary)!r})"
    return lacking(FOLDER, inductor_folder, words=True)


def lacking_for_kernels(inductor: bool) -> str | None:
    """What compiling for a GPU lacks, by TorchInductor or by Triton itself; None if nothing."""
    if inductor and (reason := lacking(FOLDER, inductor_folder)) is not None:
        return reason
    # Without the variable, Inductor gives Triton a folder in its own.
    return lacking("TRITON_CACHE_DIR", triton_folder) if not inductor or "TRITON_CACHE_DIR" in os.environ else None


def lacking(variable: str, find: Callable[[], Path], words: bool = False) -> str | None:
    """What is wrong with a folder that an environment variable names, in words of what is needed; None if nothing.

    Args:
        words: whether its path has to be one word on a command line.
    """
    folder = None
    try:
        folder = find()
        if words and not is_word(folder):
            return f"a folder without spaces and the like in {variable} (not {str(folder)!r})"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
            mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename is None:  # it is of mmap
            return f"a folder in {variable} from which libraries can be loaded ({folder} is mounted noexec)"
        return f"a folder in {variable} that can be written ({error.strerror}: {error.filename or folder})"
    except UserError as error:
        return f"another version of a library: {error}"
    return None


def is_word(folder: Path) -> bool:
    """Whether a shell would take a path as one word, and as it is."""
    try:
        return shlex.split(str(folder)) == [str(folder)]
    except ValueError:  # a quote that is not closed
        return False


def check(config: EngineConfig) -> None:
    """Of an engine that compiles: makes sure that no library is loaded of which a part is missing.

    Raises:
        ConfigError: `engine.fresh_cache`, whose folder is a temporary one, where that cannot be used.
    """
    if config.fresh_cache:
        if (reason := lacking("TMPDIR", lambda: Path(tempfile.gettempdir()))) is not None:
            raise ConfigError("engine.fresh_cache", "true", f"false, or {reason}")
    else:
        remove_cut_off()


def remove_cut_off() -> None:
    """Removes libraries and kernels of which a part is missing from the caches: they are compiled again."""
    removed: list[Path] = []
    for find in (inductor_folder, triton_folder):
        with contextlib.suppress(OSError, UserError):
            folder = find()
            made = [path for end in ("so", "cubin") for path in folder.rglob(f"*.{end}")]
            # What Triton makes it renames when it is complete.
            cut_off = [path for path in made if not path.parent.name.startswith("tmp.") and not is_whole(path)]
            removed += [path for path in cut_off if remove(folder, path)]
    if removed:
        warnings.warn(f"compiled again, as they were cut off: {', '.join(map(str, removed))}", stacklevel=2)


def remove(folder: Path, path: Path) -> bool:
    """Removes what was cut off, and says whether it did: not where another process is making it."""
    with contextlib.suppress(OSError, Timeout), making(folder, path):
        if not is_whole(path):
            for group in groups_in(path.parent):  # Triton compiles anew what no group names
                group.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return True
    return False


def making(folder: Path, library: Path) -> FileLock:
    """The lock that TorchInductor holds while it makes a library."""
    locks = folder / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{library.name.partition('.')[0]}.lock", timeout=WRITING_S)


def is_whole(path: Path) -> bool:
    """Whether a file is as long as its ELF header says: its tables lie at its end. True of any other kind of file
    that is as long as such a header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(64)
    except OSError:  # gone meanwhile
        return True
    if len(header) < 64:
        return False
    if header[:5] != b"\x7fELF\x02":
        return True
    tables = struct.unpack_from("<QQ", header, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<HHHH", header, 54)
    return size >= max(tables[0] + program_size * programs, tables[1] + section_size * sections)


UNLOADABLE = ("Failed to import ", "file too short", "invalid ELF header", "failed to map segment", "undefined symbol")
"""What messages hold where a file of a cache cannot be loaded."""


@contextlib.contextmanager
def blamed() -> Iterator[None]:
    """Says in one line what goes wrong within it with a file of the caches.

    Raises:
        UserError: a file there cannot be loaded.
    """
    try:
        yield
    except Exception as error:
        told = str(error)
        for variable, find in ((FOLDER, inductor_folder), ("TRITON_CACHE_DIR", triton_folder)):
            try:
                folder = find()
            except (OSError, UserError):  # there is none, as where there is no Triton
                continue
            line = next((line for line in told.splitlines() if f"{folder}{os.sep}" in line), None)
            if line is not None and any(part in line for part in UNLOADABLE):
                raise UserError(
                    f"{line.strip()}: the compile cache cannot be used: engine.fresh_cache=true starts from an empty "
                    f"one, and {variable} names another"
                ) from error
        raise
