"""Refuses a configuration that would run something, before Hydra acts on it.

Hydra builds callbacks, launchers, sweepers and log handlers from what it composed, imports the packages that a search
path names, and sets environment variables, all before our code sees the configuration. `install` puts a loader into its
place that checks whatever was composed, for one run and for each job of a sweep, on whatever machine, and gives it out
only then. Errors: `ConfigError`.

What is trusted all the same is what the user chose to run or to be in: Python's own path, installed packages, the
environment, and any server that an address names.
"""

import functools
import importlib.metadata
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra._internal import hydra as internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core import utils
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import Container, DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError  # type: ignore[import-untyped]

from gptbench.base.address import unusable_address
from gptbench.base.errors import ConfigError, InputError, UserError
from gptbench.base.inputs import read_yaml, require_bounded_yaml, yaml_fault
from gptbench.base.outputs import write_whole
from gptbench.base.redaction import HIDDEN, redacted, redacted_message
from gptbench.config import Config, Section

AnySection = TypeVar("AnySection", bound=Section)

VARIABLES = ("HOME", "USER", "TMPDIR")
PREFIX = "GPTBENCH_"
"""Environment variables that a configuration may hold: these, and those that begin so. Others can be secrets."""

RESERVED = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Keys that mean something to Hydra's `instantiate`."""

FOLDERS = ("outputs", "engine.tiles", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
"""Fields that become the names of folders."""

SEARCH_PATHS = ("pkg://hydra.conf", "structured://")
"""Hydra's own, which are in every search path. A plugin's are in `hydra_plugins`, which Hydra imports anyhow."""


class Text(NamedTuple):
    """What a string may be."""

    pattern: str
    """It must match as a whole."""
    expected: str


Shape = Text | dict[str, Any] | None
"""What settings may be: a text (or a list of such, or no string), or a dict of keys and shapes, `*` for any other key;
None is anything."""

NAME = Text(r"\.?\w[\w.+-]*", "a name of letters, digits, dot, plus, dash and underscore")
PLAIN = Text(r"[\w ./%:,|&=+@\[\]()*-]*", "text on one line without quotes, $, ;, <, > and the like")
"""Nothing that could end a line of an sbatch script, or a word of a shell."""
FREE = Text(r"(?s)(?!.*(://|\$\{)).*", "text without an interpolation or a URI")
"""logging takes `ext://` and `cfg://` before any value for something to be imported."""

LOGGER: Shape = {"level": FREE, "handlers": FREE, "propagate": FREE}
FORMATTER: Shape = {"format": FREE, "datefmt": FREE, "style": FREE, "validate": FREE}
HANDLER: Shape = {
    "class": Text(
        r"logging\.(Stream|File|Null)Handler", "logging.StreamHandler, logging.FileHandler or logging.NullHandler"
    ),
    "level": FREE,
    "formatter": FREE,
    "stream": Text(r"ext://sys\.(stdout|stderr)", "ext://sys.stdout or ext://sys.stderr"),
    "filename": Text(
        r"(\$\{hydra\.runtime\.output_dir\}/|hydra-)(\$\{hydra\.job\.name\}|[\w.-])+\.log",
        "${hydra.runtime.output_dir}/NAME.log",
    ),
    "mode": Text("[aw]", "a or w"),
    "delay": FREE,
}
LOGGING: Shape = {
    "version": FREE,
    "disable_existing_loggers": FREE,
    "formatters": {"*": FORMATTER},
    "handlers": {"*": HANDLER},
    "root": LOGGER,
    "loggers": {"*": LOGGER},
}
"""What of `logging.config.dictConfig` builds nothing but its own plain classes; Hydra's own options are like that."""

QUEUE = (
    *("submitit_folder", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
    "stderr_to_stdout",
)
SLURM = (
    *("partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu"),
    *("mem_per_cpu", "account", "signal_delay_s", "max_num_timeout", "array_parallelism"),
)
RAY_INIT = (
    *("address", "num_cpus", "num_gpus", "object_store_memory", "include_dashboard", "log_to_driver", "namespace"),
    *("ignore_reinit_error", "_temp_dir"),
)
RAY_REMOTE = ("num_cpus", "num_gpus", "memory", "max_calls", "max_retries", "scheduling_strategy")

LAUNCHERS: dict[str, Shape] = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": {},
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": {
        "ray": {
            "init": dict.fromkeys(RAY_INIT, PLAIN),
            "remote": dict.fromkeys(RAY_REMOTE, PLAIN) | {"resources": {"*": PLAIN}},
        }
    },
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": dict.fromkeys(QUEUE, PLAIN),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": dict.fromkeys(QUEUE + SLURM, PLAIN),
}
"""By class, what may be set; what else these take (`setup`, `runtime_env`) are commands or code."""

SWEEPERS: dict[str, Shape] = {"hydra_plugins.gptbench.Sweeper": {}}
"""Hydra's own would run jobs that nobody has planned."""


def install() -> None:
    """Puts the guard into Hydra's and OmegaConf's place; again, where it is there already.

    From then on a loader that Hydra makes raises ConfigError for what it must not compose.

    Raises:
        UserError: it does not, as another version of Hydra has another name for what is replaced.
    """
    internals.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined]
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)
    verify()


HOSTILE = ("+guard._target_=builtins.print", "+guard=${oc.env:PATH}")
"""What each alone has to be refused."""


@functools.cache
def verify() -> None:
    """Has Hydra compose, the way it does for a command line, what must be refused. Raises UserError if it is not."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        hydra = internals.Hydra.create_main_hydra2("guard", create_config_search_path(None))
        for override in HOSTILE:
            try:
                hydra.config_loader.load_configuration(None, [override], RunMode.RUN)
            except ConfigError as error:
                if error.field.startswith("guard"):
                    continue
            raise UserError(
                f"hydra-core {importlib.metadata.version('hydra-core')}: gptbench cannot guard it against "
                "configurations that run code: install a version that its requirements allow "
                "(pip install 'hydra-core>=1.3.8,<1.4')"
            )
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def check_arguments(arguments: list[str]) -> None:
    """Refuses options of Hydra's command line that unpickle a file or import a package.

    Raises:
        ConfigError: one of them is there.
        SystemExit: as Hydra's own parser does.
    """
    options, _ = get_args_parser().parse_known_args(arguments)  # Hydra's own: it knows abbreviations
    if (file := options.experimental_rerun) is not None:
        raise ConfigError("--experimental-rerun", file, "no such option: it unpickles the file, which runs its code")
    if (folder := options.config_path) is not None and not (Path(folder).is_absolute() and Path(folder).is_dir()):
        raise ConfigError("--config-path", folder, "the absolute path of a folder")
    if options.config_dir is not None:
        require_folder(options.config_dir)


def require_folder(config_dir: str) -> None:
    """Raises ConfigError for a folder of the user's own configurations that is not there."""
    if not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", config_dir, "a folder with configurations, such as model/mine.yaml in it")


def environment_variable(name: str, *default: Any) -> Any:
    """OmegaConf's own `oc.env`, of few variables. Raises ConfigError for any other."""
    if name not in VARIABLES and not str(name).startswith(PREFIX):
        expected = f"an environment variable that begins with {PREFIX}, or one of {', '.join(VARIABLES)}"
        raise ConfigError("oc.env", name, expected)
    return oc.env(name, *default)


def created(value: Any, _parent_: Any) -> Any:
    """OmegaConf's own `oc.create`, of YAML that is not too much to load. Raises InputError."""
    if isinstance(value, str):
        require_bounded_yaml(value, "oc.create")
    return oc.create(value, _parent_)


def save_config(config: DictConfig | ListConfig, filename: str, output_dir: Path) -> None:
    """Hydra's own `_save_config`, without secrets: it keeps overrides as they were typed."""
    without = OmegaConf.create(redacted(OmegaConf.to_container(config, resolve=False)))
    write_whole(output_dir / filename, OmegaConf.to_yaml(without))


def log_record(*args: Any, **options: Any) -> logging.LogRecord:
    """One of logging's own records, without secrets: Hydra logs the overrides of each job, and libraries what they ask
    a server for."""
    record = logging.LogRecord(*args, **options)
    try:
        record.msg, record.args = redacted_message(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redacted_message(logging.Formatter().formatException(record.exc_info))
    except Exception:  # arguments that do not fit the message, which logging tells of
        return record
    return record


# Also in a process that only unpickles a loader or a job, such as a worker on another machine.
OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)
OmegaConf.register_new_resolver("oc.create", created, replace=True)
utils._save_config = save_config  # type: ignore[assignment]
logging.setLogRecordFactory(log_record)


class GuardedRepository(ConfigRepository):
    """Hydra's sources of configurations: folders only."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        for element in config_search_path.get_path():
            scheme, separator, _ = str(element.path).partition("://")
            known = element.path in SEARCH_PATHS or str(element.path).startswith("pkg://hydra_plugins.")
            if separator and scheme != "file" and not known:
                raise ConfigError("hydra.searchpath", element.path, "folders: a package would be imported")
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":  # Hydra loads the class twice
            read_yaml(Path(source.path, source._normalize_file_name(config_path)))
        try:
            return super().load_config(config_path)
        except YAMLError as error:
            file = config_path if source is None else Path(source.path, source._normalize_file_name(config_path))
            raise InputError(f"{file}, {yaml_fault(error)}") from error


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader, which gives out nothing that `check` refuses."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.config_search_path = config_search_path
        self.repository = GuardedRepository(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        composed = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if config_name is not None and OmegaConf.get_type(composed) is not Config:
            raise ConfigError("--config-name", config_name, "a file whose defaults begin with schema, as config.yaml's")
        job = OmegaConf.to_container(composed.hydra.job, resolve=False)
        assert isinstance(job, dict)
        composed.hydra.job.override_dirname = redacted(
            job["override_dirname"]
        )  # the name of a folder can be made of it
        check(composed)
        return composed


def check(composed: DictConfig) -> None:
    """Refuses what would build, import or run anything that gptbench does not list, or hold a secret.

    Launcher, sweeper and the job's name lose their interpolations: what was checked is what is used.

    Raises:
        ConfigError: names field, value and choices.
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
        ("hydra.job.env_copy", job.get("env_copy")),  # before what Hydra copies it to
        ("hydra.job.env_set", job.get("env_set")),
    ):
        if value:
            raise ConfigError(name, sorted(value) if isinstance(value, dict) else value, "nothing")
    for name in ("job_logging", "hydra_logging"):
        check_shape(f"hydra.{name}", hydra.get(name), LOGGING)
    check_shape("hydra.job.name", frozen(composed.hydra.job, "name", "hydra.job.name"), NAME)
    for name, known in (("launcher", LAUNCHERS), ("sweeper", SWEEPERS)):
        if not OmegaConf.is_missing(composed.hydra, name):
            check_plugin(f"hydra.{name}", frozen(composed.hydra, name, f"hydra.{name}"), known)


def walk(node: DictConfig | ListConfig, seen: dict[int, Container], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and resolved value of everything below a node; of what cannot be resolved yet, the interpolation.

    Args:
        seen: nodes that interpolations have led to so far, by their id.

    Raises:
        ConfigError: an interpolation asks for an environment variable that it must not have.
    """
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in sorted(keys, key=lambda key: key == "hydra"):  # last, as it holds all overrides once more
        name = f"{path}.{key}" if path else str(key)
        value = resolved(node, key, name)
        yield name, value
        if isinstance(value, dict | list):  # made by a resolver
            value = OmegaConf.create(value)
        if not isinstance(value, DictConfig | ListConfig):
            continue
        if OmegaConf.is_interpolation(node, key):
            if id(value) in seen:  # it may lead back to a node that it is in
                continue
            seen[id(value)] = value
        yield from walk(value, seen, name)


def resolved(node: Any, key: Any, name: str) -> Any:
    """The value of a key; its interpolation where that cannot be resolved yet. Raises ConfigError as `walk` does."""
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
    """The value of a key as plain data, which takes the place of its interpolations.

    Raises:
        ConfigError: they cannot be resolved.
    """
    try:
        value = node[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(name, str(error).splitlines()[0], "values that are known before a job begins") from None
    with flag_override(node, ["struct", "readonly"], False):
        node[key] = value
    return value


def check_value(name: str, value: Any) -> None:
    """Of any key in the tree. Raises ConfigError."""
    key = name.rpartition(".")[2]
    if key in RESERVED and name not in ("hydra.launcher._target_", "hydra.sweeper._target_"):  # see `check_plugin`
        allowed = targets().get(name.removesuffix("._target_"), ())
        if value not in allowed and not (allowed and value == "???"):  # which `load` refuses
            raise ConfigError(name, value, allowed or "no such key: only sections of gptbench say what is built")
    if name in FOLDERS and redacted(value) != value:
        raise ConfigError(name, redacted(value), "a folder without a password or token in its name, which is recorded")
    is_address = name == "tracking.uri" and isinstance(value, str) and value and "${" not in value
    if is_address and (expected := unusable_address(value)) is not None:
        raise ConfigError(name, HIDDEN, expected)
    if name == "hydra.output_subdir":
        check_shape(name, value, NAME)
    if name == "hydra.sweep.subdir" and (Path(str(value)).is_absolute() or ".." in Path(str(value)).parts):
        raise ConfigError(name, value, "a folder below hydra.sweep.dir")
    if name in ("workload.prompt_file", "task.text_file") and value and may_be_a_process(value):  # it is recorded
        raise ConfigError(name, value, "a known file outside of /proc, which holds the environment")


def read_section(given: DictConfig, section: type[AnySection]) -> AnySection:
    """A section that no command line composed: of a file, or of a record. Nothing in it is built, and it may refer to
    nothing outside of it but what is allowed to any.

    Raises:
        UserError: something in it is refused.
        OmegaConfBaseException: it has a field that the section has not, or one holds what it cannot.
    """
    for name, value in walk(given, {}, section.GROUP):
        check_value(name, value)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), given))
    assert isinstance(config, section)
    return config


def may_be_a_process(file: str) -> bool:
    """Whether a file is, or could turn out to be, one in which Linux shows what a process has in memory."""
    return "${" in file or Path(file).resolve().is_relative_to("/proc")


def targets() -> dict[str, tuple[str, ...]]:
    """What `_target_` may name, by group."""
    listed: dict[str, tuple[str, ...]] = {}
    sections = [Section]
    while sections:
        section = sections.pop()
        sections += section.__subclasses__()
        listed[section.GROUP] = (*section.TARGETS, *listed.get(section.GROUP, ()))
    return listed


def check_plugin(name: str, value: Any, known: dict[str, Shape]) -> None:
    """Of a launcher or sweeper. Raises ConfigError."""
    given = dict(settings(name, value))
    target = given.pop("_target_", None)
    if target not in tuple(known):
        raise ConfigError(f"{name}._target_", target, known)
    check_shape(name, given, known[target])


def settings(name: str, value: Any) -> dict[str, Any]:
    """The same. Raises ConfigError if it is not a dict, such as an interpolation."""
    if not isinstance(value, dict):
        raise ConfigError(name, value, "settings, each by its name")
    return value


def check_shape(name: str, value: Any, shape: Shape) -> None:
    """Raises ConfigError for a value that has another shape; one that is empty has any."""
    if value in (None, "", {}, []):
        return
    if isinstance(value, list):
        for index, entry in enumerate(value):
            check_shape(f"{name}.{index}", entry, shape)
    elif isinstance(shape, Text):
        plain = isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(shape.pattern, value))
        if not plain:  # YAML can hold bytes and paths, too
            raise ConfigError(name, repr(value), shape.expected)
    elif isinstance(shape, dict) or isinstance(value, dict):
        for key, entry in settings(name, value).items():
            known = shape is None or key in shape or "*" in shape
            if key in RESERVED or (not known and entry not in (None, "", {}, [])):
                raise ConfigError(f"{name}.{key}", entry, sorted(shape) if shape else "no such key")
            if known:
                check_shape(f"{name}.{key}", entry, None if shape is None else shape.get(key, shape.get("*")))
