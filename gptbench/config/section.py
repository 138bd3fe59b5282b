"""The base class of every configuration group."""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from omegaconf import MISSING

from gptbench.architecture import MAX_NAME
from gptbench.base.errors import ConfigError

MOVED_TARGETS = {f"gptbench.measure.{name}": f"gptbench.task.{name}" for name in ("Speed", "Quality", "Kernels")}
"""`_target_` values of earlier versions, in files and records, mapped to their current names."""


S = TypeVar("S", bound="Section")


@dataclass(kw_only=True)
class Section:
    """One configuration group. `_target_` names the class that the group builds; only those in `TARGETS` are
    accepted."""

    GROUP: ClassVar[str] = ""
    TARGETS: ClassVar[tuple[str, ...]] = ()

    _target_: str = MISSING
    name: str = MISSING
    """Short name of the chosen option, used in tables, run names and baselines."""

    def __post_init__(self) -> None:
        self._target_ = MOVED_TARGETS.get(self._target_, self._target_)
        if self._target_ not in self.TARGETS:
            raise self.error("_target_", self.TARGETS)
        if not is_name(self.name):
            raise ConfigError(f"{self.GROUP}.name", self.name[:MAX_NAME], NAME_EXPECTED)
        self.check()

    @classmethod
    def named(cls: type[S], name: str, **values: Any) -> S:
        """Return a section for the first of `TARGETS`, whose fields have their defaults unless `values` sets them."""
        return cls(_target_=cls.TARGETS[0], name=name, **values)

    def check(self) -> None:
        """Raises ConfigError if a value is out of range."""

    def error(self, name: str, expected: Any) -> ConfigError:
        """Return the error for the value of a field; `expected` says what it could hold."""
        return ConfigError(f"{self.GROUP}.{name}", getattr(self, name), expected)

    def within(self, low: float, high: int, *names: str) -> None:
        """Raises ConfigError if one of the named fields is neither null nor from `low` to `high`."""
        self.at_least(low, *names)
        for name in names:
            if (value := getattr(self, name)) is not None and value > high:
                raise self.error(name, f"a number of at most {high}")

    def at_least(self, low: float, *names: str) -> None:
        """Raises ConfigError if one of the named fields is neither null nor at least `low`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= low:  # `not >=` also refuses NaN
                raise self.error(name, f"a number of at least {low}")


NAME_EXPECTED = f"a name of 1 to {MAX_NAME} printable characters without slashes, not starting with a dot"


def is_name(name: str) -> bool:
    """Whether a name can be part of a file's name on any file system."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not name.startswith(".") and not set("/\\") & set(name)
