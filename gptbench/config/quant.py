"""The `quant` group: the format in which the weights are stored."""

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
    """What a weight format requires of a run; known before torch, and with it the format, is imported."""

    multiple: int = 1
    """Number of which every matrix's column count must be a multiple."""
    float16: str | None = None
    """Reason why activations cannot be float16, or None if they can."""
    fused: bool = True
    """Whether the format has the device functions that engine=fused needs."""
    bits: float | None = None
    """Number of bits per weight, scales included, in a matrix of 4096 columns of a model with 16-bit activations; None
    if it is unknown before the format is imported."""

    def unsupported_reason(self, widths: Iterable[tuple[str, int]]) -> str | None:
        """Return what would have to change for matrices to be stored in this format, or None if nothing.

        Args:
            widths: name and number of columns of each matrix.
        """
        for name, width in widths:
            if width % self.multiple:
                return f"a model whose {name} is a multiple of {self.multiple} (it is {width})"
        return None


UNQUANTISED, INT8 = "gptbench.quant.Unquantised", "gptbench.quant.Int8"


def any_keys() -> Any:
    """Return an empty mapping to which a command line may add any key; OmegaConf otherwise refuses keys that no schema
    has."""
    return DictConfig({}, flags={"struct": False})


@dataclass(kw_only=True)
class QuantConfig(Section):
    """Format in which the weights are stored, for the whole model or for single matrices.

    `_target_` names a `gptbench.quant.WeightFormat`; the fields that a subclass adds are settings of its formats.
    """

    GROUP: ClassVar[str] = "quant"
    TARGETS: ClassVar[tuple[str, ...]] = (UNQUANTISED, INT8)
    LIMITS: ClassVar[dict[str, FormatLimits]] = {
        UNQUANTISED: FormatLimits(bits=16),
        # A row is a whole number of the widest loads, which are 16 bytes.
        INT8: FormatLimits(
            multiple=16, bits=8 + 16 / 4096, float16="sums of unscaled products may pass float16's 65504"
        ),
    }
    """Targets mapped to the limits of their formats."""

    weights: dict[str, Any] = field(default_factory=any_keys)
    """Formats of matrices that differ from the rest of the model: a pattern of matrix names (such as `lm_head`,
    `embedding`, `layers.*.feed_forward.*` or `layers.0.attention.wqkv`, in which `*` stands for any characters) mapped
    to a format's name or to `{name: NAME, SETTING: VALUE}`. If several patterns match a matrix, the last one counts. An
    embedding that is not tied to the head keeps the model's type unless a pattern matches it; routers always keep
    it."""

    @classmethod
    def add(cls, target: str, limits: FormatLimits) -> None:
        """Adds a plugin's format, whose section is of this class."""
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
        """Return the section of each pattern's format, in order."""
        return {pattern: section_of(f"quant.weights.{pattern}", given) for pattern, given in self.weights.items()}

    @property
    def formats(self) -> list["QuantConfig"]:
        """Return the sections of all formats that the model may use: this one, and those of the patterns."""
        return [self, *self.by_pattern.values()]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the format's settings (the fields that a subclass adds) and their values."""
        shared = {entry.name for entry in fields(QuantConfig)}
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in shared}

    @property
    def full_name(self) -> str:
        """Return the name with the formats of the patterns: `int8 (lm_head=none)`."""
        return full_name(self.name, self.weights)

    def unsupported_reason(self, model: ModelConfig, dtype: "Dtype") -> str | None:
        """Return what would have to change for a model to be stored in this way, or None if nothing.

        With patterns, each matrix is checked against its format later, when it is known (see `gptbench.model.linear`).
        """
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
"""Names that select a format, mapped to its section with default settings."""


def section_of(place: str, given: Any) -> QuantConfig:
    """Return the section for a format's name, or for its name with settings.

    Args:
        place: dotted field, for an error.

    Raises:
        ConfigError: there is no such format or setting, or a setting has a value that it cannot have.
    """
    name, settings = parts_of(given)
    if not isinstance(name, str) or name not in FORMATS:
        raise ConfigError(place, given, f"one of {', '.join(FORMATS)}, or {{name: NAME, SETTING: VALUE}}")
    section = FORMATS[name]
    for key, value in settings.items():
        if key not in section.settings:
            known = ", ".join(section.settings) or "none"
            raise ConfigError(f"{place}.{key}", value, f"a setting of {name} (its settings are: {known})")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), settings))
    except OmegaConfBaseException as error:
        raise ConfigError(place, given, f"settings with valid values ({str(error).splitlines()[0]})") from error
    assert isinstance(made, QuantConfig)
    return made


def parts_of(given: Any) -> tuple[Any, dict[str, Any]]:
    """Return the name and the settings of the format that a pattern is mapped to."""
    if not isinstance(given, Mapping):
        return given, {}
    return given.get("name"), {str(key): value for key, value in given.items() if key != "name"}


def weights_text(weights: Mapping[str, Any]) -> str:
    """Return `quant.weights` in one line: `lm_head=none, *.w2=int4 group=64`. The order is kept, as the model depends
    on it."""
    texts = []
    for pattern, given in weights.items():
        name, settings = parts_of(given)
        texts.append(" ".join([f"{pattern}={name}", *(f"{key}={settings[key]}" for key in sorted(settings))]))
    return ", ".join(texts)


def full_name(name: str, weights: Mapping[str, Any]) -> str:
    """Return the name of a format with the patterns that have another one: `int8 (lm_head=none)`."""
    return f"{name} ({weights_text(weights)})" if weights else name


def recorded_limits(section: Mapping[str, Any]) -> list[FormatLimits | None]:
    """Return the limits of the formats in a recorded section; None for a format of a plugin that is not loaded."""
    named = (FORMATS.get(str(parts_of(given)[0])) for given in (section.get("weights") or {}).values())
    default = QuantConfig.LIMITS.get(str(section.get("_target_")))
    return [default, *(None if format_section is None else format_section.limits for format_section in named)]
