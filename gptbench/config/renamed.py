"""Names that were changed: what an earlier version called a field, an option or a metric. They are taken for one
version, on the command line with a warning, and in records, baselines and MLflow for good."""

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

OPTIONS = {"workload": {"seed": "gpt_fast"}, "engine": {"inductor_seed": "gpt_fast"}}
"""By group: options."""
FIELDS = {"engine": {"overlap": "pdl", "tune": "autotune", "tiles": "tile_cache"}}
"""By group: fields."""
METRICS = {
    "seed_tokens_per_s": "gptfast_tokens_per_s",
    "seed_gb_per_s": "gptfast_gb_per_s",
    "seed_compile_s": "gptfast_compile_s",
    "seed_flops_utilisation": "gptfast_flops_utilisation",
}
"""Recorded metrics."""
RECORDED = {
    "Traffic": {"positions_filled": "kv_len"},
    "Compilation": {"costs_s": "stage_s", "stages_s": "torch_stage_s"},
}
"""By dataclass: recorded fields."""


def current_override(override: str) -> str:
    """An override under the names of this version: `engine.tune=true` becomes `engine.autotune=true`, and
    `workload=seed` becomes `workload=gpt_fast`, in a list of a sweep's values, too."""
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
    """Gives a recorded configuration, in place, the names of this version."""
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
    """Values by dotted field under the names of this version, such as a baseline's rows have."""
    renamed = {f"{group}.{old}": f"{group}.{new}" for group, names in FIELDS.items() for old, new in names.items()}
    return {renamed.get(key, key): value for key, value in values.items()}


def current_metrics(values: Mapping[str, T]) -> dict[str, T]:
    """Values by metric under the names of this version."""
    return {METRICS.get(name, name): value for name, value in values.items()}
