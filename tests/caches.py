"""Compile caches of test processes on a machine with a GPU."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def own_caches(given: Mapping[str, str]) -> dict[str, str]:
    """Where a process of pytest-xdist has its caches, by environment variable: in a folder that it shares with no other
    process, be it of this command or of another one that runs at the same time. Empty where it is no such process.

    Args:
        given: the environment.
    """
    if (worker := given.get("PYTEST_XDIST_WORKER")) is None:
        return {}
    own = Path(f"gptbench-tests-{given['PYTEST_XDIST_TESTRUNUID']}", worker)
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    return {name: str(Path(given.get(name) or tempfile.gettempdir(), own, name)) for name in names}


def remove(caches: Mapping[str, str]) -> None:
    """Removes what `own_caches` gave, once it is of no more use."""
    for folder in map(Path, caches.values()):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty yet
            for above in list(folder.parents)[:2]:
                above.rmdir()
