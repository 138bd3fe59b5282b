"""The whole configuration of a run, and the checks that involve several groups."""

import itertools
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from gptbench.base.errors import ConfigError
from gptbench.config.baseline import BaselineConfig
from gptbench.config.device import DeviceConfig
from gptbench.config.engine import EngineConfig
from gptbench.config.group_options import shipped
from gptbench.config.model import ModelConfig
from gptbench.config.quant import QuantConfig
from gptbench.config.sampling import SamplingConfig
from gptbench.config.sizes import MIN_NEW_TOKENS
from gptbench.config.sweep import SweepConfig
from gptbench.config.task import TaskConfig
from gptbench.config.tracking import TrackingConfig
from gptbench.config.workload import WorkloadConfig


class Isolation(Enum):
    """Where a job runs: `none` runs it in the current process, `process` in a new process, so that a crash or a
    corrupted CUDA context does not affect the next job."""

    none = "none"
    process = "process"


def plain(value: Any) -> Any:
    """Return the value with every member of an Enum replaced by its name."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.name if isinstance(value, Enum) else value


@dataclass(kw_only=True)
class Config:
    """The configuration of one run."""

    model: ModelConfig = MISSING
    quant: QuantConfig = MISSING
    sampling: SamplingConfig = MISSING
    device: DeviceConfig = MISSING
    engine: EngineConfig = MISSING
    workload: WorkloadConfig = MISSING
    task: TaskConfig = MISSING
    tracking: TrackingConfig = MISSING
    baseline: BaselineConfig = MISSING
    sweep: SweepConfig = MISSING
    isolation: Isolation = Isolation.none
    """Where each job runs: none (in the current process) or process (in a new process for each job)."""
    outputs: str = "outputs"
    """Folder for results, the local MLflow store and measured roofs."""
    quiet: bool = False
    """Whether only errors and the final JSON line are printed, as with `--quiet`."""
    commit: str | None = None
    """Commit of gptbench to record if the code is not in a git checkout; null asks git."""

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data: dicts and lists, with the names of Enum members."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ConfigError("outputs", self.outputs, "a folder")
        if self.sweep.timeout_s is not None and self.isolation is not Isolation.process:
            raise ConfigError("sweep.timeout_s", self.sweep.timeout_s, "null, unless isolation=process is set, too")
        rows = self.workload.prompts or [self.workload.prompt]
        prompt = max(1, len(rows[0]), self.workload.prompt_length or 0)
        if prompt + MIN_NEW_TOKENS > self.model.context:
            most = max(0, self.model.context - MIN_NEW_TOKENS)
            limit = f"at most {most}: the context of {self.model.name} is {self.model.context}"
            if self.workload.prompt_length:
                raise ConfigError("workload.prompt_length", self.workload.prompt_length, limit)
            raise ConfigError("workload.prompt", f"{prompt} tokens", f"{limit}; workload.prompt_length shortens a text")
        if prompt + self.workload.new_tokens > self.model.context:
            raise ConfigError(
                "workload.new_tokens",
                self.workload.new_tokens,
                f"at most {self.model.context - prompt}: the prompt has "
                f"{prompt} tokens and the context of {self.model.name} is {self.model.context}",
            )
        for token in itertools.chain(*rows):
            if not 0 <= token < self.model.vocab_size:
                field = "workload.prompts" if self.workload.prompts else "workload.prompt"
                raise ConfigError(
                    field, token, f"token ids from 0 to {self.model.vocab_size - 1} for {self.model.name}"
                )
        if self.sampling.top_k is not None and self.sampling.top_k > self.model.vocab_size:
            name, top_k = self.sampling.name, self.sampling.top_k
            default = f" (sampling={name} has {top_k})" if shipped("sampling", name).get("top_k") == top_k else ""
            expected = (
                f"at most vocab_size={self.model.vocab_size} of {self.model.name}, or null for all of it{default}"
            )
            raise ConfigError("sampling.top_k", top_k, expected)
        for token in self.sampling.stop_tokens:
            if not 0 <= token < self.model.vocab_size:
                raise ConfigError(
                    "sampling.stop_tokens",
                    token,
                    f"token ids from 0 to {self.model.vocab_size - 1} for {self.model.name}",
                )
