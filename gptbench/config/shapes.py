"""What launchers, sweepers and logging may be configured with: settings that run nothing."""

import re
from typing import Any, NamedTuple

from gptbench.base.errors import ConfigError
from gptbench.private.hydra import BASIC_LAUNCHER

RESERVED = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Keys that mean something to Hydra's `instantiate`."""


class Text(NamedTuple):
    """What a string may be."""

    pattern: str
    """It must match as a whole."""
    expected: str
    """In words, for an error."""


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
"""By class, what may be set; what else these take (`setup`, `runtime_env`) are commands or code."""

SWEEPERS: dict[str, Shape] = {"hydra_plugins.gptbench.Sweeper": {}}
"""Hydra's own would run jobs that nobody has planned."""


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
