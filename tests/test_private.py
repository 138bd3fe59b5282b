"""What gptbench uses of libraries although these do not promise to keep it: a release that renames a part breaks what
needs it, in words that say so, and neither what reads records nor, silently, a number."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptbench.base.errors import UserError
from gptbench.base.private import private, version
from gptbench.config import AutoConfig, DeviceConfig, DeviceKind, Tuning
from gptbench.device import Device
from gptbench.engine import Auto, Inductor, caches
from gptbench.engine import inductor as inductor_module
from gptbench.execute.run import plan
from gptbench.measure.compilation import CompileWatch
from gptbench.measure.environment import environment
from gptbench.record.identity import identity
from tests.models import DENSE, run_config
from tests.results import made_result

ROOT = Path(__file__).parents[1]

WITHOUT = """
import sys
import torch

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(PRIVATE):
            raise ImportError(f"{name} has another name now")

PRIVATE = ("torch._inductor.", "torch._dynamo.", "triton.")
for name in [name for name in sys.modules if name.startswith(PRIVATE)]:
    del sys.modules[name]
sys.meta_path.insert(0, Finder())
from gptbench.__main__ import main
"""


def test_records_are_read_without_any_private_part_of_torch(tmp_path: Path) -> None:
    paths = [str(made_result(step_s=step_s).save(tmp_path / name)) for name, step_s in (("a", 0.01), ("b", 0.02))]
    page = tmp_path / "page.html"
    commands = [("compare", paths), ("explain", paths[:1]), ("report", [*paths, "-o", str(page)])]
    runs = "".join(f"sys.argv[1:] = {[name, *arguments]!r}\nassert main() == 0\n" for name, arguments in commands)
    code = WITHOUT + runs
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert page.exists()


def cpu() -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu))


def test_a_part_that_is_missing_is_named() -> None:
    assert private("torch._inductor", "list_options") is torch._inductor.list_options
    for module, name in (("torch._inductor.nowhere", "x"), ("torch._inductor", "nothing")):
        with pytest.raises(UserError, match=rf"^torch {torch.__version__.split('+')[0]}\S* has no {module}\.{name}, "):
            private(module, name)


def test_an_engine_whose_parts_are_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Inductor.missing(cpu()) is None
    monkeypatch.setattr(inductor_module, "PRIVATE", (("torch._inductor.cpp_builder", "renamed"),))
    reason = Inductor.missing(cpu()) or ""
    assert reason.startswith("another version of torch: torch 2.") and "cpp_builder.renamed" in reason
    section = AutoConfig(_target_="gptbench.engine.Auto", name="auto")
    assert Auto(section, run_config(DENSE), cpu()).section.name == "eager"


def test_candidates_need_parts_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inductor_module.has_candidates()
    monkeypatch.setitem(sys.modules, "gptbench.block_sizes", None)
    monkeypatch.delattr("gptbench.block_sizes", raising=False)
    assert not inductor_module.has_candidates()


def test_settings_that_inductor_does_not_have_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own = inductor_module.compile_options(cudagraphs=False, tuning=Tuning.candidates)
    assert set(own) == {
        "triton.cudagraphs",
        "coordinate_descent_tuning",
        "use_static_cuda_launcher",
        "bundle_triton_into_fx_graph_cache",
    }, "all of them in the version that is tested"
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["triton.cudagraphs"])
    assert inductor_module.compile_options(True, Tuning.none) == {"triton.cudagraphs": True}


def test_what_compiles_unseen_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that sees nothing would have samples count that compiled something."""
    with monkeypatch.context() as patched:
        patched.delattr("torch._dynamo.callback.callback_handler")
        with pytest.raises(UserError, match=r"has no torch\._dynamo\.callback\.callback_handler"):
            CompileWatch()
    with monkeypatch.context() as patched:
        patched.setattr("triton.knobs.compilation", object())
        with pytest.raises(UserError, match=r"^triton 3\.\d\S+ has no knobs\.compilation\.listener: whether a sample"):
            CompileWatch()
    CompileWatch().close()


def only_installed(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """Of the packages that Triton comes in, these alone are installed, each in a version."""

    def found(package: str) -> str:
        if "triton" not in package:
            return known(package)
        if package.replace("-", "_") not in packages:
            raise importlib.metadata.PackageNotFoundError(package)
        return packages[package.replace("-", "_")]

    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", found)


def test_a_machine_without_triton_compiles_for_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_grad: None
) -> None:
    """As on macOS: Inductor needs Triton for GPUs only."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"] + ["triton", "triton.knobs"]:
        monkeypatch.setitem(sys.modules, name, None)
    only_installed(monkeypatch)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    config = run_config(DENSE)
    config.engine = Auto(AutoConfig(_target_="gptbench.engine.Auto", name="auto"), config, cpu()).section
    assert config.engine.name == "inductor"
    plan(config, cpu())
    (tmp_path / "inductor").mkdir(exist_ok=True)
    (tmp_path / "inductor" / "cut.so").write_bytes(b"\x7fELF")
    with pytest.warns(UserWarning, match=r"cut off: .*cut\.so$"):
        plan(config, cpu())
    with CompileWatch():
        pass
    with pytest.raises(RuntimeError, match="as it is"), caches.blamed():
        raise RuntimeError("as it is")
    assert "triton" not in environment(cpu(), "given").libraries
    assert len(identity(config, cpu())) == 16
    with pytest.raises(UserError, match=r"^triton is not installed, of which gptbench uses triton\.knobs\.cache$"):
        caches.triton_folder()
    assert "triton is not installed" in (caches.lacking_for_kernels(inductor=False) or "")


def test_triton_comes_in_several_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nightly builds of torch bring one of another name."""
    without = {version("triton"), version("torch"), version("no-such-library")}
    assert len(without) == 3 and None in without
    only_installed(monkeypatch, pytorch_triton="3.9.0+git1")
    assert version("triton") == environment(cpu(), "given").libraries["triton"] == "3.9.0+git1"
    with pytest.raises(UserError, match=r"^triton 3\.9\.0\+git1 has no triton\.nowhere\.x, "):
        private("triton.nowhere", "x")
    monkeypatch.setattr("triton.knobs.compilation", object())
    with pytest.raises(UserError, match=r"^triton 3\.9\.0\+git1 has no knobs\.compilation\.listener"):
        CompileWatch()
