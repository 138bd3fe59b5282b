"""Evidence of disagreements on a GPU: they may not be reproducible, but the binaries that ran can be compared later."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from gptbench import kernels
from gptbench.engine import Engine

FOLDER = "GPTBENCH_EVIDENCE"
"""Environment variable with the folder for evidence; by default it is a temporary one."""


def binaries() -> Iterator[tuple[str, bytes]]:
    """Yield the name and machine code of each of gptbench's kernels that this process has loaded."""
    modules = [module for module in vars(kernels).values() if isinstance(module, ModuleType)]
    for kernel in (value for module in modules for value in vars(module).values()):
        if isinstance(kernel, JITFunction):
            for caches in kernel.device_caches.values():
                for compiled in caches[0].values():
                    yield f"{compiled.name} {compiled.hash}", compiled.asm["cubin"]


@contextlib.contextmanager
def kept_evidence(engine: Engine, reference: Engine) -> Iterator[None]:
    """Save the states of both engines and the kernels' binaries if an assertion fails within the context, and print
    where."""
    try:
        yield
    except AssertionError as error:
        parent = os.environ.get(FOLDER)
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="disagreement-", dir=parent))
        states = {name: vars(entry.state) for name, entry in (("engine", engine), ("reference", reference))}
        torch.save(states, folder / "states.pt")
        report: dict[str, Any] = {
            "error": str(error),
            "test": os.environ.get("PYTEST_CURRENT_TEST"),
            "pid": os.getpid(),
        }
        report |= {name: value for name, value in os.environ.items() if name.startswith(("TRITON", "PYTEST_XDIST"))}
        hashes = {}
        for name, code in binaries():
            hashes[name] = hashlib.sha256(code).hexdigest()
            (folder / f"{hashes[name][:16]}.cubin").write_bytes(code)
        (folder / "report.json").write_text(json.dumps(report | {"cubins": hashes}, indent=1))
        print(f"states and binaries of this disagreement: {folder}")
        raise
