"""Cache folders of the compilers: whether they are usable, and removal of truncated files.

TorchInductor passes paths to the C++ compiler on one command line, so a space in a path is a compile error; and it,
like Triton, loads libraries from its cache, which a folder mounted noexec does not allow. Loading a library that was
truncated, by a full disk or a crash, ends the process with SIGBUS.
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

INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable that names TorchInductor's folder."""
LOCK_TIMEOUT_S = 60.0
"""Seconds to wait for another process that may still be writing an incomplete library."""


def import_compiler() -> None:
    """Import what measuring needs of torch's compiler under any engine.

    The import creates TorchInductor's folder. Where that is not possible, the import uses a temporary folder, and
    `missing_folder` reports the configured one.
    """
    configured = os.environ.get(INDUCTOR_VARIABLE)
    try:
        (default_inductor_folder() if configured is None else Path(configured)).mkdir(parents=True, exist_ok=True)
    except KeyError:  # the user has no name: torch chooses another folder
        return
    except OSError:
        with tempfile.TemporaryDirectory() as temporary_folder:
            os.environ[INDUCTOR_VARIABLE] = temporary_folder
            try:
                torch_parts.import_compiler()
            except ImportError:  # reported later, with the part that is missing
                pass
            finally:
                del os.environ[INDUCTOR_VARIABLE]
                if configured is not None:
                    os.environ[INDUCTOR_VARIABLE] = configured


def default_inductor_folder() -> Path:
    """Return TorchInductor's cache folder where no variable names it, as torch computes it; importing torch's code
    would create it."""
    return Path(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser()))


def inductor_folder() -> Path:
    """Return TorchInductor's cache folder. Raises OSError if it cannot be created, and UserError if torch does not
    tell."""
    import_compiler()
    return torch_parts.cache_folder()


def missing_for_cpp() -> str | None:
    """Return what TorchInductor lacks to compile C++; None if nothing."""
    for folder in (Path(torch.__file__).parent, Path(sysconfig.get_path("include"))):
        if not is_shell_word(folder):
            return f"torch and Python in folders without spaces or special characters (not {str(folder)!r})"
    if not is_shell_word(temporary := Path(tempfile.gettempdir())):
        return f"a folder without spaces or special characters in TMPDIR (not {str(temporary)!r})"
    return missing_folder(INDUCTOR_VARIABLE, inductor_folder, one_word=True)


def missing_for_kernels(inductor: bool) -> str | None:
    """Return what is missing to compile for a GPU, by TorchInductor or by Triton itself; None if nothing."""
    if inductor and (reason := missing_folder(INDUCTOR_VARIABLE, inductor_folder)) is not None:
        return reason
    # Without the variable, Triton's folder is inside Inductor's.
    return (
        missing_folder("TRITON_CACHE_DIR", triton_folder) if not inductor or "TRITON_CACHE_DIR" in os.environ else None
    )


def missing_folder(variable: str, find: Callable[[], Path], one_word: bool = False) -> str | None:
    """Return what an environment variable would have to name, if its folder cannot be used; None if it can.

    Args:
        variable: environment variable that names the folder.
        find: returns the folder.
        one_word: whether the path must be a single word on a command line.
    """
    folder = None
    try:
        folder = find()
        if one_word and not is_shell_word(folder):
            return f"a folder without spaces or special characters in {variable} (not {str(folder)!r})"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
            mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename is None:  # raised by mmap
            return f"a folder in {variable} from which libraries can be loaded ({folder} is mounted noexec)"
        return f"a folder in {variable} that can be written ({error.strerror}: {error.filename or folder})"
    except UserError as error:
        return f"another version of a library: {error}"
    return None


def is_shell_word(folder: Path) -> bool:
    """Return whether a shell would take a path as one word, unchanged."""
    try:
        return shlex.split(str(folder)) == [str(folder)]
    except ValueError:  # an unclosed quote
        return False


def check(config: EngineConfig) -> None:
    """Make sure, for an engine that compiles, that no truncated library is loaded.

    Raises:
        ConfigError: `engine.fresh_cache` is set, but no temporary folder can be used.
    """
    if config.fresh_cache:
        if (reason := missing_folder("TMPDIR", lambda: Path(tempfile.gettempdir()))) is not None:
            raise ConfigError("engine.fresh_cache", "true", f"false, or {reason}")
    else:
        remove_truncated()


def remove_truncated() -> None:
    """Remove truncated libraries and kernels from the caches, so that they are compiled again."""
    removed: list[Path] = []
    for find in (inductor_folder, triton_folder):
        with contextlib.suppress(OSError, UserError):
            folder = find()
            paths = [path for end in ("so", "cubin") for path in folder.rglob(f"*.{end}")]
            # Triton renames its folders once they are complete.
            truncated = [path for path in paths if not path.parent.name.startswith("tmp.") and not is_complete(path)]
            removed += [path for path in truncated if remove(folder, path)]
    if removed:
        warnings.warn(
            f"truncated files in the compile cache, to be compiled again: {', '.join(map(str, removed))}",
            stacklevel=2,
        )


def remove(folder: Path, path: Path) -> bool:
    """Remove a truncated file and return whether it was removed: not while another process is writing it."""
    with contextlib.suppress(OSError, Timeout), library_lock(folder, path):
        if not is_complete(path):
            for group in groups_in(path.parent):  # Triton recompiles what no group names
                group.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return True
    return False


def library_lock(folder: Path, library: Path) -> FileLock:
    """Return the lock that TorchInductor holds while it writes a library."""
    locks = folder / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{library.name.partition('.')[0]}.lock", timeout=LOCK_TIMEOUT_S)


def is_complete(path: Path) -> bool:
    """Return whether a file is as long as its ELF header says (its tables lie at the end). Other kinds of files count
    as complete if they are at least as long as such a header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(64)
    except OSError:  # removed meanwhile
        return True
    if len(header) < 64:
        return False
    if header[:5] != b"\x7fELF\x02":
        return True
    tables = struct.unpack_from("<QQ", header, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<HHHH", header, 54)
    return size >= max(tables[0] + program_size * programs, tables[1] + section_size * sections)


UNLOADABLE = ("Failed to import ", "file too short", "invalid ELF header", "failed to map segment", "undefined symbol")
"""Parts of messages that say that a cached file cannot be loaded."""


@contextlib.contextmanager
def explain_cache_errors() -> Iterator[None]:
    """Context that reports in one line if a file of the caches cannot be loaded.

    Raises:
        UserError: a file there cannot be loaded.
    """
    try:
        yield
    except Exception as error:
        message = str(error)
        for variable, find in ((INDUCTOR_VARIABLE, inductor_folder), ("TRITON_CACHE_DIR", triton_folder)):
            try:
                folder = find()
            except (OSError, UserError):  # no such folder, for example without Triton
                continue
            line = next((line for line in message.splitlines() if f"{folder}{os.sep}" in line), None)
            if line is not None and any(part in line for part in UNLOADABLE):
                raise UserError(
                    f"{line.strip()}: the compile cache cannot be used: start from an empty one with "
                    f"engine.fresh_cache=true, or set {variable} to another folder"
                ) from error
        raise
