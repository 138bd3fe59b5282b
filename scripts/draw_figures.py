"""Draws the figures of the documentation as SVG, light and dark:  python scripts/draw_figures.py [FOLDER]

Every number here is published in docs/results.md, or follows from it by the arithmetic that docs/concepts.md explains.
Nothing but Python is needed, and the same numbers give the same files.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from math import log10
from pathlib import Path

ROOF = 4562.0
"""GB/s: the read roof of the H200 that ran the commands below; it was measured as 4562 to 4563."""
PEAK = 989.0
"""TFLOP/s: dense bfloat16 peak of an H200, by NVIDIA's data sheet."""
PARAMETERS = 6.607e9
"""Of Llama-2-7B, multiplied in each decode step: all but the embedding."""


@dataclass(frozen=True)
class Row:
    """A model on the H200, 6 prompt and 200 new tokens, batch 1."""

    name: str
    weights: float
    """GB that a decode step reads."""
    cache: float
    """GB of keys and values that an average decode step reads and writes."""
    fused: float
    """Decode tokens/s of engine=fused, commit c78647c."""
    peers: tuple[tuple[str, float], ...] = ()
    """Decode tokens/s of other programs on an H200."""

    @property
    def limit(self) -> float:
        """Decode tokens/s that the read roof allows."""
        return ROOF / (self.weights + self.cache)


ROWS = (
    Row("Llama-2-7B bf16", 13.215, 0.056, 304.2, (("gpt_fast", 213.8), ("transformers", 196.1))),
    Row("Llama-2-7B int8", 6.610, 0.056, 574.9, (("gpt_fast", 231.4),)),
    Row("Mixtral-8x7B int8, 16 layers", 6.443, 0.007, 603.5, (("gpt_fast", 273.0),)),
    Row("Llama-3.2-1B bf16", 2.472, 0.003, 1425.7),
)


@dataclass(frozen=True)
class Theme:
    """Colours of one palette."""

    name: str
    text: str
    muted: str
    grid: str
    main: str
    second: str
    third: str
    soft: str


LIGHT = Theme("light", "#1f2328", "#57606a", "#d0d7de", "#0b6e4f", "#b35900", "#6639ba", "#d8ece4")
DARK = Theme("dark", "#e6edf3", "#9aa4af", "#3d444d", "#3fb98a", "#f0a04b", "#b497f0", "#1d3b31")


@dataclass
class Drawing:
    """SVG of a fixed size, in which everything has the theme's colours."""

    width: int
    height: int
    theme: Theme
    title: str
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width:g}"{dashes}/>'
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{colour}"/>'
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')

    def area(self, points: list[tuple[float, float]], colour: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{joined}" fill="{colour}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: str = "",
        anchor: str = "start",
        size: int = 14,
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour or self.theme.text}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def __str__(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self.parts, "</svg>\n"])


def speed(theme: Theme) -> Drawing:
    """Decode tokens/s beside what the memory allows."""
    left, right, bar = 20, 700, 20
    rows = sum(34 + (bar + 6) * (1 + len(row.peers)) + 14 for row in ROWS)
    drawing = Drawing(760, 62 + rows, theme, "Decode tokens/s on an NVIDIA H200, beside the limit that its memory sets")
    widest = max(row.limit for row in ROWS)
    drawing.text(left, 24, "decode tokens/s on an NVIDIA H200, batch 1", bold=True, size=16)
    drawing.text(
        left, 46, "green: gptbench, engine=fused; upright line: read roof / bytes per step", theme.muted, size=13
    )
    y = 62.0
    for row in ROWS:
        scale = (right - left) / widest
        drawing.text(left, y + 16, row.name, bold=True)
        y += 26
        drawing.box(left, y, row.limit * scale, bar, theme.soft)
        drawing.box(left, y, row.fused * scale, bar, theme.main)
        drawing.line(left + row.limit * scale, y - 4, left + row.limit * scale, y + bar + 4, theme.text, 2.5)
        drawing.text(left + 6, y + 15, f"{row.fused:.0f}", "#ffffff" if theme is LIGHT else "#0d1117", bold=True)
        end, words = left + row.limit * scale, f"limit {row.limit:.0f}, MBU {row.fused / row.limit:.0%}"
        if end > right - 130:
            drawing.text(end, y - 8, words, anchor="end", size=13)
        else:
            drawing.text(end + 8, y + 15, words, size=13)
        y += bar + 6
        for name, rate in row.peers:
            drawing.box(left, y, rate * scale, bar, theme.grid)
            drawing.text(left + rate * scale + 8, y + 15, f"{name} {rate:.0f}", theme.muted, size=13)
            y += bar + 6
        y += 22
    return drawing


def step_bytes(theme: Theme) -> Drawing:
    """What a decode step reads, and how long the read roof makes that take."""
    rows = (
        ("Llama-2-7B bf16, position 106", 13.215, 0.056),
        ("Llama-2-7B int8, position 106", 6.610, 0.056),
        ("Llama-3.1-8B bf16, position 106", 15.010, 0.014),
        ("Llama-3.1-8B bf16, position 32,660", 15.010, 32_660 * 131_072 / 1e9),
        ("Llama-3.2-1B bf16, position 106", 2.472, 0.003),
    )
    left, right, bar = 20, 560, 24
    drawing = Drawing(760, 60 + 58 * len(rows) + 30, theme, "Bytes that one decode step reads, by model and position")
    scale = (right - left) / max(weights + cache for _, weights, cache in rows)
    drawing.text(left, 24, "one decode step reads …", bold=True, size=16)
    drawing.text(740, 24, "… and takes at least", bold=True, anchor="end", size=16)
    y = 44.0
    for name, weights, cache in rows:
        drawing.text(left, y + 14, name)
        y += 22
        drawing.box(left, y, weights * scale, bar, theme.main)
        drawing.box(left + weights * scale, y, max(cache * scale, 1.5), bar, theme.second)
        total = weights + cache
        drawing.text(left + total * scale + 8, y + 17, f"{total:.2f} GB", theme.muted)
        drawing.text(740, y + 17, f"{total / ROOF * 1e3:.2f} ms", anchor="end", bold=True)
        y += 36
    y += 10
    drawing.box(left, y, 14, 14, theme.main)
    drawing.text(left + 20, y + 12, "weights", theme.muted)
    drawing.box(left + 100, y, 14, 14, theme.second)
    drawing.text(left + 120, y + 12, "keys and values", theme.muted)
    drawing.text(740, y + 12, f"at a read roof of {ROOF:.0f} GB/s (H200)", theme.muted, "end", 13)
    return drawing


def roofline(theme: Theme) -> Drawing:
    """The roofline of an H200, with decode and prefill on it."""
    drawing = Drawing(760, 470, theme, "Roofline of an NVIDIA H200: decode at batch 1 lies on the memory's slope")
    left, right, top, bottom = 70, 730, 60, 400
    decades = 3.3
    ridge = PEAK / (ROOF / 1e3)

    def x(intensity: float) -> float:
        return left + (log10(intensity) + 0.3) / decades * (right - left)

    def y(rate: float) -> float:
        return bottom - log10(rate) / 3.2 * (bottom - top)

    drawing.text(20, 28, "TFLOP/s that an H200 can reach, by operations per byte read", bold=True, size=16)
    for rate in (1, 10, 100, 1000):
        drawing.line(left, y(rate), right, y(rate), theme.grid)
        drawing.text(left - 8, y(rate) + 5, str(rate), theme.muted, "end", 13)
    for intensity in (1, 10, 100, 1000):
        drawing.line(x(intensity), top, x(intensity), bottom, theme.grid)
        drawing.text(x(intensity), bottom + 20, str(intensity), theme.muted, "middle", 13)
    drawing.text((left + right) / 2, bottom + 46, "operations per byte", theme.muted, "middle")
    first, last = 10**-0.3, 10**3.0
    edge = [(x(first), y(ROOF / 1e3 * first)), (x(ridge), y(PEAK)), (x(last), y(PEAK))]
    drawing.area([*edge, (x(last), bottom), (x(first), bottom)], theme.soft)
    for (x1, y1), (x2, y2) in itertools.pairwise(edge):
        drawing.line(x1, y1, x2, y2, theme.text, 2.5)
    drawing.text(x(6), y(ROOF / 1e3 * 6) - 44, "read roof, 4562 GB/s", anchor="middle")
    drawing.text(right, y(PEAK) - 10, "compute peak, 989 TFLOP/s", anchor="end")
    for words, intensity, rate, colour in (
        ("decode, bf16, batch 1: 304 tokens/s", 1.0, 304.04 * 2 * PARAMETERS / 1e12, theme.main),
        ("decode, int8, batch 1: 575 tokens/s", 2.0, 574.57 * 2 * PARAMETERS / 1e12, theme.second),
    ):
        drawing.dot(x(intensity), y(rate), colour)
        drawing.text(x(intensity) + 12, y(rate) + 12, words, colour, bold=True)
    drawing.line(x(512), y(PEAK), x(512), bottom, theme.third, 1.5, "5 4")
    drawing.text(x(512) - 8, bottom - 14, "prefill of 512 tokens, bf16", theme.third, "end", bold=True)
    return drawing


FIGURES: dict[str, Callable[[Theme], Drawing]] = {"speed": speed, "step-bytes": step_bytes, "roofline": roofline}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        for theme in (LIGHT, DARK):
            (folder / f"{name}-{theme.name}.svg").write_text(str(draw(theme)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "pictures")
