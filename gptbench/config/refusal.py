"""Checks that a composed configuration builds, imports and runs nothing unknown, and holds no secret."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import Container, DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from gptbench.base.address import unusable_address
from gptbench.base.errors import ConfigError
from gptbench.base.inputs import require_bounded_yaml
from gptbench.base.redaction import HIDDEN, redacted
from gptbench.config import MOVED_TARGETS, Section
from gptbench.config.shapes import LAUNCHERS, LOGGING, NAME, RESERVED, SWEEPERS, check_plugin, check_shape, settings

AnySection = TypeVar("AnySection", bound=Section)

VARIABLES = ("HOME", "USER", "TMPDIR")
PREFIX = "GPTBENCH_"
"""Environment variables that a configuration may refer to: `VARIABLES`, and those that begin with `PREFIX`. Others may
hold secrets."""

FOLDERS = ("outputs", "engine.tile_cache", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
"""Fields that are used as names of folders."""


def environment_variable(name: str, *default: Any) -> Any:
    """OmegaConf's `oc.env`, limited to a few variables. Raises ConfigError for any other."""
    if name not in VARIABLES and not str(name).startswith(PREFIX):
        expected = f"an environment variable that begins with {PREFIX}, or one of {', '.join(VARIABLES)}"
        raise ConfigError("oc.env", name, expected)
    return oc.env(name, *default)


def created(value: Any, _parent_: Any) -> Any:
    """OmegaConf's `oc.create`, limited to YAML of a bounded size. Raises InputError if it is larger."""
    if isinstance(value, str):
        require_bounded_yaml(value, "oc.create")
    return oc.create(value, _parent_)


# At import, so that a process that only unpickles a loader or a job (a worker on another machine) has them, too.
OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)
OmegaConf.register_new_resolver("oc.create", created, replace=True)


def check(composed: DictConfig) -> None:
    """Checks that a configuration builds, imports and runs only what gptbench lists, and holds no secret.

    Interpolations in launcher, sweeper and the job's name are replaced by their values, so that what was checked is
    what Hydra uses.

    Raises:
        ConfigError: with field, value and choices.
    """
    for name, value in walk(composed, {}):
        check_value(name, value)
    given = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(given, dict)
    hydra = settings("hydra", given.get("hydra"))
    job = settings("hydra.job", hydra.get("job"))
    check_shape("hydra.sweep", settings("hydra.sweep", hydra.get("sweep")), {"dir": None, "subdir": None})
    for name, value in (
        ("hydra.callbacks", hydra.get("callbacks")),
        ("hydra.job.env_copy", job.get("env_copy")),  # before env_set, into which Hydra copies it
        ("hydra.job.env_set", job.get("env_set")),
    ):
        if value:
            raise ConfigError(
                name,
                sorted(value) if isinstance(value, dict) else value,
                "nothing, as it may run code or expose secrets",
            )
    for name in ("job_logging", "hydra_logging"):
        check_shape(f"hydra.{name}", hydra.get(name), LOGGING)
    check_shape("hydra.job.name", frozen(composed.hydra.job, "name", "hydra.job.name"), NAME)
    for name, known in (("launcher", LAUNCHERS), ("sweeper", SWEEPERS)):
        if not OmegaConf.is_missing(composed.hydra, name):
            check_plugin(f"hydra.{name}", frozen(composed.hydra, name, f"hydra.{name}"), known)


def walk(node: DictConfig | ListConfig, seen: dict[int, Container], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted name and resolved value of everything below a node; the interpolation if it cannot be resolved yet.

    Args:
        seen: nodes that interpolations have led to so far, by their id.

    Raises:
        ConfigError: an interpolation refers to an environment variable that is not allowed.
    """
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in sorted(keys, key=lambda key: key == "hydra"):  # last, as it repeats all overrides
        name = f"{path}.{key}" if path else str(key)
        value = resolved(node, key, name)
        yield name, value
        if isinstance(value, dict | list):  # returned by a resolver
            value = OmegaConf.create(value)
        if not isinstance(value, DictConfig | ListConfig):
            continue
        if OmegaConf.is_interpolation(node, key):
            if id(value) in seen:  # interpolations can form a cycle
                continue
            seen[id(value)] = value
        yield from walk(value, seen, name)


def resolved(node: Any, key: Any, name: str) -> Any:
    """Return the value of a key, or its interpolation if that cannot be resolved yet. Raises ConfigError as `walk`
    does."""
    try:
        return node[key]
    except OmegaConfBaseException as error:
        given = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ConfigError):
                raise ConfigError(name, given, cause.expected) from None
            cause = cause.__cause__ or cause.__context__  # OmegaConf hides the cause
        return given


def frozen(node: DictConfig, key: str, name: str) -> Any:
    """Return the value of a key as plain data, and store it in place of its interpolations.

    Raises:
        ConfigError: an interpolation cannot be resolved.
    """
    try:
        value = node[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(name, str(error).splitlines()[0], "values that are known before a job starts") from None
    with flag_override(node, ["struct", "readonly"], False):
        node[key] = value
    return value


def check_value(name: str, value: Any) -> None:
    """Raises ConfigError if a key of the tree has a value that is not allowed.

    Args:
        name: dotted name of the key.
    """
    key = name.rpartition(".")[2]
    if key in RESERVED and name not in ("hydra.launcher._target_", "hydra.sweeper._target_"):  # see `check_plugin`
        allowed = targets().get(name.removesuffix("._target_"), ())
        is_missing = allowed and value == "???"  # which `load` rejects
        if MOVED_TARGETS.get(str(value), value) not in allowed and not is_missing:
            raise ConfigError(name, value, allowed or "no such key: only gptbench's groups name classes to build")
    if name in FOLDERS and redacted(value) != value:
        raise ConfigError(name, redacted(value), "a folder without a password or token in its name, as it is recorded")
    is_address = name == "tracking.uri" and isinstance(value, str) and value and "${" not in value
    if is_address and (expected := unusable_address(value)) is not None:
        raise ConfigError(name, HIDDEN, expected)
    if name == "hydra.output_subdir":
        check_shape(name, value, NAME)
    if name == "hydra.sweep.subdir" and (Path(str(value)).is_absolute() or ".." in Path(str(value)).parts):
        raise ConfigError(name, value, "a folder below hydra.sweep.dir")
    if name in ("workload.prompt_file", "task.text_file") and value and may_be_a_process(value):  # the text is recorded
        raise ConfigError(name, value, "a known file outside of /proc, which exposes the environment")


def read_section(given: DictConfig, section: type[AnySection]) -> AnySection:
    """Return a section that comes from a file or a record instead of a command line; nothing in it is built.

    Raises:
        UserError: a value in it is not allowed.
        OmegaConfBaseException: it has an unknown field, or a field has an invalid value.
    """
    for name, value in walk(given, {}, section.GROUP):
        check_value(name, value)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), given))
    assert isinstance(config, section)
    return config


def may_be_a_process(file: str) -> bool:
    """Whether a file is, or through an interpolation could be, below /proc, where Linux exposes the memory of
    processes."""
    return "${" in file or Path(file).resolve().is_relative_to("/proc")


def targets() -> dict[str, tuple[str, ...]]:
    """Return the classes that `_target_` may name, by group."""
    listed: dict[str, tuple[str, ...]] = {}
    sections = [Section]
    while sections:
        section = sections.pop()
        sections += section.__subclasses__()
        listed[section.GROUP] = (*section.TARGETS, *listed.get(section.GROUP, ()))
    return listed
