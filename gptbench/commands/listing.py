"""`gptbench list`: tables of what can be chosen, from the configuration's groups and the registries."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gptbench.architecture.size import size_of
from gptbench.base.inputs import read_yaml
from gptbench.base.paths import conf_folder
from gptbench.commands import parsers
from gptbench.config import ENGINES, EngineConfig, ModelConfig, QuantConfig
from gptbench.config.guard import require_folder
from gptbench.config.quant import INT8
from gptbench.config.registration import ADDED, register
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, Cell, Column, Table, write
from gptbench.schema.labels import flat
from gptbench.schema.metrics import METRICS, View

OF_PLUGIN = "from a plugin"
"""Note of an option that a plugin registered."""
PACKAGE = "# @package"
"""Beginning of a comment that is meant for Hydra, not for people."""


def list_command(arguments: list[str]) -> int:
    """`gptbench list`: prints a table, or an overview of all tables if none is named. Returns the exit code.

    Raises:
        UserError: the folder of configurations does not exist, or one of its files cannot be read.
    """
    options = parsers.listing().parse_args(arguments)
    if options.config_dir is not None:
        require_folder(options.config_dir)
    register()
    folder = None if options.config_dir is None else Path(options.config_dir)
    table = overview(folder) if options.what is None else TABLES[options.what](folder)
    write([table], options.format)
    if options.format == TEXT:
        if table.name == "list":
            console.print("gptbench list NAME shows one of these lists in full", style="dim")
        first = table.keys[0]
        write_line({table.name: [row[first] for row in table.records()]})
    return 0


class Option:
    """One option of a group, from its YAML file or from a plugin's section.

    Attributes:
        name: name with which `GROUP=NAME` selects it.
        values: values in the file, without `defaults`.
        defaults: Hydra's `defaults` list of the file.
        note: comment at the beginning of the file, in one line; empty if it has none.
    """

    def __init__(self, name: str, values: dict[str, Any], note: str = "") -> None:
        self.name, self.note = name, note
        self.defaults: list[Any] = values.pop("defaults", [])
        self.values = values


def options_of(group: str, folder: Path | None) -> list[Option]:
    """Return all options of a group: shipped ones, those in the user's folder, and those of plugins."""
    files = [
        file
        for place in (conf_folder(), *([folder] if folder is not None else []))
        for file in sorted((place / group).glob("*.yaml"))
    ]
    found = {file.stem: option_of(file) for file in files}
    for name in sorted(name for added_group, name in ADDED if added_group == group):
        node = ConfigStore.instance().load(f"{group}/{name}.yaml").node
        section = node if OmegaConf.is_config(node) else OmegaConf.structured(node)
        found[name] = Option(name, plain(section), OF_PLUGIN)
    return list(found.values())


def option_of(file: Path) -> Option:
    """Return the option in a YAML file, with the comment at its beginning."""
    text = read_yaml(file)
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    note = " ".join(line.removeprefix("#").strip() for line in lines if not line.startswith(PACKAGE))
    return Option(file.stem, plain(OmegaConf.create(text)), note)


def plain(node: Any) -> dict[str, Any]:
    """Return a node's values as plain data, with interpolations unresolved."""
    values = OmegaConf.to_container(node, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def overview(folder: Path | None) -> Table:
    """Return a table of all lists, with the names in each."""
    rows: list[list[Any]] = []
    for what, group in GROUPS.items():
        names = [option.name for option in options_of(group, folder)]
        rows.append([what, len(names), Cell(shortened(", ".join(names)), names)])
    rows.append(["metrics", len(METRICS), Cell(shortened(", ".join(METRICS)), list(METRICS))])
    columns = [
        Column("list", "gptbench list …"),
        Column("count", "", True),
        Column("names", "what there is", wraps=True),
    ]
    return Table("list", columns, rows)


MAX_NAMES = 100
"""Largest number of characters of the names in one row of the overview."""


def shortened(text: str) -> str:
    """Return a list of names, cut to `MAX_NAMES` characters between two names."""
    return text if len(text) <= MAX_NAMES else f"{text[:MAX_NAMES].rpartition(', ')[0]}, …"


def models(folder: Path | None) -> Table:
    """Return a table of all models with their sizes; a model whose shape comes from a checkpoint has none."""
    columns = [
        Column("model", "model"),
        Column("parameters", "parameters", True),
        Column("active_parameters", "active", True),
        Column("layers", "layers", True),
        Column("context", "context", True),
        Column("bf16_bytes", "bf16 (GB)", True),
        Column("int8_bytes", "int8 (GB)", True),
        Column("note", "note", wraps=True),
    ]
    rows: list[list[Any]] = []
    for option in options_of("model", folder):
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), option.values)
        if OmegaConf.missing_keys(merged):
            rows.append([option.name, *[None] * 6, option.note or None])
            continue
        model = OmegaConf.to_object(merged)
        assert isinstance(model, ModelConfig)
        shape = (model.layer_specs, model.dim, model.vocab_size, model.tied)
        size, active = size_of(*shape), size_of(*shape, active=True).parameters
        fits = QuantConfig.LIMITS[INT8].unsupported_reason(widths(model)) is None
        rows.append(
            [
                option.name,
                Cell(millions(size.parameters), size.parameters),
                Cell(millions(active) if active != size.parameters else "", active),
                model.n_layers,
                model.context,
                Cell(f"{size.bf16_bytes / 1e9:.4g}", size.bf16_bytes),
                Cell(f"{size.int8_bytes / 1e9:.4g}", size.int8_bytes) if fits else None,
                option.note or None,
            ]
        )
    notes = ["active: parameters that each token uses in a mixture of experts"]
    return Table("models", columns, rows, "model=NAME", notes)


def widths(model: ModelConfig) -> list[tuple[str, int]]:
    """Return the widths that are the numbers of columns of a model's matrices, with their names."""
    attended = model.n_heads * model.head_dim
    return [("dim", model.dim), ("ffn_dim", model.ffn_dim), ("n_heads·head_dim", attended)]


def millions(count: int) -> str:
    """Return a number of parameters for people: 6.74 B, 15.2 M."""
    return f"{count / 1e9:.4g} B" if count >= 1e9 else f"{count / 1e6:.4g} M"


def engines(folder: Path | None) -> Table:
    """Return a table of all engines, and whether each runs the default workload on the default device."""
    from gptbench.commands.engines import lacking  # imports torch, as some engines ask it for devices

    found = options_of("engine", folder)
    sections = {option.name: section_of(option, found) for option in found}
    missing = lacking({name: section for name, section in sections.items() if section is not None})
    columns = [
        Column("engine", "engine"),
        Column("runs_here", "runs here"),
        Column("needs", "what it needs", wraps=True),
        Column("description", "what it is", wraps=True),
    ]
    rows: list[list[Any]] = []
    for option in found:
        needs, section = missing.get(option.name), sections[option.name]
        note = option.note if option.note != OF_PLUGIN or section is None else ""
        description = note or first_sentence(section.__doc__ if section is not None else "")
        rows.append([option.name, option.name in missing and needs is None, needs, description])
    return Table("engines", columns, rows, "engine=NAME")


def section_of(option: Option, others: list[Option]) -> type[EngineConfig] | None:
    """Return the class of an engine's section, by its target or by the option that its `defaults` begin with."""
    target = option.values.get("_target_")
    if target is None:
        first = next((default for default in option.defaults if isinstance(default, str) and "/" not in default), "")
        base = next((other for other in others if other.name == first and other is not option), None)
        return None if base is None else section_of(base, others)
    return next((section for section in ENGINES.values() if target in section.TARGETS), None)


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring, in one line."""
    return " ".join((text or "").split()).partition(". ")[0].removesuffix(".")


def quants(folder: Path | None) -> Table:
    """Return a table of all weight formats, and what each requires."""
    columns = [
        Column("quant", "quant"),
        Column("bits_per_weight", "bits per weight", True),
        Column("multiple", "columns are a multiple of", True),
        Column("float16", "float16"),
        Column("fused", "engine=fused"),
        Column("note", "note", wraps=True),
    ]
    rows: list[list[Any]] = []
    for option in options_of("quant", folder):
        limits = QuantConfig.LIMITS.get(str(option.values.get("_target_")))
        if limits is None:
            rows.append([option.name, *[None] * 4, option.note or None])
            continue
        requirements = [limits.multiple, limits.float16 is None, limits.fused]
        rows.append([option.name, limits.bits, *requirements, option.note or None])
    notes = ["bits per weight: scales included, in a matrix of 4096 columns of a model with 16-bit activations"]
    return Table("quants", columns, rows, "quant=NAME", notes)


def experiments(folder: Path | None) -> Table:
    """Return a table of all experiments, and the overrides that each stands for."""
    rows: list[list[Any]] = []
    for option in options_of("experiment", folder):
        chosen = [
            f"{key.removeprefix('override ').removeprefix('/')}={value}"
            for default in option.defaults
            if isinstance(default, dict)
            for key, value in default.items()
        ]
        chosen += [f"{key}={value}" for key, value in flat(option.values)]
        rows.append([option.name, Cell(" ".join(chosen), chosen)])
    columns = [Column("experiment", "experiment"), Column("overrides", "the same as", wraps=True)]
    return Table("experiments", columns, rows, "experiment=NAME")


def metrics(_: Path | None) -> Table:
    """Return a table of all metrics and their meanings."""
    columns = [
        Column("metric", "metric"),
        Column("label", "shown as"),
        Column("unit", "unit"),
        Column("better", "better"),
        Column("meaning", "meaning", wraps=True),
    ]
    rows = [
        [
            name,
            metric.label if View.kernels not in metric.views else f"{metric.heading} (task=kernels)",
            metric.unit,
            metric.direction.name if metric.direction.name != "neither" else None,
            metric.meaning,
        ]
        for name, metric in METRICS.items()
    ]
    notes = ["Records, CSV and JSON have the metric in the unit that its name ends in; tables show it in `unit`."]
    return Table("metrics", columns, rows, "", notes)


def options_table(what: str, group: str) -> Callable[[Path | None], Table]:
    """Return a function that returns the table of a group: its options and their values."""

    def table(folder: Path | None) -> Table:
        rows = []
        for option in options_of(group, folder):
            values = dict(flat({key: value for key, value in option.values.items() if key not in ("_target_", "name")}))
            text = ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)
            rows.append([option.name, Cell(shortened(text), values), option.note or None])
        return Table(
            what,
            [Column(group, group), Column("values", "values", wraps=True), Column("note", "note", wraps=True)],
            rows,
            f"{group}=NAME",
        )

    return table


GROUPS = {
    "models": "model",
    "engines": "engine",
    "quants": "quant",
    "experiments": "experiment",
    "samplings": "sampling",
    "workloads": "workload",
    "tasks": "task",
    "devices": "device",
    "baselines": "baseline",
    "sweeps": "sweep",
    "trackings": "tracking",
}
"""Names of lists, mapped to the group of the configuration whose options they show."""
TABLES: dict[str, Callable[[Path | None], Table]] = {
    **{what: options_table(what, group) for what, group in GROUPS.items()},
    "models": models,
    "engines": engines,
    "quants": quants,
    "experiments": experiments,
    "metrics": metrics,
}
"""Names of lists, mapped to the function that returns the table; its argument is the user's folder of
configurations."""
