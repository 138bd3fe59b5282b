"""The Dockerfile: what can be read off it, and, where Docker runs, that the image for CPUs measures."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
IMAGE = "gptbench:test"


def stages() -> dict[str, list[str]]:
    """By name: the instructions of each stage, its base first."""
    found: dict[str, list[str]] = {}
    for line in TEXT.replace("\\\n", " ").splitlines():
        if begun := re.fullmatch(r"FROM (\S+) AS (\w+)", line):
            found[begun[2]] = [begun[1]]
        elif line and not line.startswith("#"):
            list(found.values())[-1].append(line)
    return found


def pinned(name: str) -> str:
    """The version that constraints.txt has of a package."""
    return re.search(rf"^{name}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def docker_is_missing() -> str | None:
    """Why no image can be built here, or None if one can."""
    if shutil.which("docker") is None:
        return "there is no docker here"
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False, timeout=60)
    return f"docker does not run here: {asked.stderr.strip()}" if asked.returncode else None


def test_both_images_are_for_a_user_with_a_volume() -> None:
    images = stages()
    assert images.keys() == {"wheel", "cpu", "cuda"}
    for name in ("cpu", "cuda"):
        assert images[name][-4:] == [
            "USER gptbench",
            "WORKDIR /data",
            "VOLUME /data/outputs",
            'ENTRYPOINT ["gptbench"]',
        ]
        installs = [line for line in images[name] if "pip install" in line]
        assert installs
        assert all("--constraint /opt/constraints.txt" in line for line in installs)


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    images = stages()
    for name in ("wheel", "cpu"):
        python = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", images[name][0])[1]
        assert Version(python) in SpecifierSet(project["project"]["requires-python"])
    cuda = re.match(r"nvidia/cuda:(\d+\.\d+)", images["cuda"][0])[1]
    assert Version(pinned("cuda-toolkit")).release[:2] == Version(cuda).release
    assert "hf" in project["project"]["optional-dependencies"]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = {
        name
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for name in line.split()[1:-1]
    }
    assert {"pyproject.toml", "conf", "gptbench", project_readme()} <= copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def project_readme() -> str:
    """What hatchling reads beside the code."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"])


def test_the_page_names_what_there_is() -> None:
    page = (ROOT / "docs" / "docker.md").read_text()
    assert set(re.findall(r"--target (\w+)", page)) == {"cpu", "cuda"}
    assert set(re.findall(r"--build-arg (\w+)=", page)) == set(re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE))
    assert set(re.findall(r':(/data/\w+)"', page)) == {"/data/outputs"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_for_cpus_measures() -> None:
    if (reason := docker_is_missing()) is not None:
        pytest.skip(reason)
    subprocess.run(["docker", "build", "--target", "cpu", "--tag", IMAGE, "."], cwd=ROOT, check=True)
    quick = ["engine=eager", "workload.samples=1", "workload.new_tokens=3", "tracking=none"]
    done = subprocess.run(["docker", "run", "--rm", IMAGE, *quick], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "demo"
