"""The documentation: what `mkdocs build --strict` does not see."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts import configuration_page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "log" not in path.relative_to(DOCS).parts)
"""All but the log, which tells what once was."""
README_LINES = 150


def pages_of(nav: Any) -> Iterator[str]:
    """The pages that an entry of mkdocs.yml's `nav` names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(entry)


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_page_is_in_the_navigation_once() -> None:
    named = sorted(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert named == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_page_of_the_configuration_is_current() -> None:
    written = configuration_page.PAGE.read_text() == configuration_page.page()
    assert written, "the fields' docstrings have changed: run  python scripts/configuration_page.py"
