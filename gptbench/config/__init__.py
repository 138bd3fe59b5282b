"""Every field that a user can set, with its meaning, its unit and its valid values; there is one file per group.

The YAML files in ``conf/`` only hold values. Hydra composes them, `load` turns the result into the tree of dataclasses
under `Config`, and no other code sees a DictConfig. An invalid value raises `ConfigError` before anything is built.
"""

from gptbench.architecture.spec import RopeScaling
from gptbench.config.baseline import BaselineConfig, BaselineMetric, BaselineRow
from gptbench.config.completion import complete_model
from gptbench.config.device import DeviceConfig, DeviceKind, Dtype
from gptbench.config.engine import (
    ENGINES,
    AutoConfig,
    Cache,
    CudaGraph,
    EagerConfig,
    EngineConfig,
    FusedConfig,
    HuggingFaceConfig,
    InductorConfig,
    Scope,
    Tuning,
    engine_of,
)
from gptbench.config.explanation import explain
from gptbench.config.group_options import options, shipped
from gptbench.config.loading import load, validate_combination
from gptbench.config.model import CheckpointFormat, ModelConfig
from gptbench.config.quant import FORMATS, INT8, UNQUANTISED, FormatLimits, QuantConfig
from gptbench.config.registration import add_option, register
from gptbench.config.sampling import SamplingConfig
from gptbench.config.section import MOVED_TARGETS, Section
from gptbench.config.sizes import MAX_FUSED_SEQUENCES, MAX_JOBS, MAX_STOP_TOKENS, MIN_NEW_TOKENS
from gptbench.config.sweep import SampledSweepConfig, SweepConfig
from gptbench.config.task import KernelsConfig, QualityConfig, TaskConfig
from gptbench.config.tracking import MLflowConfig, TrackingConfig
from gptbench.config.tree import Config, Isolation
from gptbench.config.workload import WorkloadConfig

__all__ = [
    "ENGINES",
    "FORMATS",
    "INT8",
    "MAX_FUSED_SEQUENCES",
    "MAX_JOBS",
    "MAX_STOP_TOKENS",
    "MIN_NEW_TOKENS",
    "MOVED_TARGETS",
    "UNQUANTISED",
    "AutoConfig",
    "BaselineConfig",
    "BaselineMetric",
    "BaselineRow",
    "Cache",
    "CheckpointFormat",
    "Config",
    "CudaGraph",
    "DeviceConfig",
    "DeviceKind",
    "Dtype",
    "EagerConfig",
    "EngineConfig",
    "FormatLimits",
    "FusedConfig",
    "HuggingFaceConfig",
    "InductorConfig",
    "Isolation",
    "KernelsConfig",
    "MLflowConfig",
    "ModelConfig",
    "QualityConfig",
    "QuantConfig",
    "RopeScaling",
    "SampledSweepConfig",
    "SamplingConfig",
    "Scope",
    "Section",
    "SweepConfig",
    "TaskConfig",
    "TrackingConfig",
    "Tuning",
    "WorkloadConfig",
    "add_option",
    "complete_model",
    "engine_of",
    "explain",
    "load",
    "options",
    "register",
    "shipped",
    "validate_combination",
]
