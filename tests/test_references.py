"""What docstrings, comments and documents name of gptbench is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TAGS = {".busy", ".result", ".command", ".sweep", ".sweep_ended"}
"""What runs in MLflow are tagged with: no modules."""
NAMED = re.compile(r"`gptbench((?:\.\w+)+)`")
PLACES = (ROOT, ROOT / "gptbench", ROOT / "docs")
PATHS = re.compile(r"[`(]([a-z_]+/[a-z\d_/.-]+\.(?:py|yaml|md))[`)]")


def missing(text: str) -> list[str]:
    """Modules, names in modules, and files that a text names in backticks (files: in links, too) and that are not."""
    wrong = [path for path in PATHS.findall(text) if not any((base / path).exists() for base in PLACES)]
    for dotted in set(NAMED.findall(text)) - TAGS:
        place, names = ROOT / "gptbench", dotted[1:].split(".")
        while names and ((place / names[0]).is_dir() or (place / f"{names[0]}.py").exists()):
            place = place / names[0] if (place / names[0]).is_dir() else place / f"{names[0]}.py"
            names.pop(0)
        source = place if place.is_file() else place / "__init__.py"
        if names and not re.search(rf"\b{names[0]}\b", source.read_text()):
            wrong.append(f"gptbench{dotted}")
    return wrong


def test_what_is_named_is_there() -> None:
    files = [*(ROOT / "gptbench").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml"), *ROOT.glob("scripts/*")]
    files += [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "log"),  # whose names are of their day
        *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)),
    ]
    texts = {path: path.read_text() for path in files if path.is_file()}
    found = {path.relative_to(ROOT).as_posix(): missing(text) for path, text in texts.items()}
    assert not {path: wrong for path, wrong in found.items() if wrong}
    assert missing("`gptbench.measure.quality` and `gptbench/record/files.py`, `gptbench.schema.metrics.Metric`") == [
        "gptbench/record/files.py",
        "gptbench.measure.quality",
    ]
