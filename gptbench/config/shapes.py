"""The settings that launchers, sweepers and logging may have: those that run no code."""

import re
from typing import Any, NamedTuple

from gptbench.base.errors import ConfigError
from gptbench.private.hydra import BASIC_LAUNCHER

RESERVED = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Keys that have a meaning for Hydra's `instantiate`."""


class Text(NamedTuple):
    """The strings that a setting may hold."""

    pattern: str
    """Regular expression that the whole string must match."""
    expected: str
    """Description of the allowed strings, for an error message."""


Shape = Text | dict[str, Any] | None
"""Shape of a setting: a `Text` (one string or a list of them; numbers are always allowed), a dict of keys and their
shapes, in which `*` is any other key, or None for any value."""

NAME = Text(r"\.?\w[\w.+-]*", "a name of letters, digits, dot, plus, dash and underscore")
PLAIN = Text(r"[\w ./%:,|&=+@\[\]()*-]*", "text on one line without quotes, $, ;, <, > and the like")
"""Text that can end neither a line of an sbatch script nor a word in a shell."""
FREE = Text(r"(?s)(?!.*(://|\$\{)).*", "text without an interpolation or a URI")
"""Text that makes logging import nothing, as values that begin with `ext://` or `cfg://` do."""

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
"""The part of `logging.config.dictConfig` that builds only logging's plain classes; Hydra's options need no more."""

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
    BASIC_LAUNCHER: {},
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": {
        "ray": {
            "init": dict.fromkeys(RAY_INIT, PLAIN),
            "remote": dict.fromkeys(RAY_REMOTE, PLAIN) | {"resources": {"*": PLAIN}},
        }
    },
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": dict.fromkeys(QUEUE, PLAIN),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": dict.fromkeys(QUEUE + SLURM, PLAIN),
}
"""Classes of launchers, mapped to what may be set; their other settings (`setup`, `runtime_env`) are commands or
code."""

SWEEPERS: dict[str, Shape] = {"hydra_plugins.gptbench.Sweeper": {}}
"""Classes of sweepers, mapped to what may be set. Hydra's sweeper would run jobs without gptbench's plan."""


def check_plugin(name: str, value: Any, known: dict[str, Shape]) -> None:
    """Raises ConfigError if a launcher or sweeper is unknown, or has a setting that is not allowed.

    Args:
        name: dotted name of the section.
        known: classes, mapped to the shape of their settings.
    """
    given = dict(settings(name, value))
    target = given.pop("_target_", None)
    if target not in tuple(known):
        raise ConfigError(f"{name}._target_", target, known)
    check_shape(name, given, known[target])


def settings(name: str, value: Any) -> dict[str, Any]:
    """Return the value. Raises ConfigError if it is not a dict, such as an interpolation."""
    if not isinstance(value, dict):
        raise ConfigError(name, value, "settings by name")
    return value


def check_shape(name: str, value: Any, shape: Shape) -> None:
    """Raises ConfigError for a value that does not have the shape; an empty value has every shape."""
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
