"""Folders that compilers use: what is wrong with one is said before anything is compiled, and `engine=auto` goes on
without; what was cut off in a cache is compiled again."""

import importlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from gptbench.base.errors import ConfigError, UserError
from gptbench.config import AutoConfig, DeviceConfig, DeviceKind, InductorConfig
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Auto, Inductor, caches
from gptbench.engine.compile_cache import LocalCaches
from gptbench.measure.compilation import CompileWatch, compile_cache
from gptbench.private.torch import COMPILER
from gptbench.task import Kernels
from tests.caches import private_caches, remove
from tests.models import DENSE, run_config

INDUCTOR = InductorConfig(_target_="gptbench.engine.Inductor", name="inductor")


def cpu() -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu, threads=1))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def engine_that_auto_takes() -> str:
    section = AutoConfig(_target_="gptbench.engine.Auto", name="auto")
    return Auto(section, run_config(DENSE), DeviceGroup((cpu(),))).section.name


def test_folders_that_can_be_used() -> None:
    assert Inductor.unavailable_reason(cpu()) is None
    assert caches.missing_for_kernels(inductor=True) is None
    assert caches.missing_for_kernels(inductor=False) is None
    assert engine_that_auto_takes() == "inductor"


@pytest.mark.parametrize("name", ["sp ace", "quo'te", 'quo"te', "back\\slash"])
def test_a_path_of_several_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C++ compiler would be given the words; kernels of a GPU are compiled from lists of arguments."""
    with monkeypatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
        assert (Inductor.unavailable_reason(cpu()) or "").startswith(
            "a folder without spaces or special characters in TORCHINDUCTOR_CACHE_DIR"
        )
        assert engine_that_auto_takes() == "eager"
        assert caches.missing_for_kernels(inductor=True) is None
    (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert (Inductor.unavailable_reason(cpu()) or "").startswith(
        "a folder without spaces or special characters in TMPDIR (not "
    )


def test_importing_the_compiler_needs_no_folder_that_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch makes it while its compiler is imported, which cannot be done twice: it gets another one meanwhile."""
    imports, import_module = [], importlib.import_module

    def watched(name: str) -> ModuleType:
        if name == COMPILER:
            imports.append(Path(os.environ[caches.INDUCTOR_VARIABLE]))
            assert imports[-1].is_dir()
        return import_module(name)

    def missing() -> str | None:
        return Inductor.unavailable_reason(cpu())

    monkeypatch.setattr(importlib, "import_module", watched)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/nope")):
        monkeypatch.setenv(caches.INDUCTOR_VARIABLE, str(folder))
        for use in (engine_that_auto_takes, missing, lambda: CompileWatch().close()):
            imports.clear()
            use()
            assert imports and folder not in imports
        assert engine_that_auto_takes() == "eager"
        assert os.environ[caches.INDUCTOR_VARIABLE] == str(folder)
        told = re.escape(f": {folder})")
        assert re.fullmatch(rf"a folder in TORCHINDUCTOR_CACHE_DIR that can be written \(.*{told}", missing() or "")
        with compile_cache(fresh=False, keep=True) as empty:
            assert empty
        with pytest.raises(UserError, match=r"task=kernels cannot create a folder in .* \(.+\)$"):
            Kernels(cast(Any, None), cast(Any, None), cpu())
        with pytest.raises(UserError, match="gptbench cache needs a folder in TORCHINDUCTOR_CACHE_DIR"):
            LocalCaches(tmp_path)


def test_the_folder_that_no_variable_names_is_where_torch_has_it() -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert str(caches.default_inductor_folder()) == default_cache_dir()


def test_a_folder_that_is_mounted_noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", refused)
    for reason in (Inductor.unavailable_reason(cpu()), caches.missing_for_kernels(inductor=True)):
        assert (reason or "").startswith("a folder in TORCHINDUCTOR_CACHE_DIR from which libraries can be loaded (")
    reason = caches.missing_for_kernels(inductor=False)
    assert (reason or "").startswith("a folder in TRITON_CACHE_DIR from which libraries can be loaded (")
    assert engine_that_auto_takes() == "eager"
    INDUCTOR.fresh_cache = True
    try:
        with pytest.raises(ConfigError, match=r"^engine\.fresh_cache=true: expected false, or a folder in TMPDIR from"):
            caches.check(INDUCTOR)
    finally:
        INDUCTOR.fresh_cache = False


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    for reason in (
        Inductor.unavailable_reason(cpu()),
        caches.missing_for_kernels(False),
        caches.missing_for_kernels(True),
    ):
        assert "that can be written (Not a directory: " in (reason or "")


def library(path: Path) -> Path:
    """A whole one."""
    compiler = shutil.which("gcc") or pytest.skip("needs gcc")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input="int one(void) { return 1; }", text=True, check=True)
    return path


def test_what_is_cut_off_is_removed(tmp_path: Path) -> None:
    whole = library(tmp_path / "inductor" / "ab" / "cabc.main.so")
    content = whole.read_bytes()
    names = [whole.with_name(f"cabd{length}.so") for length in (0, 3, 40, 1000, len(content) - 1)]
    for name, length in zip(names, (0, 3, 40, 1000, len(content) - 1), strict=True):
        name.write_bytes(content[:length])
    folder = tmp_path / "triton" / "XYZ"
    folder.mkdir(parents=True)
    (folder / "linear.cubin").write_bytes(content[:-8])
    (folder / "__grp__linear.json").write_text("{}")
    writing = folder.with_name("tmp.pid_1_2") / "launcher.so"
    writing.parent.mkdir()
    writing.write_bytes(content[:100])
    kept = library(tmp_path / "triton" / "KEPT" / "launcher.so")
    other = whole.with_name("cabc.main.cpp")
    other.write_text("")
    with pytest.warns(UserWarning, match="truncated files in the compile cache, to be compiled again: .*cabd1000"):
        caches.check(INDUCTOR)
    assert whole.read_bytes() == content and kept.exists() and other.exists()
    assert not [name for name in names if name.exists()]
    assert not list(folder.iterdir()), "Triton would take what is left of the kernel"
    assert writing.exists(), "of a process that runs"


def test_a_library_in_the_making_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inductor" / "ab" / "cabc.main.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF\x02")
    monkeypatch.setattr(caches, "LOCK_TIMEOUT_S", 0.01)
    with caches.library_lock(tmp_path / "inductor", path):
        caches.check(INDUCTOR)
        assert path.exists(), "it belongs to who holds the lock"
    with pytest.warns(UserWarning, match="cabc"):
        caches.check(INDUCTOR)
    assert not path.exists()


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    wrapper = tmp_path / "inductor" / "ab" / "cabc.py"
    messages = (f"Failed to import {wrapper}\nSyntaxError: invalid", f"ImportError: {wrapper}: file too short\n\nSet")
    told = r"cabc\.py.*: the compile cache cannot be used: start from an empty one with engine\.fresh"
    for message in messages:
        with pytest.raises(UserError, match=told) as error, caches.explain_cache_errors():
            raise RuntimeError(message)
        assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="another"), caches.explain_cache_errors():
        raise RuntimeError(f"another thing than {wrapper}")


def test_no_two_test_processes_share_a_cache(tmp_path: Path) -> None:
    """Not those of two commands that one user runs at the same time, either."""
    processes = [{"PYTEST_XDIST_TESTRUNUID": run, "PYTEST_XDIST_WORKER": of} for run in ("a", "b") for of in "12"]
    for given in ({}, {"TRITON_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}):
        found = [folder for process in processes for folder in private_caches(process | given).values()]
        assert len(set(found)) == 8
        assert all(Path(folder).is_relative_to(tmp_path) for folder in found) == bool(given)
    all_of_them = [private_caches(process | given) for process in processes]
    for path in (path for each in all_of_them for path in each.values()):
        Path(path, "kernel").mkdir(parents=True)
    remove(all_of_them[0])
    left = {path.name for path in tmp_path.rglob("*") if path.is_dir()}
    assert left == {"gptbench-tests-a", "gptbench-tests-b", "1", "2", *all_of_them[0], "kernel"}
    for each in all_of_them[1:]:
        remove(each)
    assert not list(tmp_path.iterdir())
    assert private_caches({}) == {}
