"""One decode step as it is recorded: all kernels, and the gaps in which none runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from gptbench.base.outputs import write_json


@dataclass
class Launch:
    """One kernel of a step (on a CPU, one operation)."""

    name: str
    """Name of the kernel."""
    start_s: float
    """Start in seconds since the beginning of the step."""
    duration_s: float
    """Seconds from its start to its end; if kernels overlap, this includes waiting for the previous one."""
    grid: list[int] | None = None
    """Number of programs in each dimension; None for an operation on a CPU."""
    bytes_read: int | None = None
    """Bytes that it reads from memory; None if the engine does not know."""
    part: str | None = None
    """Part of the step that it belongs to (matrices, attention, sampling or other); None if the engine does not
    know."""

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


@dataclass(frozen=True)
class KernelShare:
    """Totals over all launches of one kernel in a step."""

    name: str
    launches: int
    """Number of launches."""
    total_s: float
    """Seconds of all launches, each from start to end."""
    exclusive_s: float
    """Seconds by which the launches lengthen the step: see `Breakdown.exclusive_s`."""
    bytes_read: int | None
    """Bytes read by all launches; None if unknown."""

    @property
    def gb_per_s(self) -> float | None:
        """Read bandwidth over `exclusive_s` in GB/s. It may exceed the roof if a kernel loads data while the previous
        one still runs."""
        return rate(self.bytes_read, self.exclusive_s)


@dataclass
class Breakdown:
    """Profile of one decode step."""

    position: int
    """Position of the token that the step was fed."""
    step_s: float
    """Seconds until the start of the next step."""
    launches: list[Launch]
    """Launches in the order of their start."""

    def exclusive_s(self) -> list[float]:
        """Return, for each launch, the seconds in which it ran and no earlier launch did. Together with the gaps they
        add up to the step."""
        latest, seconds = 0.0, []
        for launch in self.launches:
            seconds.append(max(0.0, launch.end_s - max(latest, launch.start_s)))
            latest = max(latest, launch.end_s)
        return seconds

    @property
    def gaps_s(self) -> float:
        """Seconds in which no kernel ran."""
        return self.step_s - sum(self.exclusive_s())

    @property
    def gb_per_s(self) -> float | None:
        """Known bytes read over the time of the step in GB/s; None if no bytes are known."""
        known = [launch.bytes_read for launch in self.launches if launch.bytes_read is not None]
        return rate(sum(known), self.step_s) if known else None

    def by_kernel(self) -> list[KernelShare]:
        """Return the totals of each kernel, sorted by exclusive time, longest first."""
        by_name: dict[str, list[tuple[Launch, float]]] = {}
        for launch, exclusive in zip(self.launches, self.exclusive_s(), strict=True):
            by_name.setdefault(launch.name, []).append((launch, exclusive))
        shares = [
            KernelShare(
                name,
                len(launches),
                sum(launch.duration_s for launch, _ in launches),
                sum(exclusive for _, exclusive in launches),
                total_or_none(launch.bytes_read for launch, _ in launches),
            )
            for name, launches in by_name.items()
        ]
        return sorted(shares, key=attrgetter("exclusive_s"), reverse=True)

    def tracks(self) -> list[int]:
        """Return a track number for each launch: the lowest that no running launch occupies."""
        ends: list[float] = []
        numbers = []
        for launch in self.launches:
            number = next((n for n, end in enumerate(ends) if end <= launch.start_s), len(ends))
            ends[number : number + 1] = [launch.end_s]
            numbers.append(number)
        return numbers


def rate(bytes_read: int | None, seconds: float) -> float | None:
    """Return GB/s; None if the bytes are unknown or the time is 0."""
    return None if bytes_read is None or not seconds else bytes_read / seconds / 1e9


def total_or_none(values: Iterable[int | None]) -> int | None:
    """Return the sum; None if one of the values is None."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def chrome_trace(breakdown: Breakdown, roof_gb_per_s: float) -> dict[str, Any]:
    """Return the step in Chrome's trace format, which Perfetto reads. Kernels that overlap are on separate tracks."""
    numbers = breakdown.tracks()
    tracks = ["step", "kernels", *(f"kernels that overlap others ({n})" for n in range(1, max(numbers) + 1))]
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "gptbench"}}]
    for track, name in enumerate(tracks):
        place = {"ph": "M", "pid": 0, "tid": track}
        events.append(place | {"name": "thread_name", "args": {"name": name}})
        events.append(place | {"name": "thread_sort_index", "args": {"sort_index": track}})
    events.append(
        {
            "ph": "X",
            "name": f"decode step at position {breakdown.position}",
            "ts": 0.0,
            "dur": breakdown.step_s * 1e6,
            "pid": 0,
            "tid": 0,
            "args": {"kernels": len(numbers), "gaps (µs)": breakdown.gaps_s * 1e6},
        }
    )
    for launch, track, exclusive in zip(breakdown.launches, numbers, breakdown.exclusive_s(), strict=True):
        known: dict[str, Any] = {"exclusive (µs)": exclusive * 1e6}
        if launch.grid is not None:
            known["grid"] = launch.grid
        if launch.bytes_read is not None:
            known["bytes"] = launch.bytes_read
        if (gb_per_s := rate(launch.bytes_read, exclusive)) is not None:
            known |= {"GB/s": gb_per_s, "share of roof": gb_per_s / roof_gb_per_s}
        times = {"ts": launch.start_s * 1e6, "dur": launch.duration_s * 1e6}
        events.append({"ph": "X", "name": launch.name, **times, "pid": 0, "tid": 1 + track, "args": known})
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def write_trace(breakdown: Breakdown, roof_gb_per_s: float, path: Path) -> None:
    """Write the step as a trace for Perfetto."""
    write_json(path, chrome_trace(breakdown, roof_gb_per_s), indent=None)
