"""Block sizes of TorchInductor's matrix-vector products on a GPU: the fastest of a few candidates.

Inductor has two methods: one guess per kernel, or coordinate descent, which compiles and times neighbours of the best
sizes so far, one after the other, for every kernel of the graph. On an H100 this took 20 to 31 s of a cold start of 33
to 44 s, two thirds of it for kernels whose time hardly matters (see docs/log). Here, every product that reads a large
matrix gets the same candidates, which Inductor's workers compile in parallel with all other kernels and Inductor's
autotuner times. It stores the result on disk, so that a warm start times nothing.

The compile workers import this module: it needs only torch, of which `gptbench.private.torch` replaces two functions.
"""

import math
from contextlib import AbstractContextManager
from typing import Any

from gptbench.private.torch import configuration, is_reduction, kernels_loaded_by, load_kernel, reads_rows, tuned_by

CANDIDATES = ((1024, 4), (2048, 2), (2048, 4), (2048, 8), (2048, 16), (4096, 8), (4096, 16), (4096, 32))
"""Number of columns of a row that a program reads at once, and of warps: the fastest, or nearly so, for the matrices of
three models on an H100. For some matrices a full search finds better sizes."""
LARGE = 2**20
"""Smallest number of elements of a matrix that is tuned."""
NO_SEARCH = {"coordinate_descent_tuning": False, "dynamic_scale_rblock": False}
"""Settings that turn off Inductor's search. The second one would compile variants with half the columns, in the main
process, for kernels that need many registers."""
SHORT = 1024
"""Smallest number of columns from which on a reduction counts as reading a matrix by rows if Inductor does not know."""


def from_candidates() -> AbstractContextManager[None]:
    """Return a context in which kernels that coordinate descent would tune are tuned with `CANDIDATES` instead."""
    return kernels_loaded_by(load)


def load(kernel_name: str, source: str) -> Any:
    """Return a kernel, as Inductor's function does that this one replaces; compile workers import it by its name.

    The candidates are appended to the source, so that cached kernels and results of other candidates are not used.
    """
    with tuned_by(choose):
        return load_kernel(kernel_name, f"{source}\n# {CANDIDATES}\n")


def choose(size_hints: dict[str, int], configs: list[Any], **named: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return configurations and keyword arguments for Inductor's autotuner, as `tuned_by` requires."""
    meta = named.get("inductor_meta") or {}
    if meta.get("coordinate_descent_tuning"):
        named["inductor_meta"] = meta | NO_SEARCH
        plain = all(set(config.kwargs) == {"XBLOCK", "R0_BLOCK"} for config in configs)
        if plain and reads_matrix(named.get("heuristic_type"), meta.get("reduction_hint"), size_hints):
            configs = [*configs[:1], *candidates(size_hints["r0_"])]
    return configs, named


def reads_matrix(kind: Any, hint: Any, size_hints: dict[str, int] | None) -> bool:
    """Whether a kernel is a large matrix times a vector.

    Args:
        kind, hint, size_hints: Inductor's description of the kernel; sizes, if any, are powers of two. The hint is
            INNER for contiguous rows, and DEFAULT for rows of an expert, whose number is loaded first."""
    if not is_reduction(kind) or not size_hints or set(size_hints) != {"x", "r0_"}:
        return False
    along_rows = reads_rows(hint)
    if along_rows is None:
        along_rows = size_hints["r0_"] >= SHORT
    return along_rows and math.prod(size_hints.values()) >= LARGE


def candidates(columns: int) -> list[Any]:
    """Return the configurations to try for a matrix with so many columns, beside Inductor's guess."""
    return [configuration({"XBLOCK": 1, "R0_BLOCK": block}, warps) for block, warps in CANDIDATES if block <= columns]
