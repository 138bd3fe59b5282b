"""The options of each group that ship with gptbench."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from omegaconf import OmegaConf

from gptbench.base.paths import conf_folder
from gptbench.config.section import S, is_name


def options(group: str, schema: type[S]) -> list[S]:
    """Return all shipped options of a group that leave no required field open, sorted by name."""
    files = sorted((conf_folder() / group).glob("*.yaml"))
    sections = [OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(file)) for file in files]
    return [cast(S, OmegaConf.to_object(section)) for section in sections if not OmegaConf.missing_keys(section)]


@functools.cache
def shipped(group: str, name: str) -> Mapping[str, Any]:
    """Return the values of a shipped option, read once; empty if there is no such option."""
    file = conf_folder() / group / f"{name}.yaml"
    values = OmegaConf.to_container(OmegaConf.load(file)) if is_name(name) and file.exists() else {}
    assert isinstance(values, dict)
    return MappingProxyType({str(key): value for key, value in values.items()})
