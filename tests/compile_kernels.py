"""Program that compiles the fused engine's kernels as the engine would launch them, for a GPU that need not be present,
and prints a line of JSON for each. It is a separate program because the tests' process has Triton's interpreter in
place of the compiler."""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from gptbench.build import on_meta
from gptbench.config import FORMATS, DeviceKind, FusedConfig, QuantConfig
from gptbench.device import Device
from gptbench.engine import Shape
from gptbench.engine.fused import Fused
from gptbench.sampling import Sampler
from tests.models import model_config, run_config

HOPPER_PROCESSORS = 132
HOPPER = GPUTarget("cuda", 90, 32)
OPTIONS = ("num_warps", "num_stages", "launch_pdl")


def source(function: JITFunction, arguments: tuple[Any, ...], named: dict[str, Any]) -> ASTSource:
    """Return what a launch would compile, determined as Triton itself does."""
    backend = make_backend(HOPPER)
    binder = create_function_from_signature(function.signature, function.params, backend)
    bound, specialization, options = binder(*arguments, debug=False, instrumentation_mode="", **named)
    _, signature, constants, attributes = function._pack_args(backend, options, bound, specialization, options)
    return ASTSource(function, signature, constants, attributes)


def section_of(quant: str) -> QuantConfig:
    """Return the section of a weight format, also of a plugin's."""
    if quant == "int4":
        importlib.import_module("tests.plugins.int4")
    return FORMATS[quant]


def engine(name: str, quant: str, batch: int, length: int) -> Fused:
    """Return a fused engine over a model on the meta device, as on a GPU with PDL."""
    model = replace(model_config(name), n_layers=2)
    of = run_config(model, batch=batch)
    built = on_meta(model, section_of(quant), torch.bfloat16)
    on = Device(replace(of.device, kind=DeviceKind.cpu))
    section = FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused", tile_cache="")
    shape = Shape(batch, len(of.workload.prompt), length)
    fused = Fused(section, built, Sampler(of.sampling, model.vocab_size, on.torch), on, shape)
    fused.processors = HOPPER_PROCESSORS
    fused.ops = fused.decode_ops(fused.tile_cache.__getitem__)
    return fused


def stack_bytes(cubin: bytes) -> int:
    """Return the bytes of stack of each thread: used where registers do not suffice, or are indexed."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(stack)


def main() -> None:
    seen = set()
    captured: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []
    JITFunction.run = lambda self, *args, grid, warmup, **named: captured.append((self, args, named))
    for *case, roles in json.loads(sys.argv[1]):
        of = engine(*case)
        for op in of.ops:
            if roles and op.role not in roles:
                continue
            captured.clear()
            op.launch(pdl=True)
            ((function, arguments, named),) = captured
            key = str((function.__name__, named, [getattr(argument, "dtype", argument) for argument in arguments]))
            if key in seen:
                continue
            seen.add(key)
            chosen = {name: named[name] for name in OPTIONS if name in named}
            own = source(function, arguments, named)
            made = triton.compile(own, target=HOPPER, options=chosen)
            functions = sum(isinstance(constant, JITFunction) for constant in own.constants.values())
            names = {"case": case, "role": op.role, "expected": op.name, "kernel": made.metadata.name}
            bytes_of = {"shared": made.metadata.shared, "stack": stack_bytes(made.asm["cubin"])}
            print(json.dumps(names | bytes_of | {"part": op.part, "functions": functions}), flush=True)


if __name__ == "__main__":
    main()
