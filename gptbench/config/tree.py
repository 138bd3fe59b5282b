"""The whole configuration of a run, and what its groups have to agree on."""

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
    """Where a job runs: `none` is in the process that asked for it, `process` in one of its own, so that whatever kills
    or poisons that does not reach the next job."""

    none = "none"
    process = "process"


def plain(value: Any) -> Any:
    """The same with the name of each member of an Enum in its place."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.name if isinstance(value, Enum) else value


@dataclass(kw_only=True)
class Config:
    """One run."""

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
    """none or process: whether each job runs in a process of its own."""
    outputs: str = "outputs"
    """Folder for results, the MLflow store and measured roofs."""
    quiet: bool = False
    """Tell people nothing but what went wrong, as `--quiet` does; the line for programs stays."""
    commit: str | None = None
    """Commit of the code, where it is no checkout or the checkout does not tell; null asks git."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data: dicts, lists, and the names of what is one of several."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ConfigError("outputs", self.outputs, "a folder")
        if self.sweep.timeout_s is not None and self.isolation is not Isolation.process:
            raise ConfigError("sweep.timeout_s", self.sweep.timeout_s, "null, or isolation=process beside it")
        rows = self.workload.prompts or [self.workload.prompt]
        prompt = max(1, len(rows[0]), self.workload.prompt_length or 0)
        if prompt + MIN_NEW_TOKENS > self.model.context:
            most = max(0, self.model.context - MIN_NEW_TOKENS)
            room = f"at most {most}: the context of {self.model.name} is {self.model.context}"
            if self.workload.prompt_length:
                raise ConfigError("workload.prompt_length", self.workload.prompt_length, room)
            raise ConfigError(
                "workload.prompt", f"{prompt} tokens", f"{room}; of a text, workload.prompt_length cuts it"
            )
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
