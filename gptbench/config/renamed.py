"""Former names of fields, options and metrics. The command line accepts them for one version, with a warning; records,
baselines and MLflow runs that use them can always be read."""

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

OPTIONS = {"workload": {"seed": "gpt_fast"}, "engine": {"inductor_seed": "gpt_fast"}}
"""Groups mapped to former and current names of their options."""
FIELDS = {"engine": {"overlap": "pdl", "tune": "autotune", "tiles": "tile_cache"}}
"""Groups mapped to former and current names of their fields."""
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
    becomes `workload=gpt_fast`, also within a list of swept values."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    group, dot, field = name.partition(".")
    if dot:
        new_key = f"{group}.{FIELDS.get(group, {}).get(field, field)}"
        return key.replace(name, new_key) + equals + value
    options = OPTIONS.get(group.partition("@")[0], {})
    return (
        key + equals + ",".join(options.get(part.strip(), part) for part in value.split(",")) if options else override
    )


def rename_in_config(config: Any) -> None:
    """Replaces former names in a recorded configuration, in place."""
    if not isinstance(config, dict):
        return
    for group, names in FIELDS.items():
        section = config.get(group)
        if isinstance(section, dict):
            for old in names.keys() & section.keys():
                section.setdefault(names[old], section.pop(old))
    for group, options in OPTIONS.items():
        section = config.get(group)
        if isinstance(section, dict) and isinstance(name := section.get("name"), str):
            section["name"] = options.get(name, name)


def current_fields(values: Mapping[str, T]) -> dict[str, T]:
    """Return values by dotted field, as in a baseline's rows, under the current names."""
    renamed = {f"{group}.{old}": f"{group}.{new}" for group, names in FIELDS.items() for old, new in names.items()}
    return {renamed.get(key, key): value for key, value in values.items()}


def current_metrics(values: Mapping[str, T]) -> dict[str, T]:
    """Return values by metric under the current names."""
    return {METRICS.get(name, name): value for name, value in values.items()}
