"""Counts the bytes that decode steps need, and those that an engine moves between memory and processors, from the sizes
of the model's tensors."""

from collections.abc import Callable, Sequence

from gptbench.architecture.spec import AttentionSpec
from gptbench.engine import Runner
from gptbench.model import Embedding, KeyValueCache, Transformer
from gptbench.model.transformer import MixtureOfExperts
from gptbench.schema.sample import Traffic


def weight_bytes(model: Transformer, batch: int) -> int:
    """Return the minimum bytes of weights that a step needs for `batch` sequences, all of which may choose the same
    experts. The model may be on `meta`."""
    total, seen = 0, set()
    share_read = {}
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            for child in (module.w13, module.w2):
                share_read[id(child)] = module.active, module.experts
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            read, count = share_read.get(id(module), (1, 1))
            if isinstance(module, Embedding):
                read, count = min(batch, parameter.shape[0]), parameter.shape[0]
            total += parameter.nbytes * read // count
    return total


def expert_bytes(model: Transformer) -> int:
    """Return the bytes of one expert in one layer, averaged over layers, whose formats may differ; 0 for a dense
    model."""
    mixtures = [block.ffn for block in model.layers if isinstance(block.ffn, MixtureOfExperts)]
    stored = sum(p.nbytes for ffn in mixtures for matrix in (ffn.w13, ffn.w2) for p in matrix.parameters())
    return stored // sum(ffn.experts for ffn in mixtures) if mixtures else 0


def traffic(engine: Runner, new_tokens: int) -> Traffic:
    """Return the bytes of the ``new_tokens - 1`` decode steps after the prefill, for rows at the same position. If
    layers differ, a step's positions are the maximum over layers."""
    first, caches = engine.prompt_length, engine.memory.caches
    positions = range(first, first + new_tokens - 1)  # of the tokens that are fed to decode steps
    kinds: dict[AttentionSpec, list[KeyValueCache]] = {}
    for cache in caches:
        kinds.setdefault(cache.spec, []).append(cache)

    def attended(rows: Sequence[int], cache: KeyValueCache) -> int:
        return sum(map(cache.spec.attended, rows))

    def max_over_layers(count: Callable[[Sequence[int], KeyValueCache], int]) -> list[int]:
        """Return the count of each step for one row, as the maximum over layers."""
        return [max(count([position], alike[0]) for alike in kinds.values()) for position in positions]

    def sum_over_layers(count: Callable[[Sequence[int], KeyValueCache], int]) -> list[int]:
        """Return the bytes of each step for all rows, summed over layers; empty if the layers do not differ."""
        if len(kinds) == 1:
            return []
        steps = ([position] * engine.batch for position in positions)
        return [sum(len(alike) * count(rows, alike[0]) for alike in kinds.values()) for rows in steps]

    def needed(rows: Sequence[int], cache: KeyValueCache) -> int:
        return cache.read_bytes(*rows) + cache.written_bytes(*rows)

    def moved(rows: Sequence[int], cache: KeyValueCache) -> int:
        return cache.row_bytes * engine.positions_moved(rows, cache)

    return Traffic(
        weights=weight_bytes(engine.model, engine.batch),
        kv_per_position=sum(cache.position_bytes for cache in caches),
        positions_read=max_over_layers(engine.positions_read),
        kv_len=[position + 1 for position in positions],
        positions_attended=max_over_layers(attended),
        positions_moved=max_over_layers(engine.positions_moved),
        expert_bytes=expert_bytes(engine.model),
        experts_least=engine.model.active_experts,
        kv_needed=sum_over_layers(needed),
        kv_moved=sum_over_layers(moved),
    )
