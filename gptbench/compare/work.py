"""Whether runs that are compared did the same work."""

from collections.abc import Mapping, Sequence
from typing import Any

WORK = ("batch_size", "new_tokens", "prompt", "prompts", "same_prompt", "prompt_text", "prompt_file", "prompt_length")
"""Fields of a workload that determine the work done."""


def different_work(workloads: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a remark if the recorded workloads of A and B are not all the same work, else None."""
    differing = [
        f"workload.{key}"
        for key in WORK
        if any((other.get(key) or None) != (workloads[0].get(key) or None) for other in workloads[1:])
    ]
    return f"A and B do not do the same work: they differ in {', '.join(differing)}" if differing else None
