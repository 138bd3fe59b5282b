"""Bytes that decode steps need, and those that an engine moves for them between the device's memory and its
processors, from the model's own tensors."""

from collections.abc import Callable, Sequence

from gptbench.architecture.spec import AttentionSpec
from gptbench.engine import Runner
from gptbench.model import Embedding, KeyValueCache, Transformer
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
    """Of one expert in one layer, on average over layers, whose formats may differ; 0 of a dense model."""
    found = [block.ffn for block in model.layers if isinstance(block.ffn, MixtureOfExperts)]
    stored = sum(p.nbytes for ffn in found for matrix in (ffn.w13, ffn.w2) for p in matrix.parameters())
    return stored // sum(ffn.experts for ffn in found) if found else 0


def traffic(engine: Runner, new_tokens: int) -> Traffic:
    """Bytes of the ``new_tokens - 1`` decode steps after the prefill, for rows that are at the same position. Where
    layers differ, a step's positions are those of the layer that has most."""
    first, caches = engine.prompt_length, engine.memory.caches
    positions = range(first, first + new_tokens - 1)  # of the tokens that are fed to decode steps
    kinds: dict[AttentionSpec, list[KeyValueCache]] = {}
    for cache in caches:
        kinds.setdefault(cache.spec, []).append(cache)

    def attended(rows: Sequence[int], cache: KeyValueCache) -> int:
        return sum(map(cache.spec.attended, rows))

    def most(count: Callable[[Sequence[int], KeyValueCache], int]) -> list[int]:
        """Of one row."""
        return [max(count([position], alike[0]) for alike in kinds.values()) for position in positions]

    def bytes_of(count: Callable[[Sequence[int], KeyValueCache], int]) -> list[int]:
        """Of all rows."""
        if len(kinds) == 1:
            return []
        rows = ([position] * engine.batch for position in positions)
        return [sum(len(alike) * count(each, alike[0]) for alike in kinds.values()) for each in rows]

    def needed(rows: Sequence[int], cache: KeyValueCache) -> int:
        return cache.read_bytes(*rows) + cache.written_bytes(*rows)

    def moved(rows: Sequence[int], cache: KeyValueCache) -> int:
        return cache.row_bytes * engine.positions_moved(rows, cache)

    return Traffic(
        weights=weight_bytes(engine.model, engine.batch),
        kv_per_position=sum(cache.position_bytes for cache in caches),
        positions_read=most(engine.positions_read),
        kv_len=[position + 1 for position in positions],
        positions_attended=most(attended),
        positions_moved=most(engine.positions_moved),
        expert_bytes=expert_bytes(engine.model),
        experts_least=engine.model.active_experts,
        kv_needed=bytes_of(needed),
        kv_moved=bytes_of(moved),
    )
