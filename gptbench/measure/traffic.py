"""Bytes that a decode step moves between the device's memory and its processors, from the model's own tensors."""

from dataclasses import dataclass

from gptbench.build import kv_bytes_per_position
from gptbench.engine import Engine
from gptbench.model import Embedding, Transformer
from gptbench.model.transformer import MixtureOfExperts


@dataclass(frozen=True)
class Traffic:
    """Bytes per decode step, for the whole batch."""

    weights: int
    """Weights read: of experts the active ones, of an embedding that is not the head one row for each sequence, scales
    included, what is shared once."""
    kv_per_position: int
    """Keys and values of one position: written once at each step, and read for each position that is attended to."""
    positions_read: list[int]
    """Cached positions that each step reads, padding included."""
    positions_filled: list[int]
    """Cached positions of each step that hold a token, its own included."""

    @property
    def steps(self) -> list[int]:
        """Bytes of each step: weights and KV cache read, KV cache written."""
        return [self.weights + self.kv_per_position * (read + 1) for read in self.positions_read]


def weight_bytes(model: Transformer, batch: int) -> int:
    """Weights that one step reads for `batch` sequences. Works on `meta` too."""
    total, seen = 0, set()
    share = {}
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            for child in (module.w13, module.w2):
                share[id(child)] = module.experts_read(batch), module.experts
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            storage = parameter.untyped_storage()._cdata
            if storage in seen:
                continue
            seen.add(storage)
            read, of = share.get(id(module), (1, 1))
            if isinstance(module, Embedding):
                read, of = min(batch, parameter.shape[0]), parameter.shape[0]
            total += parameter.nbytes * read // of
    return total


def traffic(engine: Engine, new_tokens: int) -> Traffic:
    """Bytes of the ``new_tokens - 1`` decode steps after the prefill."""
    first = engine.prompt_length  # position of the first token that is fed to a decode step
    positions = range(first, first + new_tokens - 1)
    return Traffic(
        weights=weight_bytes(engine.model, engine.batch),
        kv_per_position=kv_bytes_per_position(engine.model, engine.batch),
        positions_read=[engine.positions_read(position) for position in positions],
        positions_filled=[position + 1 for position in positions],
    )
