"""Loads a Hugging Face checkpoint, file by file, straight into the memory of the model.

The container knows the file format, the codec how numbers are stored, and the architecture's layout where each tensor
goes. Matrices that the model fuses and the checkpoint stores separately are quantised in place, as no format mixes
rows. So each tensor is needed only once, in any order, and the weights are never held twice.
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
"""Size limit of an index, whose entries take about a hundred bytes per tensor."""

CONTAINERS: dict[CheckpointFormat, Container] = {
    CheckpointFormat.safetensors: Safetensors(),
    CheckpointFormat.bin: Bin(),
}
"""Container of each value of `model.checkpoint_format`."""


class Checkpoint:
    """The files of a checkpoint and the tensors in their headers.

    Args:
        config: model section of the configuration, with a `checkpoint`.

    Attributes:
        files: files, in order.
        stored: file, shape and type of every tensor, by name.

    Raises:
        CheckpointError: a file is missing, cannot be read, or does not match the index.
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
                if indexed.get(name, file) != file:  # the index says that the one in another file counts
                    continue
                if name in self.stored:
                    raise CheckpointError(f"{file}: tensor {name} is also in {self.stored[name].file.name}")
                self.stored[name] = tensor
        for name, file in indexed.items():
            if name not in self.stored:
                raise CheckpointError(f"{file}: tensor {name} is missing, although the index lists it")

    def find_files(self) -> tuple[list[Path], dict[str, Path]]:
        """Return the files, in order, and the file of each tensor by the index, if there is one.

        Raises:
            CheckpointError: a file is missing, or the index is malformed.
        """
        single = self.folder / self.container.SINGLE
        index = single.with_name(single.name + ".index.json")
        if os.path.lexists(single):  # as transformers does, whatever an index next to it says
            return [single], {}
        if not os.path.lexists(index):
            hint = ""
            for kind, other in CONTAINERS.items():
                if any((self.folder / f"{other.SINGLE}{ending}").exists() for ending in ("", ".index.json")):
                    hint = f"; model.checkpoint_format={kind.value} reads {other.SINGLE}"
            raise CheckpointError(f"{self.folder}: found neither {single.name} nor {index.name}{hint}")
        content = read_json(index, MAX_INDEX_BYTES)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
            raise CheckpointError(f"{index}: expected an object weight_map with a file name for each tensor")
        indexed = {name: self.folder / file for name, file in names.items()}
        sample_tensor = {file: name for name, file in indexed.items()}
        for file, name in sample_tensor.items():
            if file.parent != self.folder or file.name in ("", ".", ".."):
                raise CheckpointError(f"{index}: tensor {name}: {file} is not in the checkpoint's folder")
            if not os.path.lexists(file):  # also False for a name that is too long for the file system
                raise CheckpointError(f"{file}: no such file, although {index.name} lists it for {name}")
        return sorted(set(indexed.values())), indexed

    def read_header(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        """Iterate over name and metadata of every tensor in a file, without reading values. Raises CheckpointError."""
        with open_regular(file) as opened:
            head = opened.read(len(LFS_POINTER))
        refuse_pointer(file, head)
        self.container.check(file, head)
        with self.container.reading(file):
            yield from self.container.header(file)

    def targets(self, model: Transformer) -> dict[str, Target]:
        """Return the targets of this checkpoint's tensors. A tied model's may hold the embedding, the head or both."""
        row, config, names = self.architecture, model.config, self.names
        targets = layout(row.layer, names, [block.spec for block in model.layers], config.vocab_size, config.tied)
        if config.tied and names.head in self.stored:
            targets[names.head] = targets[names.embedding]
            if names.embedding not in self.stored:
                del targets[names.embedding]
        return targets

    def check(self, model: Transformer) -> None:
        """Check that the tensors match the model, which may be on `meta`.

        Raises:
            CheckpointError: a tensor is missing, unexpected, or has the wrong shape or type.
        """
        targets = self.targets(model).items()
        expected = {key: piece for name, target in targets for key, piece in self.codec.pieces(name, target).items()}
        for name, tensor in self.stored.items():
            if self.ignored.fullmatch(name):
                continue
            if name not in expected:
                raise CheckpointError(f"{tensor.file}: tensor {name} does not belong to {model.config.name}")
            piece = expected[name]
            if tensor.shape != piece.shape:
                difference = f"{list(tensor.shape)}: expected {list(piece.shape)}"
                raise CheckpointError(f"{tensor.file}: tensor {name} has shape {difference}")
            if tensor.dtype not in piece.dtypes:
                difference = f"{tensor.dtype}: expected one of {', '.join(piece.dtypes)}"
                raise CheckpointError(f"{tensor.file}: tensor {name} has type {difference}")
        for name in expected:
            if name not in self.stored:
                files = f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if self.files[1:] else "")
                raise CheckpointError(f"{files}: tensor {name} is missing")

    def load(self, model: Transformer, progress: Callable[[str, float], None]) -> CheckpointInfo:
        """Load the weights into a model whose memory is allocated.

        Args:
            progress: called with a description and the fraction of all bytes that has been read, before and after each
                file and at every percent.

        Raises:
            CheckpointError: `check` fails, a file cannot be read, a tensor is not finite, or the head of a tied model
                differs from its embedding.
        """
        self.check(model)
        device, targets = model.norm.weight.device, self.targets(model)
        pieces = {name: tuple(self.codec.pieces(name, target)) for name, target in targets.items()}
        tensor_of_piece = {piece: name for name, keys in pieces.items() for piece in keys}
        waiting: dict[str, dict[str, Tensor]] = {}  # tensors of which some pieces have been read
        total = sum(file.stat().st_size for file in self.files)
        done, reported = 0, -1.0
        for number, file in enumerate(self.files, 1):
            what = f"reading {file.name}" + (f" ({number} of {len(self.files)})" if len(self.files) > 1 else "")
            progress(what, done / total)
            end = done + file.stat().st_size
            for piece, tensor in self.read(file, device):
                done = min(done + tensor.nbytes, end)  # tensors of a .bin may share their bytes
                if self.ignored.fullmatch(piece) or self.stored[piece].file != file:
                    continue
                name = tensor_of_piece[piece]
                waiting.setdefault(name, {})[piece] = tensor
                if len(waiting[name]) == len(pieces[name]):
                    self.fill(model, file, name, targets[name], waiting.pop(name))
                if done / total - reported > 0.01:
                    reported = done / total
                    progress(what, reported)
            done = end
            progress(what, done / total)
        return CheckpointInfo(str(self.folder), [file.name for file in self.files], total, self.digest())

    def fill(self, model: Transformer, file: Path, name: str, target: Target, stored: dict[str, Tensor]) -> None:
        """Decode a tensor of the layout and copy it into the model."""
        names = self.names
        if name == names.head and names.embedding in self.stored and model.config.tied:
            if not stored[name].equal(self.tensor(names.embedding, stored[name].device)):
                raise CheckpointError(
                    f"{file}: tensor {name} differs from {names.embedding}, although config.json ties them"
                )
            return
        floats = self.codec.decode(name, target, stored, model.dtype)
        stored.clear()  # frees quantised tensors before the decoded one is copied
        if not floats.isfinite().all():
            raise CheckpointError(f"{file}: tensor {name} is not finite in {model.dtype}")
        self.codec.fill(model, target, floats)

    def read(self, file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Iterate over name and value of every tensor in a file; on a CPU they are memory-mapped."""
        with self.container.reading(file):
            yield from self.container.tensors(file, device)

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """Read one tensor."""
        return next(tensor for key, tensor in self.read(self.stored[name].file, device) if key == name)

    def digest(self) -> str:
        """Return the hash of `CheckpointInfo.headers_sha256`."""
        tensors = sorted((name, t.file.name, t.shape, t.dtype) for name, t in self.stored.items())
        sizes = [(file.name, file.stat().st_size) for file in self.files]
        return hashlib.sha256(json.dumps([tensors, sizes]).encode()).hexdigest()
