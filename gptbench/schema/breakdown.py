"""One decode step as it is recorded: every kernel, and the gaps in which none runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from gptbench.base.outputs import write_json


@dataclass
class Launch:
    """One kernel (on a CPU: operation) of a step."""

    name: str
    start_s: float
    """Seconds from the beginning of the step."""
    duration_s: float
    """Seconds from its start to its end. Where kernels overlap, waiting for the one before is in it."""
    grid: list[int] | None = None
    """Programs in each direction, of a kernel."""
    bytes_read: int | None = None
    """Bytes that it reads from memory, where the engine knows."""
    part: str | None = None
    """Part of the step that it belongs to, where the engine knows: matrices, attention, sampling or other."""

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


@dataclass(frozen=True)
class KernelShare:
    """All launches of one kernel in a step."""

    name: str
    launches: int
    total_s: float
    """Seconds of all launches, each from start to end."""
    exclusive_s: float
    """Seconds by which they make the step longer: see `Breakdown.exclusive_s`."""
    bytes_read: int | None
    """By all launches, where known."""

    @property
    def gb_per_s(self) -> float | None:
        """Over `exclusive_s`: one that has loaded something while the one before it still ran may pass the roof."""
        return rate(self.bytes_read, self.exclusive_s)


@dataclass
class Breakdown:
    """One decode step."""

    position: int
    """Of the token that it was fed."""
    step_s: float
    """Seconds to the start of the next step."""
    launches: list[Launch]
    """In the order of their start."""

    def exclusive_s(self) -> list[float]:
        """Seconds of each launch in which it ran and none that started before it: with the gaps, they are the step."""
        latest, seconds = 0.0, []
        for launch in self.launches:
            seconds.append(max(0.0, launch.end_s - max(latest, launch.start_s)))
            latest = max(latest, launch.end_s)
        return seconds

    @property
    def gaps_s(self) -> float:
        """Seconds in which nothing ran."""
        return self.step_s - sum(self.exclusive_s())

    @property
    def gb_per_s(self) -> float | None:
        """What is known to be read, over the whole step; None where nothing is known."""
        known = [launch.bytes_read for launch in self.launches if launch.bytes_read is not None]
        return rate(sum(known), self.step_s) if known else None

    def by_kernel(self) -> list[KernelShare]:
        """What has the greatest part in the step comes first."""
        found: dict[str, list[tuple[Launch, float]]] = {}
        for launch, exclusive in zip(self.launches, self.exclusive_s(), strict=True):
            found.setdefault(launch.name, []).append((launch, exclusive))
        shares = [
            KernelShare(
                name,
                len(each),
                sum(launch.duration_s for launch, _ in each),
                sum(exclusive for _, exclusive in each),
                total_or_none(launch.bytes_read for launch, _ in each),
            )
            for name, each in found.items()
        ]
        return sorted(shares, key=attrgetter("exclusive_s"), reverse=True)

    def tracks(self) -> list[int]:
        """A number for each launch, the lowest that no launch has which still runs."""
        ends: list[float] = []
        numbers = []
        for launch in self.launches:
            number = next((n for n, end in enumerate(ends) if end <= launch.start_s), len(ends))
            ends[number : number + 1] = [launch.end_s]
            numbers.append(number)
        return numbers


def rate(bytes_read: int | None, seconds: float) -> float | None:
    """GB/s, or None where the bytes are not known, or there is no time of its own."""
    return None if bytes_read is None or not seconds else bytes_read / seconds / 1e9


def total_or_none(values: Iterable[int | None]) -> int | None:
    """The sum, or None where one of them is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def chrome_trace(breakdown: Breakdown, roof_gb_per_s: float) -> dict[str, Any]:
    """The step in Chrome's trace format, which Perfetto reads. Kernels that overlap are on tracks of their own."""
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
    """The step for Perfetto."""
    write_json(path, chrome_trace(breakdown, roof_gb_per_s), indent=None)
