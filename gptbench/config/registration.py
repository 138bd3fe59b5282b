"""What Hydra and OmegaConf are told of the configuration: its types, and the resolvers that YAML may use."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gptbench.base.errors import UserError
from gptbench.base.hub import expanded
from gptbench.base.paths import conf_folder, shipped_folder
from gptbench.config.engine import ENGINES
from gptbench.config.section import Section
from gptbench.config.sweep import SampledSweepConfig
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
    for name, section in ENGINES.items():
        store.store(group="schema/engine", name=name, node=section)
    store.store(group="schema/task", name="quality", node=QualityConfig)
    store.store(group="schema/task", name="kernels", node=KernelsConfig)
    store.store(group="schema/tracking", name="mlflow", node=MLflowConfig)
    store.store(group="schema/sweep", name="drawn", node=SampledSweepConfig)


ADDED: set[tuple[str, str]] = set()
"""Options that plugins brought: group and name."""


def add_option(name: str, section: Section) -> None:
    """Makes what a plugin brings an option of its group, as a YAML file in `conf/` is: `GROUP=NAME` selects it, and
    its fields have the values that they have unless they are given.

    Raises:
        UserError: the group has an option of that name.
    """
    group = section.GROUP
    if (group, name) in ADDED or (conf_folder() / group / f"{name}.yaml").exists():
        raise UserError(f"{group}={name}: it is there already, and a plugin cannot register it again")
    ADDED.add((group, name))
    node = OmegaConf.merge(OmegaConf.structured(type(section)), {"_target_": section._target_, "name": section.name})
    ConfigStore.instance().store(group=group, name=name, node=node)
