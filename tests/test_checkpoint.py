"""Weights from checkpoints: what is read, and into what; what is refused, and how that is told; the memory it takes."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptbench.base.errors import UserError
from gptbench.build import on_meta
from gptbench.checkpoint import Checkpoint
from gptbench.model import Transformer, Weight
from gptbench.quant.int8 import quantise_rows
from tests.hf import completed, library_model, loaded, rewrite, store, stored
from tests.models import quant_section

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAVED = {**DTYPES, "float64": torch.float64}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
HEAD = "lm_head.weight"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untied Llama in one file."""
    return save(tmp_path / "llama")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The same in several."""
    return save(tmp_path / "shards", max_shard_size="60KB")


def save(folder: Path, case: str = "llama", **options: Any) -> Path:
    library_model(case).save_pretrained(folder, **options)
    return folder


def as_saved(model: Transformer) -> dict[str, Tensor]:
    """The weights of a dense model under the names that the library has for them."""
    config = model.config
    tensors = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    if not config.tied:
        tensors[HEAD] = model.head.weight
    for number, block in enumerate(model.layers):
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        q, k, v = block.attention.wqkv.weight.split([queries, keys, keys])
        gate, up = block.ffn.w13.weight.chunk(2)
        layer = {
            "input_layernorm": block.attention_norm.weight,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.attention.wo.weight,
            "post_attention_layernorm": block.ffn_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.ffn.w2.weight,
        }
        tensors |= {f"model.layers.{number}.{name}.weight": tensor for name, tensor in layer.items()}
    return tensors


def assert_holds(model: Transformer, tensors: dict[str, Tensor]) -> None:
    held = as_saved(model)
    assert set(held) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(held[name], tensor.to(model.dtype)), name


def assert_same(model: Transformer, other: Transformer) -> None:
    for (name, tensor), (_, expected) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saved", SAVED)
def test_each_type_is_read_into_each(saved: str, dtype: str, folder: Path) -> None:
    tensors = {name: tensor.to(SAVED[saved]) for name, tensor in stored(folder).items()}
    store(folder, tensors)
    model, _ = loaded(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[dtype]}
    assert_holds(model, tensors)


def test_shards_are_read(folder: Path, shards: Path) -> None:
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    assert_holds(loaded(shards)[0], stored(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["llama-tied", "qwen2", "qwen3moe"])
def test_int8_while_reading_is_int8_of_what_was_read(case: str, dtype: str, tmp_path: Path) -> None:
    """Although queries, keys and values come one after the other, and each expert on its own."""
    save(tmp_path, case, max_shard_size="60KB")
    plain, quantised = loaded(tmp_path, dtype=dtype)[0], loaded(tmp_path, "int8", dtype)[0]
    modules, compared = dict(quantised.named_modules()), 0
    for name, module in plain.named_modules():
        if isinstance(module, Weight) and hasattr(modules[name], "scale"):
            integers, scale = quantise_rows(module.weight, module.weight.dtype)
            assert torch.equal(modules[name].weight, integers), name
            assert torch.equal(modules[name].scale, scale), name
            compared += 1
        elif hasattr(module, "weight"):
            assert torch.equal(modules[name].weight, module.weight), name
    assert compared == 4 * plain.config.n_layers + 1


def test_a_tied_head_may_be_there_or_not(tmp_path: Path) -> None:
    save(tmp_path, "llama-tied")
    tensors = stored(tmp_path)
    assert HEAD not in tensors
    model, _ = loaded(tmp_path)
    assert_holds(model, tensors)
    embedding = tensors["model.embed_tokens.weight"]
    store(tmp_path, tensors | {HEAD: embedding.clone()})
    assert_same(loaded(tmp_path)[0], model)
    store(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not embedding} | {HEAD: embedding})
    assert_same(loaded(tmp_path)[0], model)


@pytest.mark.parametrize("head", ["values", "shape"])
def test_a_tied_head_that_is_another_one_is_refused(head: str, tmp_path: Path) -> None:
    """transformers, too, does not tie what the file keeps apart."""
    save(tmp_path, "llama-tied")
    tensors = stored(tmp_path)
    embedding = tensors["model.embed_tokens.weight"]
    store(tmp_path, tensors | {HEAD: embedding + 1 if head == "values" else embedding[:3].clone()})
    told = refusal(tmp_path)
    assert f"model.safetensors: tensor {HEAD} " in told
    assert ("differs from" if head == "values" else "has shape") in told


def test_a_single_file_comes_before_an_index(folder: Path) -> None:
    """As in transformers: an index may be left from before the files were joined."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    assert_holds(loaded(folder)[0], stored(folder))


def test_saved_frequencies_are_ignored(folder: Path) -> None:
    tensors = stored(folder)
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    store(folder, tensors | frequencies | {"model.rotary_emb.inv_freq": torch.ones(4)})
    assert_holds(loaded(folder)[0], tensors)


def test_a_folder_of_links_is_read(folder: Path, tmp_path: Path) -> None:
    """As the library's own cache has it."""
    links = tmp_path / "links"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    assert_holds(loaded(links)[0], stored(folder))


def test_random_weights_need_no_file_but_the_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert not completed(folder, weights="random").reads_checkpoint
    assert completed(folder).reads_checkpoint


def pickled(folder: Path, files: int = 1, **options: Any) -> dict[str, Tensor]:
    """Puts PyTorch's pickles into the place of safetensors files."""
    tensors = stored(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    names = ["pytorch_model.bin"] if files == 1 else [f"pytorch_model-{n}.bin" for n in range(files)]
    parts = {name: dict(list(tensors.items())[n::files]) for n, name in enumerate(names)}
    for name, part in parts.items():
        torch.save(part, folder / name, **options)
    if files > 1:
        write_index(folder, {name: file for file, part in parts.items() for name in part}, "pytorch_model.bin")
    return tensors


def write_index(folder: Path, weight_map: Any, single: str = "model.safetensors") -> None:
    (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("files", [1, 3])
def test_pickles_are_read_when_they_are_asked_for(files: int, zipped: bool, folder: Path) -> None:
    tensors = pickled(folder, files, _use_new_zipfile_serialization=zipped)
    told = refusal(folder)
    assert "model.checkpoint_format=bin reads pytorch_model.bin" in told
    assert f"{folder}: found neither model.safetensors nor" in told
    model, record = loaded(folder, checkpoint_format="bin")
    assert_holds(model, tensors)
    assert len(record.files) == files


def test_safetensors_are_not_read_as_pickles(folder: Path) -> None:
    assert "model.checkpoint_format=safetensors reads model.safetensors" in refusal(folder, checkpoint_format="bin")


class WritesAFile:
    """What a malicious pickle does: unpickling it calls what it names."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_pickle_runs_no_code(form: str, folder: Path, tmp_path: Path) -> None:
    written, file = tmp_path / "written", folder / "pytorch_model.bin"
    content = {"model.norm.weight": torch.ones(48), "other": WritesAFile(written)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content | {"model.norm.weight": None}, 2))
        pickle.loads(file.read_bytes())
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
        torch.load(file, weights_only=False)
    assert written.exists(), "it would, were it let"
    written.unlink()
    loaded(folder)  # from model.safetensors: the pickle beside it is not looked at
    told = refusal(folder, checkpoint_format="bin")
    assert told.startswith(f"{file}: cannot be read as tensors alone")
    assert not written.exists()


def refusal(folder: Path, **options: Any) -> str:
    """What the user is told."""
    with pytest.raises(UserError) as caught:
        loaded(folder, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def changed(**changes: Tensor | None) -> Callable[[Path], None]:
    """Replaces tensors of the one file, adds others, or, where it is None, takes one out."""

    def damage(folder: Path) -> None:
        tensors = {**stored(folder), **changes}
        store(folder, {name: tensor for name, tensor in tensors.items() if tensor is not None})

    return damage


def edited(edit: Callable[[bytes], bytes], file: str = "model.safetensors") -> Callable[[Path], None]:
    """Other bytes in one file."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes(edit((folder / file).read_bytes()))

    return damage


def with_last(name: str, value: float, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    """Another value at the end of one tensor."""

    def damage(folder: Path) -> None:
        tensors = {key: tensor.to(dtype) for key, tensor in stored(folder).items()}
        tensors[name].view(-1)[-1] = value
        store(folder, tensors)

    return damage


def directory(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    # what is done to a checkpoint of one file: what must be told
    "missing-head": (changed(**{HEAD: None}), ["model.safetensors", HEAD, "missing"]),
    "missing-norm": (changed(**{"model.norm.weight": None}), ["model.safetensors", "model.norm.weight", "missing"]),
    "surplus": (
        changed(**{"model.layers.2.mlp.up_proj.weight": torch.ones(80, 48)}),
        ["model.safetensors", "model.layers.2.mlp.up_proj.weight", "does not belong to llama"],
    ),
    "surplus-bias": (
        changed(**{"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}),
        ["model.safetensors", "model.layers.0.self_attn.q_proj.bias", "does not belong"],
    ),
    "shape": (changed(**{HEAD: torch.ones(132, 48)}), ["model.safetensors", HEAD, "[132, 48]", "[131, 48]"]),
    "transposed": (changed(**{HEAD: torch.ones(48, 131)}), ["model.safetensors", HEAD, "[48, 131]"]),
    "flat": (changed(**{HEAD: torch.ones(131 * 48)}), ["model.safetensors", HEAD, "[6288]", "[131, 48]"]),
    "int8": (
        changed(**{HEAD: torch.ones(131, 48, dtype=torch.int8)}),
        ["model.safetensors", HEAD, "I8", "F32, BF16, F16"],
    ),
    "float8": (
        changed(**{HEAD: torch.ones(131, 48).to(torch.float8_e4m3fn)}),
        ["model.safetensors", HEAD, "F8_E4M3", "F32, BF16, F16"],
    ),
    "nan": (with_last(Q_PROJ, float("nan")), ["model.safetensors", Q_PROJ, "not finite"]),
    "infinite": (
        with_last("model.norm.weight", float("-inf")),
        ["model.safetensors", "model.norm.weight", "not finite"],
    ),
    "nan-bfloat16": (with_last(HEAD, float("nan"), torch.bfloat16), ["model.safetensors", HEAD, "not finite"]),
    "truncated": (edited(lambda data: data[:-1]), ["model.safetensors", "cannot be read"]),
    "half": (edited(lambda data: data[: len(data) // 2]), ["model.safetensors", "cannot be read"]),
    "longer": (edited(lambda data: data + b"\0"), ["model.safetensors", "cannot be read"]),
    "empty": (edited(lambda data: b""), ["model.safetensors", "cannot be read"]),
    "garbage": (edited(lambda data: b"\xff" * 5000), ["model.safetensors", "cannot be read"]),
    "header": (edited(lambda data: data[:20] + b"\xff{" + data[22:]), ["model.safetensors", "cannot be read"]),
    "web-page": (edited(lambda data: b"<!DOCTYPE html><html></html>"), ["model.safetensors", "cannot be read"]),
    "pointer": (
        edited(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ["model.safetensors", "a Git LFS pointer", "git lfs pull"],
    ),
    "directory": (directory, ["model.safetensors", "a folder"]),
    "no-weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["neither model.safetensors nor model.safetensors.index.json"],
    ),
    "no-config": (lambda folder: (folder / "config.json").unlink(), ["config.json", "no such file"]),
    "bad-json": (edited(lambda data: data[:-3], "config.json"), ["config.json", "not JSON"]),
    "not-utf8": (edited(lambda data: b"\xff\xfe" + data, "config.json"), ["config.json", "not UTF-8 text"]),
    "json-list": (edited(lambda data: b"[" + data + b"]", "config.json"), ["config.json", "expected a JSON object"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("quant", ["none", "int8"])
def test_damage_is_told_with_file_and_tensor(damage: str, quant: str, folder: Path) -> None:
    do, parts = DAMAGES[damage]
    do(folder)
    told = refusal(folder, quant=quant)
    for part in [str(folder), *parts]:
        assert part in told, told


@pytest.mark.parametrize("value", [66000.0, -1e30])
def test_what_float16_cannot_hold_is_refused(value: float, folder: Path) -> None:
    with_last(Q_PROJ, value)(folder)
    loaded(folder, dtype="bfloat16")
    assert "torch.float16" in refusal(folder, dtype="float16")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"model.checkpoint={tmp_path / 'nowhere'}: no such folder"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02", b"\xff" * 500, pickle.dumps([1], 2), pickle.dumps({"a": 1}, 2)],
    ids=["empty", "truncated", "garbage", "list", "number"],
)
def test_a_damaged_pickle_is_told_with_its_file(content: bytes, folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(content)
    assert str(file) in refusal(folder, checkpoint_format="bin")


@pytest.mark.parametrize(
    "content",
    [[torch.ones(3)], {HEAD: 3}, torch.ones(3), {"state_dict": {HEAD: torch.ones(3)}}, {3: torch.ones(3)}],
    ids=["list", "number", "tensor", "nested", "number-as-name"],
)
def test_a_pickle_of_something_else_is_told_with_its_file(content: Any, folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(content, file)
    assert str(file) in refusal(folder, checkpoint_format="bin")


@pytest.mark.parametrize(
    ("tensor", "parts"),
    [
        (torch.full((131, 48), float("inf")), ["not finite"]),
        (torch.ones(131, 48, dtype=torch.complex64), ["torch.complex64"]),
        (torch.ones(131, 48, device="meta"), ["expected a dict of tensors"]),
        (torch.eye(131, 48).to_sparse(), ["expected a dict of tensors"]),
        (torch.ones(130, 48), ["[130, 48]", "[131, 48]"]),
    ],
    ids=["infinite", "complex", "meta", "sparse", "shape"],
)
def test_a_wrong_tensor_of_a_pickle_is_told(tensor: Tensor, parts: list[str], folder: Path) -> None:
    tensors = pickled(folder)
    torch.save(tensors | {HEAD: tensor}, folder / "pytorch_model.bin")
    told = refusal(folder, checkpoint_format="bin")
    for part in [str(folder / "pytorch_model.bin"), *parts]:
        assert part in told, told


def first_shard(shards: Path) -> Path:
    return min(shards.glob("model-*.safetensors"))


def weight_map(shards: Path) -> dict[str, str]:
    return json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]


def test_a_missing_shard_is_told(shards: Path) -> None:
    first_shard(shards).unlink()
    told = refusal(shards)
    assert told.startswith(f"{first_shard(shards).parent / 'model-00001-of'}")
    assert "no such file, although model.safetensors.index.json lists it for" in told


def test_a_truncated_shard_is_told(shards: Path) -> None:
    file = first_shard(shards)
    file.write_bytes(file.read_bytes()[:-5])
    assert refusal(shards).startswith(f"{file}: cannot be read")


def test_of_a_tensor_in_two_shards_the_index_names_the_one_that_counts(shards: Path) -> None:
    """As in transformers. One that the index does not name is in one file alone."""
    expected, index = loaded(shards)[0], weight_map(shards)
    first, last = first_shard(shards), max(shards.glob("model-*.safetensors"))
    for file, other in ((first, last), (last, first)):
        name, tensor = next(item for item in load_file(other).items() if index[item[0]] == other.name)
        save_file(load_file(file) | {name: tensor + 1}, file)
    assert_same(loaded(shards)[0], expected)
    write_index(shards, {key: file for key, file in index.items() if key != name})
    assert refusal(shards) == f"{last}: tensor {name} is also in {first.name}"


@pytest.mark.parametrize("other", ["elsewhere", "nowhere"])
def test_an_index_that_is_wrong_about_a_tensor_is_told(other: str, shards: Path) -> None:
    """It lies in another shard than the index says, or in none."""
    places = weight_map(shards)
    name = "model.norm.weight" if other == "elsewhere" else "model.layers.7.mlp.up_proj.weight"
    file = next(file for file in sorted(set(places.values())) if places.get(name) != file)
    write_index(shards, places | {name: file})
    assert refusal(shards) == f"{shards / file}: tensor {name} is missing, although the index lists it"


@pytest.mark.parametrize("place", ["../llama/model.safetensors", "{outside}", "sub/model.safetensors", "..", "", "."])
def test_an_index_does_not_lead_out_of_the_folder(place: str, folder: Path, shards: Path) -> None:
    """Also where the file is there and holds the very tensor."""
    (shards / "sub").mkdir()
    save_file(stored(folder), shards / "sub" / "model.safetensors")
    write_index(shards, weight_map(shards) | {HEAD: place.format(outside=folder / "model.safetensors")})
    told = refusal(shards)
    assert told.startswith(f"{shards / 'model.safetensors.index.json'}: tensor {HEAD}:")
    assert "is not in the checkpoint's folder" in told


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}', "3", "\x00"])
def test_a_bad_index_is_told(content: str, shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    index.write_text(content)
    told = refusal(shards)
    assert told.startswith(f"{index}: ")
    assert "weight_map" in told or "not JSON" in told


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_head_belongs_to_an_untied_model(tied: bool, tmp_path: Path) -> None:
    """What config.json says decides, whatever the files hold."""
    save(tmp_path, "llama-tied" if not tied else "llama")
    rewrite(tmp_path, tie_word_embeddings=tied)
    if tied:
        assert f"tensor {HEAD} differs from" in refusal(tmp_path)
    else:
        assert f"tensor {HEAD} is missing" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin", "tied-bin"])
def test_progress_rises_from_nothing_to_all_and_names_every_file(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path, **({"max_shard_size": "60KB"} if kind == "shards" else {}))
    if kind == "bin":
        pickled(folder, files=3)
    if kind == "tied-bin":  # one storage under two names, as the library saved it
        tensors = pickled(folder)
        torch.save(tensors | {HEAD: tensors["model.embed_tokens.weight"]}, folder / "pytorch_model.bin")
        rewrite(folder, tie_word_embeddings=True)
    told: list[tuple[str, float]] = []
    _, record = loaded(
        folder,
        progress=lambda what, share: told.append((what, share)),
        checkpoint_format="bin" if "bin" in kind else "safetensors",
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert len(set(shares)) > 10
    assert len(shares) <= 101 + 2 * len(record.files)
    for number, file in enumerate(record.files, 1):
        what = f"reading {file}" + (f" ({number} of {len(record.files)})" if len(record.files) > 1 else "")
        assert what in [said for said, _ in told]


def test_the_record_tells_files_and_bytes(folder: Path, shards: Path) -> None:
    _, record = loaded(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert (record.folder, record.files, record.bytes) == (str(folder), ["model.safetensors"], size)
    _, sharded = loaded(shards)
    files = sorted(shards.glob("model-*.safetensors"))
    assert sharded.files == [file.name for file in files]
    assert sharded.bytes == sum(file.stat().st_size for file in files)
    assert sharded.headers_sha256 != record.headers_sha256


def test_the_digest_is_that_of_names_shapes_and_types(folder: Path) -> None:
    def digest() -> str:
        return Checkpoint(completed(folder)).digest()

    tensors, first = stored(folder), digest()
    store(folder, dict(reversed(tensors.items())))
    assert digest() == first
    store(folder, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    assert digest() == first, "values are not read for it"
    others = {
        "shape": tensors | {HEAD: tensors[HEAD].T.contiguous()},
        "bfloat16": tensors | {HEAD: tensors[HEAD].bfloat16()},
        "float16": tensors | {HEAD: tensors[HEAD].half()},  # the files' sizes alone do not tell
        "name": tensors | {HEAD.upper(): tensors[HEAD].clone()},
    }
    digests = {first}
    for changed in others.values():
        store(folder, changed)
        digests.add(digest())
    assert len(digests) == 1 + len(others)


def test_nothing_is_read_but_headers_until_the_model_has_its_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` comes before it is known whether the model fits."""
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    config = completed(folder)
    model = on_meta(config, quant_section("int8"), torch.bfloat16)
    Checkpoint(config).check(model)
    assert all(parameter.is_meta for parameter in model.parameters())


SHARDS, DIM, FFN = 8, 1024, 2560
SLACK = 75e6
"""Bytes: one tensor as it is cast and quantised, and what the allocator keeps. All files at once take 193 MB."""

LOAD = f"""
import json, sys
import torch
from gptbench.build import build, nbytes, on_meta
from gptbench.config import DeviceConfig, DeviceKind
from gptbench.device import Device
from tests.models import quant_section, run_config, tiny

config = tiny("big", vocab_size=16, dim={DIM}, n_layers={SHARDS}, n_heads=8, n_kv_heads=8, ffn_dim={FFN}, context=64,
              checkpoint=sys.argv[1])
device = Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu, threads=1))
model = on_meta(config, quant_section(sys.argv[2]), torch.float32)
device.reset_peak_memory()
before = device.peak_memory()
with torch.no_grad():
    build(run_config(config, sys.argv[2]), model, device)
print(json.dumps([nbytes(model), device.peak_memory() - before, model.layers[-1].ffn.w2.weight[3, 5].item()]))
"""


def test_reading_takes_the_model_and_one_file(tmp_path: Path) -> None:
    """Peak of the resident memory of a process for each quantisation, pages of files included."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:  # 193 MB are not left over
        largest = write_layers(Path(name))
        for quant, last in (("none", SHARDS), ("int8", 127)):
            command = [sys.executable, "-c", LOAD, name, quant]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            model, peak, value = json.loads(done.stdout)
            assert value == last
            assert 0.98 * model < peak < model + largest + SLACK, (quant, model / 1e6, peak / 1e6)


def write_layers(folder: Path) -> int:
    """A bfloat16 checkpoint with one file for each layer, whose weights are its number: bytes of the largest file."""
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    matrices = {f"self_attn.{name}_proj": (DIM, DIM) for name in "qkvo"}
    matrices |= {"mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN)}
    norms = {"input_layernorm": (DIM,), "post_attention_layernorm": (DIM,)}
    places = {}
    for n in range(SHARDS):
        shapes = {f"model.layers.{n}.{name}": shape for name, shape in (matrices | norms).items()}
        if n == 0:
            shapes |= {"model.embed_tokens": (16, DIM), "lm_head": (16, DIM), "model.norm": (DIM,)}
        file = f"model-{n}.safetensors"
        tensors = {f"{name}.weight": torch.full(shape, n + 1.0, dtype=torch.bfloat16) for name, shape in shapes.items()}
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    write_index(folder, places)
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


def fifo(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def dangling(file: Path) -> None:
    file.symlink_to("nowhere")


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2**40)


def long_header(file: Path) -> None:
    with file.open("wb") as opened:
        opened.write((2**36).to_bytes(8, "little"))
        opened.truncate(2**40)


REPLACEMENTS: dict[Callable[[Path], None], str] = {
    fifo: "not a regular file",
    Path.mkdir: "a folder",
    device: "not a regular file",
    dangling: "no such file",
    pointer: "git lfs pull",
    sparse: "",
    long_header: "",
}
"""What is in a file's place, and what is reported of it."""


def test_a_file_that_is_none_or_without_end_is_refused_at_once(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_bytes((shards / "config.json").read_bytes())
    began = time.monotonic()
    for file, kind in (
        (shards / "config.json", "safetensors"),
        (shards / "model.safetensors.index.json", "safetensors"),
        (first_shard(shards), "safetensors"),
        (shards / "model.safetensors", "safetensors"),
        (tmp_path / "bin" / "pytorch_model.bin", "bin"),
        (tmp_path / "bin" / "pytorch_model.bin.index.json", "bin"),
    ):
        aside = tmp_path / "aside"
        if file.exists():
            file.rename(aside)
        for replace, part in REPLACEMENTS.items():
            replace(file)
            told = refusal(file.parent, checkpoint_format=kind)
            assert told.startswith(f"{file}: "), told
            assert part in told or (part == "no such file" and "No such file" in told), told
            file.rmdir() if file.is_dir() else file.unlink()
        if aside.exists():
            aside.rename(file)
    assert time.monotonic() - began < 15, "a refusal takes 5 seconds at most"


def test_what_a_name_holds_does_not_reach_the_terminal(folder: Path, shards: Path) -> None:
    name = "\x1b[31m\x9b2J\nforged\u202e"
    store(folder, stored(folder) | {name: torch.ones(2)})
    told = refusal(folder)
    assert told.isprintable()
    assert f"tensor {name.encode('unicode_escape').decode()} does not belong to" in told
    for index in ({name: first_shard(shards).name}, {name: "gone"}, {name: "../gone"}, {"lm_head.weight": name}):
        write_index(shards, weight_map(shards) | index)
        assert "forged" in refusal(shards)
        assert refusal(shards).isprintable()
