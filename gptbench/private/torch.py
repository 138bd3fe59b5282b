"""Private parts of torch that gptbench relies on.

- Dynamo runs callbacks when it compiles (`compile_callbacks`), and records the seconds of its stages and the number of
  cache hits under private names (`compile_seconds`, `cache_counts`, `KERNELS` to `CACHE_COUNTERS`).
- torch knows the folder of Inductor's cache (`cache_folder`) and can replace it temporarily (`fresh_cache`). Inductor
  builds libraries under locks in its folder ``locks``, and looks for precompiled headers in a single place
  (`headers_folder`).
- Inductor's settings (`options`), C++ compiler and vector instructions can be queried.
- Its kernels are loaded by one function, whose autotuner takes a list of sizes (`kernels_loaded_by`, `tuned_by`).
- Sizes can be marked as dynamic and tensors as having a static address (`mark_dynamic`, `mark_static`).
- The profiler has names for kernels, launches and compiled graphs (`ON_GPU` to `NOT_OPERATIONS`).
- While it is imported, Inductor counts GPUs, through NVML if an environment variable says so (`ASK_NVML`).

This module imports nothing large, as Inductor's compile workers load it, too.
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
"""Module that `torch.compile` imports at its first call, which takes about a second."""
ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable that makes torch ask NVML for GPUs; after asking CUDA, no forked process could use a GPU."""

GRAPHS, INDUCTOR = "_compile.compile_inner", "compile_fx_inner"
"""torch's names for stages of compiling a graph: the whole compilation, and Inductor's part of it."""
KERNELS = ("async_compile.wait", "async_compile.precompile")
"""Stages that wait for kernels to be compiled."""
TUNING = ("CachingAutotuner.benchmark_all_configs", "CachingAutotuner.coordinate_descent_tuning")
"""Stages that time block sizes."""
LOADING = ("AOTAutogradCache.inductor_load",)
"""Stages that load previously compiled code."""
CACHE_COUNTERS = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
"""Names of Inductor's counters of its graph cache."""

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""The profiler's categories for work on a GPU."""
LAUNCHING = ("cuda_runtime", "cuda_driver")
"""The profiler's categories for calls that launch such work. All kernels of a CUDA graph have the correlation of the
graph's launch."""
OPERATION = "cpu_op"
"""The profiler's category for an operation of torch on the host."""
COMPILED = "## Call CompiledFxGraph "
"""Beginning of the name of a call of a compiled graph."""
NOT_OPERATIONS = (
    "TorchDynamo Cache Lookup",
    "Torch-Compiled Region",
    "Pregraph bytecode",
    "AOTDispatcher Runtime Wrapper Prologue",
)
"""Names of what torch.compile does around a compiled graph on the host."""


def import_compiler() -> None:
    """Imports the module that `torch.compile` needs. Raises ImportError."""
    importlib.import_module(COMPILER)


def compile_callbacks() -> Any:
    """Return the object whose `register_start_callback` and `remove_start_callback` manage functions that are called
    when a graph is compiled or a CUDA graph is recorded. Raises UserError."""
    return part("torch._dynamo.callback", "callback_handler")


def compile_seconds() -> dict[str, float]:
    """Return the seconds that this process has compiled so far, by stage; stages are nested. Raises UserError."""
    metrics = part("torch._dynamo.utils", "compilation_time_metrics")
    return {name: sum(seconds) for name, seconds in metrics.items()}


def cache_counts() -> dict[str, int]:
    """Return the values of `CACHE_COUNTERS` in this process so far. Raises UserError."""
    counters = part("torch._dynamo.utils", "counters")["inductor"]
    return {name: counters[name] for name in CACHE_COUNTERS}


def fresh_cache() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the caches of Inductor and Triton are empty folders. Raises UserError."""
    return part("torch._inductor.utils", "fresh_cache")()


def cache_folder() -> Path:
    """Return the folder of Inductor's cache, which is created. Raises OSError if it cannot be created, and
    UserError."""
    return Path(part("torch._inductor.runtime.cache_dir_utils", "cache_dir")())


def headers_folder() -> Path:
    """Return the folder of Inductor's precompiled headers, which is not in its cache. Raises UserError."""
    return Path(part("torch._inductor.runtime.cache_dir_utils", "default_cache_dir")(), "precompiled_headers")


NEEDED = (
    ("torch._inductor", "list_options"),
    ("torch._inductor.cpp_builder", "get_cpp_compiler"),
    ("torch._inductor.exc", "InvalidCxxCompiler"),
    ("torch._inductor.inductor_prims", "force_stride_order"),
    ("torch._dynamo", "maybe_mark_dynamic"),
    ("torch._dynamo", "mark_static_address"),
)
"""Module and name of each part that compiling needs."""


def require_compiler() -> None:
    """Raises UserError if one of `NEEDED` is missing."""
    for module, name in NEEDED:
        part(module, name)


def options() -> list[str]:
    """Return the names of Inductor's settings. Raises UserError."""
    return part("torch._inductor", "list_options")()


def cpp_compiler() -> str | None:
    """Return the C++ compiler that Inductor uses, or None if there is none. Raises UserError."""
    try:
        return str(part("torch._inductor.cpp_builder", "get_cpp_compiler")())
    except part("torch._inductor.exc", "InvalidCxxCompiler"):
        return None


def vector_instructions() -> tuple[Any, list[Any], set[str]]:
    """Return Inductor's settings for C++, the vector instruction sets that it supports, best first, and the names of
    those that this processor has. Raises UserError."""
    return (
        part("torch._inductor", "config").cpp,
        part("torch._inductor.cpu_vec_isa", "supported_vec_isa_list"),
        set(part("torch._inductor.cpu_vec_isa", "x86_isa_checker")()),
    )


def start_workers() -> None:
    """Starts Inductor's compile workers. Raises UserError."""
    part("torch._inductor.async_compile", "maybe_warm_pool")()


def mark_dynamic(tensor: "Tensor", dim: int) -> None:
    """Marks the size of a dimension as dynamic, which the compiler may ignore."""
    import torch

    torch._dynamo.maybe_mark_dynamic(tensor, dim)


def mark_static(tensor: "Tensor") -> None:
    """Marks the address of a tensor as static."""
    import torch

    torch._dynamo.mark_static_address(tensor)


def in_memory(x: "Tensor") -> "Tensor":
    """Return the tensor itself; in compiled code, this forces it to be materialised in memory before it is used."""
    from torch._inductor.inductor_prims import force_stride_order

    return force_stride_order(x, x.stride())


LOADER = "_load_triton_kernel_from_source"
"""Inductor's function that builds a kernel from its source, here and in its compile workers."""


def can_replace_loader() -> bool:
    """Whether this version of torch has the functions that `kernels_loaded_by` and `tuned_by` replace."""
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
    """Within the context, kernels are built by this function, from name and source; compile workers import it by its
    name."""
    from torch._inductor import async_compile

    compiler: Any = async_compile
    before = getattr(compiler, LOADER)
    setattr(compiler, LOADER, load)
    # After a kernel that could not be compiled, others stay cached, under the same names in either mode.
    compiler.CompiledTritonKernels.cache_clear()
    try:
        yield
    finally:
        setattr(compiler, LOADER, before)
        compiler.CompiledTritonKernels.cache_clear()


def load_kernel(name: str, source: str) -> Any:
    """Return the kernel that Inductor itself builds from name and source."""
    from torch._inductor import codecache

    return getattr(codecache, LOADER)(name, source)


@contextlib.contextmanager
def tuned_by(choose: Callable[..., tuple[list[Any], dict[str, Any]]]) -> Iterator[None]:
    """Within the context, the autotuner of a kernel that is loaded tries other sizes.

    Args:
        choose: takes the sizes of the kernel's dimensions, Inductor's configurations, and the autotuner's keyword
            arguments; returns configurations and keyword arguments for the autotuner.
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
    """Return a configuration for the autotuner: block sizes and number of warps."""
    from torch._inductor.runtime.triton_heuristics import InductorConfig

    return InductorConfig(sizes, num_warps=warps, num_stages=1)


def is_reduction(heuristic: Any) -> bool:
    """Whether a kernel's heuristic type, which the autotuner gets, is a reduction."""
    from torch._inductor.runtime.hints import HeuristicType

    return heuristic is HeuristicType.REDUCTION


def reads_rows(hint: Any) -> bool | None:
    """Whether a reduction reads contiguous rows, according to its hint; None if Inductor does not know."""
    from torch._inductor.runtime.hints import ReductionHint

    return True if hint is ReductionHint.INNER else None if hint is ReductionHint.DEFAULT else False
