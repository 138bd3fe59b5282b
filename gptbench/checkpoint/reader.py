"""Weights from a Hugging Face checkpoint, read straight to where the model has them, one file after the other.

What the files are is their container's, how their numbers are stored the codec's, and where each tensor belongs the
layout of the architecture. What the model has as one matrix and the checkpoint keeps apart is quantised there: no
format mixes rows. So a tensor is needed once, in whatever order the files have them, and nothing is ever held twice.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptbench.architecture import Target, layout, read_architecture
from gptbench.base.errors import CheckpointError
from gptbench.base.inputs import LFS_POINTER, open_regular, read_json, refuse_pointer
from gptbench.checkpoint.bin_file import Bin
from gptbench.checkpoint.codec import codec_of
from gptbench.checkpoint.container import Container, TensorInfo
from gptbench.checkpoint.safetensors_file import Safetensors
from gptbench.config import CheckpointFormat, ModelConfig
from gptbench.model import Transformer
from gptbench.schema.result import CheckpointInfo

MAX_INDEX_BYTES = 64 * 2**20
"""Of an index, whose entries have about a hundred bytes for each tensor."""

CONTAINERS: dict[CheckpointFormat, Container] = {
    CheckpointFormat.safetensors: Safetensors(),
    CheckpointFormat.bin: Bin(),
}
"""Every kind of file, by the name that `model.checkpoint_format` has for it."""


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
        self.container, self.codec = CONTAINERS[self.format], codec_of(self.folder)
        self.architecture = read_architecture(self.folder)
        self.names = self.architecture.outer_names
        self.ignored = re.compile(self.names.ignored)
        self.files, indexed = self.find_files()
        self.stored: dict[str, TensorInfo] = {}
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
        single = self.folder / self.container.SINGLE
        index = single.with_name(single.name + ".index.json")
        if os.path.lexists(single):  # as the library does, whatever an index beside it says
            return [single], {}
        if not os.path.lexists(index):
            hint = ""
            for kind, other in CONTAINERS.items():
                if any((self.folder / f"{other.SINGLE}{ending}").exists() for ending in ("", ".index.json")):
                    hint = f"; model.checkpoint_format={kind.value} reads {other.SINGLE}"
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
                raise CheckpointError(f"{file}: no such file, although {index.name} says that it holds {name}")
        return sorted(set(indexed.values())), indexed

    def read_header(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        """Name and kind of every tensor in a file; their values are not read."""
        with open_regular(file) as opened:
            head = opened.read(len(LFS_POINTER))
        refuse_pointer(file, head)
        self.container.check(file, head)
        with self.container.reading(file):
            yield from self.container.header(file)

    def targets(self, model: Transformer) -> dict[str, Target]:
        """The layout for the tensors of this checkpoint: of a tied model it may have the embedding, the head, or
        both."""
        row, config, names = self.architecture, model.config, self.names
        targets = layout(row.layer, names, [block.spec for block in model.layers], config.vocab_size, config.tied)
        if config.tied and names.head in self.stored:
            targets[names.head] = targets[names.embedding]
            if names.embedding not in self.stored:
                del targets[names.embedding]
        return targets

    def check(self, model: Transformer) -> None:
        """Refuses what does not fit the model, on whatever device that is.

        Raises:
            CheckpointError: a tensor is missing, surplus, or of a wrong shape or type.
        """
        targets = self.targets(model).items()
        expected = {own: piece for name, target in targets for own, piece in self.codec.pieces(name, target).items()}
        for name, tensor in self.stored.items():
            if self.ignored.fullmatch(name):
                continue
            if name not in expected:
                raise CheckpointError(f"{tensor.file}: tensor {name} has no place in {model.config.name}")
            piece = expected[name]
            if tensor.shape != piece.shape:
                told = f"{list(tensor.shape)}: expected {list(piece.shape)}"
                raise CheckpointError(f"{tensor.file}: tensor {name} has shape {told}")
            if tensor.dtype not in piece.dtypes:
                told = f"{tensor.dtype}: expected one of {', '.join(piece.dtypes)}"
                raise CheckpointError(f"{tensor.file}: tensor {name} has type {told}")
        for name in expected:
            if name not in self.stored:
                files = f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if self.files[1:] else "")
                raise CheckpointError(f"{files}: tensor {name} is missing")

    def load(self, model: Transformer, progress: Callable[[str, float], None]) -> CheckpointInfo:
        """Fills a model that has its memory.

        Args:
            progress: told what is read, and the share of all bytes that is done, before and after each file, and at
                every hundredth.

        Raises:
            CheckpointError: what `check` refuses, a file cannot be read, a tensor holds what is not finite, or a head
                that is said to be the embedding differs from it.
        """
        self.check(model)
        device, targets = model.norm.weight.device, self.targets(model)
        pieces = {name: tuple(self.codec.pieces(name, target)) for name, target in targets.items()}
        owner = {piece: name for name, own in pieces.items() for piece in own}
        waiting: dict[str, dict[str, Tensor]] = {}  # tensors some of whose pieces are there
        total = sum(file.stat().st_size for file in self.files)
        done, told = 0, -1.0
        for number, file in enumerate(self.files, 1):
            what = f"reading {file.name}" + (f" ({number} of {len(self.files)})" if len(self.files) > 1 else "")
            progress(what, done / total)
            end = done + file.stat().st_size
            for piece, tensor in self.read(file, device):
                done = min(done + tensor.nbytes, end)  # tensors of a .bin may share their bytes
                if self.ignored.fullmatch(piece) or self.stored[piece].file != file:
                    continue
                name = owner[piece]
                waiting.setdefault(name, {})[piece] = tensor
                if len(waiting[name]) == len(pieces[name]):
                    self.fill(model, file, name, targets[name], waiting.pop(name))
                if done / total - told > 0.01:
                    told = done / total
                    progress(what, told)
            done = end
            progress(what, done / total)
        return CheckpointInfo(str(self.folder), [file.name for file in self.files], total, self.digest())

    def fill(self, model: Transformer, file: Path, name: str, target: Target, stored: dict[str, Tensor]) -> None:
        """Puts a tensor of the layout where it belongs."""
        names = self.names
        if name == names.head and names.embedding in self.stored and model.config.tied:
            if not stored[name].equal(self.tensor(names.embedding, stored[name].device)):
                raise CheckpointError(f"{file}: tensor {name} differs from {names.embedding}: config.json ties them")
            return
        floats = self.codec.decode(name, target, stored, model.dtype)
        stored.clear()  # so that what is packed is held once
        if not floats.isfinite().all():
            raise CheckpointError(f"{file}: tensor {name} is not finite in {model.dtype}")
        self.codec.fill(model, target, floats)

    def read(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of a file, one at a time; on a CPU its pages are the file's own."""
        with self.container.reading(file):
            yield from self.container.tensors(file, device)

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """One tensor, by itself."""
        return next(tensor for found, tensor in self.read(self.stored[name].file, device) if found == name)

    def digest(self) -> str:
        """See `CheckpointInfo.headers_sha256`."""
        tensors = sorted((name, t.file.name, t.shape, t.dtype) for name, t in self.stored.items())
        sizes = [(file.name, file.stat().st_size) for file in self.files]
        return hashlib.sha256(json.dumps([tensors, sizes]).encode()).hexdigest()
