"""The documentation: what `mkdocs build --strict` does not see."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose

from gptbench.commands.parsers import parsed
from gptbench.config import load
from gptbench.config.commandline import COMMANDS, DRY_RUN, MULTIRUN, prepared, split, without_options
from gptbench.config.grammar import separated
from scripts import configuration_page
from tests.warm import Warm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
"""All but the log, which says what commands once were."""
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


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in some languages. What a reader can run on a CPU as it stands is `bash`; what needs a
    GPU, a checkpoint, a cluster or much time is `sh`."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for _, language, text in found if language in languages]


def steps(block: str) -> Iterator[str | list[str]]:
    """What a block of shell does, in order: the arguments of each call of gptbench, and the lines between, a script."""
    script = ""
    for line in block.splitlines(keepends=True):
        if not line.startswith("gptbench"):
            script += line
            continue
        assert not set("|&;<>$`\\") & set(line), f"{line}: its arguments are passed without a shell"
        if script:
            yield script
        script = ""
        yield shlex.split(line)[1:]
    if script:
        yield script


NAMES_WHAT_IS_NOT_HERE = re.compile(r"/models/|~/|Qwen/Qwen|\bDIR\b|my_package|--config-dir|--plugin|^docker")
"""Commands that are left out: of a checkpoint, or of a file that the page only speaks of."""


def commands() -> dict[str, list[str]]:
    """The arguments of each call of gptbench on all pages that is not run, by the line and with its page."""
    found = {}
    for page in PAGES:
        for line in "\n".join(blocks(page, "sh", *([""] if page.stem == "README" else []))).splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].endswith(("gptbench", "scripts/bench")) and not NAMES_WHAT_IS_NOT_HERE.search(line):
                found[f"{page.name}: {line}"] = words[1:]
    return found


def runs_of(words: list[str]) -> Iterator[list[str]]:
    """The runs that a call asks for, each as options and overrides: of a sweep the first value of each list."""
    if words[:1] == ["ab"]:
        given = parsed("ab", words[1:])
        yield from ([*given.shared, *shlex.split(side)] for side in (given.a, given.b))
    elif words[:1] == ["gate"]:
        yield from map(shlex.split, parsed("gate", words[1:]).run)
    elif words[:1] and words[0] in COMMANDS:
        parsed(words[0], words[1:])
    elif not {"--help", "--shell-completion"} & set(words):
        words, _ = without_options(words, DRY_RUN)
        options, overrides = split(words)
        if set(options) & set(MULTIRUN):
            pairs = [override.split("=", 1) for override in overrides if "interval(" not in override]
            overrides = [f"{key}={value if value[0] == '[' else separated(value)[0]}" for key, value in pairs]
        yield [override for override in overrides if not override.startswith("hydra")]


def test_what_a_page_says_but_cannot_be_run_here_is_a_command(composing: None) -> None:
    seen, wrong = set(), []
    for place, words in commands().items():
        try:
            for overrides in map(prepared, runs_of(words)):
                if tuple(overrides) not in seen:
                    load(compose("config", overrides=overrides), overrides)
                seen.add(tuple(overrides))
        except (Exception, SystemExit) as error:
            wrong.append(f"{place}: {error}")
    assert not wrong
    assert len(seen) > 20


def call_alone(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """As a reader calls it, without Triton's interpreter, which the tests' server has; the exit code, and stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "gptbench", *arguments]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.stem)
def test_what_a_page_says_can_be_run(page: Path, warm: Warm, empty_store: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")
    for step in itertools.chain.from_iterable(map(steps, blocks(page, "bash"))):
        if isinstance(step, str):
            subprocess.run(["bash", "-euo", "pipefail", "-c", step], cwd=tmp_path, check=True)
        elif "task=kernels" in step:
            code, err = call_alone(tmp_path, step)
            assert code == 0, f"gptbench {shlex.join(step)}\n{err}"
        else:
            code, call = warm.run(tmp_path, *step)
            assert code == 0, f"gptbench {shlex.join(step)}\n{call.err}"
