"""Completion in a shell: Hydra's, with gptbench's commands and options."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptbench.commands.shell_completion import answer, is_query
from gptbench.config.commandline import COMMANDS

PROGRAM = f"#!{sys.executable}\nimport sys\nfrom gptbench.__main__ import main\nsys.exit(main())\n"
ASK = """
eval "$(gptbench --shell-completion install=bash)"
complete -p gptbench
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    COMP_WORDS=($COMP_LINE)
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
done
"""
"""What bash does where somebody types each line and then the tabulator."""


def answered(line: str) -> tuple[list[str], str | None]:
    """Choices of ours, and the line that Hydra gets, if it is asked."""
    environment = {"COMP_LINE": line}
    choices, asks_hydra = answer(environment)
    return choices, environment["COMP_LINE"] if asks_hydra else None


def test_commands_and_options_are_completed_and_kept_from_hydra(tmp_path: Path) -> None:
    assert answered("gptbench ") == (list(COMMANDS), "gptbench ")
    assert answered("gptbench comp") == (["compare"], "gptbench comp")
    assert answered("gptbench model=x eng") == ([], "gptbench model=x eng")
    assert answered("gptbench --quiet --format md --format=csv --dry-run -m eng") == ([], "gptbench -m eng")
    assert answered(f"gptbench {tmp_path} eng") == ([], "gptbench eng"), "a checkpoint"
    assert answered("gptbench --dr") == (["--dry-run"], None)
    assert answered("gptbench --mul") == (["--multirun"], None)
    assert answered("gptbench --format ") == (["text", "md", "csv", "json"], None)
    assert answered("gptbench --plugin ") == ([], None), "a file, which the shell completes"
    assert answered("gptbench compare --even") == (["--even-if-busy"], None)
    assert answered("gptbench compare A B --format c") == (["csv"], None)
    assert answered("gptbench list mod") == (["models"], None)
    assert answered("gptbench rows --by ")[0] == ["inductor", "kernel", "library"]
    assert answered("gptbench compare outputs/2") == ([], None)
    assert answered("") == (list(COMMANDS), " ")


def test_who_asks() -> None:
    assert is_query(["-sc", "query=bash"]) and is_query(["--shell-completion", "query=zsh"])
    assert not is_query(["-sc", "install=bash"]) and not is_query(["query=bash"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_groups_commands_and_what_a_plugin_brings(tmp_path: Path) -> None:
    program = tmp_path / "gptbench"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    plugin = Path(__file__).parent / "plugins" / "int4.py"
    lines = [
        "gptbench model=llama2_1",
        "gptbench comp",
        f"gptbench --plugin {plugin} --quiet quant=int",
        "gptbench no sense=",
    ]
    paths = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    called = subprocess.run(
        ["bash", "-c", ASK, "bash", *lines],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"PATH": paths, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert called.returncode == 0 and called.stderr == "", called.stderr
    rule, *replies = called.stdout.splitlines()
    assert rule.endswith("-F hydra_bash_completion gptbench")
    assert replies == ["model=llama2_13b", "compare", "quant=int4 quant=int8", ""]
