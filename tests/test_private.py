"""What gptbench uses of libraries although these do not promise to keep it: a release that renames a part breaks what
needs it, in words that say so, and neither what reads records nor, silently, a number."""

import ast
import importlib
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from torch._dynamo.testing import CompileCounter

from gptbench.base.errors import UserError
from gptbench.base.paths import conf_folder
from gptbench.config import AutoConfig, DeviceConfig, DeviceKind, Tuning
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.engine import Auto, Inductor, caches
from gptbench.engine import inductor as inductor_module
from gptbench.engine.hf import build_hf_model
from gptbench.execute.preparation import plan
from gptbench.measure.compilation import CompileWatch
from gptbench.measure.environment import environment
from gptbench.private import hydra as private_hydra
from gptbench.private import mlflow as private_mlflow
from gptbench.private import part, version
from gptbench.private import torch as private_torch
from gptbench.private import transformers as private_transformers
from gptbench.private import triton as private_triton
from gptbench.record.identity import identity
from tests.models import DENSE, MOE, make_model, run_config
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


PACKAGE = ROOT / "gptbench"
PRIVATE = re.compile(
    r"(torch|triton|hydra|mlflow|transformers)(\.\w+)*\._(?!_|target_)"
    r"|triton\.(knobs|runtime)\b|mlflow\.store\b|transformers\."
)
"""How the name of what a library does not promise to keep begins. Of transformers, that is all that is used."""
HIDDEN = re.compile(
    r"(?!(self|cls|super\(\)|gptbench[\w.]*)\.\w+$).+\._(?!target_$|replace$|asdict$)[a-z]\w*", re.DOTALL
)
"""An attribute of anything but ourselves that begins with an underscore."""
ELSEWHERE = {"kernels/launch.py": {"triton.knobs.runtime.interpret"}}
"""Kernels import nothing of gptbench: see `gptbench.private.triton`."""


def private_parts(code: str) -> set[str]:
    """What a file names of libraries that these do not promise to keep."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {f"{alias.name}." for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            found.add(node.value)
    found = {name for name in found if HIDDEN.fullmatch(name) or PRIVATE.match(name)}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_private_parts_of_libraries_lie_in_one_package() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {
        name: parts
        for name, path in files.items()
        if not name.startswith("private/") and (parts := private_parts(path.read_text()))
    }
    assert found == ELSEWHERE
    for code in (
        "from torch._inductor import config", "import mlflow.store.db.utils as u", "torch._dynamo.reset()",
        "override._value", "from transformers import AutoModel", "x = triton.knobs.cache.dir",
        "part('hydra._internal.hydra')", "from hydra.core.utils import _save_config",
    ):  # fmt: skip
        assert private_parts(code), code


def test_nothing_is_imported_before_it_is_used() -> None:
    """But for Hydra, whose classes ours derive from."""
    code = (
        "import sys, gptbench.private.torch, gptbench.private.triton, gptbench.private.mlflow\n"
        "print([name for name in ('torch', 'triton', 'mlflow', 'hydra', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchs_compiler_tells_of_its_stages_and_its_cache(nothing_compiled: None) -> None:
    """With names that torch no longer has, all time would be `rest`, and a warm cache a mixed one."""

    def grown(before: dict[str, float], after: dict[str, float], *names: str) -> float:
        return sum(after.get(name, 0.0) - before.get(name, 0.0) for name in names)

    inductor_module.trust_vector_instructions()  # which would take longer
    x = torch.linspace(-3, 3, 64).reshape(2, 32)
    graph = torch.compile(lambda x: torch.softmax(x.cos(), -1), fullgraph=True, dynamic=False)
    with private_torch.fresh_cache():
        seconds, counts = [private_torch.compile_seconds()], [private_torch.cache_counts()]
        for _ in ("cold", "warm"):
            torch.compiler.reset()
            with CompileWatch() as watch:
                graph(x)
                assert watch.count == 1, "what is loaded counts, too"
                graph(x)
                assert watch.count == 1, "and what was compiled before does not"
            seconds.append(private_torch.compile_seconds())
            counts.append(private_torch.cache_counts())
        assert any(private_torch.cache_folder().iterdir())
    whole = grown(*seconds[:2], private_torch.GRAPHS)
    lowering = grown(*seconds[:2], private_torch.INDUCTOR)
    kernels = grown(*seconds[:2], *private_torch.KERNELS)
    assert whole > lowering > kernels > 0
    assert 0 < grown(*seconds[1:], *private_torch.LOADING) < whole
    assert [[after[name] - before[name] for name in after] for before, after in itertools.pairwise(counts)] == [
        [0, 1, 0],
        [1, 0, 0],
    ]


def test_what_is_marked_open_is_compiled_once(nothing_compiled: None) -> None:
    counter = CompileCounter()
    graph = torch.compile(lambda x: x + 1, backend=counter, dynamic=False, fullgraph=True)
    for length in (5, 6, 7):
        x = torch.zeros(2, length)
        private_torch.mark_dynamic(x, 1)
        graph(x)
    assert counter.frame_count == 1


def test_the_profiler_names_operations_and_compiled_graphs(nothing_compiled: None) -> None:
    """With other names a breakdown on a CPU would count what is around a graph."""
    graph = torch.compile(lambda x: x.cos().sin(), fullgraph=True, dynamic=False)
    x = torch.ones(8)
    graph(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        graph(x)
        x.cos()
    names = [event.name for event in profiled.events()]
    assert any(name.startswith(private_torch.COMPILED) for name in names)
    assert any(name.startswith(private_torch.NOT_OPERATIONS) for name in names)
    assert "aten::cos" in names


def test_inductor_has_what_is_asked_of_it() -> None:
    settings, known, here = private_torch.vector_instructions()
    assert hasattr(settings, "vec_isa_ok")
    assert known and here and all(isa.build_arch_flags() is not None and str(isa) for isa in known)
    assert private_torch.cpp_compiler() is None or Path(private_torch.cpp_compiler() or "").name
    assert private_torch.can_replace_loader()
    assert str(private_torch.headers_folder()) == importlib.import_module("torch._inductor.codecache")._HEADER_DIR
    private_torch.require_compiler()


def test_triton_lists_the_files_of_a_kernel(tmp_path: Path) -> None:
    from triton.runtime.cache import FileCacheManager

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_CACHE_DIR", str(tmp_path))
        assert private_triton.cache_folder() == tmp_path
        manager = FileCacheManager("A" * 52)
        path = manager.put(b"code", "kernel.cubin")
        manager.put_group("kernel.json", {"kernel.cubin": path})
    (group,) = private_triton.groups_in(Path(path).parent)
    assert private_triton.is_group(group.name)
    assert json.loads(private_triton.group_in(Path(path).parent, group.read_bytes()) or b"") == json.loads(
        group.read_bytes()
    )
    Path(path).unlink()
    assert private_triton.group_in(Path(path).parent, group.read_bytes()) is None


def test_mlflow_makes_a_store_and_opens_it_as_often_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.db import utils

    monkeypatch.setattr(utils, "MAX_RETRY_COUNT", utils.MAX_RETRY_COUNT)
    monkeypatch.setattr(utils, "_make_parent_dirs_if_sqlite", utils._make_parent_dirs_if_sqlite)
    private_mlflow.make_no_folders()
    folder = tmp_path / "a%20b"
    with pytest.raises(Exception, match="unable to open"):
        private_mlflow.engine_of(f"sqlite:///{folder}/mlflow.db").connect()
    assert not any(tmp_path.iterdir())
    began = time.monotonic()
    private_mlflow.try_opening(1)
    with pytest.raises(Exception, match="unable to open"):
        utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{folder}/mlflow.db")
    assert time.monotonic() - began < 5, "it waits before it tries again"


def test_hydra_has_what_is_asked_of_it() -> None:
    parser = private_hydra.arguments_parser()
    assert {"--multirun", "--config-dir"} <= {
        name for action in private_hydra.options(parser) for name in action.option_strings
    }
    ((override),) = OverridesParser.create().parse_overrides(["a='b c'"])
    assert isinstance(private_hydra.element(override), QuotedString)
    search = private_hydra.search_path(str(conf_folder()))
    repository = private_hydra.ConfigRepository(search)
    assert private_hydra.yaml_file(repository, "config") == conf_folder() / "config.yaml"
    assert private_hydra.yaml_file(repository, "hydra/config") is None
    assert private_hydra.sort(ChoiceSweep(list=[2, 1])).list == [1, 2]


def test_transformers_has_two_products_of_experts() -> None:
    hf = build_hf_model(make_model(MOE), 32, torch.device("cpu"))
    assert private_transformers.uses_grouped_experts(hf)
    private_transformers.use_experts(hf, private_transformers.BATCHED)
    assert not private_transformers.uses_grouped_experts(hf)
    tokens, chosen = torch.tensor([[1, 2, 3]]), []
    for router in private_transformers.routers(hf):
        router.register_forward_hook(lambda *call: chosen.append(call[-1][2]))
    hf(input_ids=tokens)
    assert [experts.shape for experts in chosen] == [(3, MOE.n_active_experts)] * MOE.n_layers


def cpu() -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu))


def test_a_part_that_is_missing_is_named() -> None:
    assert part("torch._inductor", "list_options") is torch._inductor.list_options
    for module, name in (("torch._inductor.nowhere", "x"), ("torch._inductor", "nothing")):
        with pytest.raises(UserError, match=rf"^torch {torch.__version__.split('+')[0]}\S* has no {module}\.{name}, "):
            part(module, name)


def test_an_engine_whose_parts_are_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Inductor.unavailable_reason(cpu()) is None
    monkeypatch.setattr(private_torch, "NEEDED", (("torch._inductor.cpp_builder", "renamed"),))
    reason = Inductor.unavailable_reason(cpu()) or ""
    assert reason.startswith("another version of torch: torch 2.") and "cpp_builder.renamed" in reason
    section = AutoConfig(_target_="gptbench.engine.Auto", name="auto")
    assert Auto(section, run_config(DENSE), DeviceGroup((cpu(),))).section.name == "eager"


def test_candidates_need_parts_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inductor_module.supports_candidates()
    monkeypatch.setitem(sys.modules, "torch._inductor.codecache", None)
    assert not inductor_module.supports_candidates()


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
        lacking = r"^triton 3\.\d\S+ has no knobs\.compilation\.listener, without which gptbench cannot know whether"
        with pytest.raises(UserError, match=lacking):
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
    config.engine = Auto(
        AutoConfig(_target_="gptbench.engine.Auto", name="auto"), config, DeviceGroup((cpu(),))
    ).section
    assert config.engine.name == "inductor"
    plan(config, DeviceGroup((cpu(),)))
    (tmp_path / "inductor").mkdir(exist_ok=True)
    (tmp_path / "inductor" / "cut.so").write_bytes(b"\x7fELF")
    with pytest.warns(UserWarning, match=r"compiled again: .*cut\.so$"):
        plan(config, DeviceGroup((cpu(),)))
    with CompileWatch():
        pass
    with pytest.raises(RuntimeError, match="as it is"), caches.explain_cache_errors():
        raise RuntimeError("as it is")
    assert "triton" not in environment(DeviceGroup((cpu(),)), "given").libraries
    assert len(identity(config, DeviceGroup((cpu(),)))) == 16
    with pytest.raises(UserError, match=r"^triton is not installed, and gptbench needs triton\.knobs\.cache$"):
        caches.triton_folder()
    assert "triton is not installed" in (caches.missing_for_kernels(inductor=False) or "")


def test_triton_comes_in_several_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nightly builds of torch bring one of another name."""
    without = {version("triton"), version("torch"), version("no-such-library")}
    assert len(without) == 3 and None in without
    only_installed(monkeypatch, pytorch_triton="3.9.0+git1")
    assert version("triton") == environment(DeviceGroup((cpu(),)), "given").libraries["triton"] == "3.9.0+git1"
    with pytest.raises(UserError, match=r"^triton 3\.9\.0\+git1 has no triton\.nowhere\.x, "):
        part("triton.nowhere", "x")
    monkeypatch.setattr("triton.knobs.compilation", object())
    with pytest.raises(UserError, match=r"^triton 3\.9\.0\+git1 has no knobs\.compilation\.listener"):
        CompileWatch()
