"""The wheel works outside the checkout; the pins are whole; the scripts can be run."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONF = {path.relative_to(ROOT / "conf").as_posix(): path.read_bytes() for path in (ROOT / "conf").rglob("*.yaml")}

made_by_scripts = pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv", reason="about the environment that scripts/env.sh makes"
)


def call(*command: str | Path, cwd: Path, pythonpath: Path | None = None) -> str:
    """Output of a command that must succeed."""
    environment = os.environ | ({"PYTHONPATH": str(pythonpath)} if pythonpath else {})
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    call(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    (path,) = folder.glob("gptbench-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target)
    call(sys.executable, "-m", "pip", "install", *options, wheel, cwd=target)
    return target


@made_by_scripts
def test_wheel_holds_conf(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        prefix = "gptbench/conf/"
        shipped = {
            name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if name.startswith(prefix)
        }
    assert shipped == CONF


@made_by_scripts
def test_installed_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "from gptbench.base.paths import conf_folder; print(conf_folder())"
    assert call(sys.executable, "-c", code, cwd=tmp_path, pythonpath=installed).strip() == str(
        installed / "gptbench" / "conf"
    )
    shown = call(sys.executable, "-m", "gptbench", "--help", cwd=tmp_path, pythonpath=installed)
    groups = {Path(name).parent.as_posix() for name in CONF} - {"."}
    for group in groups - {"hydra/launcher", "hydra/sweeper"}:  # of which Hydra's own help tells
        assert group in shown


@made_by_scripts
def test_installed_wheel_runs_the_model_that_it_brings(installed: Path, tmp_path: Path) -> None:
    quick = ["workload.samples=1", "workload.new_tokens=3", "device=cpu", "engine=eager", "tracking=none"]
    shown = call(sys.executable, "-m", "gptbench", *quick, cwd=tmp_path, pythonpath=installed)
    result = json.loads(shown.splitlines()[-1])
    assert result["model"] == "demo"
    recorded = json.loads(Path(result["result"]).read_text())
    assert Path(recorded["checkpoint"]["folder"]) == installed / "gptbench" / "demo"
    assert recorded["samples"][0]["text"][0]


def read_constraints() -> dict[str, Version]:
    """Name to pinned version."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            assert pin.operator == "==", line
            assert name not in pins, f"{name} is pinned twice"
            pins[name] = Version(pin.version)
    return pins


def needed() -> dict[str, Version]:
    """Every distribution that gptbench, its tests and its build need directly or not, with the version installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # editables: what hatchling asks for at an editable install.
    names = [*project["build-system"]["requires"], "editables"]
    names += project["project"]["dependencies"]
    names += project["project"]["optional-dependencies"]["test"]
    waiting = [Requirement(name) for name in names]
    seen: set[tuple[str, str]] = set()
    versions = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                continue
            seen.add((name, extra))
            distribution = importlib.metadata.distribution(name)
            versions[name] = Version(distribution.version)
            for line in distribution.requires or []:
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    child.marker = None
                    waiting.append(child)
    return versions


@made_by_scripts
def test_constraints_pin_everything() -> None:
    pins = read_constraints()
    # The public part: torch's CPU build is 2.13.0+cpu.
    installed = {name: Version(version.public) for name, version in needed().items() if name != "gptbench"}
    assert installed == {name: pins.get(name) for name in installed}


@pytest.mark.parametrize(
    "name", ["scripts/bench", "scripts/bench_kernels", "scripts/docs", "scripts/env.sh", "scripts/test", ".ci/run"]
)
def test_script_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    call("bash", "-n", ROOT / name, cwd=ROOT)
