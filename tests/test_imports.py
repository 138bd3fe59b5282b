"""The direction of imports: data goes configure, build, prepare, generate, measure, record, compare, never back."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptbench"

ORDER = (
    "base",
    "private",
    "architecture",
    "config",
    "schema",
    "text",
    "device",
    "kernels",
    "quant",
    "model",
    "sampling",
    "checkpoint",
    "build",
    "block_sizes",
    "engine",
    "generate",
    "measure",
    "task",
    "charts",
    "record",
    "compare",
    "present",
    "execute",
    "sweep",
    "commands",
    "__main__",
)
"""Rooms of gptbench. Each may import itself and what stands before it."""

SIDE_ROOMS = {
    "kernels": {"torch", "triton", *sys.stdlib_module_names},
    "block_sizes": {"torch", "gptbench.private", *sys.stdlib_module_names},
}
"""Rooms that may import nothing but themselves, these packages and Python's own."""

FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str | None:
    """`gptbench.model.rope` is in `model`; what is outside gptbench, or gptbench itself, is in none."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if top == "gptbench" else None


def imported_modules(code: str, package: str) -> Iterator[str]:
    """Dotted names that a file of `package` imports, wherever in the file."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # From the top of the package, what is imported may be a room or a plain name.
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "gptbench" else [module]


def violations(room: str, code: str, package: str) -> list[str]:
    """Modules that a file in `room` imports against the order."""
    if room in SIDE_ROOMS:
        own = f"gptbench.{room}"
        return [
            module
            for module in imported_modules(code, package)
            if not any(f"{module}.".startswith(f"{known}.") for known in (own, *SIDE_ROOMS[room]))
        ]
    allowed = ORDER[: ORDER.index(room) + 1]
    rooms = ((module, room_of(module)) for module in imported_modules(code, package))
    return [module for module, other in rooms if other in ORDER and other not in allowed]


def test_every_room_has_its_place() -> None:
    rooms = {name.partition("/")[0].removesuffix(".py") for name in FILES} - {"__init__"}
    assert rooms == set(ORDER)


def test_every_room_measures_or_records() -> None:
    """What a number depends on is in its identity: a new room has to be put into one of both lists."""
    from gptbench.record.identity import MEASURING, RECORDING

    assert not set(MEASURING) & set(RECORDING)
    assert set(MEASURING) | set(RECORDING) == {*ORDER, "__init__"}


def test_imports_go_forward() -> None:
    wrong = {}
    for name, path in FILES.items():
        package = ".".join(("gptbench", *path.relative_to(PACKAGE).parent.parts))
        room = name.partition("/")[0].removesuffix(".py")
        code = path.read_text()
        if room == "__init__":  # comes before every room
            wrong[name] = [module for module in imported_modules(code, package) if room_of(module) in ORDER]
        else:
            wrong[name] = violations(room, code, package)
    assert not {name: modules for name, modules in wrong.items() if modules}


@pytest.mark.parametrize(
    ("room", "code", "found"),
    [
        ("model", "import gptbench.engine.base", ["gptbench.engine.base"]),
        ("model", "def f():\n    from gptbench.engine import Eager", ["gptbench.engine"]),
        ("model", "from gptbench import config, engine", ["gptbench.engine"]),
        ("model", "from gptbench import __version__", []),
        ("model", "from ..engine.base import Engine", ["gptbench.engine.base"]),
        ("model", "from .. import engine", ["gptbench.engine"]),
        ("model", "from .rope import apply_rope\nfrom gptbench.config import ModelConfig", []),
        ("kernels", "import triton.language as tl\nfrom torch import Tensor", []),
        ("kernels", "from gptbench.kernels.read_reduce import kernel", []),
        ("kernels", "import numpy\nfrom gptbench.base.errors import UserError", ["numpy", "gptbench.base.errors"]),
    ],
)
def test_a_step_back_is_found(room: str, code: str, found: list[str]) -> None:
    assert violations(room, code, f"gptbench.{room}") == found
