"""Private parts of libraries that gptbench uses: one module per library, which lists what it relies on.

Each part is looked up where it is used, so that a release that renames one breaks only the feature that needs it, with
a message that says so. `tests/test_private.py` has a test for each part that fails when a release changes it, and one
that no other module uses private parts."""

import contextlib
import importlib
import importlib.metadata
from typing import Any

from gptbench.base.errors import UserError

PACKAGES = {
    "triton": ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows"),
    "hydra": ("hydra-core",),
}
"""Libraries whose packages have other names, mapped to these; Triton has several, as nightly builds of torch bring one
of their own."""


def part(module: str, name: str) -> Any:
    """Return the attribute of a library's module.

    Raises:
        UserError: the installed version has no such attribute, or the library is not installed.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        library = module.partition(".")[0]
        if (installed := version(library)) is None:
            raise UserError(f"{library} is not installed, and gptbench needs {module}.{name}") from error
        raise UserError(
            f"{library} {installed} has no {module}.{name}, a private part of {library} that gptbench needs: install "
            f"another version of {library} (gptbench's constraints.txt names one)"
        ) from error


def version(library: str) -> str | None:
    """Return the installed version of a library; None if it is not installed."""
    for package in PACKAGES.get(library, (library,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None
