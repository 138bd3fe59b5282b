"""Compile caches of test processes on a machine with a GPU."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def private_caches(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the cache folders of a process of pytest-xdist, by environment variable. It shares them with no other
    process of this command or of one that runs at the same time. Empty for other processes.

    Args:
        environment: environment variables of the process.
    """
    if (worker := environment.get("PYTEST_XDIST_WORKER")) is None:
        return {}
    subfolder = Path(f"gptbench-tests-{environment['PYTEST_XDIST_TESTRUNUID']}", worker)
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    return {name: str(Path(environment.get(name) or tempfile.gettempdir(), subfolder, name)) for name in names}


def remove(caches: Mapping[str, str]) -> None:
    """Remove the folders that `private_caches` returned."""
    for folder in map(Path, caches.values()):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process still uses it
            for above in list(folder.parents)[:2]:
                above.rmdir()
