"""Weights from a Hugging Face checkpoint, read straight to where the model has them, one file after the other.

What the checkpoint keeps apart and the model has as one matrix (queries, keys and values; the two inputs of the
feed-forward network; the experts) goes to its own rows, and is quantised there: no quantisation mixes rows. So a tensor
is needed only once, in whatever order the files have them, and nothing is ever held twice.

Format of the files: https://huggingface.co/docs/safetensors
"""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptbench.architecture import Architecture, read_architecture
from gptbench.base.errors import CheckpointError
from gptbench.base.inputs import LFS_POINTER, open_regular, read_json, refuse_pointer
from gptbench.config import CheckpointFormat, ModelConfig
from gptbench.model import Bias, RMSNorm, Transformer, Weight
from gptbench.schema.result import Loaded

SINGLE = {CheckpointFormat.safetensors: "model.safetensors", CheckpointFormat.bin: "pytorch_model.bin"}
"""The file of a checkpoint that has one; that of one with several is called so with `.index.json` behind."""

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""Types that weights may have, as safetensors calls them."""

MAX_INDEX_BYTES = 64 * 2**20
"""Of an index, whose entries have about a hundred bytes for each tensor."""

MAX_HEADER_BYTES = 32 * 2**20
"""Of a safetensors file's header, as an index."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""What older versions of the library saved although it follows from config.json; newer ones pass over it, too."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a checkpoint belongs."""

    module: Weight | RMSNorm | Bias
    shape: tuple[int, ...]
    expert: tuple[int, ...] = ()
    """Number of the expert, where the module has several."""
    row: int = 0
    """First of the module's rows that it fills."""

    def assign(self, tensor: Tensor) -> None:
        """Takes over a float tensor of the slot's shape, quantised if the module is."""
        if isinstance(self.module, Weight):
            self.module.assign(tensor, *self.expert, row=self.row)
        else:
            self.view().copy_(tensor)

    def view(self) -> Tensor:
        """The part of the module's own tensor; of a quantised one, integers."""
        return self.module.weight[self.expert][self.row : self.row + self.shape[0]]


def slots(model: Transformer, architecture: Architecture) -> dict[str, Slot]:
    """Every tensor that a checkpoint of the model has, by its name there."""
    config = model.config
    head, ffn, dim = config.head_dim, config.ffn_dim, config.dim
    result = {
        EMBEDDING: Slot(model.embedding, (config.vocab_size, dim)),
        "model.norm.weight": Slot(model.norm, (dim,)),
    }
    if not config.tied:
        result[HEAD] = Slot(model.head, (config.vocab_size, dim))
    for number, block in enumerate(model.layers):
        attention = block.attention
        layer = {
            "input_layernorm.weight": Slot(block.attention_norm, (dim,)),
            "post_attention_layernorm.weight": Slot(block.ffn_norm, (dim,)),
            "self_attn.o_proj.weight": Slot(attention.wo, (dim, config.n_heads * head)),
        }
        row = 0
        for name, heads in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads)):
            layer[f"self_attn.{name}_proj.weight"] = Slot(attention.wqkv, (heads * head, dim), row=row)
            if attention.qkv_bias is not None:
                layer[f"self_attn.{name}_proj.bias"] = Slot(attention.qkv_bias, (heads * head,), row=row)
            row += heads * head
        if attention.q_norm is not None and attention.k_norm is not None:
            layer["self_attn.q_norm.weight"] = Slot(attention.q_norm, (head,))
            layer["self_attn.k_norm.weight"] = Slot(attention.k_norm, (head,))
        names: tuple[str, ...] = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
        experts: list[tuple[int, ...]] = [()]
        if config.n_experts:
            names, experts = architecture.expert, [(e,) for e in range(config.n_experts)]
            layer[architecture.router] = Slot(cast(Weight, block.ffn.router), (config.n_experts, dim))
        for expert in experts:
            gate, up, down = (name.format(*expert) for name in names)
            layer[gate] = Slot(block.ffn.w13, (ffn, dim), expert)
            layer[up] = Slot(block.ffn.w13, (ffn, dim), expert, row=ffn)
            layer[down] = Slot(block.ffn.w2, (dim, ffn), expert)
        result |= {f"model.layers.{number}.{name}": slot for name, slot in layer.items()}
    return result


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header has it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it."""


class Checkpoint:
    """The files of one checkpoint, their headers read.

    Args:
        config: the model's section, with a `checkpoint`.

    Attributes:
        stored: every tensor, by name.

    Raises:
        CheckpointError: a file is missing, cannot be read, or is not what its index says.
    """

    def __init__(self, config: ModelConfig) -> None:
        assert config.checkpoint is not None
        self.folder, self.format = Path(config.checkpoint), config.checkpoint_format
        self.architecture = read_architecture(self.folder)
        self.files, indexed = self.find_files()
        self.stored: dict[str, Stored] = {}
        for file in self.files:
            for name, tensor in self.read_header(file):
                if indexed.get(name, file) != file:  # another file's is the one that counts
                    continue
                if name in self.stored:
                    raise CheckpointError(f"{file}: tensor {name} is in {self.stored[name].file.name}, too")
                self.stored[name] = tensor
        for name, file in indexed.items():
            if name not in self.stored:
                raise CheckpointError(f"{file}: tensor {name} is missing, although the index says that it is there")

    def find_files(self) -> tuple[list[Path], dict[str, Path]]:
        """The files, in order, and where an index says each tensor is, if there is one."""
        single = self.folder / SINGLE[self.format]
        index = single.with_name(single.name + ".index.json")
        if os.path.lexists(single):  # as the library does, whatever an index beside it says
            return [single], {}
        if not os.path.lexists(index):
            other = next(kind for kind in CheckpointFormat if kind is not self.format)
            hint = ""
            if any((self.folder / f"{SINGLE[other]}{ending}").exists() for ending in ("", ".index.json")):
                hint = f"; model.checkpoint_format={other.value} reads {SINGLE[other]}"
            raise CheckpointError(f"{self.folder}: neither {single.name} nor {index.name} is there{hint}")
        content = read_json(index, MAX_INDEX_BYTES)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
            raise CheckpointError(f"{index}: no index with a weight_map that has a file's name for each tensor")
        indexed = {name: self.folder / file for name, file in names.items()}
        holds = {file: name for name, file in indexed.items()}
        for file, name in holds.items():
            if file.parent != self.folder or file.name in ("", ".", ".."):
                raise CheckpointError(f"{index}: tensor {name}: {file} is not in the checkpoint's folder")
            if not os.path.lexists(file):  # nor is one whose name is too long for the file system
                raise CheckpointError(f"{file}: not there, although {index.name} says that it holds {name}")
        return sorted(set(indexed.values())), indexed

    def read_header(self, file: Path) -> Iterator[tuple[str, Stored]]:
        """Name and kind of every tensor in a file; their values are not read."""
        with open_regular(file) as opened:
            head = opened.read(len(LFS_POINTER))
        refuse_pointer(file, head)
        header = int.from_bytes(head[:8], "little")
        if self.format is CheckpointFormat.safetensors and MAX_HEADER_BYTES < header < file.stat().st_size:
            raise CheckpointError(f"{file}: its header has {header:,} bytes: at most {MAX_HEADER_BYTES:,} are read")
        with reading(file):
            if self.format is CheckpointFormat.bin:
                for name, tensor in load_pickle(file).items():
                    kinds = [kind for kind, dtype in FLOATS.items() if dtype == tensor.dtype]
                    yield name, Stored(file, tuple(tensor.shape), kinds[0] if kinds else str(tensor.dtype))
                return
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 -- not a dict
                    tensor = opened.get_slice(name)
                    yield name, Stored(file, tuple(tensor.get_shape()), tensor.get_dtype())

    def slots(self, model: Transformer) -> dict[str, Slot]:
        """`slots` for the tensors of this checkpoint: of a tied model it may have the embedding, the head, or both."""
        expected = slots(model, self.architecture)
        if model.config.tied and HEAD in self.stored:
            expected[HEAD] = expected[EMBEDDING]
            if EMBEDDING not in self.stored:
                del expected[EMBEDDING]
        return expected

    def check(self, model: Transformer) -> None:
        """Refuses what does not fit the model, on whatever device that is.

        Raises:
            CheckpointError: a tensor is missing, surplus, or of a wrong shape or type.
        """
        expected = self.slots(model)
        for name, tensor in self.stored.items():
            if IGNORED.fullmatch(name):
                continue
            if name not in expected:
                raise CheckpointError(f"{tensor.file}: tensor {name} has no place in {model.config.name}")
            if tensor.shape != expected[name].shape:
                shape = list(expected[name].shape)
                raise CheckpointError(f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}: expected {shape}")
            if tensor.dtype not in FLOATS:
                raise CheckpointError(
                    f"{tensor.file}: tensor {name} has type {tensor.dtype}: expected one of {', '.join(FLOATS)}"
                )
        for name in expected:
            if name not in self.stored:
                files = f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if self.files[1:] else "")
                raise CheckpointError(f"{files}: tensor {name} is missing")

    def load(self, model: Transformer, progress: Callable[[str, float], None]) -> Loaded:
        """Fills a model that has its memory.

        Args:
            progress: told what is read, and the share of all bytes that is done, before and after each file, and at
                every hundredth.

        Raises:
            CheckpointError: what `check` refuses, a file cannot be read, a tensor holds what is not finite, or a head
                that is said to be the embedding differs from it.
        """
        self.check(model)
        device, expected = model.norm.weight.device, self.slots(model)
        total = sum(file.stat().st_size for file in self.files)
        done, told = 0, -1.0
        for number, file in enumerate(self.files, 1):
            what = f"reading {file.name}" + (f" ({number} of {len(self.files)})" if len(self.files) > 1 else "")
            progress(what, done / total)
            end = done + file.stat().st_size
            for name, tensor in self.read(file, device):
                done = min(done + tensor.nbytes, end)  # tensors of a .bin may share their bytes
                if IGNORED.fullmatch(name) or self.stored[name].file != file:
                    continue
                if name == HEAD and EMBEDDING in self.stored and model.config.tied:
                    if not tensor.equal(self.tensor(EMBEDDING, device)):
                        raise CheckpointError(f"{file}: tensor {name} differs from {EMBEDDING}: config.json ties them")
                    continue
                tensor = tensor.to(model.dtype)  # also where it is quantised: as if it had been saved in that type
                if not tensor.isfinite().all():
                    raise CheckpointError(f"{file}: tensor {name} is not finite in {model.dtype}")
                expected[name].assign(tensor)
                if done / total - told > 0.01:
                    told = done / total
                    progress(what, told)
            done = end
            progress(what, done / total)
        return Loaded(str(self.folder), [file.name for file in self.files], total, self.digest())

    def read(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of a file, one at a time; on a CPU its pages are the file's own."""
        with reading(file):
            if self.format is CheckpointFormat.bin:
                tensors = load_pickle(file)
                for name in list(tensors):
                    yield name, tensors.pop(name).to(device)
                return
            with safe_open(file, framework="pt", device=str(device)) as opened:
                for name in opened.keys():  # noqa: SIM118 -- not a dict
                    yield name, opened.get_tensor(name)

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """One tensor, by itself."""
        return next(tensor for found, tensor in self.read(self.stored[name].file, device) if found == name)

    def digest(self) -> str:
        """See `Loaded.headers_sha256`."""
        tensors = sorted((name, t.file.name, t.shape, t.dtype) for name, t in self.stored.items())
        sizes = [(file.name, file.stat().st_size) for file in self.files]
        return hashlib.sha256(json.dumps([tensors, sizes]).encode()).hexdigest()


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns what a reader says of a bad file into an error that names the file."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Of what an error says; libraries append pages of advice."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def load_pickle(file: Path) -> dict[str, Tensor]:
    """A `.bin` file: a dict of tensors, and nothing else. Its pages are read when they are needed.

    Raises:
        CheckpointError: it is damaged, holds anything but tensors, or would run code.
    """
    try:
        loaded: Any = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except Exception as error:  # torch raises whatever its readers do
        raise CheckpointError(f"{file}: cannot be read as tensors alone: {first_line(error)}") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) and dense(t) for name, t in loaded.items()):
        raise CheckpointError(f"{file}: holds something else than tensors by name")
    return loaded


def dense(value: Any) -> bool:
    """Whether it is a tensor with a number in memory for each element."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
