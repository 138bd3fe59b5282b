"""Recorded targets of some device, to be shown beside what was measured.

A run belongs to a row of a baseline if both measured the same, however it was asked for. `measurement_of` tells what
that is, as plain values by dotted field. A later gptbench may have fields that a row does not know: a run still belongs
to the row where these have their default, which is what the row was measured with.
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
    """Targets by model, type of weights and metric.

    Attributes:
        device: what they were recorded on.
        rows: what each row measured, by its name, as it is recorded now.
    """

    def __init__(self, config: BaselineConfig) -> None:
        self.config, self.device = config, config.device
        self.rows = {name: upgraded(row.config) for name, row in config.rows.items()}

    def targets(self, result: Result) -> dict[str, float]:
        """Metric to target for what a result measured; empty where there are none.

        Those of `targets` are for the shapes that gptbench ships and the seed's workload: a result with another depth,
        prompt, length or batch has none of them.
        """
        return self.published(result) | self.recorded(result)

    def published(self, result: Result) -> dict[str, float]:
        """Those of the model and its weights."""
        model = result.config["model"]["name"]
        if not (is_shipped(result, "model", model) and is_shipped(result, "workload", "gpt_fast", COUNTS)):
            return {}
        if result.prompts or result.prompt != shipped("workload", "gpt_fast")["prompt"]:
            return {}
        return self.config.targets.get(f"{model}/{result.weights}", {})

    def recorded(self, result: Result) -> dict[str, float]:
        """Those of the row that it belongs to, as far as they are by today's definitions."""
        name = self.row_of(result)
        found = {} if name is None else self.config.rows[name].metrics
        return {metric: each.value for metric, each in found.items() if not is_outdated(self.config, metric)}

    def row_of(self, result: Result) -> str | None:
        """Name of the row that it belongs to, or None."""
        if not self.config.rows:
            return None
        values = upgraded(measurement_of(result))
        return next((name for name, row in self.rows.items() if belongs(values, row)), None)


POOLED_SINCE = 2
"""Schema version from which on percentiles are of pooled steps."""


def is_outdated(config: BaselineConfig, metric: str) -> bool:
    """Whether a baseline has a metric by another definition than gptbench's."""
    return config.schema_version < POOLED_SINCE and metric_of(metric).share is not None


COUNTS = ("new_tokens", "batch_size")
"""Of a workload, what a target depends on beside the prompt."""


def is_shipped(result: Result, group: str, name: str, keys: tuple[str, ...] | None = None) -> bool:
    """Whether a group of a result has the values of the option that gptbench ships under that name."""
    values = shipped(group, name)
    return bool(values) and all(result.config[group].get(key) == values[key] for key in keys or values)


def belongs(values: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a result that measured these values is of the row that measured those, both as they are recorded now."""
    return all(told(values, key) == told(row, key) for key in values | row)


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The same as it is recorded now: see `gptbench.schema.record.upgrade_config`."""
    values = current_fields(values)
    now = values | {
        group: MOVED_TARGETS.get(str(values[group]), values[group]) for group in IDENTITY_SECTIONS if group in values
    }
    if not now.get("model.head_dim"):
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            now["model.head_dim"] = now["model.dim"] // now["model.n_heads"]
    return now


def told(values: dict[str, Any], key: str) -> Any:
    """Of a field; its default where the values are of a version that did not have it."""
    return values[key] if key in values else default_of(values, key)


def default_of(values: dict[str, Any], key: str) -> Any:
    """Of a field, as plain data: that of the dataclass for its section's class; None where there is none."""
    group, _, name = key.partition(".")
    for section in sections(Section):
        if values.get(group) in section.TARGETS:
            for entry in fields(section):
                if entry.name == name:
                    value = entry.default if entry.default_factory is MISSING else entry.default_factory()
                    return getattr(value, "value", value)  # of an Enum
    return None


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """All dataclasses of sections, those that are made of others first."""
    for inner in section.__subclasses__():
        yield from sections(inner)
        yield inner


MAX_CHARACTERS = 200
"""Of what is wrong with a file: it may be any file, and its errors hold what is in it."""


def read_baseline(which: str) -> BaselineConfig:
    """A baseline.

    Args:
        which: its file, or the name of one that gptbench ships.

    Raises:
        UserError: there is none, or it is not a baseline.
    """
    file = Path(which)
    if not file.exists() or file.is_dir():
        options = {path.stem: path for path in sorted((conf_folder() / "baseline").glob("*.yaml"))}
        if which not in options:
            raise UserError(f"{which}: no such file; expected a baseline's, or one of {', '.join(options)}")
        file = options[which]
    try:
        return parse_baseline(read_yaml(file))
    except InputError:  # it names the file
        raise
    except (OSError, ValueError) as error:  # a UserError, too
        raise UserError(f"{file}: {shortened(str(error), MAX_CHARACTERS)}") from error


def parse_baseline(text: str) -> BaselineConfig:
    """The same of a file's text. Nothing in it is built, and it may refer to nothing outside of it but what the guard
    allows.

    Raises:
        UserError: it is not a baseline.
    """
    try:
        given = OmegaConf.create(text)
        if not isinstance(given, DictConfig):
            raise UserError("not a baseline: expected fields and values")
        config = read_section(given, BaselineConfig)
    except YAMLError as error:
        raise UserError(f"not a baseline: {yaml_fault(error)}") from error
    except OmegaConfBaseException as error:
        # Its cause would be told in its place: see `explain`.
        raise UserError(f"not a baseline: {explain(error)}") from None
    for row in config.rows:
        place, overrides = f"baseline.rows.{row}.overrides", config.rows[row].overrides
        check_overrides(place, overrides)
        for override in overrides:
            if section_of(override) in NOT_MEASURED:  # a file must not say where its runs write to
                raise ConfigError(place, override, f"nothing of {', '.join(NOT_MEASURED)}, which --set can give")
    return config


NOT_MEASURED = ("tracking", "outputs", "baseline", "sweep", "isolation", "quiet", "commit", "hydra")
"""What of a command line changes no number: where records go, what they are compared with, and how jobs are run."""


def section_of(override: str) -> str:
    """`engine` of `+engine.autotune=true`, and of `engine=fused`."""
    return re.split(r"[=./@]", override.lstrip("+~"), maxsplit=1)[0]


def check_overrides(place: str, overrides: list[str]) -> None:
    """Raises ConfigError for anything that is no override of a single run: a file must not choose another command."""
    left = list(overrides)
    if left[:1] == ["--config-dir"]:
        del left[:2]
    for override in left:
        key, separator, _ = override.partition("=")
        if not separator or key.startswith("-"):
            raise ConfigError(place, override, "overrides such as model=demo, and --config-dir FOLDER before them")
