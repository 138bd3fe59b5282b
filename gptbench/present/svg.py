"""A chart as part of a page: its text is the page's, and so are its ink, its grid and its background."""

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from gptbench.charts import styled
from gptbench.charts.canvas import CYAN, GREY, GRID, INK, MUTED, PAPER, YELLOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_THE_PAGE = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--card)"}
THIN = {CYAN: "var(--cyan)", YELLOW: "var(--yellow)", GREY: "var(--grey)"}
"""Colours that are too light for a line on white."""
HEAD = re.compile(r".*?(?=<svg)", re.DOTALL)
DROPPED = re.compile(r"\s*<(metadata|style)\b.*?</\1>", re.DOTALL)
FONTS = re.compile(r" font-family: [^;]*;")
ID = re.compile(r' id="([^"]*)"')
REFERENCE = re.compile(r'(?<=url\(#)[^)]+|(?<=href="#)[^"]+')


def inline(figure: "Figure", name: str, title: str) -> Markup:
    """The `<svg>` of a figure.

    Args:
        name: differs from those of the page's other figures; ids begin with it.
        title: what is told of the picture to those who do not see it.
    """
    import matplotlib

    written = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": name}):  # the same ids each time
        figure.savefig(written, format="svg", facecolor="none", metadata={"Date": None})
    text = DROPPED.sub("", HEAD.sub("", written.getvalue(), count=1))
    opening, body = text.split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', opening)
    for colour, variable in THIN.items():
        body = body.replace(f"stroke: {colour}", f"stroke: {variable}")
    for colour, variable in OF_THE_PAGE.items():
        body = body.replace(colour, variable)
    used = set(REFERENCE.findall(body))
    body = ID.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = REFERENCE.sub(lambda found: f"{name}-{found[0]}", body)
    body = FONTS.sub("", body).replace("xlink:href", "href")  # in a page, neither needs a namespace
    return Markup(f'<svg {box} role="img" aria-label="{escape(title)}">{body}')
