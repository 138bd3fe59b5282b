"""Plugins: files and modules of the user's that the command line names, `--plugin FILE_OR_MODULE`.

A plugin is imported before anything is composed, and registers formats, engines, architectures, codecs, metrics and
tasks with the same functions that gptbench uses. Only the command line can name one: no configuration, checkpoint or
environment variable can. A file is imported as a module of this package whose name contains its path, so that another
process that unpickles its objects finds it.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError, in_one_line
from gptbench.base.hub import expanded

OPTION = "--plugin"
FILES = f"{__name__}.file_"
"""Beginning of the names of modules imported from files; the file's path in hexadecimal follows."""
DIGITS = 16
"""Number of hexadecimal digits kept of a hash: 64 bits."""

loaded: dict[str, str] = {}
"""The plugins of this process: absolute path or module name, mapped to the hash of the source."""


def without_plugins(arguments: Sequence[str]) -> list[str]:
    """Imports the plugins that a command line names, and returns the command line without them.

    Raises:
        UserError: a plugin does not exist, cannot be imported, or registers a name that is already taken.
    """
    left: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != OPTION:
            left.append(argument)
        elif not (named := value if equals else next(rest, "")):
            raise UserError(f"{OPTION}: expected a Python file or the name of a module after it")
        else:
            load(named)
    return left


def options() -> list[str]:
    """Return the options of a command line that name the plugins of this process."""
    return [word for name in loaded for word in (OPTION, name)]


def load(named: str) -> None:
    """Imports a plugin. Raises UserError as `without_plugins` does."""
    if named.endswith(".py") or "/" in named:
        path = Path(expanded(named)).absolute()
        if not path.is_file():
            raise UserError(f"{OPTION} {named}: expected a Python file, but there is no such file")
        name, module = str(path), FILES + str(path).encode().hex()
    else:
        name = module = named
    if name in loaded:
        return
    try:
        importlib.import_module(module)
        loaded.setdefault(name, source_hash(module))
    except UserError as error:
        raise UserError(f"{OPTION} {named}: {error}") from error
    except Exception as error:
        raise UserError(f"{OPTION} {named}: {why_not_imported(error)}") from error


def why_not_imported(error: Exception) -> str:
    """Return the reason why a plugin cannot be imported, after the file and line if its code had begun to run."""
    importing = (__file__, importlib.__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in importing]
    places = [(frame.filename, frame.lineno) for frame in frames if not frame.filename.startswith("<frozen ")]
    if isinstance(error, SyntaxError) and error.filename is not None:
        places.append((error.filename, error.lineno))
    where = f"{places[-1][0]}, line {places[-1][1]}: " if places else ""
    reason = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else in_one_line(error)
    return where + reason


def source_hash(module: str) -> str:
    """Return the hash of a module's source: of its file, or of all Python files of the package that it is in."""
    spec = importlib.util.find_spec(module if module.startswith(FILES) else module.partition(".")[0])
    assert spec is not None  # it was imported
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))] or [Path(spec.origin or "")]
    hashed = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        hashed.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()[:DIGITS]


def file_of(module: str) -> Path | None:
    """Return the file that a module of this package was imported from; None for any other module."""
    return Path(bytes.fromhex(module.removeprefix(FILES)).decode()) if module.startswith(FILES) else None


class Finder:
    """Import finder for modules of plugins' files, which also finds them during unpickling."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        file = file_of(name)
        return None if file is None else importlib.util.spec_from_file_location(name, file)


sys.meta_path.append(Finder)


class Plugins:
    """The plugins of this process, which another process imports when it unpickles this object."""

    def __reduce__(self) -> tuple[Any, ...]:
        return imported, (tuple(loaded),)


def imported(names: tuple[str, ...]) -> Plugins:
    """Imports the plugins in the process that unpickles `Plugins`."""
    for name in names:
        load(name)
    return Plugins()
