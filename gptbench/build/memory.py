"""Predicts the device memory that a run needs, from a model on `meta`, and finds alternatives that would fit."""

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
    """Device memory that a run needs, in bytes."""

    weights: int
    """Bytes of all weights, with shared storage counted once."""
    kv_cache: int
    """Bytes of the keys and values of all layers, rows and cached positions."""
    workspace: int
    """Bytes of temporary tensors: the larger of what filling the largest matrix takes, and of activations and copies
    of weights while running."""

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return self.weights + self.kv_cache + self.workspace

    def __str__(self) -> str:
        parts = f"weights {gb(self.weights)}, KV cache {gb(self.kv_cache)}, workspace {gb(self.workspace)}"
        return f"{gb(self.total)} ({parts})"


def memory_need(model: Transformer, batch: int, prompt: int, length: int) -> MemoryNeed:
    """Return the memory that a model (on any device) needs for `batch` sequences of `length` positions, of which
    `prompt` are prefilled."""
    config, itemsize = model.config, model.dtype.itemsize
    weights = [module for module in model.modules() if isinstance(module, Weight)]
    # The cast matrix, its float32 original, and the temporaries of packing.
    filling = max(math.prod(w.float_shape[-2:]) * (itemsize + 4 + w.format.packing_bytes) for w in weights)
    tokens = batch * prompt
    running = max(block_bytes(block, batch, prompt, itemsize) for block in model.layers)
    running += 4 * tokens * 4 * config.dim + 8 * 4 * batch * config.vocab_size
    return MemoryNeed(nbytes(model), cache_bytes(model, batch, length), max(filling, running))


def cache_bytes(model: Transformer, batch: int, length: int) -> int:
    """Return the bytes of the KV caches of all layers for `batch` sequences of `length` positions."""
    counts = Counter(block.spec.attention for block in model.layers)
    caches = {spec: KeyValueCache(spec, batch, length, model.dtype, "meta") for spec in counts}
    return sum(count * caches[spec].nbytes for spec, count in counts.items())


def block_bytes(block: Block, batch: int, prompt: int, itemsize: int) -> int:
    """Return the bytes that a block takes while it runs, besides the residual stream: copies of its weights and its
    activations."""
    spec, tokens = block.spec, batch * prompt
    active = spec.mixture.active if spec.mixture is not None else 1
    weights = [module for module in block.modules() if isinstance(module, Weight)]
    copied = max(sum(copied_bytes(w, count, spec.mixture, itemsize) for w in weights) for count in (batch, tokens))
    widest = max(spec.dim, 2 * spec.ffn.width) * active
    return copied + 4 * tokens * 4 * widest + window_bytes(spec.attention, batch, prompt, itemsize)


def window_bytes(spec: AttentionSpec, batch: int, prompt: int, itemsize: int) -> int:
    """Return the bytes that a layer's prefill takes when the sliding window masks part of the prompt: the mask, as
    booleans and as an additive mask, and keys and values repeated for each head (`attend_in_window`)."""
    if not spec.window_applies(prompt):
        return 0
    queries = min(prompt, WINDOW_QUERIES)
    keys = min(prompt, queries + spec.window - 1)
    repeated = 2 * batch * spec.heads * spec.head_dim * keys * itemsize if spec.heads > spec.kv_heads else 0
    return queries * keys * (1 + itemsize) + repeated


def copied_bytes(weight: Weight, tokens: int, mixture: MixtureSpec | None, itemsize: int) -> int:
    """Return the bytes of the copies that an engine may make of a block's weight: gathered experts and casts."""
    matrix = math.prod(weight.float_shape[-2:])
    cast = weight.format.copied_bytes(itemsize)
    if mixture is None or len(weight.float_shape) == 2:
        return matrix * cast
    pairs = tokens * mixture.active
    if pairs < mixture.experts:
        return pairs * (weight.matrix.nbytes // mixture.experts + matrix * cast)
    return mixture.experts * matrix * cast


def memory_need_of(config: Config, model: Transformer) -> MemoryNeed:
    """Return the memory need for the workload and the engine of a configuration."""
    work = config.workload
    need = memory_need(model, work.batch_size, len(work.prompt), cache_length(config))
    # Masks as booleans, and as additive masks.
    masks = config.engine.mask_elements(config) * (1 + model.dtype.itemsize)
    return replace(need, workspace=need.workspace + masks)


def alternatives(config: Config, devices: DeviceGroup) -> Iterator[tuple[str, int]]:
    """Iterate over overrides that a user could try instead, with the bytes that they need: other formats, smaller
    batches, other models."""
    work = config.workload

    def on_meta_or_none(model: ModelConfig, quant: QuantConfig) -> Transformer | None:
        if quant.unsupported_reason(model, config.device.dtype) or len(work.prompt) + work.new_tokens > model.context:
            return None
        try:
            return on_meta(model, quant, devices.local.dtype)
        except ConfigError:  # quant.weights does not fit the names or widths of its matrices
            return None

    def need(meta: Transformer, batch: int) -> int:
        return memory_need(meta, batch, len(work.prompt), cache_length(config)).total

    for shipped in options("quant", QuantConfig):
        quant, batch = replace(shipped, weights=config.quant.weights), work.batch_size
        meta = on_meta_or_none(config.model, quant)
        while batch and meta is not None:
            yield f"quant={quant.name} workload.batch_size={batch}", need(meta, batch)
            batch //= 2
    for model in options("model", ModelConfig):
        if (
            max(map(max, work.prompts or [work.prompt])) >= model.vocab_size
            or (config.sampling.top_k or 0) > model.vocab_size
        ):
            continue
        if model.name != config.model.name and (meta := on_meta_or_none(model, config.quant)) is not None:
            yield f"model={model.name}", need(meta, work.batch_size)


def nbytes(model: nn.Module) -> int:
    """Return the bytes of the parameters, with shared storage counted once."""
    return sum(p.nbytes for p in model.parameters())  # `parameters` yields a shared parameter once


def check_memory(
    config: Config, model: Transformer, devices: DeviceGroup, alternatives: Iterator[tuple[str, int]], kept: int = 0
) -> None:
    """Check that a run fits into the free memory of each device, before anything is allocated.

    Args:
        alternatives: overrides that the user could try instead, with the bytes that they need.
        kept: bytes in use that the run takes over from the previous job, or frees.

    Raises:
        DoesNotFitError: the run does not fit; the message has the numbers and the alternatives that fit.
    """
    need = memory_need_of(config, model)
    device = min(devices.devices, key=lambda candidate: candidate.free_memory())
    free = device.free_memory() + kept
    if need.total <= free:
        return
    fitting: dict[str, str] = {}
    for what, total in alternatives:
        if total <= free:  # keeps the first of several batch sizes, which is the largest
            fitting.setdefault(what.partition(" workload.")[0], f"  {what}: {gb(total)}")
    raise DoesNotFitError(
        f"model={config.model.name} quant={config.quant.full_name} workload.batch_size={config.workload.batch_size} "
        f"needs {need}, but {device.torch} ({device.name}) has only {gb(free)} free.\n"
        + ("These would fit:\n" + "\n".join(fitting.values()) if fitting else "No configuration in conf/ would fit.")
    )
