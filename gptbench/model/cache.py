"""What layers keep from one step to the next."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptbench.architecture.spec import AttentionSpec
from gptbench.model.rope import RotationTable


class KeyValueCache(nn.Module):
    """Keys and values of one layer, [B, G, S, K] each, zeroed: masked positions are multiplied by 0, and 0 times
    garbage may be NaN.

    A step of a row at some position reads the keys and values of the positions before it that its token attends to,
    and writes its own. That stays known when the memory is given back.

    Attributes:
        keys, values: buffers that no state dict holds; changed in place alone.
        row_bytes: bytes of one position of one row.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self, spec: AttentionSpec, batch: int, length: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.spec, self.batch, self.length = spec, batch, length
        self.row_bytes = 2 * spec.kv_heads * spec.head_dim * dtype.itemsize
        shape = (batch, spec.kv_heads, length, spec.head_dim)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device), persistent=False)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return self.keys, self.values

    def first(self, read: int) -> tuple[Tensor, ...]:
        """The first `read` positions of its tensors: views, where these are not all."""
        return self.tensors if read == self.keys.shape[2] else tuple(tensor[:, :, :read] for tensor in self.tensors)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position of all rows."""
        return self.batch * self.row_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all positions and rows."""
        return self.length * self.position_bytes

    def read_bytes(self, *positions: int) -> int:
        """Bytes that a step has to read, whose rows are at these positions."""
        return self.row_bytes * sum(self.spec.attended(position) - 1 for position in positions)

    def written_bytes(self, *positions: int) -> int:
        """Bytes that a step has to write, whose rows are at these positions."""
        return self.row_bytes * len(positions)


class Memory:
    """What an engine keeps of the sequences that it decodes. It is the engine's own, where several share the weights.

    Args:
        layers: the attention of each layer.
        batch: B, sequences.
        length: S, positions of each.
        dtype: of keys and values.

    Attributes:
        caches: of each layer, in order.
        rotations: a table for each kind of rotary embedding.
        tables: the place of each layer's table among them.
    """

    def __init__(
        self,
        layers: Sequence[AttentionSpec],
        batch: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        rotaries = list(dict.fromkeys(spec.rotary for spec in layers))
        self.caches = [KeyValueCache(spec, batch, length, dtype, device) for spec in layers]
        self.rotations = [RotationTable(rotary, length, device) for rotary in rotaries]
        self.tables = [rotaries.index(spec.rotary) for spec in layers]

    @property
    def tensors(self) -> list[Tensor]:
        """All that the caches hold."""
        return [tensor for cache in self.caches for tensor in cache.tensors]

    def free(self) -> None:
        """Gives all of it back."""
        for module in (*self.caches, *self.rotations):
            module.to("meta")
