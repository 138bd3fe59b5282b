"""Reuse between jobs of a sweep in one process: a job leaves its model with its weights, and everything compiled for
it. The next job takes it over if it differs in sampling or workload only."""

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
    """A model on its device, with the cost of making it."""

    config: Config
    """Configuration of the job that made it."""
    device: Device
    model: Transformer
    loaded: CheckpointInfo | None
    """Checkpoint that the weights were read from."""
    load_s: float
    """Seconds to allocate and fill the weights."""
    compile_s: float
    """Seconds of compiling in the job that made it and in those that have taken it over since."""
    started: str
    """Start of the job that made it, ISO 8601."""

    def with_more(self, compile_s: float) -> "WarmModel":
        """Return a copy with the seconds that a further job spent on compiling."""
        return replace(self, compile_s=self.compile_s + compile_s)

    @property
    def nbytes(self) -> int:
        """Size of the weights in bytes."""
        return nbytes(self.model)

    def serves(self, config: Config) -> bool:
        """Return whether a job can take it over: it needs the same weights, and the same batch size as the compiled
        code."""
        made_for = self.config
        same = (
            made_for.model == config.model
            and made_for.quant == config.quant
            and list(made_for.quant.weights) == list(config.quant.weights)  # their order matters
            and made_for.device == config.device
            and made_for.engine == config.engine
            and made_for.workload.batch_size == config.workload.batch_size
        )
        return same and (made_for.model.reads_checkpoint or made_for.workload.seed == config.workload.seed)


class Session:
    """The jobs of one process, one after the other.

    Attributes:
        kept: model that the previous job left for the next one.
        has_run: whether a job has begun.
        has_compiled: whether a job has compiled anything: modules and look-ups of the compiler stay in memory.
    """

    def __init__(self) -> None:
        self.kept: WarmModel | None = None
        self.has_run = False
        self.has_compiled = False

    def acquire(self, config: Config, device: Device) -> WarmModel | None:
        """Return what the previous job left, if it serves this one; otherwise free it."""
        if self.kept is not None and may_store(config) and self.kept.serves(config):
            warm, self.kept = self.kept, None
            return warm
        self.evict(device)
        return None

    def store(self, new: WarmModel) -> None:
        """Store the model for the next job, whose engine makes a new KV cache."""
        self.kept = new
        gc.collect()  # the engine, whose graphs hold memory
        new.device.release_memory()

    def evict(self, device: Device) -> None:
        """Free what the previous job left, if anything."""
        warm, self.kept = self.kept, None
        if warm is not None:
            release(warm.model, warm.device)
        elif self.has_run:
            gc.collect()  # frees the engine of a failed job, which its error referred to until now
            device.release_memory()
        self.has_run = True


def may_store(config: Config) -> bool:
    """Return whether a job leaves its model: not if it has to start or end with nothing compiled."""
    engine: type[Engine] = target(config.engine)
    begins_anew = config.engine.fresh_cache or config.engine.measure_warm_start
    return engine.serves_other_workloads(config.engine) and not begins_anew


def release(model: Transformer, device: Device) -> None:
    """Free all memory of a model and of what was compiled for it, whoever still refers to them."""
    model.to_empty(device="meta")
    torch.compiler.reset()
    gc.collect()  # engines and compiled code refer to each other in circles
    device.release_memory()
