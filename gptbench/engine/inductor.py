"""Prefill and decode step compiled by TorchInductor, launched on a GPU as CUDA graphs.

Where the seed lets torch's cudagraph trees launch each step, here a whole step, drawing and bookkeeping included, is
captured once into a CUDA graph of our own: a replay needs no guards, no copies of inputs, and nothing from the host
but the launch. On a CPU the compiled C++ is called directly.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptbench.base.errors import ConfigError, UserError
from gptbench.block_sizes import from_candidates
from gptbench.config import Config, CudaGraph, EngineConfig, InductorConfig, Scope, Tuning
from gptbench.device import Device
from gptbench.engine import caches
from gptbench.engine.base import Engine
from gptbench.engine.runner import Shape
from gptbench.model import KeyValueCache, Transformer
from gptbench.private import torch as private
from gptbench.sampling import Sampler

WARM_UP_CALLS = 3
"""Before a capture. torch's trees record at the second call, and replay from the third on."""


def compile_options(cudagraphs: bool, tuning: Tuning) -> dict[str, Any]:
    """Inductor's settings, those that this version of it has.

    Coordinate descent is what tuning is to Inductor, and what has it write the products of a single row as reductions;
    `gptbench.block_sizes` takes the search out of it. Where it is left in, kernels are loaded by Triton's own launcher,
    for each of which a C compiler runs: with Inductor's static one, torch 2.11 searched again in every process,
    although the results lay in its cache (28 s instead of 8 s on an H200). Kernels lie beside a cached graph, not in
    it: there, torch 2.11 and 2.13 keep the folder in which the sizes were found, which elsewhere is another.
    """
    options = {
        "triton.cudagraphs": cudagraphs,
        "coordinate_descent_tuning": tuning is not Tuning.none,
        "use_static_cuda_launcher": tuning is not Tuning.descent,
        "bundle_triton_into_fx_graph_cache": False,
    }
    known = private.options()
    return {name: value for name, value in options.items() if name in known}


@cache
def trust_vector_instructions() -> None:
    """Has Inductor take what the processor says of its vector instructions for granted, if the C++ compiler knows them.

    Else it would build and load a small library for each set of them, of which it needs one: 8 of the 18 s that the
    demo model's cold compile took on two cores (see docs/log).
    """
    try:
        settings, known, here = private.vector_instructions()
    except UserError:  # it takes longer then
        return
    if getattr(settings, "vec_isa_ok", True) is not None:
        return  # the user has said so: TORCHINDUCTOR_VEC_ISA_OK
    best = next((isa for isa in known if set(str(isa).split()) <= here), None)
    if best is not None and (compiler := private.cpp_compiler()) is not None:  # on a GPU there need not be one
        command = [compiler, "-fsyntax-only", "-x", "c++", *best.build_arch_flags().split(), os.devnull]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            settings.vec_isa_ok = True


def has_candidates() -> bool:
    """Whether `Tuning.candidates` can be had with this version of torch."""
    caches.import_compiler()
    return private.can_replace_loader()


def import_compiler() -> None:
    """Imports what compiling needs. What goes wrong is told by what compiles, if the process lives on."""
    with contextlib.suppress(Exception):
        private.import_compiler()


def compiled(function: Callable, how: dict[str, Any]) -> Callable:
    """One graph for one shape, but for what `varies`: another change of shape compiles another."""
    return torch.compile(function, fullgraph=True, dynamic=False, options=how)


def varies(tensor: Tensor, dim: int) -> None:
    """Tells the compiler to leave the size of a dimension open; not of size 1, which has code of its own."""
    if tensor.shape[dim] > 1:
        private.mark_dynamic(tensor, dim)


def of_any_length(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A compiled block, called such that a prompt of another length needs no other graph."""

    def call(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
        varies(x, 1)
        varies(cos, 1)
        varies(sin, 1)
        return block(x, cos, sin, positions, cache)

    return call


class Inductor(Engine):
    """Reads the whole cache at every step, its padding included: how much is read is fixed when it is compiled."""

    config: InductorConfig

    @classmethod
    def unavailable_reason(cls, device: Device) -> str | None:
        caches.import_compiler()
        try:
            private.require_compiler()
        except UserError as error:
            return f"another version of torch: {error}"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "the headers of Python (Debian: python3-dev)"
        if device.is_cuda:
            if importlib.util.find_spec("triton") is None:
                return "Triton"
            if not any(map(shutil.which, ("gcc", "clang", "cc"))):
                return "a C compiler (Debian: gcc)"
            return caches.lacking_for_kernels(inductor=True)
        return caches.lacking_for_cpp() if private.cpp_compiler() is not None else "a C++ compiler (Debian: g++)"

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        assert isinstance(config.engine, InductorConfig)
        caches.check(config.engine)
        if device.is_cuda and config.engine.tuning is Tuning.candidates and not has_candidates():
            raise ConfigError(
                "engine.tuning", "candidates", f"descent or none: torch {torch.__version__} keeps kernels another way"
            )

    @classmethod
    def shipped(cls, section: EngineConfig, config: Config) -> EngineConfig:
        assert isinstance(section, InductorConfig)
        return section if has_candidates() else replace(section, tuning=Tuning.descent)

    @classmethod
    def warm_up_compiler(cls, config: EngineConfig, device: Device) -> None:
        if device.is_cuda:  # on a CPU it would take turns with the model
            with contextlib.suppress(UserError):  # it takes longer then
                private.start_workers()
            threading.Thread(target=import_compiler, daemon=True).start()

    @classmethod
    def serves_other_workloads(cls, config: EngineConfig) -> bool:
        """Not where one graph holds the whole model, with its caches; nor with torch's trees, which keep graphs alive
        that refer to an engine's tensors."""
        assert isinstance(config, InductorConfig)
        return config.scope is Scope.block and config.cuda_graph is not CudaGraph.trees

    def __init__(
        self, config: InductorConfig, model: Transformer, sampler: Sampler, device: Device, shape: Shape
    ) -> None:
        super().__init__(config, model, sampler, device, shape)
        trees = device.is_cuda and config.cuda_graph is CudaGraph.trees
        self.captures = device.is_cuda and config.cuda_graph is CudaGraph.step
        open_sizes = self.serves_other_workloads(config)
        if open_sizes:
            varies(self.state.tokens, 1)
            varies(self.state.uniform, 1)
            varies(self.prompt_positions, 1)
            for keys_or_values in self.cached():
                varies(keys_or_values, 2)
        prefill = compile_options(trees and config.graph_prefill, config.tuning if config.tune_prefill else Tuning.none)
        decode = compile_options(trees, config.tuning)
        if config.scope is Scope.model:
            self.prefill_body = compiled(self.body, prefill)
            self.decode_body = compiled(self.body, decode)
        else:
            finish = compiled(self.advance, decode)
            self.decode_body = self.body_by_block([compiled(block, decode) for block in model.layers], finish)
            if shape.prompt == 1:  # a single token is the same to both, but for where it stands
                self.prefill_body = self.decode_body
            else:
                blocks = [compiled(block, prefill) for block in model.layers]
                self.prefill_body = self.body_by_block(
                    list(map(of_any_length, blocks)) if open_sizes else blocks, finish
                )
        if trees:
            counters = [] if model.experts_counter is None else [model.experts_counter]
            for tensor in (*vars(self.state).values(), self.prompt, *sampler.settings, sampler.stops, *counters):
                private.mark_static(tensor)
        self.launch_prefill: Callable[[], None] = self.prefill_step
        self.launch_decode: Callable[[], None] = self.decode_step

    def body(self, tokens: Tensor, positions: Tensor) -> None:
        """All of a step but its random numbers: tokens [B, T] at positions [B, T] to the next state."""
        self.advance(self.model.hidden(tokens, positions, self.memory, self.length)[:, -1])

    def body_by_block(
        self, compiled_blocks: list[Callable[..., Tensor]], finish: Callable[[Tensor], None]
    ) -> Callable[[Tensor, Tensor], None]:
        """The same, calling compiled blocks that all share one graph, and then `finish`."""
        blocks = [
            partial(block, cache=cache.tensors)
            for block, cache in zip(compiled_blocks, self.memory.caches, strict=True)
        ]

        def body(tokens: Tensor, positions: Tensor) -> None:
            hidden = self.model.hidden(tokens, positions, self.memory, self.length, blocks)
            # A copy, so that prefill and decode give the compiler the same strides and share one graph.
            finish(hidden[:, -1].clone(memory_format=torch.contiguous_format))

        return body

    def block_sizes(self) -> contextlib.AbstractContextManager[None]:
        """Within it, block sizes are found as the configuration says."""
        if not (self.device.is_cuda and self.config.tuning is Tuning.candidates):
            return contextlib.nullcontext()
        return from_candidates()

    @torch.no_grad()
    def prepare(self) -> None:
        trust_vector_instructions()
        self.filled = self.prompt_length
        with caches.blamed(), self.block_sizes():
            for _ in range(WARM_UP_CALLS):
                self.prefill_step()
                self.decode_step()
        if self.captures:
            if self.config.graph_prefill:
                self.launch_prefill = self.capture(self.prefill_step)
            self.launch_decode = self.capture(self.decode_step)
        self.device.synchronize()

    def run_prefill(self) -> None:
        self.launch_prefill()

    def run_decode(self) -> None:
        self.launch_decode()

    def prefill_step(self) -> None:
        self.rewind()
        self.prefill_body(self.prompt, self.prompt_positions)

    def decode_step(self) -> None:
        self.decode_body(self.state.token, self.state.position)

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return len(positions) * self.length

    def release(self) -> None:
        super().release()
        self.prefill_body = self.decode_body = self.released
        self.launch_prefill = self.launch_decode = self.released
