"""The `quant` group: how the weights are stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptbench.base.errors import ConfigError
from gptbench.config.device import Dtype
from gptbench.config.model import ModelConfig
from gptbench.config.section import Section


@dataclass(frozen=True)
class FormatLimits:
    """What a format of weights asks of a run: known before torch, and with it the format itself, is imported."""

    multiple: int = 1
    """The number of columns of each matrix must be a multiple of it."""
    float16: str | None = None
    """Why activations cannot be float16, or None if they can."""
    fused: bool = True
    """Whether it has the device functions that engine=fused needs."""
    bits: float | None = None
    """Bits that a weight takes in a model of 16-bit numbers, scales included, in a matrix of 4096 columns; None where
    that is not known before the format is imported."""

    def unsupported_reason(self, widths: Iterable[tuple[str, int]]) -> str | None:
        """What would have to be different for matrices of these columns, each with its name, or None if nothing."""
        for name, width in widths:
            if width % self.multiple:
                return f"a model whose {name} is a multiple of {self.multiple} (it is {width})"
        return None


UNQUANTISED, INT8 = "gptbench.quant.Unquantised", "gptbench.quant.Int8"


def any_keys() -> Any:
    """No entries, to which a command line may add some: elsewhere OmegaConf refuses keys that no schema has."""
    return DictConfig({}, flags={"struct": False})


@dataclass(kw_only=True)
class QuantConfig(Section):
    """How the weights are stored. `_target_` is a `gptbench.quant.WeightFormat`; the fields of a subclass are settings
    of its formats."""

    GROUP: ClassVar[str] = "quant"
    TARGETS: ClassVar[tuple[str, ...]] = (UNQUANTISED, INT8)
    LIMITS: ClassVar[dict[str, FormatLimits]] = {
        UNQUANTISED: FormatLimits(bits=16),
        # A row is a whole number of the widest loads, which are 16 bytes.
        INT8: FormatLimits(
            multiple=16, bits=8 + 16 / 4096, float16="sums of unscaled products may pass float16's 65504"
        ),
    }
    """What each of the targets asks."""

    weights: dict[str, Any] = field(default_factory=any_keys)
    """Formats of single matrices that have another than the section's own: a pattern of their names, such as `lm_head`,
    `embedding`, `layers.*.feed_forward.*` or `layers.0.attention.wqkv`, to a format's name, or to `{name: NAME,
    SETTING: VALUE}`. `*` stands for any characters. Of several patterns that match a matrix the last counts. Without a
    pattern, an embedding that is not the head's matrix, too, has the model's type; routers always have."""

    @classmethod
    def add(cls, target: str, limits: FormatLimits) -> None:
        """Lists a format of a plugin's, whose section this class is."""
        cls.TARGETS = tuple(dict.fromkeys((*(cls.TARGETS if cls is QuantConfig else ()), target)))
        cls.LIMITS[target] = limits

    def check(self) -> None:
        if not isinstance(self.weights, Mapping):
            raise self.error("weights", "patterns and formats, such as {lm_head: none}")
        self.weights = dict(self.weights)
        for pattern, given in self.weights.items():
            section_of(f"quant.weights.{pattern}", given)

    @property
    def limits(self) -> FormatLimits:
        return self.LIMITS[self._target_]

    @property
    def by_pattern(self) -> dict[str, "QuantConfig"]:
        """The section of each pattern's format, in order."""
        return {pattern: section_of(f"quant.weights.{pattern}", given) for pattern, given in self.weights.items()}

    @property
    def formats(self) -> list["QuantConfig"]:
        """The sections of all formats that a model may have: its own, and those of patterns."""
        return [self, *self.by_pattern.values()]

    @property
    def settings(self) -> dict[str, Any]:
        """What can be set of the format itself, and its values."""
        shared = {entry.name for entry in fields(QuantConfig)}
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in shared}

    @property
    def full_name(self) -> str:
        """Its name, and the formats of patterns: `int8 (lm_head=none)`."""
        return full_name(self.name, self.weights)

    def unsupported_reason(self, model: ModelConfig, dtype: "Dtype") -> str | None:
        """What would have to be different for a model to be stored in this way, or None if nothing. Where formats
        differ, each matrix is held against its own once it is known which it has: see `gptbench.model.linear`."""
        if dtype is Dtype.float16:
            for section in self.formats:
                if section.limits.float16 is not None:
                    return f"device.dtype=bfloat16 or float32: {section.limits.float16}"
        if self.weights:
            return None
        attended = model.n_heads * model.head_dim
        return self.limits.unsupported_reason(
            [("dim", model.dim), ("ffn_dim", model.ffn_dim), ("n_heads·head_dim", attended)]
        )


FORMATS: dict[str, QuantConfig] = {
    "none": QuantConfig(_target_=UNQUANTISED, name="none"),
    "int8": QuantConfig(_target_=INT8, name="int8"),
}
"""The section of each format, by the name that selects it, with the settings that it has unless they are given."""


def section_of(place: str, given: Any) -> QuantConfig:
    """The section for a format's name, or for its name with settings. Raises ConfigError."""
    name, settings = parts_of(given)
    if not isinstance(name, str) or name not in FORMATS:
        raise ConfigError(place, given, f"one of {', '.join(FORMATS)}, or {{name: NAME, SETTING: VALUE}}")
    section = FORMATS[name]
    for key, value in settings.items():
        if key not in section.settings:
            known = ", ".join(section.settings) or "none"
            raise ConfigError(f"{place}.{key}", value, f"no such setting; those of {name} are: {known}")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), settings))
    except OmegaConfBaseException as error:
        raise ConfigError(place, given, f"other values ({str(error).splitlines()[0]})") from error
    assert isinstance(made, QuantConfig)
    return made


def parts_of(given: Any) -> tuple[Any, dict[str, Any]]:
    """Name and settings of what stands behind a pattern."""
    if not isinstance(given, Mapping):
        return given, {}
    return given.get("name"), {str(key): value for key, value in given.items() if key != "name"}


def weights_text(weights: Mapping[str, Any]) -> str:
    """`quant.weights` in one line, in its order, on which the model depends: `lm_head=none, *.w2=int4 group=64`."""
    told = []
    for pattern, given in weights.items():
        name, settings = parts_of(given)
        told.append(" ".join([f"{pattern}={name}", *(f"{key}={settings[key]}" for key in sorted(settings))]))
    return ", ".join(told)


def full_name(name: str, weights: Mapping[str, Any]) -> str:
    """Of a way to store weights, and of the patterns that have another."""
    return f"{name} ({weights_text(weights)})" if weights else name


def recorded_limits(section: Mapping[str, Any]) -> list[FormatLimits | None]:
    """Of the formats of a section as it was recorded; None for one of a plugin that is not there."""
    named = (FORMATS.get(str(parts_of(given)[0])) for given in (section.get("weights") or {}).values())
    own = QuantConfig.LIMITS.get(str(section.get("_target_")))
    return [own, *(None if each is None else each.limits for each in named)]
