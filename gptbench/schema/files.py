"""Records on disk: which kinds there are, whether one counts, and where they are."""

import math
from pathlib import Path

from gptbench.schema.ab import AbResult
from gptbench.schema.failure import Failure
from gptbench.schema.kernels import KernelResult, kernel_summary
from gptbench.schema.result import Recorded, Result, read_record
from gptbench.schema.statistics import valid_samples
from gptbench.schema.summary import part_metrics, summary
from gptbench.schema.sweep import SweepRecord

KINDS: tuple[type[Recorded], ...] = (Result, KernelResult, AbResult, Failure, SweepRecord)
TOLD_BY: dict[str, type[Recorded]] = {
    "kernels": KernelResult,
    "rounds": AbResult,
    "cause": Failure,
    "jobs": SweepRecord,
}
"""A field that none of the other kinds has."""


def load_record(path: Path) -> Recorded:
    """A record of any kind.

    Raises:
        UserError: it is of none.
    """
    raw = read_record(path)
    kind: type[Recorded] = next((kind for key, kind in TOLD_BY.items() if key in raw), Result)
    return kind.of(raw, path)


def records_in(folder: Path, *kinds: type[Recorded]) -> list[Path]:
    """Files of those kinds (of all, where none is named) that lie in the folder itself, oldest first."""
    found = [path for kind in kinds or KINDS for path in folder.glob(f"{kind.FILE}*.json")]
    return sorted(found, key=lambda path: (path.lstat().st_mtime_ns, path.name))  # a link may lead nowhere


def headline(record: Recorded) -> dict[str, float]:
    """The numbers of a measurement; none of other records."""
    if isinstance(record, Result):
        return summary(record)
    return kernel_summary(record) if isinstance(record, KernelResult) else {}


def problem(record: Recorded) -> str | None:
    """Why a measurement means nothing, or None where it counts."""
    if isinstance(record, Result):
        return problem_of_run(record)
    if isinstance(record, KernelResult):
        if record.interrupted:
            return "it was interrupted"
        if failed := [kernel.label for kernel in record.kernels if kernel.failed]:
            return f"not all of it could be measured, or was right: {', '.join(failed)}"
        if not any(timing.median_s is not None for kernel in record.kernels for timing in kernel.timings.values()):
            return "nothing was measured"
    if isinstance(record, AbResult):
        if not all(sample.finite for name in record.sides for sample in record.samples(name)):
            return "logits or cached values are not finite"
        whole = any(each.blocks() for each in record.rounds)
        return None if whole else "no whole block was measured without compiling"
    return record.reason if isinstance(record, Failure) else None


def problem_of_run(result: Result) -> str | None:
    task = result.config.get("task", {})
    if not all(sample.finite for sample in result.samples):
        return "logits or cached values are not finite"
    asked = task.get("name") == "quality" or result.quality is not None
    if asked and not all(map(math.isfinite, part_metrics(result, "quality").values() or [math.nan])):
        return "quality was not measured, or is not finite"
    if task.get("breakdown") and result.breakdown is None:
        return "no step was broken down"
    if not result.samples:
        return "it has no samples"
    return None if valid_samples(result) else "something was compiled during every sample"
