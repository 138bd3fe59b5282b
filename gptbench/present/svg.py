"""Charts as inline SVG, with text, ink, grid and background in the style of the page."""

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from gptbench.charts import styled
from gptbench.charts.canvas import CYAN, GREY, GRID, INK, MUTED, PAPER, YELLOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_THE_PAGE = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--card)"}
"""CSS colour of the page for each neutral colour of a chart."""
THIN = {CYAN: "var(--cyan)", YELLOW: "var(--yellow)", GREY: "var(--grey)"}
"""CSS colour for lines in colours that are too light on white."""
HEAD = re.compile(r".*?(?=<svg)", re.DOTALL)
DROPPED = re.compile(r"\s*<(metadata|style)\b.*?</\1>", re.DOTALL)
FONTS = re.compile(r" font-family: [^;]*;")
ID = re.compile(r' id="([^"]*)"')
REFERENCE = re.compile(r'(?<=url\(#)[^)]+|(?<=href="#)[^"]+')


def inline(figure: "Figure", name: str, title: str) -> Markup:
    """Return a figure as an `<svg>` element.

    Args:
        name: name that is unique on the page; ids begin with it.
        title: text alternative for readers who do not see the picture.
    """
    import matplotlib

    written = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": name}):  # reproducible ids
        figure.savefig(written, format="svg", facecolor="none", metadata={"Date": None})
    text = DROPPED.sub("", HEAD.sub("", written.getvalue(), count=1))
    opening, body = text.split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', opening)
    for colour, variable in THIN.items():
        body = body.replace(f"stroke: {colour}", f"stroke: {variable}")
    for colour, variable in OF_THE_PAGE.items():
        body = body.replace(colour, variable)
    used = set(REFERENCE.findall(body))
    body = ID.sub(lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body)
    body = REFERENCE.sub(lambda match: f"{name}-{match[0]}", body)
    body = FONTS.sub("", body).replace("xlink:href", "href")  # in HTML, neither needs a namespace
    return Markup(f'<svg {box} role="img" aria-label="{escape(title)}">{body}')
