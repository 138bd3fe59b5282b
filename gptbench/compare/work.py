"""Whether runs that are compared did the same work."""

from collections.abc import Mapping, Sequence
from typing import Any

WORK = ("batch_size", "new_tokens", "prompt", "prompts", "same_prompt", "prompt_text", "prompt_file", "prompt_length")
"""Of a workload, what makes two of them different work."""


def different_work(workloads: Sequence[Mapping[str, Any]]) -> str | None:
    """A remark where not all of A's and B's workloads, as they were recorded, are the same work."""
    told = [
        f"workload.{key}"
        for key in WORK
        if any((other.get(key) or None) != (workloads[0].get(key) or None) for other in workloads[1:])
    ]
    return f"A and B do not do the same work: they differ by {', '.join(told)}" if told else None
