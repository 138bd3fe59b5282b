"""How TorchInductor's matrix-vector products get their block sizes on a GPU: the fastest of a few is taken.

Inductor itself has two ways: one guess for each kernel, or coordinate descent, which compiles and times neighbours of
the best sizes so far, one after the other, of every kernel of the graph; on an H100 this was 20 to 31 s of a cold start
of 33 to 44 s, two thirds of it for kernels that take next to no time (see docs/log). Here, every product that reads a
large matrix gets the same candidates, which are compiled by Inductor's workers, side by side with all other kernels,
and timed by Inductor's own autotuner. It keeps the result on disk, so that a warm start times nothing.

Imported by the compile workers: it needs nothing but torch, of which `gptbench.private.torch` replaces two functions.
"""

import math
from contextlib import AbstractContextManager
from typing import Any

from gptbench.private.torch import configuration, is_reduction, kernels_loaded_by, load_kernel, reads_rows, tuned_by

CANDIDATES = ((1024, 4), (2048, 2), (2048, 4), (2048, 8), (2048, 16), (4096, 8), (4096, 16), (4096, 32))
"""Columns of one row, and warps: what was fastest, or nearly, for the matrices of three models on an H100. For single
ones a search found better sizes."""
LARGE = 2**20
"""Numbers in a matrix that is worth it."""
NO_SEARCH = {"coordinate_descent_tuning": False, "dynamic_scale_rblock": False}
"""The second would compile, in the main process, half as many columns for what takes many registers."""
SHORT = 1024
"""Columns of the smallest rows that are taken for a matrix's where Inductor cannot tell which way it is read."""


def from_candidates() -> AbstractContextManager[None]:
    """What is compiled within it, and was to be tuned by coordinate descent, is tuned by `CANDIDATES` instead."""
    return kernels_loaded_by(load)


def load(kernel_name: str, source: str) -> Any:
    """Does what Inductor's function of this purpose does, here and in its workers, which get it by its name.

    The source is marked: neither what is in memory nor a result on disk is taken for one of another list.
    """
    with tuned_by(choose):
        return load_kernel(kernel_name, f"{source}\n# {CANDIDATES}\n")


def choose(size_hints: dict[str, int], configs: list[Any], **named: Any) -> tuple[list[Any], dict[str, Any]]:
    """What Inductor's autotuner is given in place of what Inductor gives it: see `tuned_by`."""
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
        kind, hint, size_hints: what Inductor says of it, the sizes (if any) as powers of two. Rows that lie one after
            the other are INNER; those of an expert, whose number is loaded first, DEFAULT.
    """
    if not is_reduction(kind) or not size_hints or set(size_hints) != {"x", "r0_"}:
        return False
    along_rows = reads_rows(hint)
    if along_rows is None:
        along_rows = size_hints["r0_"] >= SHORT
    return along_rows and math.prod(size_hints.values()) >= LARGE


def candidates(columns: int) -> list[Any]:
    """What is tried for a matrix of so many columns, beside Inductor's own guess."""
    return [configuration({"XBLOCK": 1, "R0_BLOCK": block}, warps) for block, warps in CANDIDATES if block <= columns]
