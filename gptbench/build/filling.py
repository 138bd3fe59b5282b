"""A model gets its memory, and its weights: a checkpoint's, or seeded ones."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from gptbench.checkpoint import Checkpoint
from gptbench.config import Config
from gptbench.device import Device
from gptbench.model import Bias, RMSNorm, Transformer, Weight
from gptbench.schema.result import CheckpointInfo


def build(
    config: Config, model: Transformer, device: Device, progress: Callable[[str, float], None] = lambda *_: None
) -> CheckpointInfo | None:
    """Gives a model on `meta` its memory and its weights.

    Args:
        progress: told what is being read, and the share of it that is done.

    Returns:
        What was read of a checkpoint, or None where the weights are seeded.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not finite.
    """
    model.to_empty(device=device.torch)
    loaded = None
    if config.model.reads_checkpoint:
        loaded = Checkpoint(config.model).load(model, progress)
    else:
        fill(model, config.workload.seed)
    return loaded


def fill(model: Transformer, seed: int) -> None:
    """Seeded random weights, scaled so that activations stay of order one (see `Weight.std`).

    Each matrix has a generator of its own, seeded with its name, so that it does not depend on what else is filled,
    nor on the quantisation. CPU and GPU generators differ.
    """
    device = model.norm.weight.device
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, Bias):
            module.weight.copy_(normal(module.weight.shape, module.std, f"{seed} {name}", device))
        elif isinstance(module, Weight):
            for index in module.matrices():
                weight = normal(module.float_shape[-2:], module.std, f"{seed} {name} {index}", device)
                weight = weight.to(model.dtype)  # frees the float32 one where the types differ
                module.assign(weight, *index)


def normal(shape: tuple[int, ...], std: float, name: str, device: torch.device) -> Tensor:
    """float32 of standard deviation `std`, from a generator that is seeded with `name`."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).mul_(std)
