"""Explains errors of OmegaConf in the form of `ConfigError`: field, value, choices."""

from dataclasses import fields, is_dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from gptbench.base.errors import UserError


def explain(error: Exception) -> str:
    """Return the message for an error raised while composing, in the form of `ConfigError`: field, value, choices."""
    cause: BaseException | None = error
    seen: list[BaseException] = []  # contexts can form a cycle
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__  # Hydra hides the cause of an error in a file
        cause = None if isinstance(error, UserError) or any(cause is earlier for earlier in seen) else cause
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        return unresolved(cause)
    if cause is None or not cause.full_key:
        return str(error).partition("\nConfig search path:")[0]
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and is_dataclass(cause.object_type):
        return no_such_field(cause.full_key, cause.object_type)
    return f"{cause.full_key}: {str(cause.msg).splitlines()[0]}"


def unresolved(error: OmegaConfBaseException) -> str:
    """Return the message for an interpolation that cannot be resolved."""
    why = str(error.msg or error).splitlines()[0]
    value = None
    if error.parent_node is not None and OmegaConf.is_config(error.parent_node) and error.key is not None:
        value = OmegaConf.to_container(cast(DictConfig, error.parent_node), resolve=False)[error.key]  # type: ignore[index]
    where = f"{error.full_key}={value}" if value is not None else error.full_key or str(error.value or "")
    hint = r"${ begins an interpolation; to use the characters themselves, write \${"
    return f"{where}: expected a value that can be resolved ({why}); {hint}"


def no_such_field(path: str, schema: Any) -> str:
    """Return the message for a key that is not a field of a dataclass."""
    return f"{path}: no such field; the fields are {', '.join(entry.name for entry in fields(schema))}"
