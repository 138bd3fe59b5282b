"""What an error of OmegaConf means, in the words of `ConfigError`: field, value, choices."""

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
    """What a composing error means, in the words of `ConfigError`: field, value, choices."""
    cause: BaseException | None = error
    seen: list[BaseException] = []  # contexts can lead back to where they came from
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__  # Hydra hides the cause of what is wrong in a file
        cause = None if isinstance(error, UserError) or any(cause is each for each in seen) else cause
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        return unresolved(cause)
    if cause is None or not cause.full_key:
        return str(error).partition("\nConfig search path:")[0]
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and is_dataclass(cause.object_type):
        return no_such_field(cause.full_key, cause.object_type)
    return f"{cause.full_key}: {str(cause.msg).splitlines()[0]}"


def unresolved(error: OmegaConfBaseException) -> str:
    """Message for an interpolation that gives no value."""
    why = str(error.msg or error).splitlines()[0]
    given = None
    if error.parent_node is not None and OmegaConf.is_config(error.parent_node) and error.key is not None:
        given = OmegaConf.to_container(cast(DictConfig, error.parent_node), resolve=False)[error.key]  # type: ignore[index]
    where = f"{error.full_key}={given}" if given is not None else error.full_key or str(error.value or "")
    hint = r"${ begins an interpolation; where the text itself is meant, write \${"
    return f"{where}: expected a value that can be resolved ({why}); {hint}"


def no_such_field(path: str, schema: Any) -> str:
    """Message for a key that a dataclass does not have."""
    return f"{path}: no such field; the fields are {', '.join(entry.name for entry in fields(schema))}"
