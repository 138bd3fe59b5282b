"""What every configuration group is."""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from omegaconf import MISSING

from gptbench.architecture import MAX_NAME
from gptbench.base.errors import ConfigError

MOVED_TARGETS = {f"gptbench.measure.{name}": f"gptbench.task.{name}" for name in ("Speed", "Quality", "Kernels")}
"""`_target_` of earlier versions, in files and records, to what it is called now."""


S = TypeVar("S", bound="Section")


@dataclass(kw_only=True)
class Section:
    """One configuration group. `_target_` names the class that the section builds; only `TARGETS` are accepted."""

    GROUP: ClassVar[str] = ""
    TARGETS: ClassVar[tuple[str, ...]] = ()

    _target_: str = MISSING
    name: str = MISSING
    """Short name, used in tables, run names and baselines."""

    def __post_init__(self) -> None:
        self._target_ = MOVED_TARGETS.get(self._target_, self._target_)
        if self._target_ not in self.TARGETS:
            raise self.error("_target_", self.TARGETS)
        if not is_name(self.name):
            raise ConfigError(f"{self.GROUP}.name", self.name[:MAX_NAME], NAME_EXPECTED)
        self.check()

    @classmethod
    def named(cls: type[S], name: str, **values: Any) -> S:
        """The section of the first of its targets, with the values that its fields have unless they are given."""
        return cls(_target_=cls.TARGETS[0], name=name, **values)

    def check(self) -> None:
        """Raises ConfigError where a value is out of range."""

    def error(self, name: str, expected: Any) -> ConfigError:
        return ConfigError(f"{self.GROUP}.{name}", getattr(self, name), expected)

    def within(self, low: float, high: int, *names: str) -> None:
        self.at_least(low, *names)
        for name in names:
            if (value := getattr(self, name)) is not None and value > high:
                raise self.error(name, f"a number of at most {high}")

    def at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= low:  # `not >=` also refuses NaN
                raise self.error(name, f"a number of at least {low}")


NAME_EXPECTED = f"a name of 1 to {MAX_NAME} printable characters without slashes, and no dot first"


def is_name(name: str) -> bool:
    """Whether a name can be a part of a file's name, whatever the file system."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not name.startswith(".") and not set("/\\") & set(name)
