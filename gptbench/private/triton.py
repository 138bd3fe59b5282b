"""What gptbench relies on of Triton beyond what Triton promises to keep.

- ``knobs.compilation.listener`` is called for each kernel that is compiled or found in a cache, with ``times`` and
  ``cache_hit`` (`compile_switches`).
- ``knobs.cache.dir`` is the folder of its cache (`cache_folder`), in which ``__grp__NAME.json`` lists the files of one
  kernel by whole paths under ``child_paths``; what no such file lists is compiled again (`groups_in`, `group_in`).

Kernels themselves (`gptbench.kernels`, which imports nothing of gptbench) rely on ``knobs.runtime.interpret``,
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
"""Begins the name of a file in which Triton lists the files of one kernel."""


def compile_switches() -> Any:
    """Triton's switches for compiling, or None where there is no Triton. Raises UserError where it has none that can
    be listened to."""
    if importlib.util.find_spec("triton") is None:
        return None
    switches = part("triton.knobs", "compilation")
    if not hasattr(switches, "listener"):
        raise UserError(
            f"triton {version('triton')} has no knobs.compilation.listener: whether a sample has compiled a kernel "
            "cannot be known (gptbench's constraints.txt names a version that has it)"
        )
    return switches


def cache_folder() -> Path:
    """Of Triton's own cache. Raises UserError where there is no Triton, or it cannot be asked."""
    return Path(part("triton.knobs", "cache").dir).absolute()


def groups_in(folder: Path) -> Iterable[Path]:
    """Files in a folder of Triton's cache that list the files of its kernels."""
    return folder.glob(f"{GROUP}*.json")


def is_group(name: str) -> bool:
    """Whether a file of that name, or path, lists the files of a kernel."""
    return name.rpartition("/")[2].startswith(GROUP)


def group_in(folder: Path, content: bytes) -> bytes | None:
    """A group's content with its files in a folder; None if it is no group, or one of its files is not there."""
    try:
        paths = {key: folder / Path(path).name for key, path in json.loads(content)["child_paths"].items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    found = {key: str(path) for key, path in paths.items() if path.is_file()}
    return json.dumps({"child_paths": found}).encode() if found.keys() == paths.keys() else None
