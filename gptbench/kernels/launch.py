"""How kernels follow one another, and where they run.

Programmatic dependent launch (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"): a
kernel starts while the one before it still runs, loads what nobody writes (weights), and waits only then. Every kernel
waits before it lets the next one start: so, when it has waited, not only the kernel before it but all before that are
done. It can start only where registers and shared memory are left for it: kernels ask for as little as they can.
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
"""Whether kernels run in Triton's interpreter on the CPU: no inline assembly there, and one program after the other."""


COMPILERS = 16
"""Kernels that are compiled at the same time; most of a compilation needs no lock of Python's."""
only_compiling: ContextVar[bool] = ContextVar("only_compiling", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launches a kernel on a grid of programs; within `compile_only`, has it compiled instead."""
    if only_compiling.get():
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


def compilers(device: torch.device) -> ThreadPoolExecutor:
    """Threads that compile for a GPU: each has a current device of its own."""
    return ThreadPoolExecutor(COMPILERS, initializer=torch.cuda.set_device, initargs=(device,))


def compile_only(step: Callable[[], None], device: torch.device) -> None:
    """Calls `step`, and has the kernels that it would launch compiled for a GPU, side by side. They are not launched:
    what they would write is not there.

    Raises:
        triton.OutOfResources: a kernel needs more registers or shared memory than there are.
    """

    def compiled() -> None:
        only_compiling.set(True)
        threads = compilers(device)
        try:
            with triton.AsyncCompileMode(Builders(threads)):
                step()
        finally:
            threads.shutdown(cancel_futures=True)

    copy_context().run(compiled)  # what is set in it, by Triton too, is forgotten after it, whatever happens


class Builders:
    """Where Triton's asynchronous mode compiles a kernel: in threads, together with what launches it, which Triton
    builds with a C compiler, and else not before the first launch."""

    def __init__(self, threads: Executor) -> None:
        self.threads = threads

    def submit(self, compile_kernel: Callable[[], Any]) -> Future[Any]:
        return self.threads.submit(self.built, compile_kernel)

    @staticmethod
    def built(compile_kernel: Callable[[], Any]) -> Any:
        """The kernel, ready to be launched."""
        kernel = compile_kernel()
        assert callable(kernel.run)  # builds what it gives
        return kernel


def supports_pdl(device: torch.device) -> bool:
    """Whether kernels on this device can be launched with `pdl=True`: NVIDIA's compute capability 9.0 and up."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def pdl_wait_and_trigger(PDL: tl.constexpr):
    """Waits for the kernel before this one, then lets the next one start. To be called before anything is read that a
    kernel has written, and never inside a loop."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def sized(name: str) -> Callable[[Any], str]:
    """For `triton.jit(repr=...)`: the name that a profiler shows for a kernel over a weight of a given shape."""

    def name_of(specialization: Any) -> str:
        shape = specialization.constants["SHAPE"]
        return kernel_name(name, shape.N, shape.K, mixture=bool(shape.STRIDES))

    return name_of
