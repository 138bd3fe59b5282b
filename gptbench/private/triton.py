"""Private parts of Triton that gptbench relies on.

- ``knobs.compilation.listener`` is called for each kernel that is compiled or read from a cache, with ``times`` and
  ``cache_hit`` (`compile_switches`).
- ``knobs.cache.dir`` is the folder of its cache (`cache_folder`), in which ``__grp__NAME.json`` lists the files of one
  kernel by absolute paths under ``child_paths``; a kernel without such a file is compiled again (`groups_in`,
  `group_in`).

The kernels (`gptbench.kernels`, which imports nothing from the rest of gptbench) rely on ``knobs.runtime.interpret``,
``AsyncCompileMode`` and the launch option ``launch_pdl`` with its ``gdc_`` instructions.
"""

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptbench.base.errors import UserError
from gptbench.private import part, version

GROUP = "__grp__"
"""Prefix of the name of a file in which Triton lists the files of one kernel."""


def compile_switches() -> Any:
    """Return Triton's settings for compiling, or None if Triton is not installed.

    Raises:
        UserError: they have no listener.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    switches = part("triton.knobs", "compilation")
    if not hasattr(switches, "listener"):
        raise UserError(
            f"triton {version('triton')} has no knobs.compilation.listener, without which gptbench cannot know "
            "whether a sample compiled a kernel (gptbench's constraints.txt names a version that has it)"
        )
    return switches


def cache_folder() -> Path:
    """Return the folder of Triton's cache. Raises UserError if Triton is not installed, or has no such setting."""
    return Path(part("triton.knobs", "cache").dir).absolute()


def groups_in(folder: Path) -> Iterable[Path]:
    """Return the files in a folder of Triton's cache that list the files of a kernel."""
    return folder.glob(f"{GROUP}*.json")


def is_group(name: str) -> bool:
    """Whether a name or path is that of a file that lists the files of a kernel."""
    return name.rpartition("/")[2].startswith(GROUP)


def group_in(folder: Path, content: bytes) -> bytes | None:
    """Return the content of a group's file with its paths moved to a folder; None if it is not valid, or lacks a
    file."""
    try:
        paths = {key: folder / Path(path).name for key, path in json.loads(content)["child_paths"].items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    existing = {key: str(path) for key, path in paths.items() if path.is_file()}
    return json.dumps({"child_paths": existing}).encode() if existing.keys() == paths.keys() else None
