"""Bytes that decode steps need, and those that an engine moves for them between the device's memory and its
processors, from the model's own tensors."""

from gptbench.build import kv_bytes_per_position
from gptbench.engine import Engine
from gptbench.model import Embedding, Transformer
from gptbench.model.transformer import MixtureOfExperts
from gptbench.schema.sample import Traffic


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
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
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
