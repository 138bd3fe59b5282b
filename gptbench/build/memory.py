"""What a run needs of its device's memory, foretold from a model without memory, and what would fit instead."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from gptbench.architecture.spec import AttentionSpec, MixtureSpec
from gptbench.base.errors import ConfigError, DoesNotFitError
from gptbench.base.numbers import gb
from gptbench.build.meta import cache_length, on_meta
from gptbench.config import Config, ModelConfig, QuantConfig, options
from gptbench.device.group import DeviceGroup
from gptbench.model import KeyValueCache, Transformer, Weight
from gptbench.model.transformer import WINDOW_QUERIES, Block


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a run needs on its device."""

    weights: int
    """Every weight, each storage once."""
    kv_cache: int
    """Keys and values of all layers, batch rows and cached positions."""
    workspace: int
    """The larger of two: what filling the largest matrix takes, or activations and copies of weights while running."""

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.workspace

    def __str__(self) -> str:
        parts = f"weights {gb(self.weights)}, KV cache {gb(self.kv_cache)}, workspace {gb(self.workspace)}"
        return f"{gb(self.total)} ({parts})"


def memory_need(model: Transformer, batch: int, prompt: int, length: int) -> MemoryNeed:
    """What a model (on any device) needs for `batch` sequences of `length` positions, `prompt` of them prefilled."""
    config, itemsize = model.config, model.dtype.itemsize
    weights = [module for module in model.modules() if isinstance(module, Weight)]
    # As cast, as float32, and what packing takes.
    filling = max(math.prod(w.float_shape[-2:]) * (itemsize + 4 + w.format.packing_bytes) for w in weights)
    tokens = batch * prompt
    running = max(block_bytes(block, batch, prompt, itemsize) for block in model.layers)
    running += 4 * tokens * 4 * config.dim + 8 * 4 * batch * config.vocab_size
    return MemoryNeed(nbytes(model), cache_bytes(model, batch, length), max(filling, running))


def cache_bytes(model: Transformer, batch: int, length: int) -> int:
    """What all layers keep of `batch` sequences of `length` positions."""
    counts = Counter(block.spec.attention for block in model.layers)
    caches = {spec: KeyValueCache(spec, batch, length, model.dtype, "meta") for spec in counts}
    return sum(count * caches[spec].nbytes for spec, count in counts.items())


def block_bytes(block: Block, batch: int, prompt: int, itemsize: int) -> int:
    """Bytes that a block takes while it runs, beside the residual stream: copies of its weights, and what it computes
    between its matrices."""
    spec, tokens = block.spec, batch * prompt
    active = spec.mixture.active if spec.mixture is not None else 1
    weights = [module for module in block.modules() if isinstance(module, Weight)]
    copied = max(sum(copied_bytes(w, count, spec.mixture, itemsize) for w in weights) for count in (batch, tokens))
    widest = max(spec.dim, 2 * spec.ffn.width) * active
    return copied + 4 * tokens * 4 * widest + window_bytes(spec.attention, batch, prompt, itemsize)


def window_bytes(spec: AttentionSpec, batch: int, prompt: int, itemsize: int) -> int:
    """Bytes that a layer's prefill takes where the sliding window hides something of the prompt: the mask, as booleans
    and as what is added to the scores, and keys and values repeated for each head (`attend_in_window`)."""
    if not spec.window_applies(prompt):
        return 0
    queries = min(prompt, WINDOW_QUERIES)
    keys = min(prompt, queries + spec.window - 1)
    repeated = 2 * batch * spec.heads * spec.head_dim * keys * itemsize if spec.heads > spec.kv_heads else 0
    return queries * keys * (1 + itemsize) + repeated


def copied_bytes(weight: Weight, tokens: int, mixture: MixtureSpec | None, itemsize: int) -> int:
    """Bytes of the copies that an engine may make of a block's weight: gathered experts, and what is multiplied."""
    matrix = math.prod(weight.float_shape[-2:])
    cast = weight.format.copied_bytes(itemsize)
    if mixture is None or len(weight.float_shape) == 2:
        return matrix * cast
    pairs = tokens * mixture.active
    if pairs < mixture.experts:
        return pairs * (weight.matrix.nbytes // mixture.experts + matrix * cast)
    return mixture.experts * matrix * cast


def memory_need_of(config: Config, model: Transformer) -> MemoryNeed:
    """`memory_need` for the workload and the engine of a configuration."""
    work = config.workload
    need = memory_need(model, work.batch_size, len(work.prompt), cache_length(config))
    # As booleans, and as what is added to the scores.
    masks = config.engine.mask_elements(config) * (1 + model.dtype.itemsize)
    return replace(need, workspace=need.workspace + masks)


def alternatives(config: Config, devices: DeviceGroup) -> Iterator[tuple[str, int]]:
    """What a user could ask for instead, and the bytes that it needs: other weights, fewer sequences, other models."""
    work = config.workload

    def made(model: ModelConfig, quant: QuantConfig) -> Transformer | None:
        if quant.unsupported_reason(model, config.device.dtype) or len(work.prompt) + work.new_tokens > model.context:
            return None
        try:
            return on_meta(model, quant, devices.own.dtype)
        except ConfigError:  # its matrices have other names, or widths
            return None

    def need(meta: Transformer, batch: int) -> int:
        return memory_need(meta, batch, len(work.prompt), cache_length(config)).total

    for shipped in options("quant", QuantConfig):
        quant, batch = replace(shipped, weights=config.quant.weights), work.batch_size
        meta = made(config.model, quant)
        while batch and meta is not None:
            yield f"quant={quant.name} workload.batch_size={batch}", need(meta, batch)
            batch //= 2
    for model in options("model", ModelConfig):
        if (
            max(map(max, work.prompts or [work.prompt])) >= model.vocab_size
            or (config.sampling.top_k or 0) > model.vocab_size
        ):
            continue
        if model.name != config.model.name and (meta := made(model, config.quant)) is not None:
            yield f"model={model.name}", need(meta, work.batch_size)


def nbytes(model: nn.Module) -> int:
    """Bytes of the parameters, each storage once."""
    return sum(p.nbytes for p in model.parameters())  # `parameters` gives a shared one once


def check_memory(
    config: Config, model: Transformer, devices: DeviceGroup, alternatives: Iterator[tuple[str, int]], kept: int = 0
) -> None:
    """Refuses a run that needs more than a device of it has, before anything is allocated.

    Args:
        alternatives: what else the user could ask for, and the bytes that it needs.
        kept: bytes in use that the run has from the job before it, or gives back.

    Raises:
        DoesNotFitError: with the numbers, and with the alternatives that fit.
    """
    need = memory_need_of(config, model)
    device = min(devices.devices, key=lambda each: each.free_memory())
    free = device.free_memory() + kept
    if need.total <= free:
        return
    fitting: dict[str, str] = {}
    for what, total in alternatives:
        if total <= free:  # of several batch sizes the first, which is the largest
            fitting.setdefault(what.partition(" workload.")[0], f"  {what}: {gb(total)}")
    raise DoesNotFitError(
        f"model={config.model.name} quant={config.quant.full_name} workload.batch_size={config.workload.batch_size} "
        f"needs {need}, and {device.torch} ({device.name}) has {gb(free)} free.\n"
        + ("What would fit:\n" + "\n".join(fitting.values()) if fitting else "Nothing that gptbench knows would fit.")
    )
