"""Parts of libraries that these do not promise to keep, in one module for each library, which says what it relies on.

Each part is looked up where it is used, so that a version that has renamed one breaks what needs it and nothing else,
in words that say so. `tests/test_private.py` has a test for each part that fails when a release changes it, and one
that no other module reaches into a library.
"""

import contextlib
import importlib
import importlib.metadata
from typing import Any

from gptbench.base.errors import UserError

PACKAGES = {
    "triton": ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows"),
    "hydra": ("hydra-core",),
}
"""Names under which a library is installed, where it has another one, or several: nightly builds of torch bring Triton
with them."""


def part(module: str, name: str) -> Any:
    """What a module of a library has under a name.

    Raises:
        UserError: there is none in the version that is installed, or the library is not installed.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        library = module.partition(".")[0]
        if (installed := version(library)) is None:
            raise UserError(f"{library} is not installed, of which gptbench uses {module}.{name}") from error
        raise UserError(
            f"{library} {installed} has no {module}.{name}, which gptbench uses although {library} does not promise to "
            f"keep it: another version of {library} has (gptbench's constraints.txt names one)"
        ) from error


def version(library: str) -> str | None:
    """Of a library; None where it is not installed."""
    for package in PACKAGES.get(library, (library,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None
