"""Former names of fields, options and metrics.

The command line accepts those of fields and options for one version, with a warning; in YAML files they are refused,
with a hint. Records and baselines that use them can always be read, and `--metrics` always accepts them. Runs in MLflow
keep the names under which they were logged.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from gptbench.base.errors import InputError

T = TypeVar("T")

OPTIONS = {"workload": {"seed": "gpt_fast"}, "engine": {"inductor_seed": "gpt_fast"}}
"""Groups mapped to former and current names of their options."""
FIELDS = {"engine": {"overlap": "pdl", "tune": "autotune", "tiles": "tile_cache"}}
"""Groups mapped to former and current names of their fields."""
DOTTED = {f"{group}.{old}": f"{group}.{new}" for group, names in FIELDS.items() for old, new in names.items()}
"""Former and current dotted names of the same fields."""
ALIASES = {old: new for names in (*OPTIONS.values(), *FIELDS.values()) for old, new in names.items()}
"""Former and current names of options and fields of all groups, for hints."""
METRICS = {
    "seed_tokens_per_s": "gptfast_tokens_per_s",
    "seed_gb_per_s": "gptfast_gb_per_s",
    "seed_compile_s": "gptfast_compile_s",
    "seed_flops_utilisation": "gptfast_flops_utilisation",
}
"""Former and current names of recorded metrics."""
RECORDED = {
    "Traffic": {"positions_filled": "kv_len"},
    "Compilation": {"costs_s": "stage_s", "stages_s": "torch_stage_s"},
}
"""Dataclasses of a record mapped to former and current names of their fields."""


def current_override(override: str) -> str:
    """Return an override with current names: `engine.tune=true` becomes `engine.autotune=true`, and `workload=seed`
    becomes `workload=gpt_fast`, also in a list, in quotes, within one of Hydra's functions and in `sweep.paired`."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    names = DOTTED if name == "sweep.paired" else OPTIONS.get(name.partition("@")[0], {})
    if names:
        value = re.sub(r"[\w.$/-]+", lambda word: names.get(word[0], word[0]), value)
    return key.replace(name, DOTTED.get(name, name)) + equals + value


def renamed(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Return the values under current names.

    Args:
        names: former names mapped to current ones.

    Raises:
        InputError: there is a value under both names.
    """
    for old in values.keys() & names.keys():
        if names[old] in values:
            raise InputError(f"{old}: was renamed to {names[old]}, and there is a value under both names")
    return {names.get(name, name): value for name, value in values.items()}


def rename_in_config(config: Any) -> None:
    """Replaces former names in a recorded configuration, in place. Raises InputError as `renamed` does."""
    if not isinstance(config, dict):
        return
    for group, section in config.items():
        if isinstance(section, dict):
            current = renamed(section, FIELDS.get(group, {}))
            section.clear()
            section.update(current)
            name = section.get("name")
            if isinstance(name, str) and name in (options := OPTIONS.get(group, {})):
                section["name"] = options[name]


def current_fields(values: Mapping[str, T]) -> dict[str, T]:
    """Return values by dotted field, as in a baseline's rows, under the current names. Raises InputError as `renamed`
    does."""
    return renamed(values, DOTTED)


def current_metrics(values: Mapping[str, T]) -> dict[str, T]:
    """Return values by metric under the current names. Raises InputError as `renamed` does."""
    return renamed(values, METRICS)
