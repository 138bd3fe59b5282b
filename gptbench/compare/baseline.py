"""Recorded targets of a device, to be shown beside measurements.

A run belongs to a row of a baseline if both measured the same thing, however it was requested. `measurement_of` gives
what was measured, as plain values by dotted field. A later gptbench may have fields that a row lacks: a run belongs to
the row if these have their defaults, which is what the row was measured with.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from gptbench.base.errors import ConfigError, InputError, UserError
from gptbench.base.inputs import read_yaml, yaml_fault
from gptbench.base.paths import conf_folder
from gptbench.config import MOVED_TARGETS, BaselineConfig, Section, explain, shipped
from gptbench.config.refusal import read_section
from gptbench.config.renamed import current_fields
from gptbench.schema import Result
from gptbench.schema.identity import IDENTITY_SECTIONS, measurement_of
from gptbench.schema.labels import shortened
from gptbench.schema.metrics import metric_of


class Baseline:
    """Targets by model, format of weights and metric, and the rows of recorded runs.

    Attributes:
        config: the baseline's fields.
        device: name of the device that it was recorded on.
        rows: what each row measured, by the row's name, in terms of the current version.
    """

    def __init__(self, config: BaselineConfig) -> None:
        self.config, self.device = config, config.device
        self.rows = {name: upgraded(row.config) for name, row in config.rows.items()}

    def targets(self, result: Result) -> dict[str, float]:
        """Return the targets for what a result measured, by metric; empty if there are none.

        Published targets are for the models that gptbench ships and the workload gpt_fast: a result with another depth,
        prompt, length or batch has none of them.
        """
        return self.published(result) | self.recorded(result)

    def published(self, result: Result) -> dict[str, float]:
        """Return the published targets of a result's model and format of weights."""
        model = result.config["model"]["name"]
        if not (is_shipped(result, "model", model) and is_shipped(result, "workload", "gpt_fast", COUNTS)):
            return {}
        if result.prompts or result.prompt != shipped("workload", "gpt_fast")["prompt"]:
            return {}
        return self.config.targets.get(f"{model}/{result.weights}", {})

    def recorded(self, result: Result) -> dict[str, float]:
        """Return the values of the row that a result belongs to, except those by an outdated definition."""
        name = self.row_of(result)
        metrics = {} if name is None else self.config.rows[name].metrics
        return {metric: entry.value for metric, entry in metrics.items() if not is_outdated(self.config, metric)}

    def row_of(self, result: Result) -> str | None:
        """Return the name of the row that a result belongs to, or None."""
        if not self.config.rows:
            return None
        values = upgraded(measurement_of(result))
        return next((name for name, row in self.rows.items() if belongs(values, row)), None)


POOLED_SINCE = 2
"""Schema version since which percentiles are taken over pooled steps."""


def is_outdated(config: BaselineConfig, metric: str) -> bool:
    """Return whether a baseline has a metric by an earlier definition than gptbench's current one."""
    return config.schema_version < POOLED_SINCE and metric_of(metric).share is not None


COUNTS = ("new_tokens", "batch_size")
"""Fields of a workload that a published target depends on, apart from the prompt."""


def is_shipped(result: Result, group: str, name: str, keys: tuple[str, ...] | None = None) -> bool:
    """Return whether a result's configuration group equals the option of that name that gptbench ships.

    Args:
        keys: fields to compare; None compares all.
    """
    values = shipped(group, name)
    return bool(values) and all(result.config[group].get(key) == values[key] for key in keys or values)


def belongs(values: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return whether a result's values and a row's, both in terms of the current version, are the same measurement."""
    return all(value_or_default(values, key) == value_or_default(row, key) for key in values | row)


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return recorded values in terms of the current version: see `gptbench.schema.record.upgrade_config`."""
    values = current_fields(values)
    now = values | {
        group: MOVED_TARGETS.get(str(values[group]), values[group]) for group in IDENTITY_SECTIONS if group in values
    }
    if not now.get("model.head_dim"):
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            now["model.head_dim"] = now["model.dim"] // now["model.n_heads"]
    return now


def value_or_default(values: dict[str, Any], key: str) -> Any:
    """Return a field's value, or its default if the values are of a version that did not have the field."""
    return values[key] if key in values else default_of(values, key)


def default_of(values: dict[str, Any], key: str) -> Any:
    """Return the default of a dotted field as plain data, by the dataclass of its section; None if there is none."""
    group, _, name = key.partition(".")
    for section in sections(Section):
        if values.get(group) in section.TARGETS:
            for entry in fields(section):
                if entry.name == name:
                    value = entry.default if entry.default_factory is MISSING else entry.default_factory()
                    return getattr(value, "value", value)  # an Enum's value
    return None


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """Yield all dataclasses of sections, derived ones before their bases."""
    for inner in section.__subclasses__():
        yield from sections(inner)
        yield inner


MAX_CHARACTERS = 200
"""Length to which an error about a file is shortened: it may be any file, and the error quotes its content."""


def read_baseline(name: str) -> BaselineConfig:
    """Return a baseline.

    Args:
        name: path of a baseline's file, or the name of a baseline that gptbench ships.

    Raises:
        UserError: there is no such baseline, or the file is not one.
    """
    file = Path(name)
    if not file.exists() or file.is_dir():
        options = {path.stem: path for path in sorted((conf_folder() / "baseline").glob("*.yaml"))}
        if name not in options:
            raise UserError(f"{name}: no such file; expected a baseline's file, or one of {', '.join(options)}")
        file = options[name]
    try:
        return parse_baseline(read_yaml(file))
    except InputError:  # its message names the file
        raise
    except (OSError, ValueError) as error:  # includes UserError
        raise UserError(f"{file}: {shortened(str(error), MAX_CHARACTERS)}") from error


def parse_baseline(text: str) -> BaselineConfig:
    """Return the baseline in a file's text. No object in it is instantiated, and it may refer to nothing outside of it
    that the guard does not allow.

    Raises:
        UserError: the text is not a baseline.
    """
    try:
        content = OmegaConf.create(text)
        if not isinstance(content, DictConfig):
            raise UserError("not a baseline: expected fields and values")
        config = read_section(content, BaselineConfig)
    except YAMLError as error:
        raise UserError(f"not a baseline: {yaml_fault(error)}") from error
    except OmegaConfBaseException as error:
        # Chaining would print the cause in place of this message: see `explain`.
        raise UserError(f"not a baseline: {explain(error)}") from None
    for row in config.rows:
        place, overrides = f"baseline.rows.{row}.overrides", config.rows[row].overrides
        check_overrides(place, overrides)
        for override in overrides:
            if section_of(override) in NOT_MEASURED:  # a file must not decide where its runs write to
                raise ConfigError(place, override, f"none of {', '.join(NOT_MEASURED)}, which --set can give")
    return config


NOT_MEASURED = ("tracking", "outputs", "baseline", "sweep", "isolation", "quiet", "commit", "hydra")
"""Groups and fields of a command line that change no number: where records go, what they are compared with, and how
jobs are run."""


def section_of(override: str) -> str:
    """Return the section that an override is about: `engine` for `+engine.autotune=true` and for `engine=fused`."""
    return re.split(r"[=./@]", override.lstrip("+~"), maxsplit=1)[0]


def check_overrides(place: str, overrides: list[str]) -> None:
    """Raise ConfigError for anything but overrides of a single run: a file must not choose another command."""
    left = list(overrides)
    if left[:1] == ["--config-dir"]:
        del left[:2]
    for override in left:
        key, separator, _ = override.partition("=")
        if not separator or key.startswith("-"):
            raise ConfigError(place, override, "overrides such as model=demo, and --config-dir FOLDER before them")
