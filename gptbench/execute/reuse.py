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
from gptbench.schema.result import CheckpointInfo


@dataclass(frozen=True)
class WarmModel:
    """A model on its device, and what making it cost the job that made it."""

    config: Config
    """Of the job that made it."""
    device: Device
    model: Transformer
    loaded: CheckpointInfo | None
    """What was read of a checkpoint."""
    load_s: float
    """Seconds to make and fill the weights."""
    compile_s: float
    """Seconds of compiling, of the job that made it and of those that took it over since."""
    started: str
    """When the job that made it began, ISO 8601."""

    def with_more(self, compile_s: float) -> "WarmModel":
        """The same once a job that had it has spent more on compiling."""
        return replace(self, compile_s=self.compile_s + compile_s)

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
            and list(own.quant.weights) == list(config.quant.weights)  # whose order counts
            and own.device == config.device
            and own.engine == config.engine
            and own.workload.batch_size == config.workload.batch_size
        )
        return same and (own.model.reads_checkpoint or own.workload.seed == config.workload.seed)


class Session:
    """The jobs of one process, one after the other.

    Attributes:
        kept: what the job before has left for the next one.
        has_compiled: whether a job has compiled anything: what that loaded and looked up stays in memory.
    """

    def __init__(self) -> None:
        self.kept: WarmModel | None = None
        self.has_compiled = False

    def acquire(self, config: Config) -> WarmModel | None:
        """What the job before has left, if it serves this one; else it is given back."""
        if self.kept is not None and may_store(config) and self.kept.serves(config):
            found, self.kept = self.kept, None
            return found
        self.evict()
        return None

    def store(self, new: WarmModel) -> None:
        """Leaves it for the next job, whose engine makes a cache of its own."""
        self.kept = new
        gc.collect()  # the engine, whose graphs hold memory
        new.device.release_memory()

    def evict(self) -> None:
        """Lets go of what the job before has left, if anything."""
        found, self.kept = self.kept, None
        if found is not None:
            release(found.model, found.device)


def may_store(config: Config) -> bool:
    """Whether a job leaves something: not where it has to begin with nothing, or to end with nothing."""
    engine: type[Engine] = target(config.engine)
    begins_anew = config.engine.fresh_cache or config.engine.measure_warm_start
    return engine.serves_other_workloads(config.engine) and not begins_anew


def release(model: Transformer, device: Device) -> None:
    """Gives back all that a model and what was compiled for it hold, whoever still refers to them."""
    model.to_empty(device="meta")
    torch.compiler.reset()
    gc.collect()  # engines and compiled code refer to each other in circles
    device.release_memory()
