"""What is kept of a disagreement on a GPU: it may not come again, and the binaries that ran can be compared later."""

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
"""Environment variable with the folder for it; else it is a temporary one."""


def binaries() -> Iterator[tuple[str, bytes]]:
    """Name and machine code of each of our kernels that this process has loaded."""
    modules = [module for module in vars(kernels).values() if isinstance(module, ModuleType)]
    for kernel in (value for module in modules for value in vars(module).values()):
        if isinstance(kernel, JITFunction):
            for caches in kernel.device_caches.values():
                for compiled in caches[0].values():
                    yield f"{compiled.name} {compiled.hash}", compiled.asm["cubin"]


@contextlib.contextmanager
def kept_evidence(engine: Engine, reference: Engine) -> Iterator[None]:
    """Of an assertion that fails within it: logits of both, and binaries with their hashes; says where they lie."""
    try:
        yield
    except AssertionError as error:
        parent = os.environ.get(FOLDER)
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="disagreement-", dir=parent))
        states = {name: vars(each.state) for name, each in (("engine", engine), ("reference", reference))}
        torch.save(states, folder / "states.pt")
        told: dict[str, Any] = {"error": str(error), "test": os.environ.get("PYTEST_CURRENT_TEST"), "pid": os.getpid()}
        told |= {name: value for name, value in os.environ.items() if name.startswith(("TRITON", "PYTEST_XDIST"))}
        hashes = {}
        for name, code in binaries():
            hashes[name] = hashlib.sha256(code).hexdigest()
            (folder / f"{hashes[name][:16]}.cubin").write_bytes(code)
        (folder / "told.json").write_text(json.dumps(told | {"cubins": hashes}, indent=1))
        print(f"the states and binaries of this disagreement: {folder}")
        raise
