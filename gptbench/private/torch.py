"""What gptbench relies on of torch beyond what torch promises to keep.

- Dynamo calls back when it compiles (`compile_callbacks`), and keeps seconds of its stages and counts of cache hits
  under names of its own (`compile_seconds`, `cache_counts`, `KERNELS` to `CACHE_COUNTERS`).
- Inductor's cache is a folder that torch tells (`cache_folder`) and replaces for a while (`fresh_cache`); it makes
  libraries under locks in its folder ``locks``, and looks for precompiled headers in one place only
  (`headers_folder`).
- Inductor's settings can be listed (`options`), and its compiler for C++ and vector instructions be asked for.
- Its kernels are loaded by one function, whose autotuner takes a list of sizes (`kernels_loaded_by`, `tuned_by`).
- Sizes can be marked as open and tensors as staying where they are (`mark_dynamic`, `mark_static`).
- The profiler's names for kernels, launches and compiled graphs (`ON_GPU` to `NOT_OPERATIONS`).
- While it is imported, Inductor counts GPUs, through NVML if a variable says so (`ASK_NVML`).

Nothing is imported with this module, which Inductor's compile workers load, too.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbench.private import part

if TYPE_CHECKING:
    from torch import Tensor

COMPILER = "torch._inductor.compile_fx"
"""What `torch.compile` imports at its first call; it takes about a second."""
ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Variable by which torch asks NVML for GPUs: asked through CUDA, no process forked later could use one."""

GRAPHS, INDUCTOR = "_compile.compile_inner", "compile_fx_inner"
"""Stages of compiling a graph, under torch's names: all of it, and what is Inductor's."""
KERNELS = ("async_compile.wait", "async_compile.precompile")
"""Waiting for kernels to be compiled."""
TUNING = ("CachingAutotuner.benchmark_all_configs", "CachingAutotuner.coordinate_descent_tuning")
"""Measuring block sizes."""
LOADING = ("AOTAutogradCache.inductor_load",)
"""Loading what was compiled before."""
CACHE_COUNTERS = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""The profiler's categories of what keeps a GPU busy."""
LAUNCHING = ("cuda_runtime", "cuda_driver")
"""Those of the calls that launch it. All kernels of a CUDA graph have the correlation of the graph's launch."""
OPERATION = "cpu_op"
"""That of an operation of torch on the host."""
COMPILED = "## Call CompiledFxGraph "
"""How the name of a call of a compiled graph begins."""
NOT_OPERATIONS = (
    "TorchDynamo Cache Lookup",
    "Torch-Compiled Region",
    "Pregraph bytecode",
    "AOTDispatcher Runtime Wrapper Prologue",
)
"""What torch.compile does around a compiled graph on the host."""


def import_compiler() -> None:
    """Imports what `torch.compile` needs. Raises ImportError."""
    importlib.import_module(COMPILER)


def compile_callbacks() -> Any:
    """Has `register_start_callback` and `remove_start_callback`, for what is called when a graph is compiled or a CUDA
    graph is recorded. Raises UserError."""
    return part("torch._dynamo.callback", "callback_handler")


def compile_seconds() -> dict[str, float]:
    """Of this process so far, by stage. Stages hold each other. Raises UserError."""
    metrics = part("torch._dynamo.utils", "compilation_time_metrics")
    return {name: sum(seconds) for name, seconds in metrics.items()}


def cache_counts() -> dict[str, int]:
    """Of this process so far: `CACHE_COUNTERS`. Raises UserError."""
    counters = part("torch._dynamo.utils", "counters")["inductor"]
    return {name: counters[name] for name in CACHE_COUNTERS}


def fresh_cache() -> contextlib.AbstractContextManager[Any]:
    """Within it, Inductor's and Triton's caches are empty folders. Raises UserError."""
    return part("torch._inductor.utils", "fresh_cache")()


def cache_folder() -> Path:
    """Inductor's, which is made. Raises OSError where it cannot be, and UserError."""
    return Path(part("torch._inductor.runtime.cache_dir_utils", "cache_dir")())


def headers_folder() -> Path:
    """Where Inductor keeps precompiled headers, wherever its cache is. Raises UserError."""
    return Path(part("torch._inductor.runtime.cache_dir_utils", "default_cache_dir")(), "precompiled_headers")


NEEDED = (
    ("torch._inductor", "list_options"),
    ("torch._inductor.cpp_builder", "get_cpp_compiler"),
    ("torch._inductor.exc", "InvalidCxxCompiler"),
    ("torch._inductor.inductor_prims", "force_stride_order"),
    ("torch._dynamo", "maybe_mark_dynamic"),
    ("torch._dynamo", "mark_static_address"),
)
"""Module and name of what compiling cannot do without."""


def require_compiler() -> None:
    """Raises UserError where one of `NEEDED` is missing."""
    for module, name in NEEDED:
        part(module, name)


def options() -> list[str]:
    """Names of Inductor's settings. Raises UserError."""
    return part("torch._inductor", "list_options")()


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor takes, or None if there is none. Raises UserError."""
    try:
        return str(part("torch._inductor.cpp_builder", "get_cpp_compiler")())
    except part("torch._inductor.exc", "InvalidCxxCompiler"):
        return None


def vector_instructions() -> tuple[Any, list[Any], set[str]]:
    """Inductor's settings for C++, the sets of vector instructions that it knows, the best first, and the names of what
    this processor has. Raises UserError."""
    return (
        part("torch._inductor", "config").cpp,
        part("torch._inductor.cpu_vec_isa", "supported_vec_isa_list"),
        set(part("torch._inductor.cpu_vec_isa", "x86_isa_checker")()),
    )


def start_workers() -> None:
    """Starts Inductor's compile workers. Raises UserError."""
    part("torch._inductor.async_compile", "maybe_warm_pool")()


def mark_dynamic(tensor: "Tensor", dim: int) -> None:
    """Tells the compiler to leave the size of a dimension open where it can."""
    import torch

    torch._dynamo.maybe_mark_dynamic(tensor, dim)


def mark_static(tensor: "Tensor") -> None:
    """Tells the compiler that a tensor stays where it is in memory."""
    import torch

    torch._dynamo.mark_static_address(tensor)


def in_memory(x: "Tensor") -> "Tensor":
    """The same tensor; for compiled code alone, which then makes it exist in memory before it is used."""
    from torch._inductor.inductor_prims import force_stride_order

    return force_stride_order(x, x.stride())


LOADER = "_load_triton_kernel_from_source"
"""Inductor's function that makes a kernel of its source, here and in its workers."""


def can_replace_loader() -> bool:
    """Whether this version of torch has what `kernels_loaded_by` and `tuned_by` replace."""
    needed = {
        "async_compile": (LOADER, "CompiledTritonKernels"),
        "codecache": (LOADER,),
        "runtime.triton_heuristics": ("cached_autotune", "InductorConfig"),
        "runtime.hints": ("HeuristicType", "ReductionHint"),
    }
    try:
        modules = {importlib.import_module(f"torch._inductor.{module}"): names for module, names in needed.items()}
    except ImportError:
        return False
    return all(hasattr(module, name) for module, names in modules.items() for name in names)


@contextlib.contextmanager
def kernels_loaded_by(load: Callable[[str, str], Any]) -> Iterator[None]:
    """Within it, kernels are made of name and source by this function; workers get it by its name."""
    from torch._inductor import async_compile

    compiler: Any = async_compile
    before = getattr(compiler, LOADER)
    setattr(compiler, LOADER, load)
    # Where a kernel could not be compiled, others are left behind, under the name that they have in either mode.
    compiler.CompiledTritonKernels.cache_clear()
    try:
        yield
    finally:
        setattr(compiler, LOADER, before)
        compiler.CompiledTritonKernels.cache_clear()


def load_kernel(name: str, source: str) -> Any:
    """What Inductor itself does with name and source."""
    from torch._inductor import codecache

    return getattr(codecache, LOADER)(name, source)


@contextlib.contextmanager
def tuned_by(choose: Callable[..., tuple[list[Any], dict[str, Any]]]) -> Iterator[None]:
    """Within it, the autotuner of a kernel that is loaded gets other sizes to try.

    Args:
        choose: takes the sizes of the kernel's dimensions, Inductor's own configurations, and, by name, what else its
            autotuner gets; gives configurations and that back, changed.
    """
    from torch._inductor.runtime import triton_heuristics

    heuristics: Any = triton_heuristics
    autotune = heuristics.cached_autotune

    def cached_autotune(size_hints: dict[str, int], configs: list[Any], *args: Any, **named: Any) -> Any:
        chosen, changed = choose(size_hints, configs, **named)
        return autotune(size_hints, chosen, *args, **changed)

    heuristics.cached_autotune = cached_autotune
    try:
        yield
    finally:
        heuristics.cached_autotune = autotune


def configuration(sizes: dict[str, int], warps: int) -> Any:
    """Sizes for the autotuner to try."""
    from torch._inductor.runtime.triton_heuristics import InductorConfig

    return InductorConfig(sizes, num_warps=warps, num_stages=1)


def is_reduction(heuristic: Any) -> bool:
    """Whether a kernel's kind, as the autotuner gets it, is a reduction."""
    from torch._inductor.runtime.hints import HeuristicType

    return heuristic is HeuristicType.REDUCTION


def reads_rows(hint: Any) -> bool | None:
    """Whether a reduction, by its hint, reads rows that lie one after the other; None where Inductor cannot tell."""
    from torch._inductor.runtime.hints import ReductionHint

    return True if hint is ReductionHint.INNER else None if hint is ReductionHint.DEFAULT else False
