"""`engine=inductor`: prefill and decode step compiled by TorchInductor, launched on a GPU as CUDA graphs.

Where gpt-fast lets torch's cudagraph trees launch each step, here a whole step, sampling and bookkeeping included, is
captured once into a CUDA graph: a replay needs no guards, no copies of inputs, and nothing from the host but the
launch. On a CPU the compiled C++ is called directly.
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
"""Warm-up calls before a capture. torch's cudagraph trees record at the second call, and replay from the third on."""


def compile_options(cudagraphs: bool, tuning: Tuning) -> dict[str, Any]:
    """Return Inductor's options, as far as the installed version has them.

    Coordinate descent is what Inductor calls tuning, and also what makes it emit the products of a single row as
    reductions; `gptbench.block_sizes` replaces the search. Where the search is on, kernels use Triton's launcher, for
    each of which a C compiler runs: with Inductor's static launcher, torch 2.11 searched again in every process
    although the results were in its cache (28 s instead of 8 s on an H200). Kernels are cached beside a graph, not
    bundled into it: torch 2.11 and 2.13 bundle the absolute folder in which the sizes were found, which differs
    elsewhere.
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
    """Make Inductor trust the vector instructions that the processor reports, if the C++ compiler knows them.

    Otherwise it builds and loads a small library for each instruction set, of which it needs one: 8 of the 18 s of the
    demo model's cold compile on two cores (see docs/log).
    """
    try:
        settings, known, here = private.vector_instructions()
    except UserError:  # then compiling takes longer
        return
    if getattr(settings, "vec_isa_ok", True) is not None:
        return  # set by the user: TORCHINDUCTOR_VEC_ISA_OK
    best = next((isa for isa in known if set(str(isa).split()) <= here), None)
    if best is not None and (compiler := private.cpp_compiler()) is not None:  # on a GPU it is optional
        command = [compiler, "-fsyntax-only", "-x", "c++", *best.build_arch_flags().split(), os.devnull]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            settings.vec_isa_ok = True


def supports_candidates() -> bool:
    """Return whether `Tuning.candidates` works with this version of torch."""
    caches.import_compiler()
    return private.can_replace_loader()


def import_compiler() -> None:
    """Import what compiling needs. Errors are left to be reported by the compilation itself."""
    with contextlib.suppress(Exception):
        private.import_compiler()


def compile_graph(function: Callable, options: dict[str, Any]) -> Callable:
    """Compile a function into one graph per shape; sizes marked by `mark_dynamic_size` are left open."""
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


def mark_dynamic_size(tensor: Tensor, dim: int) -> None:
    """Leave the size of a dimension open to the compiler, unless it is 1, which gets specialised code."""
    if tensor.shape[dim] > 1:
        private.mark_dynamic(tensor, dim)


def with_dynamic_length(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a compiled block so that prompts of other lengths share its graph."""

    def call(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
        mark_dynamic_size(x, 1)
        mark_dynamic_size(cos, 1)
        mark_dynamic_size(sin, 1)
        return block(x, cos, sin, positions, cache)

    return call


class Inductor(Engine):
    """Compiles the model. Reads the whole cache at every step, padding included: how much is read is fixed when
    compiling."""

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
            return caches.missing_for_kernels(inductor=True)
        return caches.missing_for_cpp() if private.cpp_compiler() is not None else "a C++ compiler (Debian: g++)"

    @classmethod
    def check(cls, config: Config, device: Device) -> None:
        assert isinstance(config.engine, InductorConfig)
        caches.check(config.engine)
        if device.is_cuda and config.engine.tuning is Tuning.candidates and not supports_candidates():
            raise ConfigError(
                "engine.tuning",
                "candidates",
                f"descent or none: torch {torch.__version__} does not let gptbench choose block sizes",
            )

    @classmethod
    def auto_section(cls, section: EngineConfig, config: Config) -> EngineConfig:
        assert isinstance(section, InductorConfig)
        return section if supports_candidates() else replace(section, tuning=Tuning.descent)

    @classmethod
    def warm_up_compiler(cls, config: EngineConfig, device: Device) -> None:
        if device.is_cuda:  # on a CPU it would compete with building the model
            with contextlib.suppress(UserError):  # then compiling takes longer
                private.start_workers()
            threading.Thread(target=import_compiler, daemon=True).start()

    @classmethod
    def serves_other_workloads(cls, config: EngineConfig) -> bool:
        """Return whether other lengths can be served: not if one graph holds the whole model with its caches, nor with
        cudagraph trees, whose graphs keep references to an engine's tensors."""
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
            mark_dynamic_size(self.state.tokens, 1)
            mark_dynamic_size(self.state.uniform, 1)
            mark_dynamic_size(self.prompt_positions, 1)
            for keys_or_values in self.cached():
                mark_dynamic_size(keys_or_values, 2)
        prefill = compile_options(trees and config.graph_prefill, config.tuning if config.tune_prefill else Tuning.none)
        decode = compile_options(trees, config.tuning)
        if config.scope is Scope.model:
            self.prefill_body = compile_graph(self.body, prefill)
            self.decode_body = compile_graph(self.body, decode)
        else:
            finish = compile_graph(self.advance, decode)
            self.decode_body = self.body_by_block([compile_graph(block, decode) for block in model.layers], finish)
            if shape.prompt == 1:  # a single token is the same to both, except for its position
                self.prefill_body = self.decode_body
            else:
                blocks = [compile_graph(block, prefill) for block in model.layers]
                self.prefill_body = self.body_by_block(
                    list(map(with_dynamic_length, blocks)) if open_sizes else blocks, finish
                )
        if trees:
            counters = [] if model.experts_counter is None else [model.experts_counter]
            for tensor in (*vars(self.state).values(), self.prompt, *sampler.settings, sampler.stops, *counters):
                private.mark_static(tensor)
        self.launch_prefill: Callable[[], None] = self.prefill_step
        self.launch_decode: Callable[[], None] = self.decode_step

    def body(self, tokens: Tensor, positions: Tensor) -> None:
        """Run a step, except for its random numbers: tokens [B, T] at positions [B, T] to the next state."""
        self.advance(self.model.hidden(tokens, positions, self.memory, self.length)[:, -1])

    def body_by_block(
        self, compiled_blocks: list[Callable[..., Tensor]], finish: Callable[[Tensor], None]
    ) -> Callable[[Tensor, Tensor], None]:
        """Return `body` made of compiled blocks, which all share one graph, and `finish`."""
        blocks = [
            partial(block, cache=cache.tensors)
            for block, cache in zip(compiled_blocks, self.memory.caches, strict=True)
        ]

        def body(tokens: Tensor, positions: Tensor) -> None:
            hidden = self.model.hidden(tokens, positions, self.memory, self.length, blocks)
            # Cloned so that prefill and decode have the same strides and share one graph.
            finish(hidden[:, -1].clone(memory_format=torch.contiguous_format))

        return body

    def block_sizes(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which block sizes are found as configured."""
        if not (self.device.is_cuda and self.config.tuning is Tuning.candidates):
            return contextlib.nullcontext()
        return from_candidates()

    @torch.no_grad()
    def prepare(self) -> None:
        trust_vector_instructions()
        self.filled = self.prompt_length
        with caches.explain_cache_errors(), self.block_sizes():
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
        self.reset_to_prompt()
        self.prefill_body(self.prompt, self.prompt_positions)

    def decode_step(self) -> None:
        self.decode_body(self.state.token, self.state.position)

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return len(positions) * self.length

    def release(self) -> None:
        super().release()
        self.prefill_body = self.decode_body = self.fail_released
        self.launch_prefill = self.launch_decode = self.fail_released
