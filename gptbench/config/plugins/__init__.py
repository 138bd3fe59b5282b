"""Files and modules of the user's own, which the command line names: `--plugin FILE_OR_MODULE`.

A plugin is imported before anything is composed, and registers what it brings (formats, engines, architectures, codecs,
metrics, tasks) with the functions that register gptbench's own. Only the command line names one: no configuration,
checkpoint or environment variable does. A file is imported as a module of this package whose name holds its path, so
that another process that unpickles something of it finds it.
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
"""Modules of files begin with it; the hexadecimal form of the path follows."""
DIGITS = 16
"""Of a hash, hexadecimal: 64 bits."""

loaded: dict[str, str] = {}
"""The plugins of this process: of each the absolute path or the module's name, and the hash of its source."""


def without_plugins(arguments: Sequence[str]) -> list[str]:
    """A command line without its plugins, which are imported.

    Raises:
        UserError: one is not there, cannot be imported, or registers what is there already.
    """
    left: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != OPTION:
            left.append(argument)
        elif not (named := value if equals else next(rest, "")):
            raise UserError(f"{OPTION}: expected a file of Python, or the name of a module, behind it")
        else:
            load(named)
    return left


def options() -> list[str]:
    """The part of a command line that names the plugins of this process."""
    return [word for name in loaded for word in (OPTION, name)]


def load(named: str) -> None:
    """Imports a plugin. Raises UserError as `without_plugins` does."""
    if named.endswith(".py") or "/" in named:
        path = Path(expanded(named)).absolute()
        if not path.is_file():
            raise UserError(f"{OPTION} {named}: expected a file of Python, and there is no such file")
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
    """Where in which file, as far as one of the user's was read, and the reason."""
    own = (__file__, importlib.__file__)
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename not in own]
    places = [(each.filename, each.lineno) for each in frames if not each.filename.startswith("<frozen ")]
    if isinstance(error, SyntaxError) and error.filename is not None:
        places.append((error.filename, error.lineno))
    where = f"{places[-1][0]}, line {places[-1][1]}: " if places else ""
    reason = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else in_one_line(error)
    return where + reason


def source_hash(module: str) -> str:
    """Hash of a module's source: of its file, or where it is in a package, of all Python files of that."""
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
    """The file that a module of this package was made of; None of any other module."""
    return Path(bytes.fromhex(module.removeprefix(FILES)).decode()) if module.startswith(FILES) else None


class Finder:
    """Finds the module of a plugin's file, also where it is unpickled."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        file = file_of(name)
        return None if file is None else importlib.util.spec_from_file_location(name, file)


sys.meta_path.append(Finder)


class Plugins:
    """The plugins of this process, for another one, which imports them where it unpickles this."""

    def __reduce__(self) -> tuple[Any, ...]:
        return imported, (tuple(loaded),)


def imported(names: tuple[str, ...]) -> Plugins:
    """What `Plugins` is on the other side."""
    for name in names:
        load(name)
    return Plugins()
