"""What a job of a sweep leaves for the next one in the same process: the model with its weights, and with it all that
was compiled for it. The next job takes it over where it differs in sampling or workload alone.
"""

import gc
from dataclasses import dataclass, replace

import torch

from gptbench.build import nbytes
from gptbench.config import Config
from gptbench.config.targets import target
from gptbench.device import Device
from gptbench.engine import Engine
from gptbench.model import Transformer
from gptbench.schema.compilation import Compilation
from gptbench.schema.result import Loaded


@dataclass
class Kept:
    """A model on its device, and what making it cost the job that made it."""

    config: Config
    """Of the job that made it."""
    device: Device
    model: Transformer
    loaded: Loaded | None
    """What was read of a checkpoint."""
    load_s: float
    """Seconds to make and fill the weights."""
    compilation: Compilation
    """Of the job that made it, and what those that took it over compiled beyond."""
    started: str
    """When the job that made it began, ISO 8601."""

    @property
    def shared(self) -> Compilation:
        """The compilation, in the record of a job that takes it over."""
        return replace(self.compilation, shared=True)

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return nbytes(self.model)

    def serves(self, config: Config) -> bool:
        """Whether a job can have it: the same weights, and code that was compiled for as many sequences."""
        own = self.config
        same = (
            own.model == config.model
            and own.quant == config.quant
            and own.device == config.device
            and own.engine == config.engine
            and own.workload.batch_size == config.workload.batch_size
        )
        return same and (own.model.reads_checkpoint or own.workload.seed == config.workload.seed)


kept: Kept | None = None
"""Of this process."""


def may_keep(config: Config) -> bool:
    """Whether a job leaves something: not where it has to begin with nothing, or to end with nothing."""
    engine: type[Engine] = target(config.engine)
    begins_anew = config.engine.fresh_cache or config.engine.measure_warm_start
    return engine.serves_other_workloads(config.engine) and not begins_anew


def keep(new: Kept) -> None:
    """Leaves it for the next job, which makes a cache of its own."""
    global kept
    kept = new
    new.model.deallocate()
    gc.collect()  # the engine, whose graphs hold memory
    new.device.release_memory()


def take(config: Config) -> Kept | None:
    """What the job before has left, if it serves this one; else it is given back."""
    global kept
    if kept is not None and may_keep(config) and kept.serves(config):
        found, kept = kept, None
        return found
    give_back()
    return None


def give_back() -> None:
    """Lets go of what the job before has left, if anything."""
    global kept
    found, kept = kept, None
    if found is not None:
        release(found.model, found.device)


def release(model: Transformer, device: Device) -> None:
    """Gives back all that a model and what was compiled for it hold, whoever still refers to them."""
    model.to_empty(device="meta")
    torch.compiler.reset()
    gc.collect()  # engines and compiled code refer to each other in circles
    device.release_memory()
