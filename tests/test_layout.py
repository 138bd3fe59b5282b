"""How a checkpoint's tensors may lie, an architecture and a codec of a user's own."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gptbench.architecture import (
    ARCHITECTURES,
    Architecture,
    LlamaLayer,
    Part,
    Target,
    read_shape,
    register_architecture,
)
from gptbench.architecture.spec import LayerSpec
from gptbench.architecture.stored import CODECS
from gptbench.base.errors import CheckpointError, UserError
from gptbench.build import on_meta
from gptbench.checkpoint import Checkpoint, Codec, Piece, assign, register_codec, view
from gptbench.config import ModelConfig
from gptbench.model import Transformer
from tests.hf import completed, library_model, loaded, stored
from tests.models import GQA, MOE, make_model, quant_section

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Restore the architectures after the test."""
    before = dict(ARCHITECTURES), dict(CODECS)
    yield
    for registry, rows in zip((ARCHITECTURES, CODECS), before, strict=True):
        registry.clear()
        registry.update(rows)  # type: ignore[arg-type]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_a_tensor_may_be_transposed_or_split_or_hold_all_experts() -> None:
    dense, mixture = make_model(GQA), make_model(MOE)
    qkv = numbers(96, 160)  # as GPT-2 has it: [D, N]
    assign(dense, Target((96, 160), (Part("blocks.1.attention.wqkv"),), transposed=True), qkv)
    assert torch.equal(dense.layers[1].attention.wqkv.weight, qkv.T)

    both = numbers(352, 96)  # rows of gate and up in turns
    turns = (Part("blocks.0.ffn.w13", step=2), Part("blocks.0.ffn.w13", row=176, first=1, step=2))
    assign(dense, Target((352, 96), turns), both)
    gate, up = dense.layers[0].ffn.w13.weight.chunk(2)
    assert torch.equal(gate, both[0::2]) and torch.equal(up, both[1::2])

    parts = numbers(20, 96)  # the first rows go to one module, the others to another
    target = Target((20, 96), (Part("blocks.0.attention.wo", last=8), Part("blocks.1.attention.wo", row=4, first=8)))
    assign(dense, target, parts)
    assert torch.equal(dense.layers[0].attention.wo.weight[:8], parts[:8])
    assert torch.equal(dense.layers[1].attention.wo.weight[4:16], parts[8:])

    ffn: Any = mixture.layers[1].ffn
    every = numbers(*ffn.w2.weight.transpose(1, 2).shape)
    assign(mixture, Target(tuple(every.shape), (Part("blocks.1.ffn.w2"),), transposed=True), every)
    assert torch.equal(ffn.w2.weight, every.transpose(1, 2))
    one = Target(tuple(ffn.w2.weight.shape[1:]), (Part("blocks.1.ffn.w2", expert=3),))
    assert view(mixture, one).data_ptr() == ffn.w2.weight[3].data_ptr()

    norm = numbers(96)
    assign(dense, Target((96,), (Part("blocks.1.ffn_norm"),)), norm)
    assert torch.equal(dense.layers[1].ffn_norm.weight, norm)


def save(folder: Path, tensors: Mapping[str, Tensor], **values: Any) -> Path:
    """The checkpoint of a Llama, with other tensors and other values in its config.json."""
    library_model("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


class Phi(LlamaLayer):
    """Llama's layer, but for queries, keys and values in one tensor, and the two inputs of its network."""

    def __call__(self, spec: LayerSpec) -> dict[str, Target]:
        tensors = super().__call__(spec)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            del tensors[f"{name}.weight"]
        attention, width = spec.attention, spec.ffn.width
        tensors["self_attn.qkv_proj.weight"] = Target((attention.rows, spec.dim), (Part("attention.wqkv"),))
        tensors["mlp.gate_up_proj.weight"] = Target((2 * width, spec.dim), (Part("ffn.w13"),))
        return tensors


def alternating(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """Every second layer attends to three positions."""
    specs = replace(config, architecture=None).layer_specs
    narrow = [replace(spec, attention=replace(spec.attention, window=3)) for spec in specs]
    return tuple(narrow[n] if n % 2 else spec for n, spec in enumerate(specs))


def test_an_architecture_of_ones_own_is_one_row(tmp_path: Path) -> None:
    register_architecture(
        Architecture("MineForCausalLM", "mine", layer=Phi(), layers=alternating, defaults={"rms_norm_eps": 1e-6})
    )
    library_model("llama").save_pretrained(tmp_path / "plain")
    plain = stored(tmp_path / "plain")
    fused = dict(plain)
    for number in range(2):
        layer = f"model.layers.{number}."
        for name, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            fused[f"{layer}{name}.weight"] = torch.cat([fused.pop(f"{layer}{part}.weight") for part in parts])
    mine = save(tmp_path / "mine", fused, architectures=["MineForCausalLM"], model_type="mine")
    assert read_shape(mine)["architecture"] == "MineForCausalLM"
    model, expected = loaded(mine)[0], loaded(tmp_path / "plain")[0]
    assert [block.spec.attention.window for block in model.layers] == [0, 3]
    assert [cache.spec.window for cache in model.memory.caches] == [0, 3]
    for (name, tensor), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(tensor, other), name
    with pytest.raises(UserError, match=r"model.architecture=Mine: expected null or MineForCausalLM"):
        replace(completed(mine), architecture="Mine")
    with pytest.raises(UserError, match="model_type=llama is already registered by LlamaForCausalLM"):
        register_architecture(Architecture("Other", "llama"))


class Halves(Codec):
    """Each matrix of a layer is stored as what is even and what is left of thirds: two tensors of integers."""

    def pieces(self, name: str, target: Target) -> dict[str, Piece]:
        if "proj" not in name:
            return super().pieces(name, target)
        return {f"{name}.{part}": Piece(target.shape, ("I32",)) for part in ("high", "low")}

    def decode(self, name: str, target: Target, stored: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        if "proj" not in name:
            return super().decode(name, target, stored, dtype)
        return (stored[f"{name}.high"] * 3 + stored[f"{name}.low"]).to(dtype) / self.settings["by"]


def test_a_codec_of_ones_own_is_one_class(tmp_path: Path) -> None:
    library_model("llama").save_pretrained(tmp_path / "plain")
    settings = {"quant_method": "halves", "by": 64}
    tensors: dict[str, Tensor] = {}
    expected = {}
    for name, tensor in stored(tmp_path / "plain").items():
        expected[name] = (tensor * 64).round() / 64 if "proj" in name else tensor
        if "proj" in name:
            high, low = (tensor * 64).round().int().div(3, rounding_mode="floor"), (tensor * 64).round().int() % 3
            tensors |= {f"{name}.high": high, f"{name}.low": low}
        else:
            tensors[name] = tensor
    folder = save(tmp_path / "stored", tensors, quantization_config=settings)
    with pytest.raises(CheckpointError, match=r'quantization_config={"quant_method": "halves".*: expected null: gptb'):
        completed(folder)
    register_codec("halves")(Halves)
    register_codec("halves")(Halves)
    model, _ = loaded(folder)
    other = loaded(save(tmp_path / "rounded", expected))[0]
    for (name, tensor), (_, meant) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(tensor, meant), name
    with pytest.raises(UserError, match=r"quant_method=halves is already registered by .*Halves"):
        register_codec("halves")(type("Thirds", (Halves,), {}))
    others = save(tmp_path / "others", tensors, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="quant_method one of halves: gptbench supports no other"):
        completed(others)
    del tensors["model.layers.1.mlp.down_proj.weight.low"]
    folder = save(tmp_path / "lacking", tensors, quantization_config=settings)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.1.mlp.down_proj.weight.low is missing"):
        Checkpoint(config := completed(folder)).check(meta(config))


def meta(config: ModelConfig) -> Transformer:
    return on_meta(config, quant_section("none"), torch.float32)
