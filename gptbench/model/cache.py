"""The KV cache of a layer, and all the memory that an engine keeps for its sequences between steps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptbench.architecture.spec import AttentionSpec
from gptbench.model.rope import RotationTable


class KeyValueCache(nn.Module):
    """Keys and values of one layer, each [B, G, S, K].

    Both start as zeros: masked positions are multiplied by 0, and 0 times uninitialised memory may be NaN. A decode
    step reads the cached positions that its token attends to and writes one position. The byte counts below stay
    valid after the memory has been freed.

    Attributes:
        keys, values: buffers outside the state dict, only ever modified in place.
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
        """Keys and values."""
        return self.keys, self.values

    def prefix(self, read: int) -> tuple[Tensor, ...]:
        """Return the first `read` positions of keys and values, as views unless that is all of them."""
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
        """Return the bytes that a decode step must read when its rows are at these positions."""
        return self.row_bytes * sum(self.spec.attended(position) - 1 for position in positions)

    def written_bytes(self, *positions: int) -> int:
        """Return the bytes that a decode step must write when its rows are at these positions."""
        return self.row_bytes * len(positions)


class Memory:
    """The KV caches and RoPE tables of one engine. Engines that share weights still have a `Memory` each.

    Args:
        layers: attention of each layer.
        batch: B, number of sequences.
        length: S, positions per sequence.
        dtype: type of keys and values.
        device: where everything is allocated.

    Attributes:
        caches: KV cache of each layer, in order.
        rope_tables: one table of cosines and sines per distinct rotary embedding.
        rope_table_index: for each layer, the index of its table in `rope_tables`.
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
        self.rope_tables = [RotationTable(rotary, length, device) for rotary in rotaries]
        self.rope_table_index = [rotaries.index(spec.rotary) for spec in layers]

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of all layers."""
        return [tensor for cache in self.caches for tensor in cache.tensors]

    def free(self) -> None:
        """Free the memory of all caches and tables."""
        for module in (*self.caches, *self.rope_tables):
            module.to("meta")
