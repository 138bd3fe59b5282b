"""What Hydra and OmegaConf are told of the configuration: its types, and the resolvers that YAML may use."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gptbench.base.hub import expanded
from gptbench.base.paths import shipped_folder
from gptbench.config.engine import AutoConfig, EagerConfig, FusedConfig, HuggingFaceConfig, InductorConfig
from gptbench.config.sweep import DrawnSweepConfig
from gptbench.config.task import KernelsConfig, QualityConfig
from gptbench.config.tracking import MLflowConfig
from gptbench.config.tree import Config

# Hydra makes its folder before we see the configuration: `outputs=` must not put it into the root.
OmegaConf.register_new_resolver("gptbench.folder", lambda outputs: expanded(outputs or "outputs"), replace=True)
# A checkpoint that comes with gptbench, wherever that is installed.
OmegaConf.register_new_resolver("gptbench.shipped", lambda name: str(shipped_folder() / name), replace=True)


def register() -> None:
    """Stores the dataclasses as Hydra schemas, so that a wrong key or type is refused while composing."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="schema/engine", name="auto", node=AutoConfig)
    store.store(group="schema/engine", name="eager", node=EagerConfig)
    store.store(group="schema/engine", name="inductor", node=InductorConfig)
    store.store(group="schema/engine", name="fused", node=FusedConfig)
    store.store(group="schema/engine", name="hf", node=HuggingFaceConfig)
    store.store(group="schema/task", name="quality", node=QualityConfig)
    store.store(group="schema/task", name="kernels", node=KernelsConfig)
    store.store(group="schema/tracking", name="mlflow", node=MLflowConfig)
    store.store(group="schema/sweep", name="drawn", node=DrawnSweepConfig)
