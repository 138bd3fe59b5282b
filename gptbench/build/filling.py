"""Allocates a model and fills it with weights, from a checkpoint or seeded."""

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
    """Allocate a model that is on `meta`, and fill it with weights.

    Args:
        progress: called with a description of what is being read and the fraction of it that has been read.

    Returns:
        Information about the checkpoint, or None if the weights are seeded.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its weights are not finite.
    """
    model.to_empty(device=device.torch)
    if config.model.reads_checkpoint:
        return Checkpoint(config.model).load(model, progress)
    fill(model, config.workload.seed)
    return None


def fill(model: Transformer, seed: int) -> None:
    """Fill a model with seeded random weights, scaled so that activations stay of order one (see `Weight.std`).

    Each matrix has a generator that is seeded with its name, so that its values depend neither on the other matrices
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
                weight = weight.to(model.dtype)  # frees the float32 tensor if the types differ
                module.assign(weight, *index)


def normal(shape: tuple[int, ...], std: float, name: str, device: torch.device) -> Tensor:
    """Return normal float32 numbers with standard deviation `std`, from a generator seeded with `name`."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).mul_(std)
