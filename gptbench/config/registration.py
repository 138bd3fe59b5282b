"""Registers the configuration with Hydra and OmegaConf: its types, and the resolvers that YAML files may use."""

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

# Hydra creates its folder before the configuration is validated: an empty `outputs=` must not put it into the root.
OmegaConf.register_new_resolver("gptbench.folder", lambda outputs: expanded(outputs or "outputs"), replace=True)
# The path of a checkpoint that ships with gptbench, wherever gptbench is installed.
OmegaConf.register_new_resolver("gptbench.shipped", lambda name: str(shipped_folder() / name), replace=True)


def register() -> None:
    """Stores the dataclasses as Hydra schemas, so that a wrong key or type is an error while composing."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, section in ENGINES.items():
        store.store(group="schema/engine", name=name, node=section)
    store.store(group="schema/task", name="quality", node=QualityConfig)
    store.store(group="schema/task", name="kernels", node=KernelsConfig)
    store.store(group="schema/tracking", name="mlflow", node=MLflowConfig)
    store.store(group="schema/sweep", name="drawn", node=SampledSweepConfig)


ADDED: set[tuple[str, str]] = set()
"""Group and name of each option that plugins registered."""


def add_option(name: str, section: Section) -> None:
    """Adds a plugin's section as an option of its group, like a YAML file in `conf/`: `GROUP=NAME` selects it, and its
    fields have their defaults.

    Raises:
        UserError: the group already has an option of that name.
    """
    group = section.GROUP
    if (group, name) in ADDED or (conf_folder() / group / f"{name}.yaml").exists():
        raise UserError(f"{group}={name}: it is there already, and a plugin cannot replace it")
    ADDED.add((group, name))
    node = OmegaConf.merge(OmegaConf.structured(type(section)), {"_target_": section._target_, "name": section.name})
    ConfigStore.instance().store(group=group, name=name, node=node)
