"""Bytes that decode steps need, and those that an engine moves for them between the device's memory and its
processors, from the model's own tensors."""

from dataclasses import dataclass, field

from gptbench.build import kv_bytes_per_position
from gptbench.engine import Engine
from gptbench.model import Embedding, Transformer
from gptbench.model.transformer import MixtureOfExperts


@dataclass(frozen=True)
class Traffic:
    """Bytes of decode steps, for the whole batch, but for what samples have counted: the experts of a mixture."""

    weights: int
    """Bytes of the weights that each step needs at least: of a mixture's experts those of one token, of an embedding
    that is not the head one row for each sequence, scales included, what is shared once."""
    kv_per_position: int
    """Bytes of the keys and values of one position, in all layers and sequences."""
    positions_read: list[int]
    """Cached positions that each step reads, padding included."""
    positions_filled: list[int]
    """Cached positions of each step that hold a token, its own included."""
    positions_attended: list[int] = field(default_factory=list)
    """Of those the ones that the step's token attends to, its own included: fewer where a window slides. Empty in a
    record of a version that did not tell them."""
    positions_moved: list[int] = field(default_factory=list)
    """Cached positions that each step reads or writes, one that is read and written counted twice. Empty as above."""
    expert_bytes: int = 0
    """Bytes of one expert of one layer; 0 of a dense model, and in a record of a version that counted no experts, whose
    `weights` hold one for each pair of row and choice, or all."""
    experts_least: int = 0
    """Experts that `weights` holds, in all layers together."""

    @property
    def attended(self) -> list[int]:
        """`positions_attended`, or for an older record what comes nearest."""
        return self.positions_attended or list(map(min, self.positions_filled, self.positions_read))

    def needed(self, experts: int | None = None) -> list[int]:
        """Bytes that each step cannot do without: weights, keys and values of the positions that its token attends to,
        of which its own are written and the others read.

        Args:
            experts: that were chosen in all steps together; None for as few as possible. Each step gets an equal share.
        """
        weights = self.weights_with(experts)
        return [weights + self.kv_per_position * positions for positions in self.attended]

    def moved(self, experts: int | None = None) -> list[int]:
        """Bytes that each step reads and writes: padding, what is written and read back, and experts that nobody chose
        included. `experts`: as many as were read in all steps together."""
        moved = self.positions_moved or [read + 1 for read in self.positions_read]
        weights = self.weights_with(experts)
        return [weights + self.kv_per_position * positions for positions in moved]

    def weights_with(self, experts: int | None) -> int:
        """Bytes of weights of one step, on average over all, where these have so many experts together."""
        if experts is None:
            return self.weights
        return self.weights + round(self.expert_bytes * (experts / len(self.positions_read) - self.experts_least))


def weight_bytes(model: Transformer, batch: int) -> int:
    """Weights that one step needs at least for `batch` sequences, all of which may choose the same experts. Works on
    `meta` too."""
    total, seen = 0, set()
    share = {}
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            for child in (module.w13, module.w2):
                share[id(child)] = module.active, module.experts
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


def expert_bytes(model: Transformer) -> int:
    """Of one expert in one layer, all of which are alike; 0 of a dense model."""
    mixture = next((block.ffn for block in model.layers if isinstance(block.ffn, MixtureOfExperts)), None)
    if mixture is None:
        return 0
    return sum(p.nbytes for matrix in (mixture.w13, mixture.w2) for p in matrix.parameters()) // mixture.experts


def traffic(engine: Engine, new_tokens: int) -> Traffic:
    """Bytes of the ``new_tokens - 1`` decode steps after the prefill."""
    first, config = engine.prompt_length, engine.model.config
    positions = range(first, first + new_tokens - 1)  # of the tokens that are fed to decode steps
    return Traffic(
        weights=weight_bytes(engine.model, engine.batch),
        kv_per_position=kv_bytes_per_position(engine.model, engine.batch),
        positions_read=[engine.positions_read(position) for position in positions],
        positions_filled=[position + 1 for position in positions],
        positions_attended=[min(position + 1, config.sliding_window or position + 1) for position in positions],
        positions_moved=[engine.positions_moved(position) for position in positions],
        expert_bytes=expert_bytes(engine.model),
        experts_least=config.n_layers * config.n_active_experts,
    )
