"""Prefill and decode step compiled by TorchInductor, launched on a GPU as CUDA graphs.

Where the seed lets torch's cudagraph trees launch each step, here a whole step, drawing and bookkeeping included, is
captured once into a CUDA graph of our own: a replay needs no guards, no copies of inputs, and nothing from the host
but the launch. On a CPU the compiled C++ is called directly.
"""

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from gptbench.config import CudaGraph, InductorConfig, Scope, Tuning
from gptbench.device import Device
from gptbench.engine.base import Engine
from gptbench.model import Transformer
from gptbench.sampling import Sampler

WARM_UP_CALLS = 3
"""Before a capture. torch's trees record at the second call, and replay from the third on."""


def compile_options(cudagraphs: bool, tuned: bool) -> dict[str, Any]:
    """Inductor's settings. Kernels are loaded by Triton's own launcher: with Inductor's static one, torch 2.11 tuned
    all of them again in every process, although the results lay in its cache (28 s instead of 8 s on an H200)."""
    return {
        "triton.cudagraphs": cudagraphs,
        "coordinate_descent_tuning": tuned,
        "use_static_cuda_launcher": False,
    }


def compiled(function: Callable, how: dict[str, Any]) -> Callable:
    """One graph for one shape: a change of shape compiles another."""
    return torch.compile(function, fullgraph=True, dynamic=False, options=how)


class Inductor(Engine):
    """Reads the whole cache at every step, its padding included: how much is read is fixed when it is compiled."""

    config: InductorConfig

    @classmethod
    def missing(cls, device: Device) -> str | None:
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "the headers of Python (Debian: python3-dev)"
        if device.is_cuda:
            return None if any(map(shutil.which, ("gcc", "clang", "cc"))) else "a C compiler (Debian: gcc)"
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "a C++ compiler (Debian: g++)"
        return None

    def __init__(
        self, config: InductorConfig, model: Transformer, sampler: Sampler, device: Device, prompt_length: int
    ) -> None:
        super().__init__(config, model, sampler, device, prompt_length)
        trees = device.is_cuda and config.cuda_graph is CudaGraph.trees
        self.captures = device.is_cuda and config.cuda_graph is CudaGraph.step
        tuning = config.coordinate_descent_tuning
        prefill = compile_options(trees and config.graph_prefill, tuned=tuning is Tuning.all)
        decode = compile_options(trees, tuned=tuning is not Tuning.none)
        if config.scope is Scope.model:
            self.prefill_body = compiled(self.body, prefill)
            self.decode_body = compiled(self.body, decode)
        else:
            finish = compiled(self.advance, decode)
            self.prefill_body = self.body_by_block(prefill, finish)
            self.decode_body = self.body_by_block(decode, finish)
        if trees:
            for tensor in (*vars(self.state).values(), self.prompt, *sampler.settings, sampler.stops):
                torch._dynamo.mark_static_address(tensor)
        self.launch_prefill: Callable[[], None] = self.prefill_step
        self.launch_decode: Callable[[], None] = self.decode_step

    def body(self, tokens: Tensor, positions: Tensor) -> None:
        """All of a step but its random numbers: tokens [B, T] at positions [T] to the next state."""
        self.advance(self.model.hidden(tokens, positions, self.length)[:, -1])

    def body_by_block(self, how: dict[str, Any], finish: Callable[[Tensor], None]) -> Callable[[Tensor, Tensor], None]:
        """The same, calling compiled blocks that all share one graph, and then `finish`."""
        blocks = [compiled(block, how) for block in self.model.layers]

        def body(tokens: Tensor, positions: Tensor) -> None:
            hidden = self.model.hidden(tokens, positions, self.length, blocks)
            # A copy, so that prefill and decode give the compiler the same strides and share one graph.
            finish(hidden[:, -1].clone(memory_format=torch.contiguous_format))

        return body

    @torch.no_grad()
    def prepare(self) -> None:
        self.filled = self.prompt_length
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

    def positions_read(self, position: int) -> int:
        return self.length
