"""`gptbench cache`: what was compiled travels, nothing is compiled again, and no file can do harm by being loaded."""

import contextlib
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptbench.base.errors import UserError
from gptbench.commands.cache import cache_command
from gptbench.device import Device
from gptbench.engine import compile_cache
from gptbench.engine.compile_cache import MANIFEST, LocalCaches, load, save

ROOT = Path(__file__).parents[1]
CODE = "inductor/ab/cabc.py"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the outputs folder of a machine with one compiled file in each cache."""
    move_to(tmp_path / "one", monkeypatch)
    for name in (CODE, "triton/XYZ/kernel.cubin"):
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(random.Random(0).randbytes(5000))
    return tmp_path / "one" / "outputs"


def move_to(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Uses the caches of another machine, empty unless it was used before; its outputs."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(machine / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(machine / "triton"))
    monkeypatch.setattr(compile_cache, "headers_folder", lambda: machine / "headers")
    return machine / "outputs"


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def changed(file: Path, **fields: Any) -> Path:
    """The same cache file with another manifest."""
    new = file.with_name("changed.zip")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(new, "w") as archive:
        for member in old.infolist():
            content = old.read(member)
            if member.filename == MANIFEST:
                content = json.dumps(json.loads(content) | fields).encode()
            archive.writestr(member, content)
    return new


def with_member(file: Path, member: zipfile.ZipInfo | str) -> Path:
    """The same cache file with one more member, counted."""
    with zipfile.ZipFile(file) as archive:
        count = json.loads(archive.read(MANIFEST))["files"]
    new = changed(file, files=count + 1)
    with zipfile.ZipFile(new, "a") as archive:
        archive.writestr(member, b"../../outside")
    return new


@pytest.mark.timeout(300)
def test_a_machine_that_loads_what_another_compiled_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precompiled headers, which would take 10 s more, have a test of their own."""
    pytest.importorskip("triton")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "g++").write_text(f'#!/bin/sh\necho "$@" >> "$COMPILED"\nexec {compiler} "$@"\n')
    (tools / "g++").chmod(0o755)

    def outcome(machine: str) -> tuple[dict[str, Any], list[str]]:
        """What `compile_small` tells, and the compiler's calls that made something from C++."""
        made = tmp_path / machine / "compiled"
        made.parent.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "COMPILED": str(made),
            "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        }
        command = [sys.executable, "-m", "tests.compile_small"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        calls = made.read_text().splitlines() if made.exists() else []
        return json.loads(done.stdout), [call for call in calls if " -o " in call and " -E " not in call]

    outputs = move_to(tmp_path / "one", monkeypatch)
    nothing = {"hit": 0, "miss": 0, "bypass": 0, "triton_hit": 0, "triton_miss": 0}
    found, calls = outcome("one")
    assert found["caches"] == nothing | {"miss": 1, "triton_miss": 1}
    assert calls
    # Triton's events have names and units of its own: with others, they would not be counted.
    assert found["compiles"] == 2, "a graph and a kernel"
    assert 0.01 < found["triton_s"] < 100
    file = tmp_path / "cache.zip"
    save(file, outputs)
    shutil.rmtree(tmp_path / "one")

    place = LocalCaches(move_to(tmp_path / "two", monkeypatch))
    assert {"inductor", "triton"} <= load(file, place).added.keys()
    found, calls = outcome("two")
    assert found["caches"] == nothing | {"hit": 1, "triton_hit": 1}
    assert not calls
    assert found["compiles"] == 2, "what is loaded counts, too"


def test_all_of_it_arrives_and_nothing_else(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, file = tmp_path / "one", tmp_path / "cache.zip"
    for name in ("inductor/locks/cabc.lock", "inductor/ab/.1.2.tmp", "triton/XYZ/tmp.pid_1_2/kernel.cubin"):
        (one / name).parent.mkdir(exist_ok=True)
        (one / name).write_text("of a process that runs")
    (one / "inductor" / "link").symlink_to("/etc/passwd")
    manifest = save(file, outputs)
    assert (manifest.files, manifest.bytes) == (2, 10000)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "cache.zip"}

    two = tmp_path / "two"
    loaded = load(file, LocalCaches(move_to(two, monkeypatch)))
    assert files_under(two) == {CODE, "triton/XYZ/kernel.cubin"}
    assert (two / CODE).read_bytes() == (one / CODE).read_bytes()
    assert (loaded.added, loaded.kept, loaded.notes) == ({"inductor": 1, "triton": 1}, 0, [])


def test_tritons_cache_within_inductors_is_saved_once(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "one" / "inductor" / "triton"))
    shutil.move(tmp_path / "one" / "triton", tmp_path / "one" / "inductor" / "triton")
    save(tmp_path / "cache.zip", outputs)
    with zipfile.ZipFile(tmp_path / "cache.zip") as archive:
        assert set(archive.namelist()) == {CODE, "triton/XYZ/kernel.cubin", MANIFEST}


def test_what_is_there_stays(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cache.zip", outputs)
    two = tmp_path / "two"
    (two / CODE).parent.mkdir(parents=True)
    (two / CODE).write_text("newer")
    loaded = load(tmp_path / "cache.zip", LocalCaches(move_to(two, monkeypatch)))
    assert (two / CODE).read_text() == "newer"
    assert (loaded.added, loaded.kept) == ({"triton": 1}, 1)


def test_tritons_groups_name_files_of_this_machine(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "one" / "triton" / "XYZ" / "kernel.cubin"
    whole = {"child_paths": {"kernel.cubin": str(kernel)}}
    lacking = {"child_paths": {"kernel.ptx": str(kernel.with_suffix(".ptx"))}}
    (kernel.parent / "__grp__kernel.json").write_text(json.dumps(whole))
    (kernel.parent / "__grp__lacking.json").write_text(json.dumps(lacking))
    (kernel.parent / "__grp__broken.json").write_text("[")
    save(tmp_path / "cache.zip", outputs)
    with zipfile.ZipFile(tmp_path / "cache.zip") as archive:
        assert "triton/XYZ/__grp__kernel.json" in archive.namelist()
    load(tmp_path / "cache.zip", LocalCaches(move_to(tmp_path / "two", monkeypatch)))
    there = tmp_path / "two" / "triton" / "XYZ"
    assert files_under(there) == {"kernel.cubin", "__grp__kernel.json"}
    group = json.loads((there / "__grp__kernel.json").read_text())
    assert group == {"child_paths": {"kernel.cubin": str(there / "kernel.cubin")}}


def test_tiles_travel_to_another_machine_of_the_kind(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey
    from gptbench.quant import Int8

    kind = LocalCaches(outputs).device.kind
    tile_key, tile = TileKey("linear", 64, 64, Int8(), torch.bfloat16, 1), TileConfig(4, 512, 1, 0)
    TileCache(outputs / "tiles", kind, "the-first-card").store(tile_key, tile)
    TileCache(outputs / "tiles", "another-kind").store(tile_key, tile)
    file = tmp_path / "cache.zip"
    assert save(file, outputs).files == 3

    place = LocalCaches(move_to(tmp_path / "two", monkeypatch))
    assert load(file, place).added["tiles"] == 1
    there = TileCache(tmp_path / "two" / "outputs" / "tiles", kind)
    assert there.configs == {str(tile_key): tile}
    assert there.cards == {str(tile_key): "the-first-card"}, "where it was searched goes with it"
    better = replace(tile, rows=8)
    there.store(tile_key, better)
    assert load(file, place).added == {}
    assert TileCache(tmp_path / "two" / "outputs" / "tiles", kind)[tile_key] == better

    own = move_to(tmp_path / "four", monkeypatch) / "tiles"
    another = replace(tile_key, rows=128)
    TileCache(own, kind).store(another, better)
    assert load(file, LocalCaches(own.parent)).added["tiles"] == 1
    assert TileCache(own, kind).configs == {str(tile_key): tile, str(another): better}, "beside those for other uses"

    other = LocalCaches(move_to(tmp_path / "three", monkeypatch))
    loaded = load(changed(file, kernels="0123abcd"), other)
    assert set(loaded.added) == {"inductor", "triton"}
    assert "0123abcd" in loaded.notes[0]


def test_the_tile_of_a_kind_goes_before_those_of_single_cards(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file as in a folder, whichever name comes first."""
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey
    from gptbench.quant import Int8

    monkeypatch.setattr(Device, "key", "gpu-99999999-0000-1111-2222-333344445555")
    monkeypatch.setattr(Device, "kind", "gpu-sm90")
    both, cards = (TileKey("linear", rows, 64, Int8(), torch.bfloat16, 1) for rows in (64, 128))
    for rows, name in (
        (4, "gpu-11111111-0000-1111-2222-333344445555"),
        (8, "gpu-22222222-0000-1111-2222-333344445555"),
    ):
        for tile_key in (both, cards):
            TileCache(outputs / "tiles", name).store(tile_key, TileConfig(rows, 512, 1, 0))
    TileCache(outputs / "tiles", "gpu-sm90").path.write_text(json.dumps({str(both): asdict(TileConfig(2, 512, 1, 0))}))
    here = TileCache.of(outputs / "tiles", LocalCaches(outputs).device).configs
    assert here == {str(both): TileConfig(2, 512, 1, 0), str(cards): TileConfig(8, 512, 1, 0)}
    save(tmp_path / "cache.zip", outputs)
    there = LocalCaches(move_to(tmp_path / "two", monkeypatch))
    load(tmp_path / "cache.zip", there)
    assert there.tiles().configs == here


def test_loading_tiles_waits_for_who_keeps_one(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was found meanwhile would be lost."""
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache
    from gptbench.kernels.tile_config import TileConfig, TileKey
    from gptbench.quant import Int8

    tile_key, tile = TileKey("linear", 64, 64, Int8(), torch.bfloat16, 1), TileConfig(4, 512, 1, 0)
    place = LocalCaches(outputs)
    TileCache(outputs / "tiles", place.device.kind).store(tile_key, tile)
    save(tmp_path / "cache.zip", outputs)
    place = LocalCaches(move_to(tmp_path / "two", monkeypatch))
    own, found = place.tiles(), replace(tile_key, rows=128)
    with ThreadPoolExecutor(1) as other:
        with own.locked():
            loading = other.submit(load, tmp_path / "cache.zip", place)
            time.sleep(0.3)
            assert not loading.done()
            own.configs[str(found)], own.cards[str(found)] = tile, ""
        loading.result(timeout=60)
    assert TileCache.of(own.path.parent, place.device).configs == {str(tile_key): tile, str(found): tile}


def test_of_another_machine_or_version_is_refused(outputs: Path, tmp_path: Path) -> None:
    save(tmp_path / "cache.zip", outputs)
    place = LocalCaches(outputs)
    shutil.rmtree(tmp_path / "one")
    for name in ("torch", "triton", "python", "platform", "device"):
        with pytest.raises(UserError) as told:
            load(changed(tmp_path / "cache.zip", **{name: "1.2.3"}), place)
        assert f"{name}=1.2.3: expected {getattr(place.manifest, name)}" in str(told.value)
    assert not files_under(tmp_path) - {"cache.zip", "changed.zip"}


LIBRARY = "inductor/ab/cdef.so"


def test_what_will_not_be_found_is_told_and_cpp_for_another_cpu_left_out(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one" / LIBRARY).write_bytes(b"")
    save(tmp_path / "cache.zip", outputs)
    changes = {"cpu": "a newer one, AVX1024", "torch_folder": "/elsewhere/torch", "threads": 999}
    loaded = load(changed(tmp_path / "cache.zip", **changes), LocalCaches(move_to(tmp_path / "two", monkeypatch)))
    assert [note.partition(" there, ")[0] for note in loaded.notes] == [f"{name}={of}" for name, of in changes.items()]
    assert files_under(tmp_path / "two") == {CODE, "triton/XYZ/kernel.cubin"}
    loaded = load(tmp_path / "cache.zip", LocalCaches(move_to(tmp_path / "two", monkeypatch)))
    assert (loaded.added, loaded.notes) == ({"inductor": 1}, [])
    assert files_under(tmp_path / "two") == {CODE, LIBRARY, "triton/XYZ/kernel.cubin"}


def test_headers_of_this_torch_travel_with_libraries(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = tmp_path / "one" / "inductor" / "headers"  # as torch has them, in the other folder
    headers.mkdir()
    monkeypatch.setattr(compile_cache, "headers_folder", lambda: headers)
    for name, folder in (("ours", Path(torch.__file__).parent), ("other", Path("/elsewhere/torch"))):
        (headers / f"{name}.h").write_text("#include <torch.h>")
        (headers / f"{name}.h.gch").write_bytes(b"\0" + str(folder / "include").encode())

    def saved() -> set[str]:
        (tmp_path / "cache.zip").unlink(missing_ok=True)
        save(tmp_path / "cache.zip", outputs)
        with zipfile.ZipFile(tmp_path / "cache.zip") as archive:
            return {name for name in archive.namelist() if "headers" in name and name.endswith(".gch")}

    assert not saved()
    (tmp_path / "one" / LIBRARY).write_bytes(b"")
    assert saved() == {"headers/ours.h.gch"}
    assert load(tmp_path / "cache.zip", LocalCaches(move_to(tmp_path / "two", monkeypatch))).added["headers"] == 3
    assert (tmp_path / "two" / "headers" / "ours.h").exists()


def test_of_another_form_is_refused(outputs: Path, tmp_path: Path) -> None:
    save(tmp_path / "cache.zip", outputs)
    changes: list[dict[str, Any]] = [
        *({"format": 1}, {"format": None}, {"files": "2"}, {"torch": None}, {"threads": [8]}),
        {"surplus": 1},
    ]
    for change in changes:
        refused(changed(tmp_path / "cache.zip", **change), outputs, tmp_path)


def refused(file: Path, outputs: Path, tmp_path: Path) -> str:
    """What is told of a file; it must not write anything."""
    place = LocalCaches(outputs)
    shutil.rmtree(tmp_path / "one", ignore_errors=True)
    before = files_under(tmp_path)
    with pytest.raises(UserError) as told:
        load(file, place)
    assert files_under(tmp_path) == before
    assert str(file) in str(told.value)
    return str(told.value)


def test_what_is_no_cache_file_is_refused(outputs: Path, tmp_path: Path) -> None:
    text, other, folder = tmp_path / "text", tmp_path / "other.zip", tmp_path / "folder"
    text.write_text("no zip")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(CODE, "")
    folder.mkdir()
    for file in (text, other, folder, tmp_path / "absent", tmp_path / "empty"):
        (tmp_path / "empty").touch()
        refused(file, outputs, tmp_path)


def test_every_truncation_and_damage_is_refused(outputs: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache.zip"
    save(file, outputs)
    whole, place = file.read_bytes(), LocalCaches(outputs)
    shutil.rmtree(tmp_path / "one")
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load(file, place)
    for position in range(50, 9000, 531):  # in what the two files hold
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError):
            load(file, place)
    assert files_under(tmp_path) == {"cache.zip"}
    directory = whole.index(b"PK\x01\x02")
    for position in range(directory, len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            load(file, place)
        except UserError:
            continue
        assert files_under(tmp_path) <= {"cache.zip", *(f"one/{name}" for name in (CODE, "triton/XYZ/kernel.cubin"))}


NAMES = (
    "/etc/cron.d/job",
    "inductor/../../outside",
    "inductor/..",
    "../outside",
    "inductor//etc/cron.d/job",
    "inductor/./file",
    "inductor/folder/",
    "inductor\\..\\outside",
    "inductor/..\\outside",
    "inductor/file\n",
    "elsewhere/file",
    "tiles/file",
    "inductor",
    "inductor/locks/cabc.lock",
    "inductor/ab/.1.2.tmp",
    "triton/XYZ/tmp.pid_1_2/kernel.cubin",
)


def test_a_name_that_leaves_the_caches_or_is_of_no_finished_file_is_refused(outputs: Path, tmp_path: Path) -> None:
    save(tmp_path / "cache.zip", outputs)
    for name in NAMES:
        refused(with_member(tmp_path / "cache.zip", name), outputs, tmp_path)


def test_links_and_devices_become_plain_files(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cache.zip", outputs)
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR):
        member = zipfile.ZipInfo("inductor/member")
        member.external_attr = (kind | 0o777) << 16
        here = tmp_path / str(kind)
        load(with_member(tmp_path / "cache.zip", member), LocalCaches(move_to(here, monkeypatch)))
        assert stat.S_ISREG((here / "inductor" / "member").lstat().st_mode)
        assert files_under(here) == {CODE, "triton/XYZ/kernel.cubin", "inductor/member"}


def test_what_would_take_all_disk_time_or_memory_is_refused(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "cache.zip", outputs)
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 2**21 + 20_000)
    for name, size, reason in (
        ("inductor/zeros", 3 * 2**20, "bytes unpacked: expected 2,117,152 at most"),
        ("tiles.json", 2 * 2**20, "2,097,152 bytes: expected 1,048,576 at most"),
        ("triton/XYZ/__grp__a.json", 2 * 2**20, "2,097,152 bytes: expected 1,048,576 at most"),
    ):
        file = changed(tmp_path / "cache.zip", files=3)
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(size))
        assert reason in refused(file, outputs, tmp_path)
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 9_000)
    assert "bytes, but at most 9,000 are read" in refused(tmp_path / "cache.zip", outputs, tmp_path)


def test_more_than_can_be_loaded_is_not_saved(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "MAX_FILES", 3)
    save(tmp_path / "cache.zip", outputs)
    load(tmp_path / "cache.zip", LocalCaches(outputs))
    (tmp_path / "one" / "inductor" / "more").touch()
    before = files_under(tmp_path)
    with pytest.raises(UserError, match="4 files: expected 3 at most"):
        save(tmp_path / "more.zip", outputs)
    assert files_under(tmp_path) == before


def test_tiles_that_are_none_are_refused(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    save(tmp_path / "cache.zip", outputs)
    place = LocalCaches(move_to(tmp_path / "two", monkeypatch))
    for content in (b"[]", b"{", b'{"a": {"rows": 3}}'):
        file = changed(tmp_path / "cache.zip", files=3)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("tiles.json", content)
        with pytest.raises(UserError, match=r"changed\.zip/tiles\.json: expected tiles"):
            load(file, place)
    assert {Path(name).suffix for name in files_under(tmp_path / "two")} <= {".lock"}


def test_a_group_can_only_name_files_beside_it(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cache.zip", outputs)
    file = changed(tmp_path / "cache.zip", files=4)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("triton/XYZ/__grp__k.json", json.dumps({"child_paths": {"k.cubin": "../../../etc/passwd"}}))
        archive.writestr("triton/XYZ/__grp__l.json", json.dumps({"child_paths": ["/etc/passwd"]}))
    load(file, LocalCaches(move_to(tmp_path / "two", monkeypatch)))
    assert files_under(tmp_path / "two" / "triton" / "XYZ") == {"kernel.cubin"}, "there is no passwd"


def test_a_file_that_is_there_is_not_overwritten(outputs: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache.zip"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        save(file, outputs)
    assert file.read_text() == "mine"


def test_where_nothing_was_compiled_there_is_nothing_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = move_to(tmp_path / "one", monkeypatch)
    with pytest.raises(UserError, match="nothing to save") as told:
        save(tmp_path / "cache.zip", outputs)
    assert str(tmp_path / "one" / "inductor") in str(told.value)
    assert not (tmp_path / "cache.zip").exists()


@contextlib.contextmanager
def full_disk(room: int = 4096) -> Iterator[None]:
    """No file grows beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_leaves_nothing(outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    before = files_under(tmp_path)
    for file in (tmp_path / "absent" / "cache.zip", tmp_path / "plain" / "cache.zip", tmp_path / "cache.zip"):
        with full_disk(), pytest.raises(UserError, match="cannot be written"):
            save(file, outputs)
    assert files_under(tmp_path) == before


def test_caches_that_cannot_be_written_are_told(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cache.zip", outputs)
    place = LocalCaches(move_to(tmp_path / "two", monkeypatch))
    with full_disk(), pytest.raises(UserError, match="the caches cannot be written"):
        load(tmp_path / "cache.zip", place)
    assert not files_under(tmp_path / "two")
    (tmp_path / "two" / "inductor" / "ab").rmdir()
    (tmp_path / "two" / "inductor" / "ab").write_text("in the way of the folder")
    with pytest.raises(UserError, match="the caches cannot be written"):
        load(tmp_path / "cache.zip", place)


def test_the_commands_tell_what_they_did(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "cache.zip")

    def told(*arguments: str) -> tuple[str, dict[str, Any]]:
        """What people read, and the line for programs."""
        assert cache_command(list(arguments)) == 0
        printed = capsys.readouterr()
        (line,) = printed.out.splitlines()
        return printed.err, json.loads(line)

    (tmp_path / "one" / LIBRARY).write_bytes(b"")
    text, line = told("save", file, "--outputs", str(outputs))
    assert f"{file}: 3 files, 0.0 MB" in text and torch.__version__ in text
    assert (line["file"], line["files"], line["torch"]) == (file, 3, torch.__version__)
    two = str(move_to(tmp_path / "two", monkeypatch))
    text, line = told("load", file, "--outputs", two)
    assert f"added 2 files to {tmp_path / 'two' / 'inductor'}\n" in text
    assert (line["added"], line["kept"], line["skipped"]) == ({"inductor": 2, "triton": 1}, 0, 0)
    text, line = told("load", file, "--outputs", two)
    assert "3 files already present" in text and "skipped" not in text
    (tmp_path / "two" / LIBRARY).unlink()
    text, line = told("load", str(changed(Path(file), cpu="a newer one")), "--outputs", two)
    assert "2 files already present\n1 file skipped: of no use on this machine\ncpu=a newer one there" in text
    assert (line["added"], line["kept"], line["skipped"]) == ({}, 2, 1) and "C++ is compiled again" in line["notes"][0]
    with pytest.raises(SystemExit) as ended:
        cache_command(["mend", file])
    assert ended.value.code == 2


def test_the_manifest_says_what_the_file_says(outputs: Path, tmp_path: Path) -> None:
    manifest = save(tmp_path / "cache.zip", outputs)
    with zipfile.ZipFile(tmp_path / "cache.zip") as archive:
        assert json.loads(archive.read(MANIFEST)) == asdict(manifest)
