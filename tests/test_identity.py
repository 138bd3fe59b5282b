"""Identity: what tells measurements apart, and what does not."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gptbench
from gptbench.base import limits
from gptbench.compare.gate import require_device
from gptbench.config import (
    BaselineConfig,
    Config,
    DeviceConfig,
    DeviceKind,
    EngineConfig,
    FusedConfig,
    KernelsConfig,
    ModelConfig,
    TaskConfig,
    WorkloadConfig,
)
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.execute.job import from_folder
from gptbench.measure import environment as environment_module
from gptbench.measure.environment import VARIABLES, environment, place
from gptbench.measure.roof import Roofs
from gptbench.record import identity as module
from gptbench.record.identity import code_version, identity
from gptbench.schema.identity import NON_IDENTITY_FIELDS, PATH_FIELDS
from gptbench.schema.place import Place
from tests.models import DENSE, run_config


def cpu() -> Device:
    return Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu, threads=1))


def fused(tiles: Path | str, **values: Any) -> FusedConfig:
    return FusedConfig(_target_="gptbench.engine.fused.Fused", name="fused", tile_cache=str(tiles), **values)


def kernels(outputs: Path) -> Config:
    task = KernelsConfig(_target_="gptbench.task.Kernels", name="kernels", sizes=[64])
    return replace(run_config(DENSE), task=task, outputs=str(outputs))


def test_tiles_of_other_models_do_not_count(tmp_path: Path) -> None:
    """Tuning one model must not have all others measured again."""
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey
    from gptbench.quant import Int8, Unquantised

    config, device = replace(run_config(DENSE), engine=fused(tmp_path / "tiles")), cpu()
    both = [config, kernels(tmp_path)]
    before = [identity(each, DeviceGroup((device,))) for each in both]
    tiles = TileCache.of(tmp_path / "tiles", device)
    tiles.store(TileKey("linear", 151936, 2048, Unquantised(), torch.bfloat16, batch=8), TileConfig(2, 512, 2, 1))
    tiles.store(TileKey("linear", 144, 48, Unquantised(), torch.float32, batch=2), TileConfig(4, 128, 1, 0))
    assert [identity(each, DeviceGroup((device,))) for each in both] == before
    qkv = TileKey("linear", 144, 48, Unquantised(), torch.float32, batch=1)
    tiles.store(qkv, tiles[qkv])
    assert [identity(each, DeviceGroup((device,))) for each in both] == before, "the same tile as the built-in one"
    tiles.store(qkv, TileConfig(4, 128, 1, 0))
    after = [identity(each, DeviceGroup((device,))) for each in both]
    assert all(a != b for a, b in zip(after, before, strict=True)), "their own"
    tiles.store(TileKey("linear", 64, 64, Int8(), torch.bfloat16, batch=1), TileConfig(4, 64, 1, 0))
    assert identity(config, DeviceGroup((device,))) == after[0]
    assert identity(both[1], DeviceGroup((device,))) != after[1], "a micro-benchmark's"
    searching = replace(config, engine=fused(tmp_path / "tiles", autotune=True))
    own = identity(searching, DeviceGroup((device,)))
    tiles.store(qkv, TileConfig(8, 128, 1, 0))
    assert identity(searching, DeviceGroup((device,))) == own, "what a search will find is not known before it"


def test_what_cannot_run_has_an_identity(tmp_path: Path) -> None:
    config = run_config(DENSE, batch=9)
    assert identity(replace(config, engine=fused(tmp_path)), DeviceGroup((cpu(),))) != identity(
        config, DeviceGroup((cpu(),))
    )


def test_cores_of_a_cpu_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clouds sell parts of one CPU with any number of cores, and `device.threads` may be the same on all."""
    before = identity(run_config(DENSE), DeviceGroup((cpu(),)))
    monkeypatch.setattr(limits, "cores", lambda: 63)
    assert identity(run_config(DENSE), DeviceGroup((cpu(),))) != before


def test_only_code_that_measures_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(gptbench.__file__).parent
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__", "conf", "shipped"))
    monkeypatch.setattr(module.gptbench, "__file__", str(tmp_path / "copy" / "__init__.py"))

    def changed(name: str) -> bool:
        assert (tmp_path / "copy" / name).exists()
        before = code_version.__wrapped__()
        with (tmp_path / "copy" / name).open("a") as file:
            file.write("# a word\n")
        return code_version.__wrapped__() != before

    for name in ("charts/speed.py", "present/report.py", "commands/gate.py", "schema/labels.py"):
        assert not changed(name), name
    for name in (
        "generate.py",
        "measure/samples.py",
        "kernels/sample.py",
        "engine/fused.py",
        "config/model.py",
        "__init__.py",
    ):
        assert changed(name), name


def test_tiles_lie_where_outputs_do(tmp_path: Path) -> None:
    """A job on another machine may have another working directory."""
    config = replace(run_config(DENSE), outputs="outputs", engine=fused("outputs/tiles"))
    found = from_folder(config, tmp_path)
    assert isinstance(found.engine, FusedConfig)
    assert Path(found.engine.tile_cache) == Path(found.outputs) / "tiles" == tmp_path / "outputs" / "tiles"
    there = from_folder(replace(config, engine=fused("/elsewhere")), tmp_path)
    assert isinstance(there.engine, FusedConfig)
    assert there.engine.tile_cache == "/elsewhere"


def test_fields_that_identity_names_exist() -> None:
    known = {
        group: {entry.name for kind in (base, *base.__subclasses__()) for entry in fields(kind)}
        for group, base in (
            ("engine", EngineConfig),
            ("model", ModelConfig),
            ("task", TaskConfig),
            ("workload", WorkloadConfig),
        )
    }
    for table in (PATH_FIELDS, NON_IDENTITY_FIELDS):
        for group, names in table.items():
            assert set(names) <= known[group], group


def test_variables_that_choose_other_code_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config, device = run_config(DENSE), cpu()
    before = identity(config, DeviceGroup((device,)))
    nothing = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRITON_CACHE_DIR", "HF_TOKEN", "CXX")
    added = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")  # which a process inherits from one that imported scikit-learn
    for name in (*nothing, *added):
        monkeypatch.setitem(gptbench.STARTED_WITH, name, "1")
        assert identity(config, DeviceGroup((device,))) == before, name
    found = {before}
    for name in ("TORCHINDUCTOR_MAX_AUTOTUNE", "NVIDIA_TF32_OVERRIDE", "OMP_PROC_BIND", "ATEN_CPU_CAPABILITY"):
        monkeypatch.setitem(gptbench.STARTED_WITH, name, "1")
        found.add(identity(config, DeviceGroup((device,))))
    assert len(found) == 5


def test_what_libraries_add_to_the_environment_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier job of a sweep may have imported some that another one does not need."""
    config, device = run_config(DENSE), cpu()
    before, recorded = identity(config, DeviceGroup((device,))), environment(DeviceGroup((device,)), "given").variables
    for name in ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "CUBLAS_WORKSPACE_CONFIG", "OMP_PROC_BIND"):
        monkeypatch.setenv(name, "TRUE")
        assert identity(config, DeviceGroup((device,))) == before, name
        assert environment(DeviceGroup((device,)), "given").variables == recorded, name


def test_libraries_add_no_others() -> None:
    """What those set that a run imports is inherited by the processes that it starts."""
    code = """
import gptbench, os
import joblib, sklearn, threadpoolctl, torch._inductor.compile_fx
from gptbench.measure import environment
assert environment.variables() == {}, environment.variables()
assert "KMP_INIT_AT_FORK" in os.environ
environment.STARTED_WITH = dict(os.environ)
assert environment.variables() == {}, environment.variables()
"""
    clean = {name: value for name, value in os.environ.items() if not VARIABLES.fullmatch(name)}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_of_a_place_must_agree_for_what() -> None:
    """Field by field, on a GPU and on a CPU: for a comparison, a job that need not be run again, and a read roof."""
    of_cpu = {
        "device": (True, True, True), "cores": (True, True, True), "threads": (False, True, True),
        "host": (False, False, True), "driver": (False, False, True), "commit": (False, False, False),
    }  # fmt: skip
    of_gpu = {
        "device": (True, True, True), "power_limit_w": (True, True, True), "cores": (False, False, False),
        "threads": (False, False, False), "host": (False, False, False), "driver": (False, False, True),
    }  # fmt: skip
    other = {"device": "b", "power_limit_w": 3.0, "cores": 63, "threads": 62, "driver": "1", "commit": "c", "host": "h"}
    for on_gpu, expectations in ((False, of_cpu), (True, of_gpu)):
        one = replace(place(cpu()), on_gpu=on_gpu, libraries={"torch": "2", "numpy": "2"}, variables={})
        for name, expected in expectations.items():
            assert differs(one, replace(one, **{name: other[name]})) == expected, (on_gpu, name)
        assert differs(one, replace(one, libraries={"torch": "3", "numpy": "2"})) == (False, True, True)
        assert differs(one, replace(one, libraries={"torch": "2", "numpy": "3"})) == (False, False, False)
        assert differs(one, replace(one, variables={"OMP_PROC_BIND": "true"})) == (False, True, False)
        assert differs(one, replace(one, variables={"OMP_NUM_THREADS": "1"})) == (False, False, False)


def differs(one: Place, other: Place) -> tuple[bool, bool, bool]:
    jobs = [each.of_job(("torch",)) for each in (one, other)]
    return one.kind != other.kind, jobs[0] != jobs[1], one.of_roof != other.of_roof


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """Of one kind, as torch and NVML would tell."""
    told = {"major": 9, "minor": 0, "multi_processor_count": 132, "L2_cache_size": 2**25}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda on: SimpleNamespace(uuid=f"u{on.index}", **told))
    monkeypatch.setattr(environment_module, "gpu_state", lambda _: ("570.1", 700.0))
    monkeypatch.setattr(environment_module, "gpu_settings", lambda _: {})
    section = DeviceConfig(_target_="gptbench.device.Device", name="cuda", kind=DeviceKind.cuda)
    return [Device(replace(section, index=index)) for index in range(2)]


def test_two_gpus_of_one_kind_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched tiles, read roofs, baselines and identities of one are the other's."""
    first, second = two_gpus(monkeypatch)
    assert first.torch != second.torch and first.uuid != second.uuid and first.key != second.key
    groups = [DeviceGroup((first,)), DeviceGroup((second,))]
    here, there = (environment(group, "given") for group in groups)
    assert Place.of(here, "host") == Place.of(there, "host") and place(first) == place(second)
    assert len({Roofs(group, here, tmp_path).path for group in groups}) == 1
    require_device(
        BaselineConfig(
            _target_="gptbench.compare.Baseline", name="x", device=here.device, power_limit_w=here.power_limit_w
        ),
        there,
    )
    assert len({identity(run_config(DENSE), group) for group in groups}) == 1
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey
    from gptbench.quant import Unquantised

    tile_key, tile = TileKey("linear", 144, 48, Unquantised(), torch.bfloat16, batch=1), TileConfig(4, 128, 1, 0)
    assert TileCache.of(tmp_path / "tiles", second)[tile_key] != tile
    TileCache.of(tmp_path / "tiles", first).store(tile_key, tile)
    assert TileCache.of(tmp_path / "tiles", second)[tile_key] == tile
