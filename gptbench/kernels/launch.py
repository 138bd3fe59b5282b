"""Launching and compiling kernels, and programmatic dependent launch (PDL).

With PDL (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization") a kernel starts while the one
before it still runs, prefetches what nobody writes (weights), and only then waits for it. Every kernel waits before it
triggers the next: once a kernel has waited, therefore, not only its predecessor but all kernels before it have
finished. A kernel can start early only where registers and shared memory are free, so kernels ask for as little as they
can.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import torch
import triton
import triton.language as tl

from gptbench.kernels.tile_config import kernel_name

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter on the CPU, which has no inline assembly and runs one CTA after the
other."""


MAX_COMPILE_THREADS = 16
"""Threads that compile kernels concurrently; most of a compilation does not hold the GIL."""
compile_only_mode: ContextVar[bool] = ContextVar("only_compiling", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel on a grid of CTAs; within `compile_only`, compile it instead."""
    if compile_only_mode.get():
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


def compilers(device: torch.device) -> ThreadPoolExecutor:
    """Return a pool of threads that compile for a GPU; the current device is set in each."""
    return ThreadPoolExecutor(MAX_COMPILE_THREADS, initializer=torch.cuda.set_device, initargs=(device,))


def compile_only(step: Callable[[], None], device: torch.device) -> None:
    """Call `step` and compile, concurrently, the kernels that it would launch. None is launched, so nothing is written.

    Raises:
        triton.OutOfResources: a kernel needs more registers or shared memory than the device has.
    """

    def compile_step() -> None:
        compile_only_mode.set(True)
        threads = compilers(device)
        try:
            with triton.AsyncCompileMode(CompileExecutor(threads)):
                step()
        finally:
            threads.shutdown(cancel_futures=True)

    copy_context().run(compile_step)  # discards context variables, Triton's too, however it ends


class CompileExecutor:
    """Executor for Triton's asynchronous compile mode.

    It compiles a kernel together with its launcher, which Triton builds with a C compiler, and otherwise only at the
    first launch.
    """

    def __init__(self, threads: Executor) -> None:
        self.threads = threads

    def submit(self, compile_kernel: Callable[[], Any]) -> Future[Any]:
        return self.threads.submit(self.build, compile_kernel)

    @staticmethod
    def build(compile_kernel: Callable[[], Any]) -> Any:
        """Compile a kernel and its launcher."""
        kernel = compile_kernel()
        assert callable(kernel.run)  # the property builds the launcher
        return kernel


def supports_pdl(device: torch.device) -> bool:
    """Return whether a device supports PDL (`pdl=True`): NVIDIA GPUs of compute capability 9.0 and later."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def pdl_wait_and_trigger(PDL: tl.constexpr):
    """Wait for the kernel before this one, then let the next one start. To be called before anything is read that a
    kernel writes, and never inside a loop."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def name_with_shape(name: str) -> Callable[[Any], str]:
    """Return the `repr` for `triton.jit` that adds the weight's shape to the name that a profiler shows."""

    def name_of(specialization: Any) -> str:
        shape = specialization.constants["SHAPE"]
        return kernel_name(name, shape.N, shape.K, mixture=bool(shape.STRIDES))

    return name_of
